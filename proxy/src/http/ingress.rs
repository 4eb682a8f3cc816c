//! Ingress mode: a gateway's requests say which Service they are for. Contract 4.9.

use crate::{
    Worker,
    discover::{
        Place,
        target::{Plan, Target},
    },
    fault::Fault,
    profile::lookup_name,
};
use http::HeaderValue;
use std::sync::{Arc, Mutex, PoisonError};

/// Services remembered per connection; those of a process are bounded by `REMORA_PROXY_MAX_TARGETS`.
const KEPT: usize = 8;

/// The Services that the requests of one connection have named. While they are remembered they are followed.
#[derive(Default)]
pub(super) struct Named(Mutex<Vec<(HeaderValue, Arc<Target>)>>);

impl Named {
    /// What to do with a request that asks for this.
    pub(super) async fn plan(&self, worker: &Arc<Worker>, asked: &HeaderValue) -> Result<Arc<Plan>, Fault> {
        let target = match self.known(asked) {
            Some(target) => target,
            None => self.look_up(worker, asked).await?,
        };
        Ok(target.plan(worker))
    }

    fn known(&self, asked: &HeaderValue) -> Option<Arc<Target>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(one, _)| one == asked).map(|(_, target)| target.clone())
    }

    async fn look_up(&self, worker: &Arc<Worker>, asked: &HeaderValue) -> Result<Arc<Target>, Fault> {
        let suffixes = &worker.proxy.config.discovery.profile_suffixes;
        let target = worker.targets.target(worker, Place::Name(service(asked, suffixes)?))?;
        target.first_plan(worker).await?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.push((asked.clone(), target.clone()));
        Ok(target)
    }
}

/// The Service that an `l5d-dst-override` names, as it is looked up. Pure.
pub fn service(asked: &HeaderValue, suffixes: &[String]) -> Result<Arc<str>, Fault> {
    let name = asked.to_str().ok().and_then(|asked| lookup_name(asked, suffixes));
    name.ok_or(Fault::BadTarget("its l5d-dst-override is no name of a Service"))
}
