//! `remora explain` says of random requests and calls under random routes and policies what live proxies do with them. What it says is
//! read from the very directory that the control plane reads.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects"
)]

#[path = "../../explain/tests/agrees/draw.rs"]
#[expect(dead_code, reason = "its pods are of a mesh on paper")]
mod draw;
#[path = "../../explain/tests/agrees/grpc.rs"]
#[expect(dead_code, reason = "what is expected here is what explain says")]
mod grpc;

use draw::{
    Dice, Mesh as Drawn, Request,
    pods::{GATE, MIXED, NEW, OVERRIDE, PLAIN, REQUIRE, STRICT},
};
use remora_tests::node::bin_dir;
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::wire::{address, client, connect, kit, read_until};
use remora_tests::{Mesh, Name, PodRef, check};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

/// Sets of routes and policies, and requests under each.
const ROUNDS: u64 = 12;
const REQUESTS: usize = 24;
/// Sets of routes for calls of gRPC.
const CALL_ROUNDS: u64 = 5;

/// Of pods that reach nobody in plaintext.
const DEMANDING: (&str, &str) = ("config.linkerd.io/outbound-default-policy", "all-authenticated");
/// Of pods without a proxy.
const BARE: (&str, &str) = ("linkerd.io/inject", "disabled");
/// Fields that no proxy takes, beside those that a request has.
const BAD: [(&str, &str); 5] = [
    ("host", "web"),
    ("host", "other"),
    ("transfer-encoding", "gzip"),
    ("content-length", "5, 5"),
    ("content-length", "-1"),
];
const BANK: &str = "
kind: Namespace
apiVersion: v1
metadata: {name: bank, annotations: {linkerd.io/inject: enabled}}
---
";

#[test]
fn live_proxies_do_what_explain_says() {
    if !check::can_run() {
        return;
    }
    let of_bank = |manifest: String| manifest.replace("namespace: shop", "namespace: bank");
    let pods = [
        BANK.to_owned(),
        kit("web", 8080, "http", &[]),
        kit("v2", 8080, "http", &[]),
        of_bank(kit("safe", 8080, "http", &[])),
        shop::service("none", 8080, "8080"),
        kit(PLAIN, 8080, "http", &[BARE]),
        kit(MIXED, 8080, "http", &[]),
        // Behind the same Service.
        kit("bare", 8080, "http", &[BARE]).replace("app: bare", "app: mixed"),
        client("till", &[]),
        client(STRICT, &[DEMANDING]),
        client(GATE, &[("linkerd.io/inject", "ingress"), DEMANDING]),
        of_bank(client("clerk", &[])),
        client("old", &[BARE]),
    ];
    let mut live = Live {
        mesh: shop::open(&pods).unwrap(),
        objects: BTreeSet::new(),
        met: BTreeSet::new(),
        by: BTreeSet::new(),
        kinds: BTreeSet::new(),
    };
    for round in 0..ROUNDS {
        let mut dice = Dice::new(1_000_000 + round);
        let rules = named_port(&Drawn::draw(&mut dice).rules());
        let past = [request_past_somebody(&mut dice), request_past_somebody(&mut dice)];
        let requests = (0..REQUESTS).map(|_| request_of_a_pod(&mut dice)).chain(past);
        let requests: Vec<Asking> = requests.map(|request| Asking::of(&request)).collect();
        live.agree(&rules, &requests);
    }
    for round in 0..CALL_ROUNDS {
        let mut dice = Dice::new(2_000_004 + round);
        let rules = grpc::Routes::draw(&mut dice).yaml();
        let calls: Vec<Asking> = (0..REQUESTS).map(|_| Asking::call(&grpc::Call::draw(&mut dice))).collect();
        live.agree(&rules, &calls);
    }
    // Otherwise nothing was compared.
    for (status, grpc) in
        [(200, None), (301, None), (403, None), (404, None), (500, None), (502, None), (200, Some(5))]
    {
        assert!(live.met.contains(&(status, grpc)), "no {status} {grpc:?} among {:?}", live.met);
    }
    for pod in ["web", "v2", "safe", MIXED, "bare", PLAIN] {
        assert!(live.by.contains(pod), "no answer of {pod} among {:?}", live.by);
    }
    let kinds = [OTHERWISE, PASSED_OVER, RAW, REQUIRING];
    assert_eq!(live.kinds, kinds.into(), "of what was asked");
}

/// Kinds of requests: to the Service that it names, past somebody who may not be reached, one that no proxy takes, and one
/// that says who has to answer.
const OTHERWISE: &str = "by a name";
const PASSED_OVER: &str = "past somebody";
const RAW: &str = "no request";
const REQUIRING: &str = "of somebody";

/// A mesh, what of its objects was drawn, and what was answered: statuses of HTTP and gRPC, by which pods, to which kinds
/// of requests.
struct Live {
    mesh: Mesh,
    objects: BTreeSet<(String, Name)>,
    met: BTreeSet<(u16, Option<u16>)>,
    by: BTreeSet<String>,
    kinds: BTreeSet<&'static str>,
}

