//! What the process says: filter, format and the way out. Filters are tracing's, in Linkerd's spelling or ours.
//!
//! Lines go to standard output, as Linkerd's proxy writes them (contract 1.13 `LOG`, `LOG_FORMAT`). A reader that is
//! slow or gone never stops the process: what cannot be written at once is dropped and counted ([`dropped`]).

use std::{
    fmt::{self, Write as _},
    io,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, layer::SubscriberExt, reload};

use crate::env::parse::Invalid;

/// The longest filter that is accepted, in bytes.
pub const MAX_FILTER: usize = 1024;

/// The shape of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.trim() {
            "plain" => Ok(Self::Plain),
            "json" => Ok(Self::Json),
            other => Err(Invalid::new(format!("{other:?} is no log format"), "plain or json")),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is wrong.
    #[error("log filter: {0}")]
    Filter(#[from] InvalidFilter),
    /// Somebody was first.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFilter {
    /// Longer than [`MAX_FILTER`].
    #[error("longer than {MAX_FILTER} bytes")]
    TooLong,
    /// Not in tracing's syntax.
    #[error("{0}; expected directives such as `info` or `warn,remora=debug`")]
    Syntax(String),
    /// The process does not log any more.
    #[error("nothing is listening to this filter any more")]
    Gone,
}

impl From<InvalidFilter> for Invalid {
    fn from(invalid: InvalidFilter) -> Self {
        let wrong = match invalid {
            InvalidFilter::Syntax(wrong) => wrong,
            other => other.to_string(),
        };
        Self::new(wrong, "a tracing filter such as warn,remora=info")
    }
}

/// Reads and replaces the filter of a running process. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    text: Arc<Mutex<String>>,
    apply: Arc<dyn Fn(EnvFilter) -> Result<(), InvalidFilter> + Send + Sync>,
}

impl LogHandle {
    /// A handle to a filter that no line passes through: for processes and tests without a log.
    pub fn detached(filter: &str) -> Result<Self, InvalidFilter> {
        compile(filter)?;
        Ok(Self { text: Arc::new(Mutex::new(filter.to_owned())), apply: Arc::new(|_| Ok(())) })
    }

    /// The filter in force, as it was written.
    pub fn filter(&self) -> String {
        self.lock().clone()
    }

    /// Replaces the filter; a wrong one changes nothing.
    pub fn set_filter(&self, filter: &str) -> Result<(), InvalidFilter> {
        let compiled = compile(filter)?;
        let mut text = self.lock();
        (self.apply)(compiled)?;
        filter.clone_into(&mut text);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle").field("filter", &self.filter()).finish()
    }
}

/// Sets up the log of this process: once, before anything is said.
pub fn init(filter: &str, format: Format) -> Result<LogHandle, InitError> {
    let (subscriber, handle) = build(filter, format, || Stdout)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| InitError::AlreadySet)?;
    Ok(handle)
}

/// Is this a filter? For reading configuration.
pub fn check(filter: &str) -> Result<String, InvalidFilter> {
    compile(filter).map(|_| filter.to_owned())
}

/// How many times a line was lost or cut because standard output took no more.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Whose lines Linkerd's targets mean in this process, the longer prefix first. Filter targets match by prefix, so
/// `remora` covers every crate of ours.
const TARGETS: [(&str, &str); 6] = [
    ("linkerd_app_inbound", "remora_proxy::inbound"),
    ("linkerd_app_outbound", "remora_proxy::outbound"),
    ("linkerd_proxy_identity_client", "remora_runtime::certify"),
    ("linkerd_meshtls", "remora_runtime::tls"),
    ("linkerd2_proxy", "remora"),
    ("linkerd", "remora"),
];

/// Renames Linkerd's targets in a filter to ours; everything else stays as it is. Of two directives that become the
/// same one the later counts, as tracing has it.
fn translate(filter: &str) -> String {
    let mut out = String::with_capacity(filter.len());
    for (i, directive) in filter.split(',').enumerate() {
        if i > 0 {
            out.push(',');
        }
        let directive = directive.trim();
        let end = directive.find(['=', '[']).unwrap_or(directive.len());
        let (target, rest) = directive.split_at(end);
        let ours =
            TARGETS.iter().find(|(theirs, _)| target.starts_with(theirs)).map_or(target, |(_, ours)| ours);
        // Writing to a String cannot fail.
        let _ = write!(out, "{ours}{rest}");
    }
    out
}

fn compile(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    if filter.len() > MAX_FILTER {
        return Err(InvalidFilter::TooLong);
    }
    // Without regular expressions: `PUT /proxy-log-level` must not be a way to spend CPU.
    let builder = EnvFilter::builder().with_regex(false).with_default_directive(LevelFilter::ERROR.into());
    builder.parse(translate(filter)).map_err(|error| InvalidFilter::Syntax(error.to_string()))
}

