//! Pods that ask, and pods that serve: who they are, what of them is drawn, and the same as manifests.

use super::{Dice, document};

/// Pods that ask: namespace, account, address, whether they have a proxy.
pub(crate) const CLIENTS: [(&str, &str, &str, bool); 6] = [
    ("shop", "till", "10.1.0.9", true),
    ("shop", STRICT, "10.1.0.10", true),
    ("shop", GATE, "10.1.0.11", true),
    ("shop", NEW, "10.1.0.12", true),
    ("bank", "clerk", "10.2.0.9", true),
    ("shop", "old", "10.1.0.8", false),
];
/// The account that demands mTLS of everybody, where that is not drawn.
pub(crate) const STRICT: &str = "strict";
/// The account of a gateway, where that is not drawn.
pub(crate) const GATE: &str = "gate";
/// The account that has no pod yet. Its address is told with a request.
pub(crate) const NEW: &str = "new";

/// The server without a proxy.
pub(crate) const PLAIN: &str = "plain";
/// The Service that has one pod with a proxy, and one without.
pub(crate) const MIXED: &str = "mixed";
/// The Service without a selector: others' pods, and an address outside of the cluster.
pub(crate) const OUTER: &str = "outer";
/// What there is not.
pub(crate) const GONE: &str = "gone";

/// Pods that serve: namespace, `app`, addresses. `none` has none.
pub(crate) const SERVERS: [(&str, &str, &[&str]); 6] = [
    ("shop", PLAIN, &["10.1.0.4"]),
    ("shop", "web", &["10.1.0.1", "10.1.0.2"]),
    ("shop", "v2", &["10.1.0.3", "10.1.0.5"]),
    ("shop", MIXED, &["10.1.0.6", "10.1.0.7"]),
    ("shop", "none", &[]),
    ("bank", "safe", &["10.2.0.1"]),
];
/// Those of them that never have a proxy.
const BARE: [&str; 2] = ["10.1.0.4", "10.1.0.7"];
/// Those behind [`OUTER`], perhaps. The last one is nobody's here.
const BEHIND_OUTER: [&str; 4] = ["10.1.0.1", "10.1.0.4", "10.1.0.7", "192.0.2.1"];

/// The header by which a gateway's request names a Service.
pub(crate) const OVERRIDE: &str = "l5d-dst-override";
/// The header by which a request says who has to answer it.
pub(crate) const REQUIRE: &str = "l5d-require-id";
/// Whom requests require by it.
pub(crate) const REQUIRED: [&str; 2] = [
    "mixed.shop.serviceaccount.identity.remora.cluster.local",
    "web.shop.serviceaccount.identity.remora.cluster.local",
];
/// What requests name by it.
pub(crate) const NAMED: [&str; 17] = [
    "web.shop.svc.cluster.local:8080",
    "v2.shop.svc.cluster.local:8080",
    "v2.shop.svc.cluster.local:8080",
    "v2.shop.svc.cluster.local:8080",
    "V2.Shop.svc.Cluster.local.:8080",
    "mixed.shop.svc.cluster.local:8080",
    "mixed.shop.svc.cluster.local:8080",
    "outer.shop.svc.cluster.local:8080",
    "plain.shop.svc.cluster.local:8080",
    "none.shop.svc.cluster.local:8080",
    "safe.bank.svc.cluster.local:8080",
    // A port that it does not have.
    "v2.shop.svc.cluster.local",
    "gone.shop.svc.cluster.local:8080",
    // No names of Services.
    "v2.shop:8080",
    "v2.shop.svc.example.org:8080",
    "v2.shop.svc.cluster.local:0",
    "10.1.0.3:8080",
];
/// Whom a proxy may reach in plaintext.
pub(crate) const OUTBOUND: [&str; 3] = ["all-unauthenticated", "cluster-authenticated", "all-authenticated"];

