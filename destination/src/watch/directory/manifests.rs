//! Pure. What the files of a directory say together, and what changed since the last reading.

use super::Reading;
use crate::{
    resources::{Document, ObjectRef, Resource, Unread, parse},
    watch::Event,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

type Hash = [u8; 32];

/// The manifests of a directory: of every file the last version that could be read.
#[derive(Debug, Default)]
pub struct Manifests {
    files: BTreeMap<String, File>,
    /// What holds, and which file says so.
    objects: BTreeMap<ObjectRef, (String, Resource)>,
    duplicates: BTreeSet<Duplicate>,
    incomplete: Option<String>,
}

/// What a reading changed.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    /// For the index.
    pub events: Vec<Event>,
    /// For the person who looks at the log.
    pub notices: Vec<Notice>,
    /// Has everything been seen twice? If not, read again soon.
    pub settled: bool,
}

/// How a file stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Objects in force from this file; those of its last good version if there are errors.
    pub objects: usize,
    /// What is wrong with it as it is now. Not empty: the file's last good version holds.
    pub errors: Vec<String>,
    /// Objects of kinds that are other controllers' business.
    pub unread: Vec<String>,
    /// Objects of kinds of a mesh that are not served: nobody enforces what they say. The rest of the file holds.
    pub unserved: Vec<String>,
}

/// Something about the files that a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The file cannot be read or understood.
    Invalid {
        /// The file.
        file: String,
        /// What is wrong, all of it.
        errors: Vec<String>,
        /// How many objects of its last good version stay in force.
        kept: usize,
    },
    /// The file was invalid and is no more.
    Mended {
        /// The file.
        file: String,
    },
    /// Objects of kinds that are other controllers' business.
    Unread {
        /// The file.
        file: String,
        /// The objects.
        objects: Vec<String>,
    },
    /// Objects of kinds of a mesh that are not served.
    Unserved {
        /// The file.
        file: String,
        /// The objects.
        objects: Vec<String>,
    },
    /// Two files say what an object is like.
    Duplicate(Duplicate),
    /// The directory itself cannot be read: everything stays as it is.
    Incomplete(String),
    /// It can be read again.
    Complete,
}

/// An object that two files (or two places of one) describe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duplicate {
    /// The object.
    pub object: ObjectRef,
    /// The file that holds: the last by name.
    pub holds: String,
    /// The file that does not.
    pub ignored: String,
}

#[derive(Debug, Default)]
struct File {
    /// What the last reading showed; `None` is no file.
    seen: Option<Hash>,
    /// What was last judged, good or bad.
    judged: Option<Hash>,
    good: Vec<Resource>,
    unread: Vec<Unread>,
    errors: Vec<String>,
}

impl Manifests {
    /// Takes a reading in. A file that is not as it was at the last reading waits for the next one to agree.
    pub fn take(&mut self, reading: Reading) -> Taken {
        let mut taken = Taken { settled: true, ..Taken::default() };
        if self.incomplete != reading.incomplete {
            taken.notices.push(reading.incomplete.clone().map_or(Notice::Complete, Notice::Incomplete));
        }
        let mut changed = false;
        if reading.incomplete.is_none() {
            changed |= self.forget_deleted(&reading, &mut taken.settled);
        }
        for (name, content) in reading.files {
            changed |= self.take_file(name, &content, &mut taken);
        }
        self.incomplete = reading.incomplete;
        if changed {
            self.merge(&mut taken);
        }
        taken
    }

    /// How every file stands.
    pub fn reports(&self) -> BTreeMap<&str, FileReport> {
        let report = |file: &File| FileReport {
            objects: file.good.len(),
            errors: file.errors.clone(),
            unread: file.unread(false),
            unserved: file.unread(true),
        };
        self.files.iter().map(|(name, file)| (name.as_str(), report(file))).collect()
    }

