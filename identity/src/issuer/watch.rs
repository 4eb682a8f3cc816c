//! The issuer's files, looked at on a timer: by content, so that it does not matter how they are replaced. A new
//! issuer is proved before it serves; one that is not good is refused with its reason while the old one serves.

use super::{InvalidIssuer, Issuer};
use remora_core::time::UnixTime;
use remora_runtime::{
    clock,
    metrics::{Counter, ReadGauge, Registry},
    tasks::Tasks,
    tls::{InvalidBundle, TrustBundle},
};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Between looks at the files.
const PERIOD: Duration = Duration::from_secs(10);

/// Certificates and keys are a few KiB.
const MAX_FILE: u64 = 1024 * 1024;

/// The two layouts of contract 2.5: Linkerd's Secret, and that of cert-manager.
const LAYOUTS: [(&str, &str); 2] = [("crt.pem", "key.pem"), ("tls.crt", "tls.key")];

/// Where an authority is read from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Folder with `crt.pem` and `key.pem`, or `tls.crt` and `tls.key`; the first pair wins.
    pub issuer_dir: PathBuf,
    /// PEM file of the trust anchors.
    pub trust_anchors: PathBuf,
}

/// An issuer and the anchors that it was proved against.
#[derive(Debug)]
pub struct Authority {
    /// Signs.
    pub issuer: Issuer,
    /// Believed.
    pub bundle: Arc<TrustBundle>,
}

/// Why there is no (new) authority.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSources {
    /// Neither layout is there.
    #[error("{0} holds neither crt.pem and key.pem nor tls.crt and tls.key")]
    NoIssuer(PathBuf),
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The anchors' file is no bundle.
    #[error("{path}: {source}")]
    Anchors {
        /// Which.
        path: PathBuf,
        /// Why.
        source: InvalidBundle,
    },
    /// The issuer's files are no issuer.
    #[error("{dir}: {source}")]
    Issuer {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: InvalidIssuer,
    },
}

/// What is counted.
#[derive(Clone)]
pub struct IssuerMetrics {
    expires: Arc<AtomicI64>,
    updated: Counter,
    refused: Counter,
}

impl IssuerMetrics {
    /// `issuer_cert_ttl_seconds` as Linkerd names it, and our own counters of reloads.
    pub fn register(registry: &Registry) -> Self {
        let expires = Arc::new(AtomicI64::new(0));
        let read = expires.clone();
        let ttl = ReadGauge::new(move || {
            let now = i64::try_from(clock::unix_now().0.as_secs()).unwrap_or(i64::MAX);
            read.load(Ordering::Relaxed).saturating_sub(now).max(0)
        });
        registry.register(
            "issuer_cert_ttl_seconds",
            "Seconds until the issuer's chain ends; 0 without one",
            ttl,
        );
        let updated = "Issuers put to use: the first and each replacement";
        let refused = "Looks at the issuer's files that found them unusable";
        Self {
            expires,
            updated: registry.counter("remora_identity_issuer_updates_total", updated),
            refused: registry.counter("remora_identity_issuer_refusals_total", refused),
        }
    }
}

/// Follows the files, every 10 s. `None` until the first good issuer, and never again.
pub fn watch(
    sources: Sources,
    metrics: IssuerMetrics,
    tasks: &Tasks,
) -> watch::Receiver<Option<Arc<Authority>>> {
    let mut follower = Follower::new(sources);
    let (published, authority) = watch::channel(None);
    // The first look before anything else: a process that starts with good files is ready at once.
    follower.step(clock::unix_now(), &metrics, &published);
    tasks.spawn("issuer", async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => follower.step(clock::unix_now(), &metrics, &published),
                () = published.closed() => return,
            }
        }
    });
    authority
}

/// What a look at the files found.
#[derive(Debug)]
enum Look {
    Unchanged,
    Replaced(Arc<Authority>),
    Refused(InvalidSources),
}

struct Follower {
    sources: Sources,
    /// Content of the files that serve.
    serving: Option<[u8; 32]>,
    /// The reason that was logged last, so that it is logged once.
    logged: Option<String>,
}

