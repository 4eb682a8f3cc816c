//! The proxy's environment: whatever stands in it, a configuration or a list of mistakes comes out; what is wrong by
//! itself is named in any company, what is right is never blamed for it; printed defaults are the defaults; messages are
//! short and show no secret.

use arbitrary::{Arbitrary, Unstructured};
use remora_proxy::config::{Config, GROUPS, Setting};
use remora_runtime::env::{Env, Mistake, redacted};
use std::{collections::BTreeMap, ffi::OsString, os::unix::ffi::OsStringExt, sync::OnceLock};

/// The description of an environment.
pub fn env(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.mistakes_are_named();
        described.defaults_are_what_is_printed();
    }
}

type Vars = BTreeMap<String, OsString>;

#[derive(Arbitrary, Debug)]
struct Described {
    set: Vec<(u8, Value)>,
    unknown: Option<Vec<u8>>,
    defaults: u128,
    empty: bool,
}

#[derive(Arbitrary, Debug)]
enum Value {
    Telling(u8),
    Number(u32, u8),
    List(Vec<u8>),
    Raw(Vec<u8>),
    Repeated(u8, u16),
}

impl Described {
    fn mistakes_are_named(&self) {
        let mut all = base();
        let mut mine = Vars::new();
        for (which, value) in self.set.iter().take(12) {
            mine.insert(setting(*which).name.to_owned(), value.text());
        }
        if let Some(letters) = &self.unknown {
            let name: String = letters.iter().take(30).map(|byte| char::from(b'A' + byte % 26)).collect();
            let name = format!("REMORA_PROXY_{name}");
            if !settings().any(|setting| setting.name == name) {
                mine.insert(name, "1".into());
            }
        }
        all.extend(mine.clone());
        let together = mistakes(&all);
        for mistake in &together {
            assert!(
                all.contains_key(&mistake.name) || settings().any(|setting| setting.name == mistake.name),
                "{mistake}"
            );
            shows_little(mistake, &all);
        }
        for (name, value) in &mine {
            let mut one = base();
            one.insert(name.clone(), value.clone());
            let alone: Vec<Mistake> =
                mistakes(&one).into_iter().filter(|mistake| mistake.name == *name).collect();
            assert!(alone.len() < 2, "{alone:?}");
            let here: Vec<&Mistake> = together.iter().filter(|mistake| mistake.name == *name).collect();
            // Some are right or wrong by what another says, or not read because of it.
            if !related(name) {
                assert_eq!(here, alone.iter().collect::<Vec<_>>(), "{name} among {mine:?}");
            }
            let known = settings().any(|setting| setting.name == name);
            assert!(known || alone.len() == 1, "{name} is nothing, and nobody says so");
        }
    }

    /// Any of the defaults may be written out, and what is not required may be there and empty.
    fn defaults_are_what_is_printed(&self) {
        static PLAIN: OnceLock<String> = OnceLock::new();
        let plain = PLAIN.get_or_init(|| printed(&base()));
        let mut written = base();
        let optional = settings().filter(|setting| setting.default != "required");
        for (at, setting) in optional.enumerate().filter(|(at, _)| self.defaults >> (at % 128) & 1 == 1) {
            let default = if self.empty && at % 2 == 0 { "" } else { setting.default };
            written.insert(setting.name.to_owned(), default.into());
        }
        assert_eq!(&printed(&written), plain, "{written:?}");
    }
}

fn settings() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|group| group.settings)
}

fn setting(which: u8) -> &'static Setting {
    static ALL: OnceLock<Vec<&Setting>> = OnceLock::new();
    let all = ALL.get_or_init(|| settings().collect());
    all[usize::from(which) % all.len()]
}

