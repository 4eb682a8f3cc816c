//! The connections of one worker to one other proxy's port 4143: carriers where it has them, connections with a
//! transport header where it has not. Shared by all endpoints behind that proxy. Contract 1.5, design decision 9.

use super::{Carrier, MuxStream, drive::Driver};
use crate::{
    Proxy, Worker, config::SocketConfig, connect, fault::Fault, metrics::MuxMetrics, stream::Stream, tls,
};
use remora_core::{
    endpoint::EndpointTls,
    header::{SessionProtocol, TransportHeader},
    identity::Identity,
    mux::{self, CannotOpen, Limits, Session},
    time::{Time, UnixTime},
};
use remora_runtime::{clock, tls as mesh, tls::Credentials};
use rustls::ClientConfig;
use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU16,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, sync::watch};

/// Carriers to one neighbour from one worker: one, and more only while all others are full.
const MAX_CARRIERS: usize = 32;

/// The other proxies of a worker that some endpoint is behind.
#[derive(Default)]
pub struct Neighbours(Mutex<HashMap<(SocketAddr, Identity), Weak<Neighbour>>>);

/// One other proxy, by its address and the identity that it must have.
pub struct Neighbour {
    addr: SocketAddr,
    tls: EndpointTls,
    /// For TCP alone; the whole is bounded by the caller.
    limit: Duration,
    max_age: Duration,
    socket: SocketConfig,
    proxy: Arc<Proxy>,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    configs: Mutex<Option<Configs>>,
    known: Mutex<Known>,
    /// Held while dialling, so that many connections make one carrier.
    dialling: tokio::sync::Mutex<Option<(Time, Fault)>>,
}

/// Of one epoch of credentials; sessions resume with either.
struct Configs {
    epoch: u64,
    carrier: Arc<ClientConfig>,
    header: Arc<ClientConfig>,
}

#[derive(Default)]
struct Known {
    members: Vec<Member>,
    /// It chose the transport header when it was last asked: connections need not wait for each other.
    speaks_headers: bool,
}

struct Member {
    carrier: Arc<Carrier>,
    epoch: u64,
    born: Time,
    /// NotAfter of the neighbour's leaf.
    until: UnixTime,
}

impl Neighbours {
    /// The proxy at `addr`, which must be `tls.identity`.
    pub fn neighbour(&self, worker: &Worker, addr: SocketAddr, tls: &EndpointTls) -> Arc<Neighbour> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (addr, tls.identity.clone());
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        // Once in a while, when one is new: what nobody needs any more.
        all.retain(|_, one| one.strong_count() > 0);
        let neighbour = Arc::new(Neighbour::new(&worker.proxy, addr, tls.clone()));
        all.insert(key, Arc::downgrade(&neighbour));
        neighbour
    }
}

impl Neighbour {
    fn new(proxy: &Arc<Proxy>, addr: SocketAddr, tls: EndpointTls) -> Self {
        let config = &proxy.config;
        Self {
            addr,
            tls,
            limit: config.outbound.connect_timeout,
            max_age: config.limits.pool_max_age,
            socket: config.outbound.socket,
            proxy: proxy.clone(),
            credentials: proxy.credentials.clone(),
            configs: Mutex::default(),
            known: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
        }
    }

    /// A connection to the application's `port` behind it. HTTP/2 has streams of its own, so it gets a
    /// connection of its own.
    pub async fn connect(&self, port: NonZeroU16, session: Option<SessionProtocol>) -> Result<Stream, Fault> {
        let credentials = self.credentials()?;
        if !self.proxy.config.mux || session == Some(SessionProtocol::Http2) {
            let originated = self.dial(self.configs(&credentials).1).await?;
            return self.announced(originated, port, session).await;
        }
        if let Some(stream) = self.open(&credentials, port, session)? {
            return Ok(Stream::mux(stream));
        }
        if self.known().speaks_headers {
            let originated = self.dial(self.configs(&credentials).0).await?;
            return self.began(&credentials, originated, port, session).await;
        }
        let asked = clock::now();
        let mut failed = self.dialling.lock().await;
        // They may be others by now: with the old ones it would end the carrier of the new ones, and dial as who it was.
        let credentials = self.credentials()?;
        if let Some(stream) = self.open(&credentials, port, session)? {
            return Ok(Stream::mux(stream));
        }
        if let Some((at, fault)) = &*failed
            && *at >= asked
        {
            // The attempt that this connection waited for was its own.
            return Err(fault.clone());
        }
        let originated = self.dial(self.configs(&credentials).0).await;
        let originated = originated.inspect_err(|fault| *failed = Some((clock::now(), fault.clone())))?;
        self.began(&credentials, originated, port, session).await
    }

    fn credentials(&self) -> Result<Arc<Credentials>, Fault> {
        self.credentials.borrow().clone().ok_or(Fault::NoCredentials)
    }

    /// Carriers in use or at hand, and their streams, for `/state.json`.
    pub fn carriers(&self) -> (usize, usize) {
        let known = self.known();
        (known.members.len(), known.members.iter().map(|member| member.carrier.streams()).sum())
    }

