//! The certificate client against an authority that follows a script, in paused time.

use super::*;
use crate::metrics::Registry;
use crate::tls::tests::{Ca, dns, identity, leaf_params, unix};
use rcgen::CertificateSigningRequestParams;
use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::time::Instant;

const NAME: &str = "web.shop.serviceaccount.identity.remora.cluster.local";
const HOUR: u64 = 3600;

#[tokio::test(start_paused = true)]
async fn the_first_certificate_is_published_and_stored() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::with(Some(dir.path().to_owned()), [Grants(24 * HOUR)]);
    let credentials = run.published().await;
    assert_eq!(credentials.identity(), &identity(NAME));
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read("crt.der"), credentials.chain()[0].to_vec());
    assert_eq!(read("ca-bundle.crt"), run.authority.ca.pem().into_bytes());
    assert!(!read("key.p8").is_empty() && !read("csr.der").is_empty());
    let metrics = run.metrics();
    assert!(metrics.contains(r#"control_identity_cert_refreshes_total{result="ok"} 1"#), "{metrics}");
    let expires = credentials.expires().0.as_secs();
    assert!(
        metrics.contains(&format!("control_identity_cert_expiration_timestamp_seconds {expires}")),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn renewal_is_at_70_percent_with_the_same_key_and_our_certificate() {
    let mut run = Run::with(None, [Grants(10 * HOUR), Grants(10 * HOUR)]);
    let first = run.published().await;
    let second = run.published().await;
    assert!(second.epoch() > first.epoch());
    assert_ne!(second.serial(), first.serial());
    let asked = run.asked();
    assert_eq!(asked[1].at - asked[0].at, 7 * HOUR);
    assert_eq!(asked[0].csr, asked[1].csr, "the key is kept");
    assert_eq!(asked.iter().map(|asked| asked.authenticated).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(start_paused = true)]
async fn failures_before_the_first_certificate_are_retried_soon() {
    let mut run = Run::with(None, [Refuses, Stalls, Grants(HOUR)]);
    run.published().await;
    let asked = run.asked();
    assert!((1..=2).contains(&(asked[1].at - asked[0].at)), "{asked:?}");
    assert!((12..=13).contains(&(asked[2].at - asked[1].at)), "10 s of silence: {asked:?}");
    assert!(run.metrics().contains(r#"control_identity_cert_refreshes_total{result="error"} 2"#));
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_certificate_and_tries_without_it() {
    let mut run = Run::with(None, [Grants(10 * HOUR), Refuses, Grants(10 * HOUR)]);
    let first = run.published().await;
    let second = run.published().await;
    assert!(second.epoch() > first.epoch());
    let asked = run.asked();
    // 70 % of what then remained: 0.7 × 3 h.
    assert_eq!(asked[2].at - asked[1].at, 7560);
    assert_eq!(asked.iter().map(|asked| asked.authenticated).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_ends_is_withdrawn_and_replaced_when_possible() {
    let refusals = std::iter::repeat_n(Refuses, 40);
    let mut run = Run::with(None, [Grants(HOUR)].into_iter().chain(refusals).chain([Grants(HOUR)]));
    let first = run.published().await;
    run.credentials.changed().await.unwrap();
    assert!(run.credentials.borrow_and_update().is_none());
    assert!(run.clock.now_secs() >= first.expires().0.as_secs());
    let again = run.published().await;
    assert!(again.epoch() > first.epoch());
    assert!(!run.asked().last().unwrap().authenticated, "an expired certificate is no proof");
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_not_for_us_are_refused_and_asked_again() {
    for wrong in [
        GrantsTo("other.shop.serviceaccount.identity.remora.cluster.local"),
        OtherKey,
        OtherRoot,
        Ended,
        Garbage,
    ] {
        let mut run = Run::with(None, [wrong, Grants(HOUR)]);
        run.published().await;
        assert_eq!(run.asked().len(), 2, "{wrong:?} was accepted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_begins_soon_is_waited_for_and_used() {
    for ahead in [1, 30] {
        let mut run = Run::with(None, [GrantsLater(ahead)]);
        let began = run.clock.now_secs();
        let credentials = run.published().await;
        assert!(credentials.not_before().0.as_secs() <= run.clock.now_secs());
        assert_eq!(run.clock.now_secs() - began, ahead, "as soon as it holds");
        assert_eq!(run.asked().len(), 1, "nobody is asked for another that would begin as late");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_the_far_future_is_refused_and_asked_for_again() {
    let mut run = Run::with(None, [GrantsLater(HOUR), Grants(HOUR)]);
    run.published().await;
    let asked = run.asked();
    assert!(asked.len() == 2 && (1..=2).contains(&(asked[1].at - asked[0].at)), "{asked:?}");
    assert!(run.metrics().contains(r#"control_identity_cert_refreshes_total{result="error"} 1"#));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_begins_soon_leaves_the_current_certificate_in_use() {
    let mut run = Run::with(None, [Grants(10 * HOUR), GrantsLater(30)]);
    let first = run.published().await;
    let asked = async {
        while run.asked().len() < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(8 * HOUR), asked).await.unwrap();
    assert_eq!(run.credentials.borrow().as_ref().map(|current| current.epoch()), Some(first.epoch()));
    assert!(run.published().await.epoch() > first.epoch());
}

#[tokio::test(start_paused = true)]
async fn an_hour_that_the_wall_clock_jumps_ahead_brings_the_renewal_forward() {
    let mut run = Run::with(None, [Grants(HOUR + 60), Grants(10 * HOUR)]);
    let first = run.published().await;
    run.clock.jump(i64::try_from(HOUR).unwrap());
    let (jumped, second) = (Instant::now(), run.published().await);
    assert!(second.epoch() > first.epoch());
    assert!(jumped.elapsed() <= NAP + Duration::from_secs(1), "the clock is looked at once a minute");
}

#[tokio::test(start_paused = true)]
async fn an_hour_that_the_wall_clock_jumps_beyond_the_certificate_withdraws_it_until_there_is_a_new_one() {
    let mut run = Run::with(None, [Grants(HOUR), Refuses, Grants(10 * HOUR)]);
    run.published().await;
    run.clock.jump(i64::try_from(HOUR).unwrap());
    run.credentials.changed().await.unwrap();
    assert!(run.credentials.borrow_and_update().is_none());
    run.published().await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_that_the_wall_clock_jumps_back_neither_asks_in_a_loop_nor_takes_the_certificate_away() {
    let mut run = Run::with(None, [Grants(10 * HOUR), Grants(10 * HOUR)]);
    let first = run.published().await;
    run.clock.jump(-i64::try_from(HOUR).unwrap());
    tokio::time::sleep(Duration::from_secs(7 * HOUR)).await;
    assert_eq!(run.asked().len(), 1, "70 % of it are over in an hour only");
    assert_eq!(run.credentials.borrow().as_ref().map(|current| current.epoch()), Some(first.epoch()));
    assert!(run.published().await.epoch() > first.epoch());
    assert_eq!(run.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_client_ends_when_nobody_listens() {
    let mut run = Run::with(None, [Grants(HOUR)]);
    run.published().await;
    let Run { credentials, tasks, .. } = run;
    drop(credentials);
    assert_eq!(tasks.finished(Duration::from_secs(1)).await, 0);
}

#[test]
fn every_fault_says_what_to_do() {
    let refused = |code| CertifyFault::Refused { code, message: "no".to_owned() };
    let faults = [
        CertifyFault::Timeout,
        CertifyFault::Incomplete("leaf"),
        CertifyFault::Past { ago: 100 },
        refused(tonic::Code::FailedPrecondition),
        refused(tonic::Code::InvalidArgument),
        refused(tonic::Code::ResourceExhausted),
        refused(tonic::Code::Unavailable),
        CertifyFault::Credentials(CredentialsFault::Key),
    ];
    for fault in faults {
        assert!(fault.advice().len() > 20, "{fault}");
    }
}

// Helpers.

use Answer::{Ended, Garbage, Grants, GrantsLater, GrantsTo, OtherKey, OtherRoot, Refuses, Stalls};

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// A good certificate of so many seconds.
    Grants(u64),
    /// One of an hour that begins in so many seconds.
    GrantsLater(u64),
    GrantsTo(&'static str),
    OtherKey,
    OtherRoot,
    Ended,
    Garbage,
    Refuses,
    Stalls,
}

#[derive(Clone, Debug)]
struct Asked {
    at: u64,
    csr: Vec<u8>,
    authenticated: bool,
}

struct Run {
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    authority: Arc<Authority>,
    clock: Arc<PausedClock>,
    registry: Registry,
    tasks: Tasks,
}

impl Run {
    fn with(dir: Option<PathBuf>, script: impl IntoIterator<Item = Answer>) -> Self {
        let clock = Arc::new(PausedClock { base: unix().into(), start: Instant::now() });
        let authority = Arc::new(Authority {
            ca: Ca::new(),
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::default(),
            clock: clock.clone(),
        });
        let registry = Registry::new(Duration::MAX);
        let config = CertifierConfig {
            identity: identity(NAME),
            bundle: TrustBundle::from_pem(&authority.ca.pem()).unwrap(),
            refresh: RefreshBounds { min: Duration::from_secs(10), max: Duration::from_hours(24) },
            dir,
        };
        let tasks = Tasks::new();
        let metrics = CertifyMetrics::register(&registry);
        let credentials =
            Certifier::spawn_with_clock(config, authority.clone(), metrics, &tasks, clock.clone()).unwrap();
        Self { credentials, authority, clock, registry, tasks }
    }

    /// The next credentials.
    async fn published(&mut self) -> Arc<Credentials> {
        let waiting = async {
            self.credentials.changed().await.unwrap();
            self.credentials.borrow_and_update().clone()
        };
        timeout(Duration::from_secs(48 * HOUR), waiting).await.unwrap().expect("withdrawn")
    }

    fn asked(&self) -> Vec<Asked> {
        self.authority.asked.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        self.registry.render()
    }
}

/// The wall clock of a world whose time tokio may skip, and whose operator may set it.
#[derive(Debug)]
struct PausedClock {
    base: AtomicU64,
    start: Instant,
}

impl PausedClock {
    fn now_secs(&self) -> u64 {
        self.base.load(Ordering::SeqCst) + self.start.elapsed().as_secs()
    }

    fn jump(&self, secs: i64) {
        let jumped = self.base.load(Ordering::SeqCst).saturating_add_signed(secs);
        self.base.store(jumped, Ordering::SeqCst);
    }
}

impl TimeProvider for PausedClock {
    fn current_time(&self) -> Option<rustls_pki_types::UnixTime> {
        Some(rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(self.now_secs())))
    }
}

struct Authority {
    ca: Ca,
    script: Mutex<VecDeque<Answer>>,
    asked: Mutex<Vec<Asked>>,
    clock: Arc<PausedClock>,
}

impl Certify for Arc<Authority> {
    async fn certify(&self, request: CertificateRequest) -> Result<IssuedCertificate, CertifyFault> {
        let at = self.clock.now_secs();
        let asked = Asked { at, csr: request.csr.clone(), authenticated: request.current.is_some() };
        self.asked.lock().unwrap().push(asked);
        let answer = self.script.lock().unwrap().pop_front().unwrap_or(Stalls);
        let other = || Keypair::generate().unwrap().csr_der(&identity(NAME)).unwrap();
        match answer {
            Grants(secs) => Ok(sign(&self.ca, &request.csr, NAME, at, at + secs)),
            GrantsLater(ahead) => Ok(sign(&self.ca, &request.csr, NAME, at + ahead, at + ahead + HOUR)),
            GrantsTo(name) => Ok(sign(&self.ca, &request.csr, name, at, at + HOUR)),
            OtherKey => Ok(sign(&self.ca, &other(), NAME, at, at + HOUR)),
            OtherRoot => Ok(sign(&Ca::new(), &request.csr, NAME, at, at + HOUR)),
            Ended => Ok(sign(&self.ca, &request.csr, NAME, at - HOUR, at - 61)),
            Garbage => Ok(IssuedCertificate {
                leaf: vec![0x30, 1, 0],
                intermediates: Vec::new(),
                valid_until: UnixTime::from_secs(at + HOUR),
            }),
            Refuses => Err(CertifyFault::Refused {
                code: tonic::Code::Unavailable,
                message: "as the script says".to_owned(),
            }),
            Stalls => std::future::pending().await,
        }
    }
}

fn sign(ca: &Ca, csr: &[u8], name: &str, from: u64, until: u64) -> IssuedCertificate {
    let key = CertificateSigningRequestParams::from_der(&csr.into()).unwrap().public_key;
    let mut params = leaf_params(&[dns(name)], from, until);
    // rcgen would derive it from the key, which stays the same.
    params.serial_number = Some(from.into());
    let leaf = params.signed_by(&key, &ca.issuer).unwrap();
    IssuedCertificate {
        leaf: leaf.der().to_vec(),
        intermediates: Vec::new(),
        valid_until: UnixTime::from_secs(until),
    }
}