impl Follower {
    fn new(sources: Sources) -> Self {
        Self { sources, serving: None, logged: None }
    }

    fn step(
        &mut self,
        now: UnixTime,
        metrics: &IssuerMetrics,
        published: &watch::Sender<Option<Arc<Authority>>>,
    ) {
        match self.look(now) {
            Look::Unchanged => self.logged = None,
            Look::Replaced(authority) => {
                self.logged = None;
                let issuer = &authority.issuer;
                let expires = issuer.expires().0.as_secs();
                metrics.expires.store(i64::try_from(expires).unwrap_or(i64::MAX), Ordering::Relaxed);
                metrics.updated.inc();
                let valid_seconds = issuer.expires().since(now).as_secs();
                tracing::info!(issuer = issuer.subject(), valid_seconds, anchors = %authority.bundle, "issuer in use");
                published.send_replace(Some(authority));
            }
            Look::Refused(fault) => {
                metrics.refused.inc();
                let reason = fault.to_string();
                if self.logged.as_ref() != Some(&reason) {
                    let serving = self.serving.is_some();
                    tracing::error!(%fault, old_one_serves = serving, "the issuer's files cannot be used");
                    self.logged = Some(reason);
                }
            }
        }
    }

    /// Files that were refused are looked at again in full: a certificate may just not have begun.
    fn look(&mut self, now: UnixTime) -> Look {
        let files = match read(&self.sources) {
            Ok(files) => files,
            Err(fault) => return Look::Refused(fault),
        };
        let hash = files.hash();
        if self.serving == Some(hash) {
            return Look::Unchanged;
        }
        match files.authority(&self.sources, now) {
            Ok(authority) => {
                self.serving = Some(hash);
                Look::Replaced(Arc::new(authority))
            }
            Err(fault) => Look::Refused(fault),
        }
    }
}

struct Files {
    certificate: String,
    key: String,
    anchors: String,
}

impl Files {
    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for text in [&self.certificate, &self.key, &self.anchors] {
            // With their lengths, so that nothing can move from one file to the next unseen.
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }

    fn authority(&self, sources: &Sources, now: UnixTime) -> Result<Authority, InvalidSources> {
        let bundle = TrustBundle::from_pem(&self.anchors)
            .map_err(|source| InvalidSources::Anchors { path: sources.trust_anchors.clone(), source })?;
        let issuer = Issuer::from_pem(&self.certificate, &self.key, &bundle, now)
            .map_err(|source| InvalidSources::Issuer { dir: sources.issuer_dir.clone(), source })?;
        Ok(Authority { issuer, bundle })
    }
}

fn read(sources: &Sources) -> Result<Files, InvalidSources> {
    let dir = &sources.issuer_dir;
    let layout = LAYOUTS.iter().find(|(certificate, _)| dir.join(certificate).exists());
    let (certificate, key) = layout.ok_or_else(|| InvalidSources::NoIssuer(dir.clone()))?;
    Ok(Files {
        certificate: read_file(&dir.join(certificate))?,
        key: read_file(&dir.join(key))?,
        anchors: read_file(&sources.trust_anchors)?,
    })
}

