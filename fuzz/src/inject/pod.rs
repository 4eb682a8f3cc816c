//! Pods by their parts: mostly what people write, with the mistakes that they make.

use super::{Case, config};
use arbitrary::Arbitrary;
use remora_injector::{
    annotations::{ANNOTATIONS, INJECT},
    decide::{Owner, Surroundings},
};
use serde_json::{Map, Value, json};

#[derive(Arbitrary, Debug)]
pub(super) struct Described {
    annotations: Vec<(u8, Text)>,
    around: Vec<(u8, Text)>,
    asked: u8,
    containers: Vec<Container>,
    inits: Vec<Container>,
    volumes: Vec<u8>,
    host_network: bool,
    security: (Option<u8>, Option<u8>),
    owner: Option<(u8, u8)>,
    gateway: u8,
    empty_lists: bool,
    flags: u8,
}

#[derive(Arbitrary, Debug)]
struct Container {
    name: u8,
    ports: Vec<(u8, u8)>,
    mounts: Vec<u8>,
    requests: Option<(u8, u8)>,
    limits: Option<(u8, u8)>,
    user: Option<u8>,
    probe: Option<u8>,
}

#[derive(Arbitrary, Debug)]
enum Text {
    Telling(u8),
    Number(u32, u8),
    List(Vec<u8>),
    Raw(Vec<u8>),
}

const NAMES: [&str; 12] = [
    "app",
    "web",
    "migrate",
    "istio-proxy",
    "linkerd-proxy",
    "linkerd-init",
    "data",
    "linkerd-identity-end-entity",
    "a.b",
    "http",
    "cache",
    "x",
];
const AMOUNTS: [&str; 8] = ["1", "100m", "20m", "64Mi", "1Gi", "0", "2", "nonsense"];
const IDS: [i64; 6] = [0, 1000, 2102, 65_534, 3000, 7];
const KINDS: [&str; 5] = ["Deployment", "Job", "CronJob", "ReplicaSet", "Rollout"];
const PORTS: [u32; 10] = [80, 8080, 4143, 4191, 53, 443, 3306, 0, 65_535, 70_000];

fn of<'a>(list: &[&'a str], which: u8) -> &'a str {
    list[usize::from(which) % list.len()]
}

impl Described {
    pub(super) fn case(&self) -> Case {
        let mut around = Surroundings::default();
        around.annotations.extend(annotations(&self.around));
        let asks = ["enabled", "ingress", "disabled", "", "enabled", "enabled"];
        around.annotations.insert(INJECT.to_owned(), of(&asks, self.asked).to_owned());
        let mut config = config();
        config.native_sidecar = self.flags & 1 == 0;
        config.wait_for_proxy = self.flags & 2 == 0;
        config.disable_ipv6 = self.flags & 4 != 0;
        let long = "long-".repeat(20) + "name";
        let owner = self.owner.map(|(kind, name)| Owner {
            kind: of(&KINDS, kind).to_owned(),
            name: if name % 4 == 0 { long } else { of(&NAMES, name).to_owned() },
        });
        let gateways = [None, None, None, Some("enabled"), Some("ingress"), Some("disabled")];
        Case {
            manifest: self.manifest(),
            around,
            owner,
            gateway: gateways[usize::from(self.gateway) % gateways.len()],
            config,
            by_hand: self.flags & 8 != 0,
            prefix: if self.flags & 16 == 0 { "" } else { "/spec/template" },
        }
    }

