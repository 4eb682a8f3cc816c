//! The access log of the inbound side: one line per request on standard error, when the response's head is there.
//! Contract 4.11.
//!
//! Lines go through a bounded queue to a thread of their own: a reader that does not keep up costs lines, which are
//! counted, and never a request.

use crate::config::AccessLog;
use http::{HeaderMap, HeaderName, Request, Response, header};
use remora_runtime::metrics::Counter;
use serde_json::json;
use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::mpsc::{self, SyncSender},
    time::{Duration, SystemTime},
};

/// Lines that wait to be written.
const QUEUE: usize = 1024;
/// Headers that may carry a trace's name, the first that is there wins.
const TRACE_IDS: [HeaderName; 3] = [
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-amzn-trace-id"),
];

/// Writes lines of one format.
pub struct Writer {
    format: AccessLog,
    lines: SyncSender<String>,
    dropped: Counter,
}

/// What the line says of a request, taken before the request is sent on.
#[derive(Clone, Debug)]
pub struct Entry {
    client: SocketAddr,
    client_id: String,
    method: String,
    uri: String,
    version: String,
    host: String,
    user_agent: String,
    trace_id: String,
    request_bytes: String,
}

impl Writer {
    /// Starts the thread that writes.
    pub fn start(format: AccessLog, dropped: Counter) -> io::Result<Self> {
        let (lines, queue) = mpsc::sync_channel::<String>(QUEUE);
        let lost = dropped.clone();
        let writing = move || {
            for line in queue {
                // Standard error is gone, or its disk is full: nobody is left to tell.
                if io::stderr().write_all(line.as_bytes()).is_err() {
                    lost.inc();
                }
            }
        };
        std::thread::Builder::new().name("access-log".into()).spawn(writing)?;
        Ok(Self { format, lines, dropped })
    }

    /// Writes the line of an answered request. `unix` is the time since 1970, `total` since the request's head.
    pub fn write<B>(&self, entry: &Entry, response: &Response<B>, unix: Duration, total: Duration) {
        let line = match self.format {
            AccessLog::Apache => entry.apache(response, unix),
            AccessLog::Json => entry.json(response, unix, total),
        };
        if self.lines.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

impl Entry {
    pub fn of<B>(request: &Request<B>, client: SocketAddr, client_id: Option<&str>) -> Self {
        let headers = request.headers();
        let host = text(headers, &header::HOST);
        Self {
            client,
            client_id: client_id.unwrap_or("-").to_owned(),
            method: request.method().to_string(),
            uri: request.uri().to_string(),
            version: format!("{:?}", request.version()),
            host: if host.is_empty() { request.uri().host().unwrap_or_default().to_owned() } else { host },
            user_agent: text(headers, &header::USER_AGENT),
            trace_id: TRACE_IDS
                .iter()
                .map(|name| text(headers, name))
                .find(|id| !id.is_empty())
                .unwrap_or_default(),
            request_bytes: text(headers, &header::CONTENT_LENGTH),
        }
    }

    fn apache<B>(&self, response: &Response<B>, unix: Duration) -> String {
        // Escaped as JSON strings are: a request target cannot forge a second line.
        let request = json!(format!("{} {} {}", self.method, self.uri, self.version));
        format!(
            "{} {} - [{}] {request} {}\n",
            self.client,
            self.client_id,
            rfc3339(unix),
            response.status().as_u16()
        )
    }

    fn json<B>(&self, response: &Response<B>, unix: Duration, total: Duration) -> String {
        let nanos = u64::try_from(total.as_nanos()).unwrap_or(u64::MAX);
        let line = json!({
            "client.addr": self.client.to_string(),
            "client.id": self.client_id,
            "host": self.host,
            "method": self.method,
            "request_bytes": self.request_bytes,
            "response_bytes": text(response.headers(), &header::CONTENT_LENGTH),
            "status": response.status().as_u16(),
            "timestamp": rfc3339(unix).to_string(),
            "total_ns": nanos,
            "trace_id": self.trace_id,
            "uri": self.uri,
            "user_agent": self.user_agent,
            "version": self.version,
        });
        format!("{line}\n")
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

/// Time since 1970 as RFC 3339 has it, in UTC.
fn rfc3339(unix: Duration) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + unix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_client_the_request_and_the_status() {
        let line = entry().apache(&Response::new(()), Duration::from_secs(1));
        assert_eq!(line, "10.0.0.1:5 web.ns - [1970-01-01T00:00:01.000Z] \"GET /a HTTP/1.1\" 200\n");
    }

    #[test]
    fn a_json_line_can_be_read_back() {
        let line = entry().json(&Response::new(()), Duration::from_secs(1), Duration::from_micros(5));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["client.id"], "web.ns");
        assert_eq!(value["total_ns"], 5000);
        assert_eq!(value["trace_id"], "abc");
    }

    fn entry() -> Entry {
        let request = Request::builder().uri("/a").header("x-request-id", "abc").body(()).unwrap();
        Entry::of(&request, ([10, 0, 0, 1], 5).into(), Some("web.ns"))
    }
}
