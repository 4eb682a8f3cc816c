//! Where it is measured: a mesh, and a pair of pods for every lane, made from the manifests in `bench/`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::generate::{Target, until_answered};
use super::loads::{HTTP2_PORTS, Load, SMALL};
use super::machine::{Cores, children, cpu_micros, pin_process, resident_kib};
use super::routes;
use super::verdict::Lane;
use crate::mesh::Authority;
use crate::node::PodRef;
use crate::sandbox::in_net;
use crate::world::{Name, config_map, kind, name, parse, secret};
use crate::{Mesh, Options};

/// The namespace of all lanes.
const NAMESPACE: &str = "bench";
const SITE: &str = include_str!("../../../bench/site.yaml");
const PAIR: &str = include_str!("../../../bench/pair.yaml");
const ENVOY_SIDECAR: &str = include_str!("../../../bench/envoy-sidecar.yaml");
const ENVOY_CLIENT: &str = include_str!("../../../bench/envoy-client.yaml");
const ENVOY_SERVER: &str = include_str!("../../../bench/envoy-server.yaml");

/// Annotations of proxies that run under callgrind, and therefore fifty times slower.
const SLOW: [(&str, &str); 3] = [
    ("proxy-image", "remora/callgrind"),
    ("proxy-outbound-connect-timeout", "30s"),
    ("proxy-inbound-connect-timeout", "30s"),
];

/// Envoy's admin port in `bench/envoy-*.yaml`.
const ENVOY_ADMIN: u16 = 4191;

/// The container that sets the redirect rules, as the injector names it.
const INIT: &str = "linkerd-init";
/// How long a lane may take to be ready, and then to answer on every port.
const READY: Duration = Duration::from_mins(1);
const ANSWERS: Duration = Duration::from_secs(30);
/// What every network has in every lane: a thousand connections a second leave no ports and no entries behind.
const SYSCTLS: &str = "\
    cd /proc/sys/net
    echo '10000 65535' > ipv4/ip_local_port_range
    for file in netfilter/nf_conntrack_tcp_timeout_time_wait netfilter/nf_conntrack_tcp_timeout_close_wait; do
        if [ -w $file ]; then echo 5 > $file; fi
    done";

/// The mesh, and what of it lanes are made from.
pub struct Stage {
    mesh: Mesh,
    cores: Cores,
    /// The init container that the injector wrote, and the volumes that it mounts.
    init: Option<Value>,
}

/// The two pods of a lane.
pub struct Pair<'a> {
    pub lane: Lane,
    pub client: PodRef<'a>,
    pub server: PodRef<'a>,
    service: IpAddr,
    changing: IpAddr,
}

impl Stage {
    /// Starts the control plane.
    pub fn set(options: Options, cores: Cores) -> Result<Self> {
        let mesh = Mesh::start_with(options, &json!({})).context("starting the control plane")?;
        mesh.apply(SITE).context("bench/site.yaml")?;
        for (role, config) in [("client", envoy_client()), ("server", envoy_server())] {
            let objects = vec![
                config_map(&of(&format!("envoy-{role}")), &[("envoy.yaml", &config)]),
                envoy_tls(mesh.root(), role)?,
            ];
            mesh.apply_objects(objects)?;
        }
        in_network(mesh.pid())?;
        Ok(Self { mesh, cores, init: None })
    }

