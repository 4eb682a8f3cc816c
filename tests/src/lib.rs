//! Pods without a cluster: real Pod manifests as network namespaces and processes on one machine.
//!
//! A [`node::Node`] does what a kubelet, kube-proxy, CoreDNS and the API server's admission do, in that one process: it
//! is given ordinary Kubernetes YAML and runs it. Nothing in here is for tests alone; `make demo` uses it as well.
//!
//! In reading order: what is applied (`world`, `admit`, `webhook`), how a pod lives (`life`, `supervise`, `probe`,
//! `status`), what it is made of (`image`, `container`, `environment`, `volumes`, `token`), the network (`sandbox`,
//! `services`, `dns`), what one looks at it with (`node`, `capture`, `metrics`).

pub mod capture;
pub mod check;
pub mod metrics;
pub mod node;
pub mod spec;
pub mod token;
pub mod world;

mod admit;
mod container;
mod dns;
mod environment;
mod image;
mod kubelet;
mod life;
mod probe;
mod sandbox;
mod services;
mod status;
mod supervise;
mod volumes;
mod webhook;

pub use node::{Node, Options, PodRef};
pub use rustix::process::Signal;
