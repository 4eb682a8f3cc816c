//! The servers: Destination on one port, the two policy APIs on another. Contract 3.1 to 3.4.
//!
//! What is answered is decided by `view` and written by `wire`; here is who may ask, how many at once, how a stream
//! is kept up to date and how it ends.

mod apis;
mod caller;
mod streams;

pub use caller::Caller;

use crate::{metrics::Metrics, publish::Store, view::Settings};
use apis::{DestinationApi, PolicyApi};
use linkerd2_proxy_api::{
    destination::destination_server::DestinationServer,
    inbound::inbound_server_policies_server::InboundServerPoliciesServer,
    outbound::outbound_policies_server::OutboundPoliciesServer,
};
use remora_runtime::{
    control::{AcceptLimits, Terminate, accept},
    proto::outbound_policies_server::OutboundPoliciesServer as OwnOutboundPoliciesServer,
    tasks::{Drain, Tasks},
};
use std::{sync::Arc, time::Duration};
use streams::Streams;
use tokio::net::TcpListener;
use tonic::{service::Routes, transport::Server};

/// A request of any of the APIs is a few hundred bytes; this much is refused unread.
const MAX_REQUEST: usize = 64 << 10;
/// Header block of a request.
const MAX_HEADERS: u32 = 16 << 10;
/// A connection that answers no ping for so long is dead, and its streams with it.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// How many at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections per listener; more wait. A quarter of them may come from one address, and what one has beyond that
    /// is closed at once.
    pub connections: usize,
    /// Streams on one connection; a proxy's HTTP/2 client waits with more.
    pub streams_per_connection: u32,
    /// Streams of the process; more are refused with `ResourceExhausted`.
    pub streams: usize,
    /// Messages that wait for one proxy to read; a stream with more is ended.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, streams_per_connection: 4_096, streams: 100_000, queue: 100 }
    }
}

impl Limits {
    fn accept(&self) -> AcceptLimits {
        // Behind a node that hides its pods' addresses many proxies are one source.
        AcceptLimits { connections: self.connections, per_source: self.connections.div_ceil(4) }
    }
}

/// What the servers need.
#[derive(Clone, Debug)]
pub struct Serving {
    /// What they read.
    pub store: Arc<Store>,
    /// What the answers depend on besides.
    pub settings: Arc<Settings>,
    /// Who may connect, and how.
    pub terminate: Terminate,
    /// How many at once.
    pub limits: Limits,
    /// What they count.
    pub metrics: Metrics,
    /// Their tasks.
    pub tasks: Tasks,
    /// When to end.
    pub drain: Drain,
}

impl Serving {
    /// Serves Destination on one listener and the policy APIs on the other until the drain begins and the last
    /// stream has ended.
    pub async fn run(
        self,
        destination: TcpListener,
        policy: TcpListener,
    ) -> Result<(), tonic::transport::Error> {
        let (streams, settings) = (Streams::new(&self), self.settings.clone());
        let apis = DestinationApi { streams: streams.clone(), settings: settings.clone() };
        let destinations = Routes::new(DestinationServer::new(apis).max_decoding_message_size(MAX_REQUEST));
        let apis = PolicyApi { streams, settings };
        let policies =
            Routes::new(OutboundPoliciesServer::new(apis.clone()).max_decoding_message_size(MAX_REQUEST))
                .add_service(
                    OwnOutboundPoliciesServer::new(apis.clone()).max_decoding_message_size(MAX_REQUEST),
                )
                .add_service(InboundServerPoliciesServer::new(apis).max_decoding_message_size(MAX_REQUEST));
        tokio::try_join!(self.serve(destination, destinations), self.serve(policy, policies))?;
        Ok(())
    }

    async fn serve(&self, listener: TcpListener, routes: Routes) -> Result<(), tonic::transport::Error> {
        let incoming = accept(
            listener,
            self.terminate.clone(),
            self.limits.accept(),
            self.metrics.connections.clone(),
            &self.tasks,
            &self.drain,
        );
        let (interval, timeout) = KEEPALIVE;
        Server::builder()
            .max_concurrent_streams(self.limits.streams_per_connection)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_keepalive_interval(Some(interval))
            .http2_keepalive_timeout(Some(timeout))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, self.drain.draining())
            .await
    }
}
