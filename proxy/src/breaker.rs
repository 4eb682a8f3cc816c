//! The breakers of one balancer of one worker, as its endpoints meet them. Drives `core::breaker`: requests and what comes
//! of them in, whom a request may be sent to out.

use crate::{fault::Fault, http::exchange, metrics::breakers::BreakerMetrics};
use http::{HeaderMap, Response};
use remora_core::{
    breaker::{Accrual, Breakers, Change, Gate, Key, Outcome, Ticket},
    time::Time,
};
use remora_runtime::clock;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tracing::info;

/// What the endpoints of one balancer share.
pub struct Breaking {
    /// `<svc>.<ns>.svc.<domain>:<port>`.
    name: Arc<str>,
    breakers: Mutex<Breakers>,
    metrics: BreakerMetrics,
}

/// The breaker of one endpoint.
pub struct Breaker {
    of: Arc<Breaking>,
    key: Key,
    addr: SocketAddr,
}

/// A request under way, and what is known of what came of it.
pub struct Trial {
    ticket: Ticket,
    outcome: Option<Outcome>,
    hint: Option<Duration>,
}

impl Breaking {
    pub fn new(name: &Arc<str>, accrual: &Accrual, metrics: &BreakerMetrics) -> Arc<Self> {
        let breakers = Mutex::new(Breakers::new(*accrual));
        Arc::new(Self { name: name.clone(), breakers, metrics: metrics.clone() })
    }

    /// The breaker of a new endpoint.
    pub fn join(self: &Arc<Self>, addr: SocketAddr) -> Breaker {
        Breaker { of: self.clone(), key: self.breakers().join(), addr }
    }

    /// All that go have gone: with fewer endpoints fewer may be out.
    pub fn settle(&self) {
        let back = self.breakers().settle();
        self.metrics.let_back(back);
    }

    /// Nobody else can be reached than these, which are out: who is out longest comes back. Whether there was one.
    pub fn let_back(&self, among: &[&Breaker]) -> bool {
        let back = self.breakers().let_back(among.iter().map(|breaker| breaker.key));
        self.metrics.let_back(usize::from(back));
        back
    }

    fn breakers(&self) -> MutexGuard<'_, Breakers> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Breaker {
    /// May a request be sent to the endpoint?
    pub fn admits(&self, now: Time) -> bool {
        self.of.breakers().admits(self.key, now)
    }

    /// A request is sent.
    pub fn begin(&self, now: Time) -> Option<Trial> {
        let ticket = self.of.breakers().begin(self.key, now)?;
        Some(Trial { ticket, outcome: None, hint: None })
    }

    /// It is over.
    pub fn end(&self, trial: &Trial) {
        let now = clock::now();
        let Trial { ticket, outcome, hint } = *trial;
        let change = self.of.breakers().end(ticket, outcome, hint, now, clock::random());
        let Some(change) = change else { return };
        self.of.metrics.changed(change);
        let (endpoint, balancer) = (self.addr, &*self.of.name);
        match change {
            Change::Shut(why, until) => {
                info!(%endpoint, balancer, ?why, wait = ?until.since(now), "an endpoint is left out");
            }
            Change::Kept(why) => {
                info!(%endpoint, balancer, ?why, "an endpoint is not left out: too many are already");
            }
            Change::Opened => info!(%endpoint, balancer, "an endpoint is back"),
        }
    }

    /// The endpoint is gone. Once all that go have gone, the others [settle](Breaking::settle).
    pub fn leave(&self) {
        self.of.breakers().leave(self.key);
    }

    /// How it is, for `/state.json`.
    pub fn gate(&self, now: Time) -> Gate {
        self.of.breakers().gate(self.key, now)
    }
}

impl Trial {
    /// The head of an answer is there; what follows may say otherwise.
    pub fn answered<B>(&mut self, response: &Response<B>) {
        let (status, head) = (response.status().as_u16(), response.headers());
        let grpc = if exchange::is_grpc(head) { exchange::grpc_status(head) } else { None };
        self.ended(status, grpc, false);
        self.hint = hint(status, grpc, head);
    }

    /// The trailers of an answer.
    pub fn trailers(&mut self, grpc: Option<u16>, trailers: &HeaderMap) {
        self.hint = hint(200, grpc, trailers).or(self.hint);
    }

    /// The answer is over; `broken`: it broke off. Contract 4.4, 4.6.
    pub fn ended(&mut self, status: u16, grpc: Option<u16>, broken: bool) {
        self.outcome = Some(match grpc {
            _ if broken => Outcome::Failed,
            Some(RESOURCE_EXHAUSTED) => Outcome::Limited,
            Some(code) => failed_if(exchange::classify_grpc(code)),
            None if status == 429 => Outcome::Limited,
            None => failed_if(exchange::classify_status(status)),
        });
    }

