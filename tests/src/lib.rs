//! Pods without a cluster: real Pod manifests as network namespaces and processes on one machine.
//!
//! A [`node::Node`] does what a kubelet, kube-proxy, CoreDNS and the API server's admission do, in that one process: it
//! is given ordinary Kubernetes YAML and runs it. Nothing in here is for tests alone; `make demo` uses it as well.
//!
//! In reading order: what is applied (`world`, `admit`, `webhook`), how a pod lives (`life`, `supervise`, `probe`,
//! `status`), what it is made of (`image`, `executable`, `container`, `environment`, `volumes`, `token`), the network
//! (`sandbox`, `services`, `dns`), what one looks at it with (`node`, `capture`, `metrics`). A [`mesh::Mesh`] is a node
//! with Remora's control plane; `peer` plays Linkerd's proxy by hand against it, `shop`, `shelf`, `app` and `load` are
//! what tests put on it; `origin`, `frames`, `attack` and `arena` are for bad input, `resources` what that costs. `demo`,
//! `bench` and `soak` are the stories of `make demo`, `make bench` and `make soak`.

pub mod app;
pub mod arena;
pub mod attack;
pub mod capture;
pub mod check;
pub mod load;
pub mod metrics;
pub mod node;
pub mod spec;
pub mod token;
pub mod world;

pub mod admit;
pub mod bench;
pub mod container;
pub mod controller;
pub mod demo;
pub mod dns;
pub mod environment;
pub mod executable;
pub mod frames;
pub mod image;
pub mod kubelet;
pub mod life;
pub mod mesh;
pub mod origin;
pub mod peer;
pub mod probe;
pub mod resources;
pub mod rules;
pub mod sandbox;
pub mod scripted;
pub mod services;
pub mod shelf;
pub mod shop;
pub mod soak;
pub mod status;
pub mod supervise;
pub mod volumes;
pub mod webhook;
pub mod wire;

pub use app::App;
pub use arena::Arena;
pub use load::{Load, Plan};
pub use mesh::Mesh;
pub use node::{Node, Options, PodRef};
pub use rustix::process::Signal;
pub use world::Name;