    /// Starts a lane's pods, pins its proxies, and waits until nginx answers through them on every port.
    pub fn start(&mut self, lane: Lane) -> Result<()> {
        let mut objects = manifests(lane)?;
        if lane == Lane::Envoy {
            let init = self
                .init
                .clone()
                .context("Envoy takes its rules from a lane with Remora, which is started first")?;
            objects = objects.into_iter().map(|object| with_envoy(object, &init)).collect::<Result<_>>()?;
        }
        let what = || format!("starting lane {}", lane.name());
        if !matches!(lane, Lane::Direct | Lane::Envoy) {
            // Before the pods: they start with the policies of their ports.
            self.apply(routes::objects(lane)).with_context(what)?;
        }
        self.mesh.apply_objects(objects).with_context(what)?;
        self.mesh.wait_ready(READY).with_context(what)?;
        let pair = self.pair(lane)?;
        for pod in [&pair.client, &pair.server] {
            in_network(pod.sandbox()?)?;
        }
        for proxy in pair.proxies()? {
            pin_process(proxy, self.cores.proxies)?;
        }
        if lane == Lane::Remora {
            let pod = serde_json::to_value(pair.client.object())?;
            let containers = pod.pointer("/spec/initContainers").and_then(Value::as_array);
            let init = containers
                .into_iter()
                .flatten()
                .find(|container| container.get("name") == Some(&json!(INIT)));
            self.init = Some(init.context("the injector added no init container")?.clone());
        }
        Ok(())
    }

    /// Waits until every pod is ready, as after a restart of a container.
    pub fn ready(&self) -> Result<()> {
        self.mesh.wait_ready(READY)
    }

    /// Waits until `holds`.
    pub fn wait_until(&self, what: &str, limit: Duration, holds: impl FnMut() -> bool) -> Result<()> {
        self.mesh.wait_until(what, limit, holds)
    }

    /// What TLS the server's Envoy negotiated, by its own count: version, suite, group, sessions resumed.
    pub fn negotiated(&self) -> Result<String> {
        let (_, stats) = self.pair(Lane::Envoy)?.server.http_get(ENVOY_ADMIN, "/stats?filter=ssl")?;
        Ok(tls_facts(&stats))
    }

    /// Ends a lane's pods.
    pub fn end(&self, lane: Lane) -> Result<()> {
        for pod in ["client", "server"] {
            self.mesh.delete(&of(&format!("{pod}-{}", lane.name())), None)?;
        }
        Ok(())
    }

    /// Waits until nginx answers what each load asks for, but for large answers.
    pub fn answers(&self, lane: Lane, loads: &[Load]) -> Result<()> {
        let pair = self.pair(lane)?;
        for load in loads {
            let path = if load.body == SMALL { load.path } else { "/small" };
            let target = pair.target(load.port, path, SMALL);
            until_answered(&pair.client, &target, HTTP2_PORTS.contains(&load.port), ANSWERS)
                .with_context(|| format!("lane {}\n{}", lane.name(), self.mesh.describe()))?;
        }
        Ok(())
    }

    /// Applies objects to the control plane.
    pub fn apply(&self, objects: Vec<Value>) -> Result<()> {
        self.mesh.apply_objects(objects).map(drop)
    }

    /// The pods of a lane.
    pub fn pair(&self, lane: Lane) -> Result<Pair<'_>> {
        let name = lane.name();
        Ok(Pair {
            lane,
            client: self.mesh.pod(NAMESPACE, &format!("client-{name}"))?,
            server: self.mesh.pod(NAMESPACE, &format!("server-{name}"))?,
            service: self.service(&format!("server-{name}"))?,
            changing: self.service(&format!("changing-{name}"))?,
        })
    }

    fn service(&self, name: &str) -> Result<IpAddr> {
        let service = self.mesh.object("Service", NAMESPACE, name);
        let service = service.with_context(|| format!("Service {name}: its lane was not started"))?;
        let ip = service.pointer("/spec/clusterIP").and_then(Value::as_str);
        ip.context("the Service has no ClusterIP")?.parse().context("the ClusterIP")
    }

    /// What every pod does and said last, for whoever has to find out why something failed.
    pub fn describe(&self) -> String {
        self.mesh.describe()
    }
}

