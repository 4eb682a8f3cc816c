//! What must hold for any input, as plain functions that panic when it does not. libFuzzer searches with them
//! (`scripts/fuzz.sh`), and the ordinary tests replay the corpora through them (`tests/replay.rs`).
//!
//! Each oracle is somebody else's code (httparse for request lines, rustls for ClientHellos, prost for headers, webpki for
//! certificates), or a model: what must happen, said once more without the code that makes it happen. Where we are
//! stricter or laxer than an oracle on purpose, the rule is written down beside the comparison. That a corpus notices
//! mistakes is proved by making some: `scripts/planted.sh`.
#![expect(clippy::indexing_slicing, clippy::panic, reason = "an oracle fails by panicking")]

mod api;
mod balance;
mod breaker;
mod budget;
mod client_hello;
mod copy;
mod detect;
mod env;
mod header;
mod http1;
mod identity;
mod inject;
mod limits;
mod messages;
mod mux;
mod pool;
mod profile;
mod rate;
mod records;
mod redirect;
mod renewal;
mod request;
mod retry;
mod route;
mod routes;
mod san;
mod server_policy;
mod strategy;

pub use self::{
    api::api, balance::balance, breaker::breaker, budget::budget, client_hello::client_hello, copy::copy,
    detect::detect, env::env, header::header, http1::http1, identity::identity, inject::inject,
    limits::limits, messages::messages, mux::mux, pool::pool, profile::profile, rate::rate, records::records,
    redirect::redirect, renewal::renewal, request::request, retry::retry, route::route, routes::routes,
    san::san, server_policy::server_policy, strategy::strategy,
};

/// A fuzz target.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("detect", detect),
    ("client_hello", client_hello),
    ("header", header),
    ("mux", mux),
    ("http1", http1),
    ("identity", identity),
    ("san", san),
    ("env", env),
    ("api", api),
    ("profile", profile),
    ("routes", routes),
    ("server_policy", server_policy),
    ("budget", budget),
    ("retry", retry),
    ("route", route),
    ("balance", balance),
    ("strategy", strategy),
    ("limits", limits),
    ("breaker", breaker),
    ("rate", rate),
    ("renewal", renewal),
    ("pool", pool),
    ("copy", copy),
    ("records", records),
    ("inject", inject),
    ("redirect", redirect),
    ("messages", messages),
    ("request", request),
];
