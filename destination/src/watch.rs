//! Where objects come from. Both homes of this control plane (a directory of manifests, a cluster's API) produce the
//! same [`Event`]s; nothing past this module knows which it was.

use crate::resources::{Kind, ObjectRef, Resource};

pub mod directory;

/// Something that happened to the objects of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object exists and looks like this.
    Apply(Resource),
    /// The object is gone.
    Delete(ObjectRef),
    /// Of this kind exactly these objects exist: what a watch says when it starts, or starts again after a gap.
    Reset(Kind, Vec<Resource>),
}