impl Pair<'_> {
    /// A request to this lane's server.
    pub fn target(&self, port: u16, path: &'static str, body: u64) -> Target {
        let host = format!("server-{}.{NAMESPACE}:{port}", self.lane.name());
        Target { addr: SocketAddr::new(self.service, port), host, path, body }
    }

    /// A request to the Service of this lane's server whose routes change.
    pub fn changing_target(&self) -> Target {
        let port = routes::CHANGING;
        let host = format!("changing-{}.{NAMESPACE}:{port}", self.lane.name());
        Target { addr: SocketAddr::new(self.changing, port), host, path: routes::PATH, body: SMALL }
    }

    /// The processes of both proxies, the client's first; none in the lane without.
    pub fn proxies(&self) -> Result<Vec<i32>> {
        let container = match self.lane {
            Lane::Direct => return Ok(Vec::new()),
            Lane::Envoy => "envoy",
            Lane::Remora | Lane::Again | Lane::Counted => "linkerd-proxy",
        };
        let pid = |pod: &PodRef<'_>| {
            pod.pid(container).with_context(|| format!("the proxy of {} does not run", pod.name))
        };
        Ok(vec![pid(&self.client)?, pid(&self.server)?])
    }

    /// Microseconds that each proxy has run.
    pub fn cpu(&self) -> Result<[f64; 2]> {
        self.of_both(cpu_micros)
    }

    /// Microseconds that whoever makes the load and nginx have run: this very process, and nginx with its worker.
    pub fn load_cpu(&self) -> Result<f64> {
        let nginx = self
            .server
            .pid("nginx")
            .with_context(|| format!("nginx of {} does not run", self.server.name))?;
        let own = i32::try_from(std::process::id())?;
        std::iter::once(own).chain([nginx]).chain(children(nginx)).map(cpu_micros).sum()
    }

    /// Resident memory of each proxy in KiB.
    pub fn memory(&self) -> Result<[f64; 2]> {
        self.of_both(resident_kib)
    }

    fn of_both(&self, look: impl Fn(i32) -> Result<f64>) -> Result<[f64; 2]> {
        let seen = self.proxies()?.into_iter().map(look).collect::<Result<Vec<f64>>>()?;
        Ok(<[f64; 2]>::try_from(seen).unwrap_or_default())
    }
}

/// JSON is YAML.
fn envoy_client() -> String {
    let routes = |cluster: &str| routes::in_envoy(cluster).to_string();
    ENVOY_CLIENT
        .replace("ROUTES_TO_http_routed", &routes("http_routed"))
        .replace("ROUTES_TO_http2_routed", &routes("http2_routed"))
}

fn envoy_server() -> String {
    ENVOY_SERVER.replace("AUTHORIZATIONS", &routes::rbac().to_string())
}

fn of(name: &str) -> Name {
    Name::new(NAMESPACE, name)
}

fn manifests(lane: Lane) -> Result<Vec<Value>> {
    let inject = if matches!(lane, Lane::Direct | Lane::Envoy) { "disabled" } else { "enabled" };
    let pair = PAIR.replace("LANE", lane.name()).replace("INJECT", inject);
    let mut objects = parse(&pair).context("bench/pair.yaml")?;
    for pod in objects.iter_mut().filter(|object| lane == Lane::Counted && kind(object) == "Pod") {
        let annotations = pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
        let annotations = annotations.context("pods have annotations")?;
        annotations.extend(SLOW.map(|(key, value)| (format!("config.linkerd.io/{key}"), value.into())));
    }
    Ok(objects)
}

