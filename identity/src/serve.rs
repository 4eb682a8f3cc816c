//! The Certify service: fields, then request, then token, then name, then signature; in this order, as the contract
//! has it (2.3). It serves with a certificate that it issues to itself.

use crate::{
    issue::{self, Certificate, Lifetimes, Refusal, Request},
    issuer::Authority,
    token::{InvalidToken, TokenValidator},
};
use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse,
    identity_server::{Identity as IdentityApi, IdentityServer},
};
use prometheus_client::encoding::EncodeLabelSet;
use remora_core::{
    cert::RefreshBounds,
    identity::{self, Identity},
    rate::{Keyed, Quota},
};
use remora_runtime::{
    certify::{
        CertificateRequest, Certifier, CertifierConfig, Certify, CertifyFault, CertifyMetrics,
        IssuedCertificate,
    },
    clock,
    control::{self, AcceptLimits, AcceptMetrics, PeerInfo, Terminate},
    metrics::{Budgeted, Counter, Registry},
    tasks::{Drain, Tasks},
    tls::Credentials,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tonic::{Code, Status, transport::Server};

/// A request is a token, a request and a name: a few KiB.
const MAX_REQUEST: usize = 128 * 1024;

/// Longest time for one request, the question to a token's authority included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// Connections are for one request every few hours; an old one is asked to go.
const CONNECTION_AGE: Duration = Duration::from_mins(5);

/// Names of this control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its namespace (`remora`).
    pub control_namespace: String,
    /// Its trust domain (`cluster.local`).
    pub trust_domain: String,
}

impl Names {
    /// The identity of a service account.
    pub fn of(&self, account: &crate::token::ServiceAccount) -> Result<Identity, identity::InvalidIdentity> {
        identity::workload(&account.name, &account.namespace, &self.control_namespace, &self.trust_domain)
    }

    /// Our own: `remora-identity` of the control namespace.
    pub fn own(&self) -> Result<Identity, identity::InvalidIdentity> {
        identity::workload(
            "remora-identity",
            &self.control_namespace,
            &self.control_namespace,
            &self.trust_domain,
        )
    }
}

/// Bounds of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Per source address.
    pub rate: Quota,
    /// Addresses told apart; all further ones share.
    pub sources: usize,
    /// Requests in progress at once.
    pub concurrent: usize,
}

impl Default for Limits {
    /// 30 at once, then one a second: a pod needs one every few hours, a hundred pods behind one address still start.
    fn default() -> Self {
        let rate = Quota { burst: 30, interval: Duration::from_secs(1) };
        Self { rate, sources: 65_536, concurrent: 64 }
    }
}

/// What is counted.
#[derive(Clone)]
pub struct ServeMetrics {
    requests: Budgeted<Answered, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    code: String,
}

impl ServeMetrics {
    /// `remora_identity_certify_requests_total{code}`.
    pub fn register(registry: &Registry) -> Self {
        let help = "Certify requests answered, by gRPC code";
        // There are 17 codes.
        Self { requests: registry.counters("remora_identity_certify_requests_total", help, 20) }
    }

    fn answered(&self, code: Code) {
        self.requests.get(Answered { code: format!("{code:?}") }).inc();
    }
}

/// Answers Certify.
pub struct CertifyService<V> {
    /// Who signs now.
    pub authority: watch::Receiver<Option<Arc<Authority>>>,
    /// Who says whom a token belongs to.
    pub validator: V,
    /// How identities are called here.
    pub names: Names,
    /// How long certificates hold.
    pub lifetimes: Lifetimes,
    limiter: Mutex<Keyed<IpAddr>>,
    limits: Limits,
    places: Semaphore,
    metrics: ServeMetrics,
}

impl<V: TokenValidator> CertifyService<V> {
    /// A service that has answered nobody yet.
    pub fn new(
        authority: watch::Receiver<Option<Arc<Authority>>>,
        validator: V,
        names: Names,
        lifetimes: Lifetimes,
        limits: Limits,
        metrics: ServeMetrics,
    ) -> Self {
        Self {
            authority,
            validator,
            names,
            lifetimes,
            limiter: Mutex::new(Keyed::new(limits.rate, limits.sources)),
            limits,
            places: Semaphore::new(limits.concurrent),
            metrics,
        }
    }

    async fn answer(&self, source: IpAddr, request: CertifyRequest) -> Result<Certificate, Status> {
        let place = self.places.try_acquire();
        let _place = place
            .map_err(|_full| exhausted(&format!("{} requests are in progress", self.limits.concurrent)))?;
        if !self.limiter.lock().unwrap_or_else(PoisonError::into_inner).take(&source, clock::now()) {
            let Quota { burst, interval } = self.limits.rate;
            return Err(exhausted(&format!("{burst} requests of one address, then one every {interval:?}")));
        }
        let authority = self.authority.borrow().clone();
        let authority = authority.ok_or_else(|| {
            Status::unavailable(
                "no issuer yet; see the log of remora-identity for what is wrong with its files",
            )
        })?;
        if request.token.is_empty() {
            return Err(refused(&Refusal::Missing("token")));
        }
        let asked = Request::read(&request.identity, &request.certificate_signing_request)
            .map_err(|refusal| refused(&refusal))?;
        let account = self
            .validator
            .validate(&request.token)
            .await
            .map_err(|fault: InvalidToken| Status::new(fault.code(), fault.to_string()))?;
        let owner = self.names.of(&account).map_err(|fault| {
            Status::failed_precondition(format!("the token's service account has no identity: {fault}"))
        })?;
        if owner != *asked.identity() {
            return Err(Status::failed_precondition(format!(
                "the token is that of {owner}, and {} was asked for; do service account, control-plane namespace and trust domain agree?",
                asked.identity()
            )));
        }
        let issued = sign(&asked, &authority, self.lifetimes).map_err(|refusal| refused(&refusal))?;
        tracing::info!(
            identity = %asked.identity(), serial = issued.serial, %source,
            valid_seconds = issued.valid_until.since(clock::unix_now()).as_secs(),
            "certificate issued"
        );
        Ok(issued)
    }
}

