//! Where the story plays: a mesh, and the manifests of `demo/` applied to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::tell::Teller;
use crate::metrics::Samples;
use crate::{Mesh, Options, PodRef, shop};

/// The manifests, in the order in which they are applied and told.
pub const FILES: [(&str, &str); 10] = [
    ("demo/namespace.yaml", include_str!("../../../demo/namespace.yaml")),
    ("demo/web.yaml", include_str!("../../../demo/web.yaml")),
    ("demo/grpc.yaml", include_str!("../../../demo/grpc.yaml")),
    ("demo/redis.yaml", include_str!("../../../demo/redis.yaml")),
    ("demo/kitchen.yaml", include_str!("../../../demo/kitchen.yaml")),
    ("demo/greeter.yaml", include_str!("../../../demo/greeter.yaml")),
    ("demo/gateway.yaml", include_str!("../../../demo/gateway.yaml")),
    ("demo/client.yaml", include_str!("../../../demo/client.yaml")),
    ("demo/unmeshed.yaml", include_str!("../../../demo/unmeshed.yaml")),
    ("demo/outside.yaml", include_str!("../../../demo/outside.yaml")),
];

/// The shortest life that our CA issues: certificates are renewed every 21 seconds instead of every 17 hours.
const LIFETIME: &str = "--issuance-lifetime=30s";
/// Every process here has the same clock. What is allowed for skew would lengthen the life.
const SKEW: &str = "--clock-skew-allowance=1s";
/// How long the pods may take to be ready.
const READY: Duration = Duration::from_secs(40);
/// How long a new manifest may take until every proxy goes by it.
const HELD: Duration = Duration::from_secs(15);
/// How long what has happened may take to be counted.
const COUNTED: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// The mesh with everything on it, ready.
pub struct Stage {
    pub mesh: Mesh,
}

impl Stage {
    /// Starts the control plane, applies every manifest, and waits until all is ready.
    ///
    /// # Errors
    /// Where this machine cannot run it, or something did not become ready: with what each process said last.
    pub fn set(teller: &Teller) -> Result<Self> {
        let args = [LIFETIME, SKEW].map(|arg| ("remora-identity", arg.to_owned()));
        let options = Options { control_plane_args: args.to_vec(), ..Options::default() };
        let mesh = teller.wait("starting the control plane", || {
            Mesh::start_with(options, &serde_json::json!({})).context("starting the control plane")
        })?;
        teller.wait("starting the pods", || {
            for (file, yaml) in FILES {
                mesh.apply(yaml).with_context(|| format!("applying {file}"))?;
            }
            mesh.wait_ready(READY).context("starting the pods")
        })?;
        Ok(Self { mesh })
    }

    /// A pod of the shop.
    pub fn pod(&self, name: &str) -> Result<PodRef<'_>> {
        self.mesh.pod(shop::SHOP, name)
    }

    /// The pods of a Deployment of the shop.
    pub fn replicas(&self, app: &str) -> Vec<PodRef<'_>> {
        self.mesh.pods(shop::SHOP, "app", app)
    }

    /// Waits until what was applied is seen to hold.
    ///
    /// # Errors
    /// It does not within 15 seconds, or looking failed all the time.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut failed = None;
        let waited = self.mesh.wait_until(what, HELD, || match holds() {
            Ok(holds) => holds,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        match (waited, failed) {
            (Ok(()), _) => Ok(()),
            // Not with what every process said last: the story goes on.
            (Err(_), None) => bail!("waited {HELD:?} in vain until {what}"),
            (Err(_), Some(error)) => Err(error.context(format!("waiting until {what}"))),
        }
    }

    /// Where a Service of the shop is reached.
    pub fn service(&self, name: &str, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(shop::cluster_ip(&self.mesh, name)?, port))
    }
}

/// By how much the series of `name` with these labels have grown since `before`, over all proxies. Waits until that is
/// `at_least` so much, or for a while.
pub fn grown(
    pods: &[PodRef<'_>],
    before: &[Samples],
    name: &str,
    labels: &[(&str, &str)],
    at_least: f64,
) -> Result<f64> {
    let deadline = Instant::now() + COUNTED;
    loop {
        let mut growth = 0.0;
        for (pod, before) in pods.iter().zip(before) {
            let now = pod.metrics()?;
            growth += now.sum(name, labels).unwrap_or(0.0) - before.sum(name, labels).unwrap_or(0.0);
        }
        if growth >= at_least || Instant::now() > deadline {
            return Ok(growth);
        }
        std::thread::sleep(LOOK);
    }
}

/// The metrics of each pod's proxy now.
pub fn counted(pods: &[PodRef<'_>]) -> Result<Vec<Samples>> {
    pods.iter().map(PodRef::metrics).collect()
}

/// `name{key="value",…}`, as it stands in `/metrics`.
pub fn series(name: &str, labels: &[(&str, &str)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    format!("{name}{{{}}}", labels.join(","))
}
