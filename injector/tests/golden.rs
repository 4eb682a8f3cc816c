//! Whole pods, before and after: `fixtures/<name>.yaml` becomes `fixtures/<name>.injected.yaml`, which is read in review.
//! `UPDATE=1 cargo test -p remora-injector --test golden` writes them anew.

use std::{fs, path::Path};

use remora_injector::{
    annotations::Annotations,
    config::InjectorConfig,
    inject::{Options, Outcome, Output, stream},
};

#[test]
fn pods_become_what_was_agreed() {
    let mut config = InjectorConfig {
        trust_anchors_pem: "-----BEGIN CERTIFICATE-----\nMIIB…\n-----END CERTIFICATE-----\n".to_owned(),
        ..InjectorConfig::default()
    };
    // A release must not change every page.
    "VERSION".clone_into(&mut config.image.version);
    let options = Options {
        config,
        manual: true,
        annotations: Annotations::new(),
        namespace: "default".to_owned(),
        output: Output::Yaml,
    };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut different = Vec::new();
    for name in ["pod", "deployment", "job", "ordinary-sidecar"] {
        let before = fs::read_to_string(fixtures.join(format!("{name}.yaml"))).unwrap();
        let injected = stream(&before, &options).unwrap();
        assert!(
            injected.reports.iter().all(|report| report.outcome == Outcome::Injected),
            "{:?}",
            injected.reports
        );
        let after = injected.text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let file = fixtures.join(format!("{name}.injected.yaml"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&file, &after).unwrap();
        }
        if fs::read_to_string(&file).unwrap_or_default() != after {
            different.push(name);
        }
    }
    assert_eq!(different, [""; 0], "see the head of this file for how to renew them");
}
