//! Liveness, readiness and startup probes, sent from the node's address as a kubelet sends them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ExecAction, HTTPGetAction, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::services::{named_port, pod_ips};

/// Bytes of an answer to a probe that are read at most.
const ANSWER_BYTES: usize = 8 << 20;

/// What a probe or a lifecycle hook does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Exec(ExecAction),
    Http(HTTPGetAction),
    Tcp(IntOrString),
    Sleep(Duration),
}

/// When to probe, and how many answers count. Kubernetes's defaults where the manifest is silent.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub action: Action,
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub failures: u32,
    pub successes: u32,
}

impl Schedule {
    /// # Errors
    /// A kind of probe that the harness does not have (gRPC, HTTPS).
    pub fn of(probe: &Probe) -> Result<Self> {
        let action = if let Some(exec) = &probe.exec {
            Action::Exec(exec.clone())
        } else if let Some(get) = &probe.http_get {
            http(get)?
        } else if let Some(tcp) = &probe.tcp_socket {
            Action::Tcp(tcp.port.clone())
        } else {
            bail!("the harness has exec, httpGet and tcpSocket probes, and this is none of them");
        };
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(number(value, default).into());
        Ok(Self {
            action,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: number(probe.failure_threshold, 3),
            successes: number(probe.success_threshold, 1),
        })
    }
}

/// What a `postStart` or `preStop` hook does.
pub fn hook(handler: &LifecycleHandler) -> Result<Action> {
    if let Some(exec) = &handler.exec {
        Ok(Action::Exec(exec.clone()))
    } else if let Some(get) = &handler.http_get {
        http(get)
    } else if let Some(sleep) = &handler.sleep {
        Ok(Action::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))))
    } else {
        bail!("the harness has exec, httpGet and sleep hooks, and this is none of them")
    }
}

fn http(get: &HTTPGetAction) -> Result<Action> {
    if get.scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
        bail!("the harness has httpGet only with scheme HTTP");
    }
    Ok(Action::Http(get.clone()))
}

/// A port given by number, or by the name of one of the pod's container ports.
pub fn port(pod: &Pod, port: &IntOrString) -> Result<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).with_context(|| format!("{number} is not a port")),
        IntOrString::String(name) => named_port(pod, name)
            .or_else(|| name.parse().ok())
            .with_context(|| format!("the pod has no port {name}")),
    }
}

/// Connects to the pod. The calling thread is in the node's network namespace.
pub async fn tcp(pod: &Pod, to: &IntOrString) -> Result<TcpStream> {
    let ip = pod_ips(pod).first().copied().context("the pod has no address yet")?;
    let address = SocketAddr::new(ip, port(pod, to)?);
    TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))
}

/// Sends a GET; anything from 200 to 399 is a success.
pub async fn http_get(pod: &Pod, get: &HTTPGetAction) -> Result<()> {
    let ip: IpAddr = match get.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => host.parse().with_context(|| format!("host {host} of a probe is not an address"))?,
        None => pod_ips(pod).first().copied().context("the pod has no address yet")?,
    };
    let address = SocketAddr::new(ip, port(pod, &get.port)?);
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let mut request =
        http::Request::get(path).header("user-agent", "kube-probe/1.34").header("accept", "*/*");
    let mut host = address.to_string();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let (status, body) = exchange(address, request.header("host", host).body(Empty::new())?).await?;
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    bail!("http://{address}{path} answered {status}: {}", body.chars().take(200).collect::<String>())
}

/// One HTTP/1.1 request on a connection of its own, from the network namespace of the calling thread.
pub async fn exchange(
    address: SocketAddr,
    request: http::Request<Empty<Bytes>>,
) -> Result<(http::StatusCode, String)> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error)).context("reading the answer")?;
        anyhow::Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        // Whatever ends the connection, the request knows better what it means.
        _ = connection => asking.await,
    }
    .with_context(|| format!("asking {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_silent_manifest_means_the_defaults_of_kubernetes() {
        let schedule = schedule(json!({"tcpSocket": {"port": 80}})).unwrap();
        assert_eq!(schedule.period, Duration::from_secs(10));
        assert_eq!(schedule.timeout, Duration::from_secs(1));
        assert_eq!((schedule.failures, schedule.successes), (3, 1));
        assert_eq!(schedule.initial_delay, Duration::ZERO);
    }

    #[test]
    fn a_probe_that_the_harness_does_not_have_is_refused() {
        assert!(schedule(json!({"grpc": {"port": 80}})).is_err());
        assert!(schedule(json!({"httpGet": {"port": 80, "scheme": "HTTPS"}})).is_err());
    }

    #[test]
    fn a_port_may_have_a_name() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [], "initContainers": [{"name": "s", "ports": [{"name": "admin", "containerPort": 4191}]}]
        }}))
        .unwrap();
        assert_eq!(port(&pod, &IntOrString::String("admin".into())).unwrap(), 4191);
        assert!(port(&pod, &IntOrString::String("none".into())).is_err());
    }

    fn schedule(probe: serde_json::Value) -> Result<Schedule> {
        Schedule::of(&serde_json::from_value(probe).unwrap())
    }
}