impl Live {
    /// Puts these rules in the place of those before, and compares.
    fn agree(&mut self, rules: &str, requests: &[Asking]) {
        let (mesh, now) = (&self.mesh, objects(rules));
        for (kind, name) in self.objects.difference(&now) {
            mesh.delete_object(kind, name).unwrap();
        }
        for document in rules.split("---\n").filter(|document| !document.trim().is_empty()) {
            mesh.update_manifest(document).unwrap();
        }
        let said: Vec<Said> = requests.iter().map(|request| explained(&mesh.manifests(), request)).collect();
        // Until proxies have heard.
        let mut wrong = String::new();
        let agree = || {
            let pairs = requests.iter().zip(&said);
            let differing = pairs.map(|(request, said)| (request, said, asked(mesh, request)));
            let differing: Vec<_> = differing.filter(|(_, said, seen)| !said.allows(seen)).collect();
            wrong = format!("{differing:#?}");
            differing.is_empty()
        };
        let agreed = mesh.wait_until("proxies to do what explain says", PATIENCE, agree);
        assert!(agreed.is_ok(), "{wrong}\n{rules}");
        for (request, said) in requests.iter().zip(&said) {
            let seen = asked(mesh, request);
            assert!(said.allows(&seen), "{request:?}: {said:?}, not {seen:?}\n{rules}");
            self.met.insert((seen.status, seen.grpc));
            self.by.insert(seen.by);
            self.kinds.extend(&said.kinds);
            self.kinds.extend(request.raw.then_some(RAW));
        }
        self.objects = now;
    }
}

/// By a gateway that demands mTLS, to a Service that both kinds of pods are behind.
fn request_past_somebody(dice: &mut Dice) -> Request {
    Request {
        namespace: SHOP,
        account: GATE,
        has_proxy: true,
        spoiled: Vec::new(),
        named: Some("mixed.shop.svc.cluster.local:8080"),
        ..Request::draw(dice)
    }
}

/// Of an account that has a pod.
fn request_of_a_pod(dice: &mut Dice) -> Request {
    loop {
        let request = Request::draw(dice);
        if request.account != NEW {
            return request;
        }
    }
}

/// A request, as curl and explain are told it.
#[derive(Debug)]
struct Asking {
    namespace: &'static str,
    account: &'static str,
    speaks: &'static str,
    method: &'static str,
    path: String,
    /// `<name>: <value>`.
    headers: Vec<String>,
    /// No client of HTTP would send it.
    raw: bool,
}

impl Asking {
    fn of(request: &Request) -> Self {
        // An application may read it as it likes, so it is sent only where a proxy is asked first.
        let raw = !request.http2 && request.has_proxy && request.spoiled.iter().any(|one| BAD.contains(one));
        let spoiled =
            request.spoiled.iter().filter(|one| raw || **one == ("connection", "x") && !request.http2);
        let named = request.named.map(|named| (OVERRIDE, named));
        let required = request.required.map(|identity| (REQUIRE, identity));
        let headers = request.headers.iter().chain(spoiled).chain(&named).chain(&required);
        let headers = headers.map(|(name, value)| format!("{name}: {value}"));
        Self {
            namespace: request.namespace,
            account: request.account,
            speaks: if request.http2 { "http2" } else { "http1" },
            method: request.method,
            path: match request.query {
                Some(query) => format!("{}?{query}", request.path),
                None => request.path.to_owned(),
            },
            headers: std::iter::once(format!("host: {}", request.host)).chain(headers).collect(),
            raw,
        }
    }

    fn call(call: &grpc::Call) -> Self {
        let own = [format!("host: {}", call.host), "content-type: application/grpc".to_owned()];
        let headers = call.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        Self {
            namespace: SHOP,
            account: "till",
            speaks: "grpc",
            method: "POST",
            path: format!("/{}/{}", call.service, call.method),
            headers: own.into_iter().chain(headers).collect(),
            raw: false,
        }
    }
}

/// The pods of this mesh have no named ports.
fn named_port(rules: &str) -> String {
    rules.replace("port: http,", "port: 8080,")
}

/// What is asked for.
const TARGET: &str = "Service shop/web:8080";

/// Kind and name of every document.
fn objects(rules: &str) -> BTreeSet<(String, Name)> {
    let documents = rules.split("---\n").filter(|document| !document.trim().is_empty());
    let object = |document: &str| {
        let object: Value = serde_norway::from_str(document).unwrap();
        let text = |pointer: &str| object.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        (text("/kind"), Name::new(text("/metadata/namespace"), text("/metadata/name")))
    };
    documents.map(object).collect()
}

/// What explain says may happen.
#[derive(Debug)]
struct Said {
    outcomes: BTreeSet<Seen>,
    kinds: Vec<&'static str>,
}

