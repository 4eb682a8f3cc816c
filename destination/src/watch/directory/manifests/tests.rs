//! What a directory says after each reading, without a file.

use super::*;

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, spec: {containers: []}}";
const OTHER: &str = "{apiVersion: v1, kind: Pod, metadata: {name: q, namespace: a}, spec: {containers: []}}";
/// An object of `policy.linkerd.io`.
fn policy(version: &str, kind: &str) -> String {
    format!("{{apiVersion: policy.linkerd.io/{version}, kind: {kind}, metadata: {{name: s, namespace: a}}}}")
}

#[test]
fn a_file_counts_when_two_readings_agree() {
    let mut manifests = Manifests::default();
    let first = manifests.take(reading(&[("a.yaml", POD)]));
    assert_eq!((first.events.len(), first.settled), (0, false));
    let second = manifests.take(reading(&[("a.yaml", POD)]));
    assert_eq!((words(&second), second.settled), (vec!["+p".to_owned()], true));
    assert_eq!(manifests.take(reading(&[("a.yaml", POD)])), Taken { settled: true, ..Taken::default() });
}

#[test]
fn a_file_that_is_empty_for_a_moment_deletes_nothing() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    let truncated = manifests.take(reading(&[("a.yaml", "")]));
    assert_eq!((truncated.events.len(), truncated.settled), (0, false));
    let filled = manifests.take(reading(&[("a.yaml", POD)]));
    assert_eq!(filled, Taken { settled: true, ..Taken::default() });
}

#[test]
fn a_file_that_is_gone_for_a_moment_deletes_nothing() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    assert!(!manifests.take(reading(&[])).settled);
    assert!(
        !manifests.take(reading(&[("a.yaml", POD)])).settled || manifests.reports()["a.yaml"].objects == 1
    );
    assert_eq!(words(&manifests.take(reading(&[("a.yaml", POD)]))), [""; 0]);
}

#[test]
fn a_deleted_file_deletes_its_objects() {
    let mut manifests = settled(&[("a.yaml", POD), ("b.yaml", OTHER)]);
    assert_eq!(words(&settle(&mut manifests, &[("b.yaml", OTHER)])), ["-p"]);
    assert_eq!(manifests.reports().len(), 1);
}

#[test]
fn of_an_invalid_file_the_last_good_version_holds() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    let broken = settle(&mut manifests, &[("a.yaml", "{apiVersion: v1, kind")]);
    assert!(broken.events.is_empty());
    assert!(
        matches!(&broken.notices[..], [Notice::Invalid { file, kept: 1, .. }] if file == "a.yaml"),
        "{broken:?}"
    );
    let report = &manifests.reports()["a.yaml"];
    assert_eq!((report.objects, report.errors.len(), manifests.invalid()), (1, 1, 1));
    let both = format!("{POD}\n---\n{OTHER}");
    let mended = settle(&mut manifests, &[("a.yaml", &both)]);
    assert_eq!(words(&mended), ["+q"]);
    assert_eq!(mended.notices, [Notice::Mended { file: "a.yaml".to_owned() }]);
    assert_eq!(manifests.invalid(), 0);
}

#[test]
fn a_file_that_breaks_and_comes_back_as_it_was_is_mended() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    settle(&mut manifests, &[("a.yaml", "{")]);
    let mended = settle(&mut manifests, &[("a.yaml", POD)]);
    assert_eq!((words(&mended), manifests.invalid()), (vec![], 0));
}

#[test]
fn a_file_that_cannot_be_read_is_invalid_too() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    let unreadable = || Reading {
        files: [("a.yaml".to_owned(), Err("permission denied".to_owned()))].into(),
        incomplete: None,
    };
    manifests.take(unreadable());
    let taken = manifests.take(unreadable());
    assert!(taken.events.is_empty());
    assert_eq!(manifests.reports()["a.yaml"].errors, ["permission denied"]);
}