/// What of pods is drawn.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// `default-inbound-policy` of pods of `web`.
    pub(crate) inbound_default: Option<&'static str>,
    /// Addresses of servers without a proxy, beside those that never have one.
    bare: Vec<&'static str>,
    /// Addresses of servers that ask for no traffic.
    weightless: Vec<&'static str>,
    /// The endpoints of [`OUTER`].
    outer: Vec<&'static str>,
    /// Of an account's proxy; without one nothing special.
    told: Vec<(&'static str, Told)>,
    /// What a namespace asks of proxies that are yet to start.
    asked: Vec<(&'static str, &'static str)>,
}

/// What a client's proxy was told when it was started, and what its pod asks for by now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// One of [`OUTBOUND`].
    pub(crate) outbound: Option<&'static str>,
    pub(crate) ingress: bool,
    /// One of [`OUTBOUND`], as the pod's annotation has it.
    pub(crate) asked: Option<&'static str>,
}

impl Pods {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let inbound_default = dice.perhaps(3, |dice| {
            dice.one(&[
                "all-authenticated",
                "cluster-unauthenticated",
                "cluster-authenticated",
                "deny",
                "audit",
            ])
        });
        let servers = || SERVERS.iter().flat_map(|(.., ips)| *ips).copied();
        let with = CLIENTS.iter().filter(|(_, account, _, meshed)| *meshed && *account != NEW);
        Self {
            inbound_default,
            bare: servers().filter(|_| dice.rarely(5)).collect(),
            weightless: servers().filter(|_| dice.rarely(6)).collect(),
            outer: BEHIND_OUTER.into_iter().filter(|_| dice.rarely(2)).collect(),
            told: with.map(|(_, account, ..)| (*account, Told::draw(dice))).collect(),
            asked: ["shop", "bank"]
                .into_iter()
                .filter_map(|namespace| Some((namespace, dice.perhaps(3, |dice| dice.one(&OUTBOUND))?)))
                .collect(),
        }
    }

    /// The endpoints of a Service.
    pub(crate) fn behind(&self, service: &str) -> Vec<&'static str> {
        if service == OUTER {
            return self.outer.clone();
        }
        let (.., ips) = SERVERS.iter().find(|(_, app, _)| *app == service).unwrap();
        ips.to_vec()
    }

    /// Does the pod at an address ask for no traffic?
    pub(crate) fn is_weightless(&self, ip: &str) -> bool {
        self.weightless.contains(&ip)
    }

    /// Namespace, label `app` and account of the pod at an address, if it has a proxy.
    pub(crate) fn meshed_at(&self, ip: &str) -> Option<(&'static str, &'static str)> {
        let (namespace, app, _) = SERVERS.iter().find(|(.., ips)| ips.contains(&ip))?;
        (!BARE.contains(&ip) && !self.bare.contains(&ip)).then_some((*namespace, *app))
    }

    /// What the proxy of an account was told, if it has a pod.
    pub(crate) fn told(&self, account: &str) -> Option<Told> {
        let drawn = self.told.iter().find(|(of, _)| *of == account).map(|(_, told)| *told);
        drawn.filter(|_| account != NEW)
    }

    /// What a namespace asks of proxies that are yet to start.
    pub(crate) fn asked(&self, namespace: &str) -> Option<&'static str> {
        self.asked.iter().find(|(of, _)| *of == namespace).map(|(_, asked)| *asked)
    }

    pub(crate) fn yaml(&self) -> String {
        let mut text = String::new();
        for (namespace, asked) in &self.asked {
            text += &document(&format!(
                "apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, annotations: \
                 {{config.linkerd.io/outbound-default-policy: {asked}}}}}"
            ));
        }
        for (at, (namespace, app, ips)) in SERVERS.iter().enumerate() {
            for (nth, ip) in ips.iter().enumerate() {
                let policy = self.inbound_default.filter(|_| *app == "web");
                let policy = policy.map(|policy| ("config.linkerd.io/default-inbound-policy", policy));
                let weight = self.is_weightless(ip).then_some(("balancer.remora.io/weight", "'0'"));
                let env = self.meshed_at(ip).map(|_| String::new());
                let annotations: Vec<(&str, &str)> = policy.into_iter().chain(weight).collect();
                text += &pod((namespace, &format!("{app}-{nth}"), app, ip), env, &annotations);
            }
            text += &service(namespace, app, at + 1, &format!(", selector: {{app: {app}}}"));
        }
        text += &service("shop", OUTER, SERVERS.len() + 1, "");
        text += &slice(&self.outer);
        for (namespace, account, ip, meshed) in CLIENTS.iter().filter(|(_, account, ..)| *account != NEW) {
            let told = self.told(account);
            let env = meshed.then(|| told.map(Told::env).unwrap_or_default());
            let asked = told.and_then(|told| told.asked);
            let asked = asked.map(|asked| ("config.linkerd.io/outbound-default-policy", asked));
            text += &pod((namespace, account, account, ip), env, asked.as_slice());
        }
        text
    }
}

