//! What `explain` says of thousands of random requests to random meshes is what a naive reading of the specifications says,
//! which shares no code with `core` and none with the controller: it never sees the YAML.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects"
)]

#[path = "agrees/draw.rs"]
mod draw;
#[path = "agrees/grpc.rs"]
mod grpc;
#[path = "agrees/model.rs"]
mod model;
/// Gateway API's precedence, read naively; the model of the fuzz target `route`.
#[path = "../../fuzz/src/route/model.rs"]
mod routes;
#[path = "agrees/settings.rs"]
mod settings;

use draw::{Dice, Mesh, Request, pods};
use model::{Answered, Outcome, by_profile, expected, mirrored, number, outdated, unread, unsound};
use pods::{NEW, OVERRIDE, REQUIRE};
use remora_destination::{
    index::Index,
    resources::{Document, Name, parse},
    watch::Event,
};
use remora_explain::{
    answer::{Answer, Backend, Course, Endpoint, Reply, Served, Verdict},
    explain,
    question::{OutboundDefault, Question, Speaks},
};
use settings::settings;
use std::collections::BTreeMap;

/// Meshes, and requests to each.
const MESHES: u64 = 700;
const REQUESTS: usize = 8;

#[test]
fn thousands_of_random_requests_have_the_answer_that_the_specification_gives() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..MESHES {
        let mut dice = Dice::new(seed);
        let mesh = Mesh::draw(&mut dice);
        let yaml = mesh.yaml();
        let index = read(&yaml);
        for _ in 0..REQUESTS {
            let request = Request::draw(&mut dice);
            let answer = explain(&index, &settings(), &question(&request)).unwrap();
            let (found, wanted) = (outcome(&answer), expected(&mesh, &request));
            assert_eq!(found, wanted, "seed {seed}: {request:?} in {mesh:#?}\n{yaml}\n{answer:#?}");
            if let Some(profile) = by_profile(&mesh, &request) {
                let rule = answer.courses[0].rule.as_ref().unwrap();
                assert_eq!(
                    rule.number,
                    number(profile, &request),
                    "seed {seed}: {request:?} in {mesh:#?}\n{answer:#?}"
                );
                *seen.entry("by a profile".to_owned()).or_default() += 1;
            }
            if let Outcome::Sent(to) = &wanted {
                let rated = to.iter().flat_map(|(.., all)| all).any(|one| !one.rates.is_empty());
                *seen.entry(if rated { "rated" } else { "not rated" }.to_owned()).or_default() += 1;
                let copies = mirrored(&mesh, &request);
                assert_eq!(copied(&answer), copies, "seed {seed}: {request:?} in {mesh:#?}\n{answer:#?}");
                *seen
                    .entry(if copies.is_some() { "copied" } else { "not copied" }.to_owned())
                    .or_default() += 1;
            }
            for kind in met(&request, &wanted) {
                *seen.entry(kind.to_owned()).or_default() += 1;
            }
            let note = outdated(&mesh, &request).map(|(told, wanted)| {
                format!("was started with config.linkerd.io/outbound-default-policy {told}, and {wanted} is")
            });
            let said = answer.notes.iter().find(|said| said.contains("was started with"));
            let agrees = match (&note, said) {
                (Some(note), Some(said)) => said.contains(note),
                (note, said) => note.is_none() && said.is_none(),
            };
            assert!(agrees, "seed {seed}: {note:?} {request:?} in {mesh:#?}\n{answer:#?}");
            let fine = wanted.is_fine();
            assert_eq!(answer.courses.iter().all(Course::is_admitted), fine, "{answer:#?}");
            assert!(fine || answer.verdict != Verdict::Admitted, "seed {seed}: {answer:#?}");
            *seen.entry(wanted.kind()).or_default() += 1;
        }
    }
    // Otherwise nothing was compared.
    let kinds = [
        "200",
        "301",
        "400",
        "403",
        "404",
        "500",
        "502",
        "504",
        "ended",
        "a share of 500",
        "by a profile",
        "copied",
        "rated",
        "some passed over",
        "in plaintext beside mTLS",
        "without a pod",
        "outside of the cluster",
        "by another Service's name",
        "for another port than it has",
        "by who is required, and not by others",
        "a second host to its proxy",
        "a second host to the server's proxy",
        "a body without an end",
        "of a connection over HTTP/2",
    ];
    for kind in kinds {
        assert!(seen.get(kind).is_some_and(|count| *count >= 10), "too few of {kind}: {seen:?}");
    }
}

