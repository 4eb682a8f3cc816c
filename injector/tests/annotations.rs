//! What annotations promise: the reference page is the table, the defaults it prints are the real ones, and what is not
//! understood is warned of by name.

use std::{collections::BTreeMap, fs, path::Path};

use remora_injector::{
    annotations::{self, ANNOTATIONS, Annotations, Read, Scope},
    config::InjectorConfig,
};

fn read(namespace: &Annotations, workload: &Annotations) -> Result<Read, Vec<String>> {
    let named = BTreeMap::from([("http".to_owned(), 8080)]);
    annotations::read(&InjectorConfig::default(), namespace, workload, &named)
}

fn one(name: &str, value: &str) -> Annotations {
    Annotations::from([(name.to_owned(), value.to_owned())])
}

#[test]
fn the_reference_page_is_what_the_table_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/annotations.md");
    let printed = annotations::reference();
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &printed).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    assert!(page == printed, "renew it with UPDATE=1 cargo test -p remora-injector --test annotations");
}

#[test]
fn the_table_has_every_name_once() {
    let mut names: Vec<&str> = ANNOTATIONS.iter().map(|annotation| annotation.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(annotations::IGNORED.iter().all(|(name, _)| !names.contains(name)));
}

/// The page's column of defaults is text; this keeps it true. A default that can be written as a value is the value
/// that changes nothing; the others are sentences.
#[test]
fn the_defaults_in_the_table_change_nothing() {
    let untouched = read(&Annotations::new(), &Annotations::new()).unwrap();
    let sentences = ["this release", "container and probe ports", "none", "the kernel's", "the proxy's"];
    let mut checked = 0;
    for annotation in &ANNOTATIONS {
        let default = annotation.default;
        if sentences.contains(&default) || default.contains(" if ") || default.contains("declares") {
            continue;
        }
        let read = read(&Annotations::new(), &one(annotation.name, default)).unwrap();
        assert_eq!(read.settings, untouched.settings, "{}: {default}", annotation.name);
        assert_eq!(read.warnings, [""; 0], "{}: {default}", annotation.name);
        checked += 1;
    }
    assert!(checked > 25, "only {checked} defaults were values");
}

#[test]
fn a_value_that_means_nothing_is_warned_of_by_name_and_the_default_stays() {
    let untouched = read(&Annotations::new(), &Annotations::new()).unwrap().settings;
    // Any text is an image, a tag, a log filter; decide.rs meets the switch; lists keep what they understand.
    let free = ["linkerd.io/inject", "proxy-image", "proxy-version", "proxy-log-level"];
    let lists = ["pod-inbound-ports", "skip-inbound-ports", "skip-outbound-ports", "opaque-ports"];
    let strict =
        ["skip-subnets", "proxy-additional-env", "require-identity-inbound-ports", "outbound-default-policy"];
    let ends = |names: &[&str], name: &str| names.iter().any(|end| name.ends_with(end));
    for annotation in ANNOTATIONS.iter().filter(|annotation| !ends(&free, annotation.name)) {
        let read = read(&Annotations::new(), &one(annotation.name, "nonsense!"));
        if ends(&strict, annotation.name) {
            let why = read.unwrap_err();
            assert!(why.len() == 1 && why[0].contains(annotation.name), "{why:?}");
            continue;
        }
        let read = read.unwrap();
        assert_eq!(read.warnings.len(), 1, "{}", annotation.name);
        assert!(read.warnings[0].contains(annotation.name), "{:?}", read.warnings);
        if !ends(&lists, annotation.name) {
            assert!(read.warnings[0].contains("default stays"), "{:?}", read.warnings);
            assert_eq!(read.settings, untouched, "{}", annotation.name);
        }
    }
}

#[test]
fn numbers_out_of_their_range_are_warned_of() {
    for (name, values) in [
        ("inbound-port", &["0", "65536", "-1", "4140", ""][..]),
        ("proxy-uid", &["0", "-1", "2147483648", "root"]),
        ("proxy-gid", &["0"]),
        ("proxy-cpu-ratio-limit", &["0", "1", "1.5", "NaN", "-0.1"]),
        ("proxy-cpu-request", &["-1", "lots"]),
        ("proxy-outbound-connect-timeout", &["0", "0s", "1", "-5s", "400d"]),
        ("close-wait-timeout", &["1500ms"]),
    ] {
        for value in values {
            let read = read(&Annotations::new(), &one(&format!("config.linkerd.io/{name}"), value)).unwrap();
            assert_eq!(read.warnings.len(), 1, "{name}: {value:?}: {:?}", read.warnings);
        }
    }
}

#[test]
fn a_list_keeps_what_it_understands_and_names_the_rest() {
    let read =
        read(&Annotations::new(), &one("config.linkerd.io/opaque-ports", "http, 25,nonsense,9-1")).unwrap();
    assert_eq!(read.settings.opaque.map(|ports| ports.to_string()).as_deref(), Some("8080,25"));
    assert_eq!(read.warnings.len(), 2, "{:?}", read.warnings);
    assert!(read.warnings[0].contains("\"nonsense\"") && read.warnings[1].contains("\"9-1\""));
}

#[test]
fn names_that_are_not_known_are_warned_of() {
    for (name, word) in [
        ("config.linkerd.io/proxy-uuid", "not known"),
        ("config.alpha.linkerd.io/proxy-uid", "not known"),
        ("config.linkerd.io/enable-debug-sidecar", "kubectl debug"),
        ("config.linkerd.io/enable-gateway", "multicluster"),
    ] {
        let own = read(&Annotations::new(), &one(name, "1")).unwrap().warnings;
        assert!(own.len() == 1 && own[0].contains(name) && own[0].contains(word), "{own:?}");
        let theirs = read(&one(name, "1"), &Annotations::new()).unwrap();
        assert!(theirs.warnings[0].contains("of the namespace"), "{:?}", theirs.warnings);
        assert!(theirs.inherited.is_empty());
    }
    for foreign in ["example.com/proxy-uid", "viz.linkerd.io/disable-tap", "linkerd.io/created-by"] {
        assert_eq!(read(&Annotations::new(), &one(foreign, "1")).unwrap().warnings, [""; 0]);
    }
}

#[test]
fn namespaces_fill_what_pods_leave_open() {
    for annotation in &ANNOTATIONS {
        let theirs = read(&one(annotation.name, annotation.default), &Annotations::new());
        let copied = theirs.is_ok_and(|read| read.inherited.contains_key(annotation.name));
        let strict = ["skip-subnets", "additional-env", "require-identity-inbound-ports"];
        let denied = strict.iter().any(|name| annotation.name.ends_with(name));
        assert_eq!(copied, annotation.scope != Scope::Workload && !denied, "{}", annotation.name);
    }
    let uid = "config.linkerd.io/proxy-uid";
    let both = read(&one(uid, "3000"), &one(uid, "4000")).unwrap();
    assert_eq!((both.settings.uid, both.inherited.len()), (4000, 0));
}

#[test]
fn of_three_names_for_native_sidecars_the_plain_one_wins() {
    let names = ["config.alpha.", "config.beta.", "config."]
        .map(|group| format!("{group}linkerd.io/proxy-enable-native-sidecar"));
    for (alpha, beta, plain, expected) in [
        (Some("false"), None, None, false),
        (Some("false"), Some("true"), None, true),
        (Some("true"), Some("true"), Some("false"), false),
        (None, None, None, true),
    ] {
        let own: Annotations = names
            .iter()
            .zip([alpha, beta, plain])
            .filter_map(|(name, value)| Some((name.clone(), value?.to_owned())))
            .collect();
        assert_eq!(read(&Annotations::new(), &own).unwrap().settings.native_sidecar, expected);
    }
}