#[test]
fn of_two_files_the_last_by_name_holds() {
    let labelled = POD.replace("namespace: a", "namespace: a, labels: {from: b}");
    let mut manifests = Manifests::default();
    let both = settle(&mut manifests, &[("a.yaml", POD), ("b.yaml", &labelled)]);
    assert_eq!(words(&both), ["+p"]);
    let Event::Apply(resource) = &both.events[0] else { panic!("{both:?}") };
    assert_eq!(resource.metadata().labels.as_ref().unwrap()["from"], "b");
    assert!(
        matches!(&both.notices[..], [Notice::Duplicate(Duplicate { holds, ignored, .. })] if holds == "b.yaml" && ignored == "a.yaml")
    );
    assert_eq!(manifests.duplicates().count(), 1);
    // When the one that holds is deleted, the other's version does.
    assert_eq!(words(&settle(&mut manifests, &[("a.yaml", POD)])), ["+p"]);
    assert_eq!(manifests.duplicates().count(), 0);
}

#[test]
fn kinds_that_are_not_read_are_named_and_the_rest_of_the_file_holds() {
    let mut manifests = Manifests::default();
    let foreign = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: a}}";
    let file = [POD, foreign, &policy("v1alpha1", "EgressNetwork")].join("\n---\n");
    let taken = settle(&mut manifests, &[("a.yaml", &file)]);
    let named = |objects: &str| ("a.yaml".to_owned(), vec![objects.to_owned()]);
    let (file, objects) = named("apps/v1 Deployment a/d");
    let unread = Notice::Unread { file, objects };
    let (file, objects) = named("policy.linkerd.io/v1alpha1 EgressNetwork a/s");
    let unserved = Notice::Unserved { file, objects: objects.clone() };
    assert_eq!((words(&taken), taken.notices), (vec!["+p".to_owned()], vec![unread, unserved]));
    assert_eq!((manifests.invalid(), &manifests.reports()["a.yaml"].unserved), (0, &objects));
}

#[test]
fn of_a_file_with_a_version_that_is_not_read_the_last_good_version_holds() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    let taken = settle(&mut manifests, &[("a.yaml", &policy("v1alpha1", "Server"))]);
    let Notice::Invalid { errors, kept: 1, .. } = &taken.notices[0] else { panic!("{taken:?}") };
    assert!(
        errors[0].contains("Server a/s: apiVersion: policy.linkerd.io/v1alpha1 is not read"),
        "{errors:?}"
    );
    assert_eq!((taken.events.len(), manifests.invalid()), (0, 1));
}

#[test]
fn a_directory_that_cannot_be_listed_deletes_nothing() {
    let mut manifests = settled(&[("a.yaml", POD)]);
    let gone = || Reading { files: BTreeMap::new(), incomplete: Some("no such directory".to_owned()) };
    assert_eq!(manifests.take(gone()).notices, [Notice::Incomplete("no such directory".to_owned())]);
    assert_eq!(manifests.take(gone()), Taken { settled: true, ..Taken::default() });
    let back = manifests.take(reading(&[("a.yaml", POD)]));
    assert_eq!((back.events.len(), &back.notices[..]), (0, &[Notice::Complete][..]));
}

fn settled(files: &[(&str, &str)]) -> Manifests {
    let mut manifests = Manifests::default();
    settle(&mut manifests, files);
    manifests
}

/// Reads the same until it is settled: twice.
#[track_caller]
fn settle(manifests: &mut Manifests, files: &[(&str, &str)]) -> Taken {
    manifests.take(reading(files));
    let taken = manifests.take(reading(files));
    assert!(taken.settled);
    taken
}

fn reading(files: &[(&str, &str)]) -> Reading {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect();
    Reading { files, incomplete: None }
}

fn words(taken: &Taken) -> Vec<String> {
    let word = |event: &Event| match event {
        Event::Apply(resource) => format!("+{}", resource.object_ref().name.name),
        Event::Delete(object) => format!("-{}", object.name.name),
        Event::Reset(..) => panic!("a directory never resets"),
    };
    taken.events.iter().map(word).collect()
}