/// What happened.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    /// 0: the connection ended.
    status: u16,
    /// Of gRPC, by a proxy.
    grpc: Option<u16>,
    /// The application that answered, or the place to ask instead.
    by: String,
}

impl Said {
    fn allows(&self, seen: &Seen) -> bool {
        self.outcomes.contains(seen)
    }
}

fn explained(manifests: &Path, request: &Asking) -> Said {
    let mut command = Command::new(bin_dir(None).unwrap().join("remora"));
    let from = format!("{}/{}", request.namespace, request.account);
    command.args(["explain", "-o", "json", "--manifests"]).arg(manifests).args([
        "--from",
        &from,
        "--to",
        "web.shop:8080",
        "--speaks",
        request.speaks,
        "--method",
        request.method,
        "--path",
        &request.path,
    ]);
    for header in &request.headers {
        command.args(["-H", header]);
    }
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["invalid"], Value::Array(Vec::new()));
    let expected = match json["verdict"].as_str().unwrap() {
        "admitted" => 0,
        "refused" => 3,
        _ => 2,
    };
    assert_eq!(output.status.code(), Some(expected), "{json:#}");
    let text = json["courses"].to_string();
    let otherwise = json["courses"].as_array().unwrap().iter().any(|course| course["target"] != TARGET)
        && json["verdict"] == "admitted";
    let kinds = [
        (OTHERWISE, otherwise),
        (PASSED_OVER, text.contains("\"passedOver\"")),
        (REQUIRING, text.contains("requires the server identity")),
    ];
    let kinds = kinds.into_iter().filter(|(_, is)| *is).map(|(kind, _)| kind).collect();
    Said { outcomes: outcomes(&json), kinds }
}

fn outcomes(json: &Value) -> BTreeSet<Seen> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let code = |value: &Value| value.as_u64().and_then(|code| u16::try_from(code).ok());
    let replied = |reply: &Value| Seen {
        status: code(&reply["status"]).unwrap_or(0),
        grpc: code(&reply["grpcStatus"]),
        by: reply["location"].as_str().unwrap_or_default().to_owned(),
    };
    let mut found = BTreeSet::new();
    for course in list(&json["courses"]) {
        found.extend(Some(&course["reply"]).filter(|reply| !reply.is_null()).map(replied));
        let backends = list(&course["backends"]);
        for backend in backends.iter().filter(|backend| backend["percent"].as_f64() > Some(0.0)) {
            found.extend(Some(&backend["reply"]).filter(|reply| !reply.is_null()).map(replied));
            for endpoint in list(&backend["endpoints"]) {
                // `shop/web`: the application has the pod's name.
                let pod = endpoint["pod"].as_str().and_then(|pod| pod.split_once('/'));
                let name = pod.map_or("", |(_, name)| name);
                found.extend(Some(&endpoint["reply"]).filter(|reply| !reply.is_null()).map(replied));
                found.extend(list(&endpoint["served"]).iter().map(|served| match &served["reply"] {
                    Value::Null => Seen { status: 200, grpc: None, by: name.to_owned() },
                    reply => replied(reply),
                }));
            }
        }
    }
    found
}

fn asked(mesh: &Mesh, request: &Asking) -> Seen {
    let from = mesh.pod(request.namespace, request.account).unwrap();
    if request.raw {
        return asked_raw(mesh, &from, request);
    }
    let url = format!("http://web.{SHOP}.svc.cluster.local:8080{}", request.path);
    let version = if request.speaks == "http1" { "--http1.1" } else { "--http2-prior-knowledge" };
    let format = "\n%{http_code} %header{grpc-status} %header{location}";
    let mut arguments = vec![version, "--path-as-is", "-X", request.method, "-w", format];
    for header in &request.headers {
        arguments.extend(["-H", header]);
    }
    arguments.push(&url);
    // curl fails where a connection ends without an answer.
    let Ok(answer) = curl(&from, &arguments) else {
        return Seen { status: 0, grpc: None, by: String::new() };
    };
    let (body, told) = answer.rsplit_once('\n').unwrap();
    let [status, grpc, place] = told.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let server =
        serde_json::from_str(body).ok().and_then(|told: Value| Some(told["server"].as_str()?.to_owned()));
    Seen {
        status: status.parse().unwrap_or(0),
        grpc: grpc.parse().ok(),
        by: server.unwrap_or_else(|| place.trim().to_owned()),
    }
}

/// What is no request is answered without a body.
fn asked_raw(mesh: &Mesh, from: &PodRef<'_>, request: &Asking) -> Seen {
    let head =
        format!("{} {} HTTP/1.1\r\n{}\r\n\r\n", request.method, request.path, request.headers.join("\r\n"));
    let mut stream = connect(from, address(mesh, "web", 8080).unwrap()).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let answer = read_until(&mut stream, b"\r\n\r\n").unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Seen { status: status.unwrap_or(0), grpc: None, by: String::new() }
}