fn read_file(path: &Path) -> Result<String, InvalidSources> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(|source| InvalidSources::File { path: path.to_owned(), source })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Files as Made, Root};

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const BEGIN: u64 = 1_700_000_000;
    const END: u64 = 1_900_000_000;

    #[test]
    fn both_layouts_are_read() {
        for (certificate, key) in LAYOUTS {
            let mut place = Place::new();
            place.write(certificate, &place.good.certificate.clone());
            place.write(key, &place.good.key.clone());
            assert!(matches!(place.look(), Look::Replaced(_)), "{certificate}");
            assert!(matches!(place.look(), Look::Unchanged), "{certificate}");
        }
    }

    #[test]
    fn a_new_issuer_replaces_the_old_one() {
        let mut place = Place::serving();
        let renewed = place.root.files(BEGIN, END + 1000);
        place.put(&renewed);
        let Look::Replaced(authority) = place.look() else { panic!("not replaced") };
        assert_eq!(authority.issuer.expires(), UnixTime::from_secs(END + 1000));
    }

    #[test]
    fn files_written_again_with_the_same_content_change_nothing() {
        let mut place = Place::serving();
        place.write("crt.pem", &place.good.certificate.clone());
        assert!(matches!(place.look(), Look::Unchanged));
    }

    #[test]
    fn broken_files_are_refused_by_name_until_they_are_whole_again() {
        let mut place = Place::serving();
        let renewed = place.root.files(BEGIN, END + 1000);
        place.write("crt.pem", &renewed.certificate);
        place.refused("not the key of its certificate");
        place.write("key.pem", "");
        place.refused("no private key in PEM");
        place.write("crt.pem", "");
        place.refused("no certificate in it");
        place.write("crt.pem", &renewed.certificate);
        std::fs::remove_file(place.dir.path().join("key.pem")).unwrap();
        place.refused("key.pem: No such file");
        place.write("key.pem", &renewed.key);
        let anchors = place.root.pem();
        place.write("ca.crt", "");
        place.refused("hold no certificate");
        place.write("ca.crt", &Root::new().pem());
        place.refused("does not lead to the trust anchors");
        place.write("ca.crt", &anchors);
        assert!(matches!(place.look(), Look::Replaced(_)));
    }

    #[test]
    fn an_empty_folder_is_named() {
        let mut place = Place::new();
        place.refused("holds neither crt.pem and key.pem nor tls.crt and tls.key");
    }

    #[test]
    fn an_issuer_of_tomorrow_is_used_when_its_time_comes() {
        let mut place = Place::new();
        let early = place.root.files(1_800_000_060, END);
        place.put(&early);
        place.refused("begins in 60 s");
        let later = NOW + Duration::from_mins(1);
        assert!(matches!(place.follower.look(later), Look::Replaced(_)));
    }

    #[test]
    fn a_refused_issuer_leaves_the_published_one_and_is_counted() {
        let registry = Registry::new(Duration::MAX);
        let metrics = IssuerMetrics::register(&registry);
        let (published, authority) = watch::channel(None);
        let mut place = Place::serving_later();
        let step = |place: &mut Place| place.follower.step(NOW, &metrics, &published);
        step(&mut place);
        let first = authority.borrow().clone().unwrap();
        place.write("crt.pem", "broken");
        step(&mut place);
        step(&mut place);
        assert!(Arc::ptr_eq(&first, &authority.borrow().clone().unwrap()));
        let printed = registry.render();
        assert!(printed.contains("remora_identity_issuer_refusals_total 2"), "{printed}");
        assert!(printed.contains("remora_identity_issuer_updates_total 1"), "{printed}");
        let ttl = printed.lines().find_map(|line| line.strip_prefix("issuer_cert_ttl_seconds "));
        let expected = UnixTime::from_secs(END).since(clock::unix_now()).as_secs();
        let ttl: u64 = ttl.unwrap().parse().unwrap();
        assert!(ttl.abs_diff(expected) <= 2, "{ttl} {expected}");
    }

    struct Place {
        dir: tempfile::TempDir,
        root: Root,
        good: Made,
        follower: Follower,
    }

    impl Place {
        /// Anchors, and no issuer.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new();
            let good = root.files(BEGIN, END);
            let trust_anchors = dir.path().join("ca.crt");
            let follower = Follower::new(Sources { issuer_dir: dir.path().to_owned(), trust_anchors });
            let place = Self { dir, root, good, follower };
            place.write("ca.crt", &place.root.pem());
            place
        }

        fn serving_later() -> Self {
            let place = Self::new();
            place.put(&place.good);
            place
        }

        fn serving() -> Self {
            let mut place = Self::serving_later();
            assert!(matches!(place.look(), Look::Replaced(_)));
            place
        }

        fn put(&self, files: &Made) {
            self.write("crt.pem", &files.certificate);
            self.write("key.pem", &files.key);
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn look(&mut self) -> Look {
            self.follower.look(NOW)
        }

        #[track_caller]
        fn refused(&mut self, why: &str) {
            let Look::Refused(fault) = self.look() else { panic!("not refused: {why}") };
            assert!(fault.to_string().contains(why), "{fault}");
        }
    }
}
