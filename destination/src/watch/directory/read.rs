//! Reads a directory of manifests: names and bytes, nothing of what they mean.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// A larger file is not read. 16 MiB.
pub const MAX_FILE: u64 = 16 << 20;
/// Files beyond this number are not read.
pub const MAX_FILES: usize = 10_000;
/// Files deeper than this are not looked for; it also ends loops of symbolic links.
const MAX_DEPTH: usize = 4;

/// What a directory held at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Text by file name relative to the directory, or why it cannot be read.
    pub files: BTreeMap<String, Result<String, String>>,
    /// Why the list of files cannot be trusted to be whole: then nothing counts as deleted.
    pub incomplete: Option<String>,
}

impl Reading {
    /// Reads every `*.yaml`, `*.yml` and `*.json` below `directory`. Names that begin with a dot are passed over:
    /// editors keep their swap files there, and a ConfigMap's volume its older versions (`..data`).
    pub fn of(directory: &Path) -> Self {
        let mut reading = Self::default();
        if let Err(error) = reading.descend(directory, "", 0) {
            reading.incomplete = Some(format!("{}: {error}", directory.display()));
        }
        reading
    }

    fn descend(&mut self, directory: &Path, prefix: &str, depth: usize) -> io::Result<()> {
        let mut entries: Vec<(String, PathBuf)> = fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
            .collect::<io::Result<_>>()?;
        entries.sort_unstable();
        for (name, path) in entries {
            if name.starts_with('.') {
                continue;
            }
            let relative = format!("{prefix}{name}");
            // Follows symbolic links, as the files of a ConfigMap's volume are.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_dir() {
                if depth < MAX_DEPTH {
                    self.descend(&path, &format!("{relative}/"), depth + 1)?;
                }
                continue;
            }
            if !matches!(
                path.extension().and_then(|extension| extension.to_str()),
                Some("yaml" | "yml" | "json")
            ) {
                continue;
            }
            if self.files.len() >= MAX_FILES {
                self.incomplete = Some(format!("more than {MAX_FILES} files; the rest is not read"));
                return Ok(());
            }
            match text(&path, &metadata) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => {
                    self.files.insert(relative, read.map_err(|error| error.to_string()));
                }
            }
        }
        Ok(())
    }
}

fn text(path: &Path, metadata: &fs::Metadata) -> io::Result<String> {
    if !metadata.is_file() {
        return Err(io::Error::other("neither a file nor a directory"));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other(format!("{} bytes, more than {MAX_FILE}", metadata.len())));
    }
    String::from_utf8(fs::read(path)?).map_err(|error| io::Error::other(error.to_string()))
}
