//! Every mistake of `core/src/planted.rs` makes the replay of its target's corpus fail. Built and run by
//! `scripts/planted.sh`; an ordinary build has no mistake to make, and nothing here.
#![cfg(planted)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use remora_core::planted::{MISTAKES, Mistake, make};
use remora_fuzz::{TARGETS, Target};
use std::{fs, panic, path::Path};

/// One test, because the mistake that is made is one for the whole process.
#[test]
fn every_corpus_notices_its_mistakes() {
    // Hundreds of panics are expected; the one that counts is the last.
    let loud = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let alarms: Vec<String> =
        TARGETS.iter().filter_map(|(name, target)| failing(name, *target, None)).collect();
    let unseen: Vec<String> = MISTAKES
        .iter()
        .filter(|(mistake, name)| {
            let (_, target) = TARGETS.iter().find(|(other, _)| other == name).unwrap();
            failing(name, *target, Some(*mistake)).is_none()
        })
        .map(|(mistake, name)| format!("{mistake:?} of {name}"))
        .collect();
    panic::set_hook(loud);
    assert!(alarms.is_empty(), "without any mistake these fail: {alarms:?}");
    assert!(unseen.is_empty(), "no input notices: {unseen:?}");
}

#[test]
fn every_target_has_a_mistake_to_notice() {
    for (name, _) in TARGETS {
        assert!(MISTAKES.iter().any(|(_, target)| *target == *name), "none for {name}");
    }
}

/// The first input of a corpus that fails.
fn failing(name: &str, target: Target, mistake: Option<Mistake>) -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    make(mistake);
    let failing = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        let input = fs::read(path).unwrap();
        panic::catch_unwind(|| target(&input)).is_err()
    });
    make(None);
    failing.map(|path| path.display().to_string())
}
