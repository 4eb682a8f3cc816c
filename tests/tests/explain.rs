//! `remora explain` says of random requests under random routes and policies what live proxies do with them. What it says is
//! read from the very directory that the control plane reads.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what it expects")]

#[path = "../../explain/tests/agrees/draw.rs"]
#[expect(dead_code, reason = "the addresses of its pods are of a mesh on paper")]
mod draw;

use draw::{Dice, Mesh as Drawn, Request};
use remora_tests::node::bin_dir;
use remora_tests::shop::{self, PATIENCE, SHOP, curl};
use remora_tests::wire::{client, kit};
use remora_tests::{Mesh, Name, PodRef, check};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Sets of routes and policies, and requests under each.
const ROUNDS: u64 = 12;
const REQUESTS: usize = 24;

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
        client("till", &[]),
        of_bank(client("clerk", &[])),
        client("old", &[("linkerd.io/inject", "disabled")]),
    ];
    let mesh = shop::open(&pods).unwrap();
    let mut before: BTreeSet<(String, Name)> = BTreeSet::new();
    let mut met: BTreeSet<u16> = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut dice = Dice::new(1_000_000 + round);
        let drawn = Drawn::draw(&mut dice);
        let rules = named_port(&drawn.rules());
        let requests: Vec<Request> = (0..REQUESTS).map(|_| Request::draw(&mut dice)).collect();
        let now = objects(&rules);
        for (kind, name) in before.difference(&now) {
            mesh.delete_object(kind, name).unwrap();
        }
        for document in rules.split("---\n").filter(|document| !document.trim().is_empty()) {
            mesh.update_manifest(document).unwrap();
        }
        before = now;
        let said: Vec<Said> = requests.iter().map(|request| explained(&mesh.manifests(), request)).collect();
        // Until proxies have heard.
        let mut wrong = String::new();
        let agree = || {
            let pairs = requests.iter().zip(&said);
            let differing = pairs.map(|(request, said)| (request, said, asked(&mesh, request)));
            let differing: Vec<_> = differing.filter(|(_, said, seen)| !said.allows(seen)).collect();
            wrong = format!("{differing:#?}");
            differing.is_empty()
        };
        let agreed = mesh.wait_until("proxies to do what explain says", PATIENCE, agree);
        assert!(agreed.is_ok(), "round {round}: {wrong}\n{rules}");
        for (request, said) in requests.iter().zip(&said) {
            let seen = asked(&mesh, request);
            assert!(said.allows(&seen), "round {round}: {request:?}: {said:?}, not {seen:?}\n{rules}");
            met.insert(seen.status);
        }
    }
    // Otherwise nothing was compared.
    for status in [200, 301, 403, 404, 500] {
        assert!(met.contains(&status), "no {status} among {met:?}");
    }
}

/// The pods of this mesh have no named ports.
fn named_port(rules: &str) -> String {
    rules.replace("port: http,", "port: 8080,")
}

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

/// What explain says may happen: statuses, each with who answers it, the place to ask instead.
#[derive(Debug)]
struct Said {
    outcomes: BTreeSet<(u16, String)>,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// 0: the connection ended.
    status: u16,
    /// The application that answered, or the place to ask instead.
    by: String,
}

impl Said {
    fn allows(&self, seen: &Seen) -> bool {
        self.outcomes.contains(&(seen.status, seen.by.clone()))
    }
}

fn explained(manifests: &Path, request: &Request) -> Said {
    let mut command = Command::new(bin_dir(None).unwrap().join("remora"));
    let from = format!("{}/{}", request.namespace, request.account);
    let path = path(request);
    let host = format!("host: {}", request.host);
    let arguments =
        ["--from", &from, "--to", "web.shop:8080", "--method", request.method, "--path", &path, "-H", &host];
    let speaks = if request.http2 { "http2" } else { "http1" };
    command.args(["explain", "-o", "json", "--speaks", speaks, "--manifests"]).arg(manifests).args(arguments);
    for (name, value) in &request.headers {
        command.args(["-H", &format!("{name}: {value}")]);
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
    Said { outcomes: outcomes(&json) }
}

fn outcomes(json: &Value) -> BTreeSet<(u16, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let status =
        |reply: &Value| reply["status"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(0);
    let mut found = BTreeSet::new();
    for course in list(&json["courses"]) {
        if !course["reply"].is_null() {
            let place = course["reply"]["location"].as_str().unwrap_or_default();
            found.insert((status(&course["reply"]), place.to_owned()));
        }
        for backend in
            list(&course["backends"]).iter().filter(|backend| backend["percent"].as_f64() > Some(0.0))
        {
            if !backend["reply"].is_null() {
                found.insert((status(&backend["reply"]), String::new()));
            }
            // `Service shop/web:8080`: the application has the Service's name.
            let of = backend["of"].as_str().unwrap_or_default();
            let name =
                of.rsplit_once('/').and_then(|(_, rest)| rest.split_once(':')).map_or("", |(name, _)| name);
            let endpoints = list(&backend["endpoints"]);
            for endpoint in endpoints.iter().filter(|endpoint| !endpoint["reply"].is_null()) {
                found.insert((status(&endpoint["reply"]), String::new()));
            }
            for served in endpoints.iter().flat_map(|endpoint| list(&endpoint["served"])) {
                found.insert(match served["admitted"].as_bool() {
                    Some(true) => (200, name.to_owned()),
                    _ => (status(&served["reply"]), String::new()),
                });
            }
        }
    }
    found
}

fn asked(mesh: &Mesh, request: &Request) -> Seen {
    let from = mesh.pod(request.namespace, request.account).unwrap();
    let url = format!("http://web.{SHOP}.svc.cluster.local:8080{}", path(request));
    let host = format!("host: {}", request.host);
    let headers: Vec<String> =
        request.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let version = if request.http2 { "--http2-prior-knowledge" } else { "--http1.1" };
    let format = "\n%{http_code} %header{location}";
    let mut arguments = vec![version, "--path-as-is", "-X", request.method, "-H", &host, "-w", format];
    for header in &headers {
        arguments.extend(["-H", header]);
    }
    arguments.push(&url);
    seen(&from, &arguments)
}

fn seen(from: &PodRef<'_>, arguments: &[&str]) -> Seen {
    // curl fails where a connection ends without an answer.
    let Ok(answer) = curl(from, arguments) else { return Seen { status: 0, by: String::new() } };
    let (body, told) = answer.rsplit_once('\n').unwrap();
    let (status, place) = told.split_once(' ').unwrap_or((told, ""));
    let server =
        serde_json::from_str(body).ok().and_then(|told: Value| Some(told["server"].as_str()?.to_owned()));
    Seen { status: status.parse().unwrap_or(0), by: server.unwrap_or_else(|| place.trim().to_owned()) }
}

fn path(request: &Request) -> String {
    match request.query {
        Some(query) => format!("{}?{query}", request.path),
        None => request.path.to_owned(),
    }
}