#[tonic::async_trait]
impl<V: TokenValidator> IdentityApi for CertifyService<V> {
    async fn certify(
        &self,
        request: tonic::Request<CertifyRequest>,
    ) -> Result<tonic::Response<CertifyResponse>, Status> {
        let source = request.extensions().get::<PeerInfo>().map(|peer| peer.addr.ip().to_canonical());
        // Without the acceptor's word for it all share one place: bounded, never unlimited.
        let source = source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let request = request.into_inner();
        let asked = request.identity.chars().take(253).collect::<String>();
        let answering = tokio::time::timeout(REQUEST_TIMEOUT, self.answer(source, request)).await;
        let answer = answering.unwrap_or_else(|_elapsed| Err(Status::unavailable("not answered within 8 s")));
        match answer {
            Ok(issued) => {
                self.metrics.answered(Code::Ok);
                Ok(tonic::Response::new(response(issued)))
            }
            Err(status) => {
                self.metrics.answered(status.code());
                let reason = status.message();
                tracing::info!(%source, identity = ?asked, code = ?status.code(), reason, "certificate refused");
                Err(status)
            }
        }
    }
}

fn exhausted(limit: &str) -> Status {
    Status::resource_exhausted(format!("limit reached: {limit}; try again later"))
}

fn refused(refusal: &Refusal) -> Status {
    Status::new(refusal.code(), refusal.to_string())
}

fn response(issued: Certificate) -> CertifyResponse {
    let until = issued.valid_until.0;
    CertifyResponse {
        leaf_certificate: issued.leaf,
        intermediate_certificates: issued.intermediates,
        valid_until: Some(prost_types::Timestamp {
            seconds: i64::try_from(until.as_secs()).unwrap_or(i64::MAX),
            nanos: 0,
        }),
    }
}

fn sign(request: &Request, authority: &Authority, lifetimes: Lifetimes) -> Result<Certificate, Refusal> {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_broken| Refusal::Signing("no randomness".to_owned()))?;
    issue::issue(request, &authority.issuer, clock::unix_now(), lifetimes, u128::from_be_bytes(serial))
}

/// Our own certificate client: no token, because whoever holds the issuer's key needs nobody's word.
struct OwnAuthority {
    authority: Arc<Authority>,
    lifetimes: Lifetimes,
}

impl Certify for OwnAuthority {
    async fn certify(&self, request: CertificateRequest) -> Result<IssuedCertificate, CertifyFault> {
        let refused =
            |refusal: Refusal| CertifyFault::Refused { code: refusal.code(), message: refusal.to_string() };
        let asked = Request::read(request.identity.as_str(), &request.csr).map_err(refused)?;
        let issued = sign(&asked, &self.authority, self.lifetimes).map_err(refused)?;
        Ok(IssuedCertificate {
            leaf: issued.leaf,
            intermediates: issued.intermediates,
            valid_until: issued.valid_until,
        })
    }
}

/// Credentials for our own listener, issued by ourselves: new ones in time, and at once when issuer or anchors change.
pub fn own_credentials(
    mut authority: watch::Receiver<Option<Arc<Authority>>>,
    identity: Identity,
    lifetimes: Lifetimes,
    metrics: CertifyMetrics,
    tasks: &Tasks,
) -> watch::Receiver<Option<Arc<Credentials>>> {
    let (published, credentials) = watch::channel(None);
    let refresh = RefreshBounds { min: Duration::from_secs(10), max: Duration::from_hours(24) };
    let own_tasks = tasks.clone();
    tasks.spawn("own certificate", async move {
        loop {
            let current = authority.borrow_and_update().clone();
            let follow = async {
                let Some(current) = current else { return std::future::pending::<()>().await };
                let config = CertifierConfig {
                    identity: identity.clone(),
                    bundle: current.bundle.clone(),
                    refresh,
                    dir: None,
                };
                let own = OwnAuthority { authority: current, lifetimes };
                match Certifier::spawn(config, own, metrics.clone(), &own_tasks) {
                    Ok(mut own) => {
                        while own.changed().await.is_ok() {
                            let renewed = own.borrow_and_update().clone();
                            published.send_replace(renewed);
                        }
                    }
                    Err(fault) => {
                        tracing::error!(%fault, "cannot make a key for our own listener");
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                changed = authority.changed() => if changed.is_err() { return },
                () = published.closed() => return,
                () = follow => {}
            }
        }
    });
    credentials
}

/// Serves Certify on `listener` until the drain begins, then finishes what is in progress.
pub async fn serve<V: TokenValidator>(
    listener: TcpListener,
    terminate: Terminate,
    service: CertifyService<V>,
    connections: AcceptMetrics,
    tasks: &Tasks,
    drain: &Drain,
) -> Result<(), tonic::transport::Error> {
    let _busy = drain.guard();
    let incoming = control::accept(listener, terminate, AcceptLimits::default(), connections, tasks, drain);
    Server::builder()
        .max_concurrent_streams(8)
        .max_connection_age(CONNECTION_AGE)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .http2_max_header_list_size(16 * 1024)
        .add_service(IdentityServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .serve_with_incoming_shutdown(incoming, drain.draining())
        .await
}

#[cfg(test)]
mod tests;
