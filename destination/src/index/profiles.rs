//! Pure. What ServiceProfiles say, by the namespace that they are in and the DNS name that they are about.

use super::{Changes, Index, Key, swap};
use crate::resources::{Name, Spec};
use std::sync::Arc;

impl Index {
    /// What the ServiceProfile of this name says.
    pub fn profile(&self, name: &Name) -> Option<&Arc<Spec>> {
        self.profiles.get(name)
    }

    /// All ServiceProfiles.
    pub fn profiles(&self) -> impl Iterator<Item = (&Name, &Spec)> {
        self.profiles.iter().map(|(name, spec)| (name, spec.as_ref()))
    }

    pub(super) fn put_profile(&mut self, name: &Name, new: Option<Arc<Spec>>, changes: &mut Changes) -> bool {
        let changed = swap(&mut self.profiles, name, new).is_some();
        if changed {
            changes.keys.insert(Key::Profile(name.clone()));
        }
        changed
    }
}
