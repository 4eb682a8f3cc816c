//! What a pod becomes: a pod that Kubernetes takes becomes one that Kubernetes takes, nothing of its own is changed, the
//! second injection changes nothing, its class of service stays, and the two containers that it gets understand what they
//! are told: the init container's arguments are a plan of these ports and users, the proxy's environment a configuration.

mod pod;
mod valid;

use self::pod::Described;
use arbitrary::{Arbitrary, Unstructured};
use remora_injector::{
    annotations::{INJECT, Settings},
    config::InjectorConfig,
    decide::{
        Decision, END_ENTITY_VOLUME, INIT, Owner, PROXY, Plan, Skip, Subject, Surroundings, TOKEN_VOLUME,
        XTABLES_VOLUME, decide, decide_by_hand,
    },
    init::flags,
    patch::patch,
    pod::{Pod, Quality},
    values::Ports,
};
use remora_proxy::config::Config;
use remora_runtime::env::Env;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A pod as JSON, if it begins as an object; the description of one otherwise.
pub fn inject(data: &[u8]) {
    if data.first() == Some(&b'{') {
        let Ok(manifest) = serde_json::from_slice::<Value>(data) else { return };
        let mut around = Surroundings::default();
        around.annotations.insert(INJECT.to_owned(), "enabled".to_owned());
        Case { manifest, around, owner: None, gateway: None, config: config(), by_hand: false, prefix: "" }
            .holds();
    } else if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.case().holds();
    }
}

fn config() -> InjectorConfig {
    InjectorConfig {
        trust_anchors_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        ..InjectorConfig::default()
    }
}

/// A pod and what decides about it.
struct Case {
    manifest: Value,
    around: Surroundings,
    owner: Option<Owner>,
    gateway: Option<&'static str>,
    config: InjectorConfig,
    by_hand: bool,
    prefix: &'static str,
}

impl Case {
    fn decide(&self, pod: &Pod) -> Decision {
        let subject = self.subject(pod);
        if self.by_hand { decide_by_hand(&subject, &self.config) } else { decide(&subject, &self.config) }
    }

    fn subject<'a>(&'a self, pod: &'a Pod) -> Subject<'a> {
        Subject {
            pod,
            namespace: "shop",
            surroundings: &self.around,
            owner: self.owner.as_ref(),
            gateway: self.gateway,
        }
    }

    fn holds(&self) {
        let Ok(pod) = Pod::read(&self.manifest) else { return };
        // Kubernetes knows no pod without containers, and a patch cannot add to a list that is not there.
        if pod.spec.containers.is_empty() {
            return;
        }
        let plan = match self.decide(&pod) {
            Decision::Inject(plan) => plan,
            Decision::Skip(_) => return,
            Decision::Refuse(refusals) => return assert!(!refusals.is_empty(), "refused without a reason"),
        };
        assert_ne!(
            self.manifest.pointer("/spec/hostNetwork"),
            Some(&json!(true)),
            "the node would be redirected"
        );
        let after = self.patched(&pod, &plan);
        let shown = || format!("{}\nbecomes {after}", self.manifest);
        let again = Pod::read(&after).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        assert_eq!(self.decide(&again), Decision::Skip(Skip::SidecarExists), "{}", shown());
        assert_eq!(
            without_ours(&after),
            without_ours(&self.manifest),
            "its own parts were changed: {}",
            shown()
        );
        if valid::mistakes(&self.manifest).is_empty() {
            let mistakes = valid::mistakes(&after);
            assert!(mistakes.is_empty(), "{mistakes:?}: {}", shown());
            keeps_its_quality(&pod, &again, &plan.settings);
        }
        self.init_understands(&after, &plan.settings);
        proxy_understands(&after, &plan.settings);
    }

    fn patched(&self, pod: &Pod, plan: &Plan) -> Value {
        let subject = self.subject(pod);
        let operations = patch(&subject, plan, &self.config, self.prefix);
        assert_eq!(patch(&subject, plan, &self.config, self.prefix), operations);
        let mut object = match self.prefix {
            "" => self.manifest.clone(),
            _ => json!({ "kind": "Deployment", "spec": { "template": self.manifest } }),
        };
        if let Err(error) = operations.apply(&mut object) {
            panic!("{error}: {:?} of {}", operations.operations, self.manifest);
        }
        object.pointer(self.prefix).cloned().unwrap_or_default()
    }