impl Told {
    fn draw(dice: &mut Dice) -> Self {
        Self {
            outbound: dice.perhaps(2, |dice| dice.one(&OUTBOUND)),
            ingress: dice.rarely(3),
            asked: dice.perhaps(4, |dice| dice.one(&OUTBOUND)),
        }
    }

    /// The same as variables of the proxy's container.
    fn env(self) -> String {
        let outbound = self
            .outbound
            .map(|policy| format!(", {{name: REMORA_PROXY_OUTBOUND_DEFAULT_POLICY, value: {policy}}}"));
        let ingress = self.ingress.then_some(", {name: LINKERD2_PROXY_INGRESS_MODE, value: 'true'}");
        outbound.unwrap_or_default() + ingress.unwrap_or_default()
    }
}

fn service(namespace: &str, name: &str, nth: usize, selector: &str) -> String {
    document(&format!(
        "apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{clusterIP: 10.96.0.{nth}\
         {selector}, ports: [{{name: http, port: 8080, targetPort: http}}]}}"
    ))
}

/// The EndpointSlice of [`OUTER`].
fn slice(ips: &[&str]) -> String {
    let endpoint = |ip: &&str| {
        let of = |(namespace, app, all): &(&str, &str, &[&str])| {
            let nth = all.iter().position(|one| one == ip)?;
            Some(format!(", targetRef: {{kind: Pod, name: {app}-{nth}, namespace: {namespace}}}"))
        };
        format!("{{addresses: [{ip}]{}}}", SERVERS.iter().find_map(of).unwrap_or_default())
    };
    let endpoints: Vec<String> = ips.iter().map(endpoint).collect();
    document(&format!(
        "apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {OUTER}-1, namespace: shop, labels: \
         {{kubernetes.io/service-name: {OUTER}}}}}, addressType: IPv4, ports: [{{name: http, port: 8080}}], endpoints: [{}]",
        endpoints.join(", ")
    ))
}

/// `env`: what its proxy is told besides, if it has one.
fn pod(
    (namespace, name, app, ip): (&str, &str, &str, &str),
    env: Option<String>,
    annotations: &[(&str, &str)],
) -> String {
    let (label, proxy) = match env {
        Some(env) => (
            ", linkerd.io/control-plane-ns: remora",
            format!(
                ", {{name: linkerd-proxy, env: [{{name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR, value: '0.0.0.0:4143'}}{env}]}}"
            ),
        ),
        None => ("", String::new()),
    };
    let annotations: Vec<String> =
        annotations.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    document(&format!(
        "apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}{label}}}, annotations: {{{}}}}}, spec: \
         {{serviceAccountName: {app}, containers: [{{name: app, ports: [{{name: http, containerPort: 8080}}]}}{proxy}]}}, status: \
         {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}",
        annotations.join(", ")
    ))
}