    /// Why the directory cannot be read, if it cannot.
    pub fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }

    /// How many files are wrong as they are now.
    pub fn invalid(&self) -> usize {
        self.files.values().filter(|file| !file.errors.is_empty()).count()
    }

    /// Objects that more than one file describes.
    pub fn duplicates(&self) -> impl Iterator<Item = &Duplicate> {
        self.duplicates.iter()
    }

    fn forget_deleted(&mut self, reading: &Reading, settled: &mut bool) -> bool {
        let before = self.files.len();
        self.files.retain(|name, file| {
            if reading.files.contains_key(name) {
                return true;
            }
            let just_gone = file.seen.take().is_some();
            *settled &= !just_gone;
            just_gone
        });
        self.files.len() != before
    }

    fn take_file(&mut self, name: String, content: &Result<String, String>, taken: &mut Taken) -> bool {
        let hash: Hash = match content {
            Ok(text) => Sha256::digest(text).into(),
            // Told apart from any text by the byte in front, which no UTF-8 text begins with.
            Err(reason) => Sha256::new().chain_update([0xff]).chain_update(reason).finalize().into(),
        };
        let file = self.files.entry(name.clone()).or_default();
        let seen_before = file.seen.replace(hash) == Some(hash);
        if file.judged == Some(hash) {
            return false;
        }
        if !seen_before {
            taken.settled = false;
            return false;
        }
        file.judged = Some(hash);
        let was_invalid = !file.errors.is_empty();
        let documents = match content {
            Ok(text) => parse(text).map_err(|all| all.iter().map(ToString::to_string).collect()),
            Err(reason) => Err(vec![reason.clone()]),
        };
        match documents {
            Ok(documents) => {
                file.accept(documents);
                if was_invalid {
                    taken.notices.push(Notice::Mended { file: name.clone() });
                }
                let (unread, unserved) = (file.unread(false), file.unread(true));
                if !unread.is_empty() {
                    taken.notices.push(Notice::Unread { file: name.clone(), objects: unread });
                }
                if !unserved.is_empty() {
                    taken.notices.push(Notice::Unserved { file: name, objects: unserved });
                }
                true
            }
            Err(errors) => {
                file.errors.clone_from(&errors);
                taken.notices.push(Notice::Invalid { file: name, errors, kept: file.good.len() });
                false
            }
        }
    }

    fn merge(&mut self, taken: &mut Taken) {
        let mut objects: BTreeMap<ObjectRef, (String, Resource)> = BTreeMap::new();
        let mut duplicates = BTreeSet::new();
        for (name, file) in &self.files {
            for resource in &file.good {
                let object = resource.object_ref();
                if let Some((ignored, _)) = objects.insert(object.clone(), (name.clone(), resource.clone())) {
                    duplicates.insert(Duplicate { object, holds: name.clone(), ignored });
                }
            }
        }
        taken.notices.extend(duplicates.difference(&self.duplicates).cloned().map(Notice::Duplicate));
        let gone = self.objects.keys().filter(|object| !objects.contains_key(object));
        taken.events.extend(gone.cloned().map(Event::Delete));
        let known = |object: &ObjectRef| self.objects.get(object).map(|(_, resource)| resource);
        let new = objects.iter().filter(|(object, (_, resource))| known(object) != Some(resource));
        taken.events.extend(new.map(|(_, (_, resource))| Event::Apply(resource.clone())));
        self.objects = objects;
        self.duplicates = duplicates;
    }
}

impl File {
    fn accept(&mut self, documents: Vec<Document>) {
        self.errors.clear();
        self.good.clear();
        self.unread.clear();
        for document in documents {
            match document {
                Document::Known(resource) => self.good.push(resource),
                Document::Unread(what) => self.unread.push(what),
            }
        }
    }

    /// Its objects that are not read: those of a mesh, or the others.
    fn unread(&self, unserved: bool) -> Vec<String> {
        let some = self.unread.iter().filter(|one| one.unserved == unserved);
        some.map(|one| one.object.clone()).collect()
    }
}

impl FileReport {
    /// All that is wrong with it: what cannot be read, and what nobody enforces.
    pub fn wrong(&self) -> impl Iterator<Item = String> {
        let unserved = self.unserved.iter();
        let unserved =
            unserved.map(|object| format!("{object}: this kind is not served: nobody enforces what it says"));
        self.errors.iter().cloned().chain(unserved)
    }
}

impl Notice {
    /// Says it.
    pub fn log(&self) {
        match self {
            Self::Invalid { file, errors, kept } => {
                let errors = errors.join("; ");
                tracing::warn!(file, kept, %errors, "a manifest cannot be read; its last good version stays in force");
            }
            Self::Mended { file } => tracing::info!(file, "a manifest can be read again"),
            Self::Unread { file, objects } => {
                let objects = objects.join(", ");
                tracing::debug!(file, %objects, "kinds that are not read");
            }
            Self::Unserved { file, objects } => {
                let objects = objects.join(", ");
                tracing::warn!(file, %objects, "kinds of a mesh that are not served: nobody enforces what they say");
            }
            Self::Duplicate(Duplicate { object, holds, ignored }) => {
                tracing::warn!(%object, holds, ignored, "an object is described twice; the last file by name holds");
            }
            Self::Incomplete(reason) => {
                tracing::warn!(%reason, "the manifests cannot all be read; what is known stays in force");
            }
            Self::Complete => tracing::info!("the manifests can all be read again"),
        }
    }
}

#[cfg(test)]
mod tests;
