//! Real directories.

use super::*;
use std::{fs, os::unix::fs::symlink};

#[test]
fn files_of_every_form_are_read_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("deeper/still")).unwrap();
    for name in ["a.yaml", "b.yml", "c.json", "deeper/still/d.yaml", "no.txt", ".hidden.yaml", "no-extension"]
    {
        fs::write(path(name), name).unwrap();
    }
    fs::write(path("binary.yaml"), [0xff, 0xfe]).unwrap();
    symlink(directory.path(), path("loop")).unwrap();
    symlink("nowhere", path("dangling.yaml")).unwrap();
    let reading = Reading::of(directory.path());
    assert_eq!(reading.incomplete, None);
    let read = |name: &str| reading.files.get(name).cloned();
    for name in ["a.yaml", "b.yml", "c.json", "deeper/still/d.yaml"] {
        assert_eq!(read(name), Some(Ok(name.to_owned())));
    }
    assert!(read("binary.yaml").unwrap().unwrap_err().contains("utf-8"));
    for name in ["no.txt", ".hidden.yaml", "no-extension", "dangling.yaml"] {
        assert_eq!(read(name), None, "{name}");
    }
}

#[test]
fn a_large_file_is_named_and_not_read() {
    let directory = tempfile::tempdir().unwrap();
    fs::File::create(directory.path().join("big.yaml")).unwrap().set_len(MAX_FILE + 1).unwrap();
    let reading = Reading::of(directory.path());
    assert!(reading.files["big.yaml"].as_ref().unwrap_err().contains("more than"));
}

#[test]
fn a_config_map_is_followed_through_its_swap_of_links() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for (version, text) in [("..v1", "one"), ("..v2", "two")] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("a.yaml"), text).unwrap();
    }
    symlink("..v1", path("..data")).unwrap();
    symlink("..data/a.yaml", path("a.yaml")).unwrap();
    let read = || Reading::of(directory.path()).files["a.yaml"].clone();
    assert_eq!(read(), Ok("one".to_owned()));
    symlink("..v2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    assert_eq!(read(), Ok("two".to_owned()));
    assert_eq!(Reading::of(directory.path()).files.len(), 1);
}

#[test]
fn a_directory_that_is_not_there_is_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    let reading = Reading::of(&directory.path().join("none"));
    assert!(reading.incomplete.unwrap().contains("none"));
}