    /// The uid of the proxy is spared and no other; its ports are where traffic goes; what is to be skipped is.
    fn init_understands(&self, after: &Value, settings: &Settings) {
        let init = container(after, INIT);
        let strings = |field: &str| -> Vec<String> {
            let list = init.get(field).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let arguments = strings("args");
        let read = match flags::parse(arguments.clone()) {
            Ok(read) => read,
            Err(stop) => panic!("{stop:?}: {arguments:?}"),
        };
        let plan = read.plan;
        assert_eq!(
            (plan.incoming_proxy_port, plan.outgoing_proxy_port),
            (settings.ports.inbound, settings.ports.outbound)
        );
        assert_eq!(plan.proxy_uid.map(u32::from), Some(settings.uid));
        assert_eq!(plan.proxy_gid.map(u32::from), settings.gid);
        assert_eq!(plan.subnets_to_ignore, settings.skip_subnets);
        assert_eq!(plan.ipv6, !self.config.disable_ipv6);
        let own = [settings.ports.control, settings.ports.admin];
        for port in [1, 80, 4190, 4191, 4567, 8080, u16::MAX].into_iter().chain(own) {
            let ignored = |ranges: &[remora_injector::redirect::PortRange]| {
                ranges.iter().any(|range| range.contains(port))
            };
            let inbound = own.contains(&port) || settings.skip_inbound.contains(port);
            assert_eq!(ignored(&plan.inbound_ports_to_ignore), inbound, "{port}: {arguments:?}");
            assert_eq!(
                ignored(&plan.outbound_ports_to_ignore),
                settings.skip_outbound.contains(port),
                "{port}: {arguments:?}"
            );
        }
        assert!(plan.ports_to_redirect.is_empty());
        assert_eq!(read.close_wait_seconds.map(u64::from), settings.close_wait.map(|wait| wait.as_secs()));
    }
}

/// As a kubelet starts it, with references expanded.
fn proxy_understands(after: &Value, settings: &Settings) {
    // Whoever adds variables may break what he adds to.
    if !settings.additional_env.is_empty() {
        return;
    }
    let proxy = container(after, PROXY);
    let mut vars: BTreeMap<String, String> = BTreeMap::new();
    for variable in proxy.get("env").and_then(Value::as_array).into_iter().flatten() {
        let name = variable.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let value = match variable.get("value").and_then(Value::as_str) {
            Some(value) => expanded(value, &vars),
            None => match variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
                Some("status.podIP" | "status.podIPs") => "10.42.0.7".to_owned(),
                Some(_) => "some-name".to_owned(),
                None => panic!("{variable} has no value"),
            },
        };
        assert!(vars.insert(name, value).is_none(), "set twice: {variable}");
    }
    let read = match Config::from_env(Env::from_pairs(vars.clone())) {
        Ok(read) => read,
        Err(mistakes) => panic!("the proxy does not start: {mistakes}"),
    };
    assert_eq!(read.inbound.listen.port(), settings.ports.inbound);
    assert_eq!(read.admin.listen.port(), settings.ports.admin);
    assert!(read.outbound.listen.iter().all(|listen| listen.port() == settings.ports.outbound));
    assert_eq!(read.inbound.default_policy.as_str(), settings.default_inbound_policy);
    assert_eq!(read.inbound.connect_timeout, settings.inbound_connect_timeout);
    assert_eq!(read.outbound.connect_timeout, settings.outbound_connect_timeout);
    assert_eq!(read.admin.shutdown_endpoint, settings.shutdown_endpoint);
    assert_eq!(read.ingress_mode, settings.ingress);
    if let Some(grace) = settings.shutdown_grace {
        assert_eq!(read.shutdown_grace, grace);
    }
    if let Some(Ports(ports)) = &settings.opaque {
        let opaque: BTreeSet<u16> = ports.iter().flat_map(|range| range.first..=range.last).collect();
        assert_eq!(read.inbound.opaque_ports, opaque);
    }
}

/// `$(NAME)` of a variable before this one; anything else stays. Kubernetes' rule.
fn expanded(value: &str, before: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let mut rest = value;
    while let Some((head, tail)) = rest.split_once('$') {
        text.push_str(head);
        if let Some(tail) = tail.strip_prefix('$') {
            text.push('$');
            rest = tail;
            continue;
        }
        let name = tail.strip_prefix('(').and_then(|tail| tail.split_once(')'));
        if let Some((found, tail)) = name.and_then(|(name, tail)| Some((before.get(name)?, tail))) {
            text.push_str(found);
            rest = tail;
        } else {
            text.push('$');
            rest = tail;
        }
    }
    text + rest
}

fn containers<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).into_iter().flatten()
}

fn name(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn container<'a>(pod: &'a Value, wanted: &str) -> &'a Value {
    let mut found = containers(pod, "initContainers")
        .chain(containers(pod, "containers"))
        .filter(|one| name(one) == wanted);
    match (found.next(), found.next()) {
        (Some(one), None) => one,
        (one, other) => panic!("{one:?} and {other:?} are {wanted}"),
    }
}

/// The pod without what injection adds, and without what is there and empty.
fn without_ours(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for (list, ours) in [
        ("/spec/containers", &[PROXY, INIT][..]),
        ("/spec/initContainers", &[PROXY, INIT]),
        ("/spec/volumes", &[END_ENTITY_VOLUME, TOKEN_VOLUME, XTABLES_VOLUME]),
    ] {
        if let Some(list) = pod.pointer_mut(list).and_then(Value::as_array_mut) {
            list.retain(|one| !ours.contains(&name(one)));
        }
    }
    for map in ["/metadata/annotations", "/metadata/labels"] {
        if let Some(map) = pod.pointer_mut(map).and_then(Value::as_object_mut) {
            // Names of the mesh: those that are set, and those copied from the namespace.
            map.retain(|name, _| !name.contains("linkerd.io/"));
        }
    }
    pruned(pod)
}

fn pruned(value: Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().map(|(name, value)| (name, pruned(value)));
            Value::Object(kept.filter(|(_, value)| !is_empty(value)).collect::<Map<_, _>>())
        }
        other => other,
    }
}

/// Injection never changes the class, but where annotations ask for resources a BestEffort pod has none.
fn keeps_its_quality(before: &Pod, after: &Pod, settings: &Settings) {
    let asked = settings.resources.requests.len() + settings.resources.limits.len() > 0;
    match before.quality() {
        Quality::BestEffort if asked => {}
        quality => assert_eq!(after.quality(), quality, "{:?}", settings.resources),
    }
}