    fn manifest(&self) -> Value {
        let mut spec = Map::new();
        let mut put = |field: &str, list: Vec<Value>| {
            if !list.is_empty() || self.empty_lists {
                spec.insert(field.to_owned(), Value::Array(list));
            }
        };
        put("containers", self.containers.iter().take(4).map(Container::value).collect());
        put("initContainers", self.inits.iter().take(3).map(Container::value).collect());
        let volume = |which: &u8| json!({ "name": of(&NAMES, *which), "emptyDir": {} });
        put("volumes", self.volumes.iter().take(4).map(volume).collect());
        if self.host_network {
            spec.insert("hostNetwork".to_owned(), json!(true));
        }
        let mut security = Map::new();
        for (field, id) in [("runAsUser", self.security.0), ("runAsGroup", self.security.1)] {
            security.extend(id.map(|id| (field.to_owned(), json!(IDS[usize::from(id) % IDS.len()]))));
        }
        if !security.is_empty() {
            spec.insert("securityContext".to_owned(), Value::Object(security));
        }
        let own: Map<String, Value> =
            annotations(&self.annotations).map(|(name, value)| (name, json!(value))).collect();
        let mut pod = json!({ "spec": spec });
        if !own.is_empty() || self.empty_lists {
            pod["metadata"] = json!({ "annotations": own });
        }
        pod
    }
}

fn annotations(described: &[(u8, Text)]) -> impl Iterator<Item = (String, String)> {
    let all: Vec<&str> = ANNOTATIONS
        .iter()
        .map(|annotation| annotation.name)
        .chain(["example.org/own", "config.linkerd.io/misspelt"])
        .collect();
    described.iter().take(12).map(move |(which, text)| (of(&all, *which).to_owned(), text.text()))
}

impl Container {
    fn value(&self) -> Value {
        let port = |(number, title): &(u8, u8)| {
            let mut port = json!({ "containerPort": PORTS[usize::from(*number) % PORTS.len()] });
            if title % 3 > 0 {
                port["name"] = json!(of(&NAMES, *title));
            }
            if title % 5 == 0 {
                port["protocol"] = json!("UDP");
            }
            port
        };
        let mount = |which: &u8| json!({ "name": of(&NAMES, *which), "mountPath": format!("/mnt/{which}") });
        let amounts =
            |(cpu, memory): (u8, u8)| json!({ "cpu": of(&AMOUNTS, cpu), "memory": of(&AMOUNTS, memory) });
        let mut value = json!({
            "name": of(&NAMES, self.name),
            "image": "app:1",
            "ports": self.ports.iter().take(4).map(port).collect::<Vec<_>>(),
            "volumeMounts": self.mounts.iter().take(3).map(mount).collect::<Vec<_>>(),
        });
        if let Some(requests) = self.requests {
            value["resources"]["requests"] = amounts(requests);
        }
        if let Some(limits) = self.limits {
            value["resources"]["limits"] = amounts(limits);
        }
        if let Some(user) = self.user {
            value["securityContext"] = json!({ "runAsUser": IDS[usize::from(user) % IDS.len()] });
        }
        if let Some(probe) = self.probe {
            let port = if probe % 2 == 0 { json!("http") } else { json!(probe) };
            value["livenessProbe"] = json!({ "httpGet": { "port": port } });
        }
        value
    }
}

impl Text {
    fn text(&self) -> String {
        const TELLING: [&str; 28] = [
            "enabled",
            "disabled",
            "ingress",
            "true",
            "false",
            "80",
            "4143",
            "4190-4191",
            "http,8080",
            "100m",
            "1",
            "2",
            "64Mi",
            "20m",
            "1Gi",
            "0.5",
            "10s",
            "1m30s",
            "10.0.0.0/8,fd00::/8",
            "debug",
            "warn,linkerd=info",
            "=",
            "json",
            "deny",
            "cluster-authenticated",
            "[{\"name\":\"A\",\"value\":\"b\"}]",
            "Never",
            "registry.example/remora/proxy",
        ];
        const UNITS: [&str; 8] = ["", "m", "s", "Mi", "ms", "h", "d", "-70000"];
        match self {
            Self::Telling(which) => of(&TELLING, *which).to_owned(),
            Self::Number(number, unit) => format!("{number}{}", of(&UNITS, *unit)),
            Self::List(items) => items.iter().take(30).map(u8::to_string).collect::<Vec<_>>().join(","),
            Self::Raw(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        }
    }
}