    /// There is no answer. What is not the endpoint's doing says nothing of it, nor does what it refused while it closed
    /// a connection in good order.
    pub fn failed(&mut self, fault: &Fault) {
        self.outcome = if fault.is_connect() {
            Some(Outcome::Refused)
        } else {
            (fault.tried() == remora_core::retry::Tried::Unanswered).then_some(Outcome::Failed)
        };
    }
}

const RESOURCE_EXHAUSTED: u16 = 8;

fn failed_if(class: exchange::Class) -> Outcome {
    match class {
        exchange::Class::Success => Outcome::Good,
        exchange::Class::Failure => Outcome::Failed,
    }
}

/// When an endpoint that is full or away wants to be asked again: seconds (RFC 9110 section 10.2.3; a date is not read),
/// or gRPC's milliseconds.
fn hint(status: u16, grpc: Option<u16>, said: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| said.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    if grpc == Some(RESOURCE_EXHAUSTED) {
        return number("grpc-retry-pushback-ms").map(Duration::from_millis);
    }
    if matches!(status, 429 | 503) { number("retry-after").map(Duration::from_secs) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_says_of_its_endpoint() {
        for (status, head, outcome, hint) in [
            (200, &[][..], Outcome::Good, None),
            (404, &[("retry-after", "5")], Outcome::Good, None),
            (429, &[("retry-after", "5")], Outcome::Limited, Some(5_000)),
            (503, &[("retry-after", " 120 ")], Outcome::Failed, Some(120_000)),
            (500, &[("retry-after", "5")], Outcome::Failed, None),
            (503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], Outcome::Failed, None),
            (503, &[("retry-after", "-1")], Outcome::Failed, None),
            (200, &[("content-type", "application/grpc"), ("grpc-status", "13")], Outcome::Failed, None),
            (200, &[("content-type", "application/grpc"), ("grpc-status", "5")], Outcome::Good, None),
            (200, &[("content-type", "text/html"), ("grpc-status", "13")], Outcome::Good, None),
            (503, &[("content-type", "application/grpc")], Outcome::Failed, None),
            (
                200,
                &[
                    ("content-type", "application/grpc"),
                    ("grpc-status", "8"),
                    ("grpc-retry-pushback-ms", "70"),
                ],
                Outcome::Limited,
                Some(70),
            ),
        ] {
            let mut response = Response::builder().status(status);
            for (name, value) in head {
                response = response.header(*name, *value);
            }
            let mut trial = trial();
            trial.answered(&response.body(()).unwrap());
            assert_eq!(trial.outcome, Some(outcome), "{status} {head:?}");
            assert_eq!(trial.hint, hint.map(Duration::from_millis), "{status} {head:?}");
        }
    }

    #[test]
    fn what_follows_a_head_may_say_otherwise() {
        let mut trial = trial();
        trial.answered(&Response::new(()));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-retry-pushback-ms", 90.into());
        trial.trailers(Some(8), &trailers);
        trial.ended(200, Some(8), false);
        assert_eq!((trial.outcome, trial.hint), (Some(Outcome::Limited), Some(Duration::from_millis(90))));
        trial.ended(200, None, true);
        assert_eq!(trial.outcome, Some(Outcome::Failed));
    }

    #[test]
    fn what_a_fault_says_of_an_endpoint() {
        let reset = |reason: h2::Reason| Fault::Server(h2::Error::from(reason).into());
        let source = Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        for (fault, outcome) in [
            (Fault::Connect { addr: ([10, 0, 0, 1], 80).into(), source }, Some(Outcome::Refused)),
            (reset(h2::Reason::INTERNAL_ERROR), Some(Outcome::Failed)),
            (reset(h2::Reason::REFUSED_STREAM), None),
            (Fault::Body("the client's".into()), None),
            (Fault::NoCredentials, None),
        ] {
            let mut trial = trial();
            trial.failed(&fault);
            assert_eq!(trial.outcome, outcome, "{fault}");
        }
    }

    fn trial() -> Trial {
        let accrual = Accrual {
            max_failures: 1,
            rate: None,
            backoff: remora_core::retry::BACKOFF,
            retry_after: true,
            min_ready: 0,
        };
        let mut breakers = Breakers::new(accrual);
        let key = breakers.join();
        let ticket = breakers.begin(key, Time::default()).unwrap();
        Trial { ticket, outcome: None, hint: None }
    }
}