/// What a pod has at least.
fn base() -> Vars {
    let name = "remora-dst.remora.serviceaccount.identity.remora.cluster.local";
    [
        ("DESTINATION_SVC_ADDR", "remora-dst.remora.svc.cluster.local.:8086"),
        ("DESTINATION_SVC_NAME", name),
        ("POLICY_SVC_ADDR", "remora-policy.remora.svc.cluster.local.:8090"),
        ("POLICY_SVC_NAME", name),
        ("IDENTITY_SVC_ADDR", "remora-identity.remora.svc.cluster.local.:8080"),
        ("IDENTITY_SVC_NAME", name),
        ("IDENTITY_DIR", "/var/run/linkerd/identity/end-entity"),
        ("IDENTITY_TRUST_ANCHORS", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("IDENTITY_TOKEN_FILE", "/var/run/secrets/tokens/linkerd-identity-token"),
        ("IDENTITY_LOCAL_NAME", "web.shop.serviceaccount.identity.remora.cluster.local"),
        ("POLICY_WORKLOAD", "{}"),
    ]
    .into_iter()
    .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value.into()))
    .collect()
}

fn mistakes(vars: &Vars) -> Vec<Mistake> {
    match Config::from_env(Env::from_pairs(vars.clone())) {
        Ok(_) => vec![],
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty(), "refused without a mistake: {vars:?}");
            mistakes.0
        }
    }
}

fn printed(vars: &Vars) -> String {
    match Config::from_env(Env::from_pairs(vars.clone())) {
        Ok(config) => format!("{config:?}"),
        Err(mistakes) => panic!("{mistakes}"),
    }
}

/// Settings that depend on others: bounds of each other, loopback that needs no name, identity that may be off.
fn related(name: &str) -> bool {
    ["_REFRESH", "CONTROL_STREAM_", "POLICY_CLUSTER_NETWORKS", "DEFAULT_POLICY", "_SVC_", "IDENTITY_"]
        .iter()
        .any(|part| name.contains(part))
}

/// A message is a line in a log that many may read.
fn shows_little(mistake: &Mistake, vars: &Vars) {
    let line = mistake.to_string();
    assert!(line.chars().count() <= 1500, "{} characters: {line}", line.chars().count());
    let value = vars.get(&mistake.name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
    if redacted(&mistake.name, &value) != value {
        let longest = value.split([',', '\n']).max_by_key(|part| part.len()).unwrap_or_default().trim();
        assert!(longest.len() < 8 || !line.contains(longest), "it shows what is secret: {line}");
    }
}

impl Value {
    fn text(&self) -> OsString {
        const TELLING: [&str; 36] = [
            "",
            "0",
            "1",
            "10s",
            "5m",
            "1h",
            "365d",
            "250ms",
            "0s",
            "true",
            "false",
            "True",
            "plain",
            "json",
            "v1",
            "127.0.0.1:4140",
            "[::1]:4140",
            "127.0.0.1:4140,[::1]:4140",
            "localhost:8086",
            "web.shop:80",
            "host",
            "::1",
            "10.0.0.0/8, fd00::/8",
            "10.0.0.1",
            "10.0.0.0/33",
            "25,587,4000-4010",
            "20-10",
            "0.5",
            "1e400",
            "nan",
            "all-authenticated",
            "cluster-authenticated",
            "a.b",
            "spiffe://a/b",
            "-----BEGIN PRIVATE KEY-----,MIGHAgEAMBMGByqGSM49AgEG",
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ3ZWIifQ.c2lnbmF0dXJl",
        ];
        const UNITS: [&str; 8] = ["", "ms", "s", "m", "h", "d", "%", " s"];
        let bytes = match self {
            Self::Telling(which) => TELLING[usize::from(*which) % TELLING.len()].as_bytes().to_vec(),
            Self::Number(number, unit) => {
                format!("{number}{}", UNITS[usize::from(*unit) % UNITS.len()]).into_bytes()
            }
            Self::List(items) => {
                let items = items.iter().take(20).map(|item| TELLING[usize::from(*item) % TELLING.len()]);
                items.collect::<Vec<_>>().join(",").into_bytes()
            }
            Self::Raw(bytes) => bytes.clone(),
            Self::Repeated(byte, times) => vec![*byte; usize::from(*times)],
        };
        // The kernel ends a value with NUL.
        OsString::from_vec(bytes.into_iter().filter(|byte| *byte != 0).collect())
    }
}