    /// A stream of a carrier that has room. `None`: one has to be dialled.
    fn open(
        &self,
        credentials: &Credentials,
        port: NonZeroU16,
        session: Option<SessionProtocol>,
    ) -> Result<Option<MuxStream>, Fault> {
        let mut known = self.known();
        let (now, today) = (clock::now(), clock::unix_now());
        known.members.retain(|member| {
            let is_current = member.epoch == credentials.epoch()
                && now.since(member.born) < self.max_age
                && today <= member.until;
            if !is_current {
                member.carrier.go_away();
            }
            is_current
        });
        let mut stream = None;
        known.members.retain(|member| {
            if stream.is_some() {
                return true;
            }
            match member.carrier.open(port, session) {
                Ok(opened) => {
                    stream = Some(opened);
                    true
                }
                Err(CannotOpen::Full | CannotOpen::Busy) => true,
                Err(CannotOpen::Exhausted) => {
                    member.carrier.go_away();
                    false
                }
                Err(CannotOpen::Dead(_) | CannotOpen::Draining | CannotOpen::NotClient) => false,
            }
        });
        if stream.is_none() && known.members.len() >= MAX_CARRIERS {
            let what = format!("a stream to {}: {MAX_CARRIERS} carriers are full", self.addr);
            return Err(Fault::Overloaded(what.into()));
        }
        Ok(stream)
    }

    async fn dial(&self, config: Arc<ClientConfig>) -> Result<tls::Originated, Fault> {
        let (keepalive, user_timeout) = connect::dialled(&self.socket);
        let tcp = connect::tcp(self.addr, self.limit, keepalive, user_timeout).await?;
        tls::originate(config, tcp, self.addr, &self.tls).await
    }

    /// What it chose: a carrier, of which this is the first stream, or a connection with a header.
    async fn began(
        &self,
        credentials: &Credentials,
        originated: tls::Originated,
        port: NonZeroU16,
        session: Option<SessionProtocol>,
    ) -> Result<Stream, Fault> {
        let is_carrier = originated.carries == tls::Carries::Streams;
        self.known().speaks_headers = !is_carrier;
        if !is_carrier {
            return self.announced(originated, port, session).await;
        }
        let until = originated.not_after;
        let Some(tls) = originated.stream.into_tls() else {
            return Err(Fault::DirectWithoutTls("a carrier is TLS"));
        };
        let metrics = &self.proxy.metrics.mux_outbound;
        let carrier = Carrier::new(Session::client(Limits::default()), metrics);
        let driver = Driver::new(tls, carrier.clone(), self.proxy.drain.clone());
        // Before its first stream, so that a drain knows of it.
        let stream = carrier
            .open(port, session)
            .map_err(|why| Fault::Overloaded(format!("a stream to {}: {why}", self.addr).into()))?;
        self.proxy.tasks.spawn("carrier", drive(driver, metrics.clone(), self.addr));
        let member = Member { carrier, epoch: credentials.epoch(), born: clock::now(), until };
        self.known().members.push(member);
        Ok(Stream::mux(stream))
    }

    /// Says where the connection goes and what is spoken on it, if it wants to hear that.
    async fn announced(
        &self,
        originated: tls::Originated,
        port: NonZeroU16,
        protocol: Option<SessionProtocol>,
    ) -> Result<Stream, Fault> {
        let mut stream = originated.stream;
        if originated.carries == tls::Carries::Header {
            let header = TransportHeader { port, name: None, protocol }.encode();
            let written = async {
                stream.write_all(&header).await?;
                stream.flush().await
            };
            written.await.map_err(|error| Fault::Connect { addr: self.addr, source: Arc::new(error) })?;
        }
        Ok(stream)
    }

    /// For carriers or headers, and for headers only.
    fn configs(&self, credentials: &Credentials) -> (Arc<ClientConfig>, Arc<ClientConfig>) {
        let mut cached = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some(configs) if configs.epoch == credentials.epoch() => {
                (configs.carrier.clone(), configs.header.clone())
            }
            _ => {
                let header = credentials.client_config_for_endpoint(true);
                let mut carrier = (*header).clone();
                carrier.alpn_protocols = vec![mux::ALPN.to_vec(), mesh::TRANSPORT_ALPN.to_vec()];
                let carrier = Arc::new(carrier);
                let epoch = credentials.epoch();
                *cached = Some(Configs { epoch, carrier: carrier.clone(), header: header.clone() });
                (carrier, header)
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Neighbour {
    /// No endpoint is behind it any more: its streams go on, new ones there will not be.
    fn drop(&mut self) {
        for member in &self.known().members {
            member.carrier.go_away();
        }
    }
}

async fn drive(driver: Driver, metrics: Arc<MuxMetrics>, addr: SocketAddr) {
    // A server opens no streams: the protocol forbids it.
    if let Err(error) = driver.run(drop).await {
        metrics.failed(error);
        tracing::debug!(%addr, %error, "a carrier ended");
    }
}

#[cfg(test)]
mod tests;