/// A pod with Envoy beside its containers; other objects as they are.
fn with_envoy(mut object: Value, init: &Value) -> Result<Value> {
    if kind(&object) != "Pod" {
        return Ok(object);
    }
    let role = if name(&object).name.starts_with("client") { "client" } else { "server" };
    let sidecar: Value =
        serde_norway::from_str(&ENVOY_SIDECAR.replace("ROLE", role)).context("bench/envoy-sidecar.yaml")?;
    let added = |field: &str| sidecar.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let spec = object.get_mut("spec").and_then(Value::as_object_mut).context("a pod has a spec")?;
    let own = |spec: &serde_json::Map<String, Value>, field: &str| {
        spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let init_containers: Vec<Value> = std::iter::once(init.clone())
        .chain(added("initContainers"))
        .chain(own(spec, "initContainers"))
        .collect();
    let volumes: Vec<Value> = own(spec, "volumes").into_iter().chain(added("volumes")).collect();
    spec.insert("initContainers".to_owned(), init_containers.into());
    spec.insert("volumes".to_owned(), volumes.into());
    Ok(object)
}

/// Key, certificates and root for Envoy: a P-256 leaf below an intermediate, as `remora-identity` issues them.
fn envoy_tls(root: &Authority, role: &str) -> Result<Value> {
    let issuer = root.intermediate("identity.linkerd.cluster.local")?;
    let identity = format!("{role}-envoy.{NAMESPACE}.serviceaccount.identity.remora.cluster.local");
    let (leaf, key) = issuer.leaf(&identity)?;
    let chain = format!("{leaf}{}", issuer.pem);
    let files =
        [("chain.pem", chain.as_bytes()), ("key.pem", key.as_bytes()), ("root.pem", root.pem.as_bytes())];
    Ok(secret(&of(&format!("envoy-{role}-tls")), &files))
}

/// `version TLSv1.3 4, …` from Envoy's lines `listener.0.0.0.0_4143.ssl.versions.TLSv1.3: 4`, for what is not zero.
fn tls_facts(stats: &str) -> String {
    let facts = stats.lines().filter_map(|line| {
        let (name, count) = line.rsplit_once(": ")?;
        let (_, fact) = name.split_once(".ssl.")?;
        let fact = match fact.split_once('.') {
            Some(("versions" | "ciphers" | "curves", value)) => value,
            None if matches!(fact, "handshake" | "session_reused") => fact,
            _ => return None,
        };
        (count != "0").then(|| format!("{fact} {count}"))
    });
    facts.collect::<Vec<_>>().join(", ")
}

fn in_network(process: i32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(in_net(process, &["sh"], SYSCTLS))
        .map(drop)
        .context("preparing a network for many connections")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_the_same_pods_but_for_what_carries_them() {
        let without = |lane: Lane| -> Vec<String> {
            let objects = manifests(lane).unwrap();
            objects.iter().map(|object| object.to_string().replace(lane.name(), "LANE")).collect()
        };
        assert_eq!(without(Lane::Remora), without(Lane::Again));
        let uninjected: Vec<String> =
            without(Lane::Remora).iter().map(|object| object.replace("enabled", "disabled")).collect();
        assert_eq!(without(Lane::Direct), uninjected);
        assert_eq!(without(Lane::Envoy), uninjected);
    }

    #[test]
    fn what_envoy_negotiated_is_read_from_its_statistics() {
        let stats = "listener.0.0.0.0_4143.ssl.ciphers.TLS_AES_128_GCM_SHA256: 9\n\
                     listener.0.0.0.0_4143.ssl.connection_error: 0\n\
                     listener.0.0.0.0_4143.ssl.curves.X25519MLKEM768: 9\n\
                     listener.0.0.0.0_4143.ssl.handshake: 9\nlistener.0.0.0.0_4143.ssl.session_reused: 0\n\
                     listener.0.0.0.0_4143.ssl.versions.TLSv1.3: 9\n";
        assert_eq!(tls_facts(stats), "TLS_AES_128_GCM_SHA256 9, X25519MLKEM768 9, handshake 9, TLSv1.3 9");
    }

    #[test]
    fn envoy_starts_after_the_rules_and_before_everything_else() {
        let init = json!({"name": INIT, "args": ["--proxy-uid", "2102"]});
        for object in manifests(Lane::Envoy).unwrap() {
            let before = object.clone();
            let after = with_envoy(object, &init).unwrap();
            if kind(&before) != "Pod" {
                assert_eq!(after, before);
                continue;
            }
            let names: Vec<&str> = after["spec"]["initContainers"]
                .as_array()
                .unwrap()
                .iter()
                .map(|container| container["name"].as_str().unwrap())
                .collect();
            assert_eq!(names.get(..2), Some(&[INIT, "envoy"][..]));
            assert_eq!(after["spec"]["initContainers"][0], init);
            assert_eq!(after["spec"]["containers"], before["spec"]["containers"]);
            assert!(after.to_string().contains("-tls\""), "{after}");
        }
    }
}