fn build<W>(
    filter: &str,
    format: Format,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, LogHandle), InvalidFilter>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (layer, reload) = reload::Layer::new(compile(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    let handle = LogHandle {
        text: Arc::new(Mutex::new(filter.to_owned())),
        apply: Arc::new(move |filter| reload.reload(filter).map_err(|_| InvalidFilter::Gone)),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let subscriber: Box<dyn Subscriber + Send + Sync> = match format {
        Format::Plain => Box::new(registry.with(lines)),
        Format::Json => Box::new(registry.with(lines.json().with_current_span(false).with_span_list(true))),
    };
    Ok((subscriber, handle))
}

/// Standard output that never blocks and never fails.
struct Stdout;

/// What a pipe takes at once when poll calls it writable (`PIPE_BUF` of Linux).
const CHUNK: usize = 4096;

impl io::Write for Stdout {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // One writer at a time, else another could fill the pipe between poll and write. Remembers whether the last
        // line was cut, so that the next one begins on its own line.
        static CUT: Mutex<bool> = Mutex::new(false);
        let mut cut = CUT.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = (!*cut || put(b"\n")) && line.chunks(CHUNK).all(put);
        if !whole {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        *cut = !whole;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes` to standard output if it can be done without waiting.
fn put(mut bytes: &[u8]) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    while !bytes.is_empty() {
        let stdout = rustix::stdio::stdout();
        let mut ready = [PollFd::new(&stdout, PollFlags::OUT)];
        if !matches!(poll(&mut ready, Some(&now)), Ok(1)) {
            return false;
        }
        match rustix::io::write(stdout, bytes) {
            Ok(written) if written > 0 => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linkerds_targets_become_ours() {
        for (theirs, ours) in [
            ("warn,linkerd=info,hickory=error", "warn,remora=info,hickory=error"),
            ("linkerd2_proxy=debug", "remora=debug"),
            ("linkerd_app_inbound::policy=trace", "remora_proxy::inbound=trace"),
            ("linkerd_app_outbound=trace, info", "remora_proxy::outbound=trace,info"),
            ("linkerd[{client.addr=10.0.0.1}]=debug", "remora[{client.addr=10.0.0.1}]=debug"),
            ("remora_proxy=debug,h2=warn", "remora_proxy=debug,h2=warn"),
            ("info", "info"),
            ("", ""),
        ] {
            assert_eq!(translate(theirs), ours, "{theirs:?}");
        }
    }

    #[test]
    fn wrong_filters_are_refused_with_a_reason() {
        assert!(matches!(check("warn,remora=loud"), Err(InvalidFilter::Syntax(_))));
        assert!(matches!(check("remora[=info"), Err(InvalidFilter::Syntax(_))));
        assert_eq!(check(&"a".repeat(MAX_FILTER + 1)), Err(InvalidFilter::TooLong));
        // As the chart writes it (logLevel and logHTTPHeaders).
        let chart = "warn,linkerd=info,hickory=error,[{headers}]=off,[{request}]=off";
        assert_eq!(check(chart).as_deref(), Ok(chart));
    }

    #[test]
    fn a_filter_of_linkerds_selects_our_lines() {
        let out = said("warn,linkerd=info,hickory=error", Format::Plain, |_| {
            tracing::info!(target: "remora_proxy::inbound", "accepted");
            tracing::debug!(target: "remora_proxy::inbound", "too quiet");
            tracing::info!(target: "h2::codec", "not ours");
            tracing::warn!(target: "hickory_resolver", "not bad enough");
        });
        assert!(out.contains("accepted"), "{out}");
        assert_eq!(out.lines().count(), 1, "{out}");
    }

    #[test]
    fn a_new_filter_counts_at_once_and_a_wrong_one_changes_nothing() {
        let out = said("warn", Format::Plain, |log| {
            tracing::info!("one");
            log.set_filter("info").unwrap();
            tracing::info!("two");
            assert!(log.set_filter("info=nonsense").is_err());
            assert_eq!(log.filter(), "info");
            tracing::info!("three");
        });
        assert!(!out.contains("one") && out.contains("two") && out.contains("three"), "{out}");
    }

    #[test]
    fn json_lines_are_json() {
        let out = said("info", Format::Json, |_| {
            let span = tracing::info_span!("inbound", port = 80);
            let _in = span.enter();
            tracing::info!(client = "10.0.0.1", "a \"quoted\" word");
        });
        let line: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
        assert_eq!(line["fields"]["message"], "a \"quoted\" word");
        assert_eq!(line["fields"]["client"], "10.0.0.1");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["spans"][0]["port"], 80);
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("plain".parse(), Ok(Format::Plain));
        assert!("xml".parse::<Format>().is_err());
    }

    fn said(filter: &str, format: Format, say: impl FnOnce(&LogHandle)) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let (subscriber, handle) = build(filter, format, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || say(&handle));
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
