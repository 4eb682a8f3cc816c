//! Requests of rules that do more than send: filters, timeouts, retries. Contract 4.1 to 4.3.

use super::{
    body::Body,
    deadline::Course,
    dispatch::{self, Sent, To},
    retry::{self, Word},
};
use crate::{Worker, discover::rules::Ruled, fault::Fault};
use http::Request;
use remora_core::time::Time;

/// Sends by a rule: changes the request or answers in the server's place, sends copies of it to others, sends it again where the rule says so, and
/// waits for the answer no longer than it allows. `started`: when the request came. `upgrade`: it may stop being HTTP,
/// and then nothing can be sent again.
pub(super) async fn send(
    worker: &Worker,
    mut to: To<'_>,
    ruled: &Ruled,
    started: Time,
    upgrade: bool,
    request: &mut Request<Body>,
) -> Result<Sent, Fault> {
    let terms = ruled.terms(request);
    if let Some(filters) = &ruled.filters {
        filters.request(request, &mut to.prefix)?;
    }
    let course = Course::begin(terms.timeouts, started);
    if let Some(course) = &course {
        request.body_mut().follow(course.progress());
    }
    if let Some(mirrors) = &ruled.mirrors {
        mirrors.send(request);
    }
    let until = course.as_ref().and_then(Course::until);
    let sending = async {
        match terms.retry.as_ref().zip(ruled.retries.as_ref()).filter(|_| !upgrade) {
            Some((policy, counted)) => {
                retry::tries(worker, &to, &Word::Rule(policy, counted), until, request).await
            }
            None => dispatch::send(&to, request).await,
        }
    };
    let mut sent = match &course {
        Some(course) => course.in_time(sending).await,
        None => sending.await,
    }?;
    if let Some(filters) = &ruled.filters {
        filters.response(&mut sent.response);
    }
    if let Some(course) = course {
        sent.response.body_mut().expire(course.answered());
    }
    Ok(sent)
}