#[test]
fn calls_of_grpc_take_the_route_that_the_specification_gives() {
    let mut seen: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for seed in 0..MESHES {
        let mut dice = Dice::new(seed);
        let routes = grpc::Routes::draw(&mut dice);
        let yaml = format!("{}{}", Mesh::bare().yaml(), routes.yaml());
        let index = read(&yaml);
        for _ in 0..REQUESTS {
            let call = grpc::Call::draw(&mut dice);
            let mut headers = vec![("host".to_owned(), call.host.to_owned())];
            headers
                .extend(call.headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let question = Question {
                speaks: Speaks::Grpc,
                path: format!("/{}/{}", call.service, call.method),
                headers,
                ..Question::new(Name::new("shop", "till"), "web.shop:8080")
            };
            let answer = explain(&index, &settings(), &question).unwrap();
            let course = &answer.courses[0];
            let found = match (&course.reply, course.backends.as_slice()) {
                // NOT_FOUND.
                (Some(reply), _) => {
                    assert_eq!((reply.status, reply.grpc_status), (Some(200), Some(5)), "{answer:#?}");
                    None
                }
                (None, [backend]) => Some(backend.of.as_str()),
                (None, _) => panic!("{answer:#?}"),
            };
            let expected = routes.expected(&call);
            let name = found.and_then(|of| of.strip_prefix("Service shop/")?.strip_suffix(":8080"));
            assert_eq!(name, expected, "seed {seed}: {call:?} by {routes:#?}\n{answer:#?}");
            *seen.entry(expected).or_default() += 1;
        }
    }
    assert!(seen.len() == 3 && seen.values().all(|count| *count > 100), "{seen:?}");
}

fn read(yaml: &str) -> Index {
    let mut index = Index::default();
    for document in parse(yaml).unwrap_or_else(|mistakes| panic!("{mistakes:?} in {yaml}")) {
        match document {
            Document::Known(resource) => drop(index.apply(Event::Apply(resource))),
            Document::Unread(what) => panic!("{what} is not read"),
        }
    }
    index
}

fn question(request: &Request) -> Question {
    let mut headers = vec![("host".to_owned(), request.host.to_owned())];
    let own = request.headers.iter().chain(&request.spoiled);
    headers.extend(own.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    headers.extend(request.named.map(|named| (OVERRIDE.to_owned(), named.to_owned())));
    headers.extend(request.required.map(|identity| (REQUIRE.to_owned(), identity.to_owned())));
    let path = match request.query {
        Some(query) => format!("{}?{query}", request.path),
        None => request.path.to_owned(),
    };
    Question {
        unmeshed: request.unmeshed,
        speaks: if request.http2 { Speaks::Http2 } else { Speaks::Http1 },
        method: Some(request.method.to_owned()),
        path,
        headers,
        from_ip: (request.account == NEW).then(|| request.address.parse().unwrap()),
        default_outbound_policy: OutboundDefault::parse(request.default_outbound).unwrap(),
        ..Question::new(Name::new(request.namespace, request.account), "web.shop:8080")
    }
}

/// For counting what was met.
fn met(request: &Request, outcome: &Outcome) -> Vec<&'static str> {
    let any = |is: &dyn Fn(&Answered) -> bool| outcome.asked().any(is);
    let at =
        |start: &'static str| move |one: &Answered| one.at.as_ref().is_some_and(|at| at.starts_with(start));
    let taken = |one: &Answered| one.status == Some(200);
    let mixed = any(&|one| taken(one) && one.identity.is_some())
        && any(&|one| taken(one) && one.identity.is_none() && at("10.")(one));
    let to_web = |to: &[(String, u32, Vec<Answered>)]| to.iter().all(|(name, ..)| name.contains("shop/web:"));
    let elsewhere = matches!(outcome, Outcome::Sent(to) if !to_web(to));
    let itself = match outcome {
        Outcome::Answered(status, _) => Some(*status),
        Outcome::Sent(_) => None,
    };
    let hosts = unread(request).is_none() && unsound(request);
    let required = request.required.is_some() && any(&taken) && any(&|one| one.status == Some(502));
    let kinds = [
        ("some passed over", any(&|one| one.status.is_none())),
        ("in plaintext beside mTLS", mixed),
        ("without a pod", request.account == NEW),
        ("outside of the cluster", any(&|one| taken(one) && at("192.")(one))),
        ("by another Service's name", request.named.is_some() && elsewhere),
        ("a second host to its proxy", hosts && itself == Some(400)),
        ("a second host to the server's proxy", hosts && any(&|one| one.status == Some(400))),
        (
            "a body without an end",
            !request.http2 && !hosts && unread(request) == Some(400) && itself == Some(400),
        ),
        ("of a connection over HTTP/2", request.http2 && unread(request) == Some(0) && itself == Some(0)),
        ("by who is required, and not by others", required),
        ("for another port than it has", any(&|one| one.at.is_none() && one.status == Some(403))),
    ];
    kinds.into_iter().filter(|(_, is)| *is).map(|(kind, _)| kind).collect()
}

/// What an answer comes to.
fn outcome(answer: &Answer) -> Outcome {
    let [course] = answer.courses.as_slice() else { panic!("{answer:#?}") };
    if let Some(reply) = &course.reply {
        return Outcome::Answered(reply.status.unwrap_or(0), reply.location.clone());
    }
    let used = course.backends.iter().filter(|backend| backend.percent > 0.0);
    Outcome::Sent(
        used.map(|backend| (backend.of.clone(), backend.percent.round() as u32, answered(backend))).collect(),
    )
}

fn answered(backend: &Backend) -> Vec<Answered> {
    // A connection that ends has none.
    let of = |reply: &Reply| reply.status.unwrap_or(0);
    if let Some(reply) = &backend.reply {
        return vec![Answered::itself(of(reply))];
    }
    let at = |endpoint: &Endpoint| {
        let (status, rates) = match (&endpoint.reply, endpoint.served.as_slice()) {
            (Some(reply), []) => (Some(of(reply)), Vec::new()),
            (None, [served]) => (Some(served.reply.as_ref().map_or(200, of)), rates(served)),
            (None, []) if endpoint.passed_over.is_some() => (None, Vec::new()),
            _ => panic!("{endpoint:#?}"),
        };
        let at = Some(endpoint.address.to_string());
        Answered { at, identity: endpoint.tls.clone(), status, rates }
    };
    let mut all: Vec<Answered> = backend.endpoints.iter().map(at).collect();
    all.sort();
    all
}

/// `HTTPLocalRateLimitPolicy shop/l1: 100 requests per second of …`
fn rates(served: &Served) -> Vec<u32> {
    let rate = |said: &String| said.split_once(": ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
    served.rate_limits.iter().map(rate).collect()
}

/// Who gets copies.
fn copied(answer: &Answer) -> Option<String> {
    let copies = answer.courses[0].filters.iter().find_map(|filter| filter.strip_prefix("copies all to "));
    copies.filter(|to| !to.contains("which gets none")).map(str::to_owned)
}
