//! The end-entity folder: memory-backed, each file readable by us alone and written by rename, so that nobody ever
//! reads half a file.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Replaces `dir/name` with `bytes`, mode 0400.
pub(super) fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    match fs::remove_file(&temporary) {
        // Left by a process that died between the two steps.
        Ok(()) => {}
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
        Err(fault) => return Err(fault),
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_replaced_whole_and_are_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".key.p8.new"), b"left over").unwrap();
        for bytes in [&b"first"[..], b"second, longer"] {
            write(dir.path(), "key.p8", bytes).unwrap();
            assert_eq!(fs::read(dir.path().join("key.p8")).unwrap(), bytes);
        }
        let mode = fs::metadata(dir.path().join("key.p8")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(&dir.path().join("absent"), "key.p8", b"x").is_err());
    }
}
