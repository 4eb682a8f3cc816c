//! The control plane's streams → what is known: one function per lookup. What a message means is in `runtime::api`;
//! that a stream never stops is in `runtime::control`.

mod endpoints;

use super::{Absence, Cache, Discovery, Known, Place, Policy, Profiled, cache::Lookup};
use crate::{
    config::Config,
    metrics::profiles::ProfileFamilies,
    policy::{InForce, Server},
    profile::{MAX_NAMES, Named},
};
use endpoints::Endpoints;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use linkerd2_proxy_api::{
    destination::{DestinationProfile, GetDestination, destination_client::DestinationClient},
    inbound::{PortSpec, inbound_server_policies_client::InboundServerPoliciesClient},
    outbound::{
        OutboundPolicy, ProxyProtocol, TrafficSpec, outbound_policies_client::OutboundPoliciesClient,
        traffic_spec,
    },
};
use remora_core::profile::Profile;
use remora_runtime::{
    api::{self, Converted},
    control::{Client, Event, StreamLimits, subscribe},
    metrics::Counter,
    proto::{self, outbound_policies_client::OutboundPoliciesClient as OwnOutboundPoliciesClient},
};
use std::{sync::Arc, time::Duration};
use tokio::{runtime::Handle, sync::watch};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

/// Ports of a pod that are watched at once; the default policy holds for further ones.
const MAX_PORTS: usize = 2048;

/// After a refusal, until the next attempt.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// The lookups, running on `runtime` over these channels.
pub struct Sources {
    pub destination: (Client, StreamLimits),
    pub policy: (Client, StreamLimits),
    pub runtime: Handle,
    /// Counts endpoints beyond those that a destination may have.
    pub endpoints_refused: Counter,
    /// Counts how often endpoints were asked for anew.
    pub asked_again: Counter,
    /// Where requests are counted by the routes of ServiceProfiles.
    pub by_route: ProfileFamilies,
}

impl Sources {
    /// The outbound side's lookups.
    pub fn discovery(&self, config: &Config) -> Discovery {
        let (idle, max) = (config.outbound.discovery_idle, config.limits.max_targets);
        let context: Arc<str> = config.discovery.context.as_str().into();
        let workload: Arc<str> = config.discovery.workload.as_str().into();
        let (destination, limits) = self.destination.clone();
        let (profile_context, profile_channel) = (context.clone(), destination.clone());
        let (name_context, name_channel) = (context.clone(), destination.clone());
        let by_route = self.by_route.clone();
        let (policy, policy_limits) = self.policy.clone();
        let own_api = config.remora_api;
        let (refused, asked_again) = (self.endpoints_refused.clone(), self.asked_again.clone());
        let endpoints = Endpoints { channel: destination, context, own_api, limits, refused, asked_again };
        Discovery {
            profiles: self.cache(idle, max, move |place: &Place, sender| {
                let of = (profile_context.clone(), place.to_string());
                Box::pin(profile(profile_channel.clone(), of, limits, sender, |profiled| profiled))
            }),
            names: self.cache(
                config.inbound.discovery_idle,
                max.min(MAX_NAMES),
                move |name: &Arc<str>, sender| {
                    let (of, by_route) = ((name_context.clone(), name.to_string()), by_route.clone());
                    let dst = name.clone();
                    let named = move |profiled| Named::new(&by_route, profiled, &dst);
                    Box::pin(profile(name_channel.clone(), of, limits, sender, named))
                },
            ),
            policies: self.cache(idle, max, move |place: &Place, sender| {
                let of = (workload.clone(), place.clone());
                Box::pin(outbound_policy(policy.clone(), own_api, of, policy_limits, sender))
            }),
            endpoints: Cache::asking_again(
                self.runtime.clone(),
                idle,
                max,
                move |authority: &Arc<str>, sender, again| {
                    Box::pin(endpoints.clone().follow(authority.clone(), sender, again))
                },
            ),
        }
    }

    /// The inbound side's lookups.
    pub fn policies(&self, config: &Config) -> Cache<u16, Server> {
        let workload: Arc<str> = config.discovery.workload.as_str().into();
        let (channel, limits) = self.policy.clone();
        self.cache(config.inbound.discovery_idle, MAX_PORTS, move |port: &u16, sender| {
            Box::pin(server_policy(channel.clone(), workload.clone(), *port, limits, sender))
        })
    }

    fn cache<K, T>(
        &self,
        idle: Duration,
        max: usize,
        start: impl Fn(&K, watch::Sender<Known<T>>) -> Lookup + Send + Sync + 'static,
    ) -> Cache<K, T>
    where
        K: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
        T: Send + Sync + 'static,
    {
        Cache::new(self.runtime.clone(), idle, max, start)
    }
}

/// The profile of an address or name; `published` makes of it what is published.
async fn profile<T: PartialEq>(
    channel: Client,
    (context, path): (Arc<str>, String),
    limits: StreamLimits,
    sender: watch::Sender<Known<T>>,
    published: impl Fn(Profiled) -> T,
) {
    let what = format!("the profile of {path}");
    let request = GetDestination { path, context_token: context.to_string(), ..Default::default() };
    let open = || {
        let (mut client, request) = (DestinationClient::new(channel.clone()), request.clone());
        async move { client.get_profile(request).await.map(tonic::Response::into_inner) }
    };
    let messages = || subscribe(limits, &open).boxed();
    let mut last = None;
    follow(messages, &what, &sender, |message| profiled(&what, message, &mut last).map(&published)).await;
}

/// Reads a profile. `last` is the last good one.
fn profiled(what: &str, message: DestinationProfile, last: &mut Option<Arc<Profile>>) -> Option<Profiled> {
    match api::profile::profile(message.clone()) {
        Ok(converted) => {
            noted(what, &converted.ignored);
            let profile = Arc::new(converted.value);
            *last = Some(profile.clone());
            Some(Profiled { profile, ignored: converted.ignored, refused: None })
        }
        Err(invalid) => {
            warn!(what, %invalid, "the control plane sent what cannot be understood; what was known stays");
            let refused = Some(invalid.to_string().into());
            // Nothing was known yet: what the target is must not depend on its routes.
            let whole = || api::profile::profile(api::profile::without_routes(message)).ok();
            let profile = match last {
                Some(last) => last.clone(),
                None => Arc::new(whole()?.value),
            };
            Some(Profiled { profile, ignored: Vec::new(), refused })
        }
    }
}

/// What the control plane says of a target: in our API, or in Linkerd's.
enum Said {
    Own(Box<proto::OutboundPolicy>),
    Linkerds(Box<OutboundPolicy>),
}

impl Said {
    fn protocol(&self) -> Option<&ProxyProtocol> {
        match self {
            Self::Own(message) => message.policy.as_ref()?.protocol.as_ref(),
            Self::Linkerds(message) => message.protocol.as_ref(),
        }
    }

    fn read(self) -> Policy {
        let Converted { value: (policy, services), ignored } = match self {
            Self::Own(message) => api::own::said(*message),
            Self::Linkerds(message) => {
                let Converted { value, ignored } = api::outbound::outbound_policy(*message);
                Converted { value: (value, Vec::new()), ignored }
            }
        };
        Policy { policy, services, ignored }
    }
}

/// Opens a stream of policies: with `own_api` in ours, unless the control plane does not have it.
async fn said(
    channel: Client,
    own_api: bool,
    request: TrafficSpec,
) -> Result<BoxStream<'static, Result<Said, Status>>, Status> {
    if own_api {
        match OwnOutboundPoliciesClient::new(channel.clone()).watch(request.clone()).await {
            Ok(stream) => return Ok(stream.into_inner().map_ok(|said| Said::Own(Box::new(said))).boxed()),
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status) => return Err(status),
        }
    }
    let stream = OutboundPoliciesClient::new(channel).watch(request).await?;
    Ok(stream.into_inner().map_ok(|said| Said::Linkerds(Box::new(said))).boxed())
}

async fn outbound_policy(
    channel: Client,
    own_api: bool,
    (workload, place): (Arc<str>, Place),
    limits: StreamLimits,
    sender: watch::Sender<Known<Policy>>,
) {
    let target = match &place {
        Place::Addr(addr) => traffic_spec::Target::Addr((*addr).into()),
        Place::Name(name) => traffic_spec::Target::Authority(name.to_string()),
    };
    let request = TrafficSpec { source_workload: workload.to_string(), target: Some(target) };
    let open = || said(channel.clone(), own_api, request.clone());
    let messages = || subscribe(limits, &open).boxed();
    let what = format!("the outbound policy of {place}");
    follow(messages, &what, &sender, |message| {
        // A protocol of another version, or none: what this means is not known, and so no reason to fail what is.
        let unknown = message.protocol().is_none_or(|protocol| protocol.kind.is_none());
        if unknown && matches!(&*sender.borrow(), Known::Is(_)) {
            warn!(what, "the control plane sent a protocol that is not known here; what was known stays");
            return None;
        }
        let policy = message.read();
        noted(&what, &policy.ignored);
        Some(policy)
    })
    .await;
}

async fn server_policy(
    channel: Client,
    workload: Arc<str>,
    port: u16,
    limits: StreamLimits,
    sender: watch::Sender<Known<Server>>,
) {
    let request = PortSpec { workload: workload.to_string(), port: port.into() };
    let open = || {
        let (mut client, request) = (InboundServerPoliciesClient::new(channel.clone()), request.clone());
        async move { client.watch_port(request).await.map(tonic::Response::into_inner) }
    };
    let messages = || subscribe(limits, &open).boxed();
    let what = format!("the policy of port {port}");
    follow(messages, &what, &sender, |message| {
        let converted = api::inbound::server_policy(message);
        noted(&what, &converted.ignored);
        let policy = Arc::new(InForce::compile(converted.value));
        Some(Server { policy, ignored: converted.ignored })
    })
    .await;
}

/// Publishes what `read` makes of the messages for as long as the lookup runs. What is known stays known whatever
/// happens to the stream: a controller that has lost its memory takes nothing away. A refusal ends a subscription; it is
/// asked for again after a while.
async fn follow<'a, M: 'a, T: PartialEq>(
    subscribe: impl Fn() -> BoxStream<'a, Event<M>>,
    what: &str,
    sender: &watch::Sender<Known<T>>,
    mut read: impl FnMut(M) -> Option<T>,
) {
    loop {
        followed(subscribe(), what, sender, &mut read).await;
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn followed<M, T: PartialEq>(
    mut messages: BoxStream<'_, Event<M>>,
    what: &str,
    sender: &watch::Sender<Known<T>>,
    read: &mut impl FnMut(M) -> Option<T>,
) {
    while let Some(event) = messages.next().await {
        match event {
            Event::Message(message) => {
                if let Some(value) = read(message) {
                    publish(sender, value);
                }
            }
            Event::NotFound(status) => absent(what, sender, &status, Absence::NotFound),
            Event::Failed(status) if status.code() == Code::Unimplemented => {
                absent(what, sender, &status, Absence::NotFound);
            }
            Event::Failed(status) => {
                debug!(what, code = ?status.code(), message = status.message(), "a lookup failed; trying again");
            }
            Event::Terminal(status) => {
                info!(what, code = ?status.code(), message = status.message(), "a lookup was refused");
                let reason = format!("{:?}: {}", status.code(), status.message()).into();
                absent(what, sender, &status, Absence::Refused(reason));
            }
        }
    }
}

fn publish<T: PartialEq>(sender: &watch::Sender<Known<T>>, value: T) {
    sender.send_if_modified(|known| {
        let same = matches!(known, Known::Is(old) if **old == value);
        if !same {
            *known = Known::Is(Arc::new(value));
        }
        !same
    });
}

fn absent<T>(what: &str, sender: &watch::Sender<Known<T>>, status: &Status, absence: Absence) {
    debug!(what, code = ?status.code(), message = status.message(), "nothing is there");
    sender.send_if_modified(|known| {
        let unknown = match known {
            Known::Pending => true,
            Known::Absent(old) => *old != absence,
            // The last good state is better than none.
            Known::Is(_) => false,
        };
        if unknown {
            *known = Known::Absent(absence);
        }
        unknown
    });
}

fn noted(what: &str, ignored: &[Arc<str>]) {
    if !ignored.is_empty() {
        info!(what, ?ignored, "parts of the control plane's answer are not applied by this proxy");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkerd2_proxy_api::destination::Route;

    #[test]
    fn a_profile_that_is_not_understood_changes_nothing_and_is_no_reason_to_wait() {
        let named = |name: &str, routes| DestinationProfile {
            fully_qualified_name: name.to_owned(),
            routes,
            ..DestinationProfile::default()
        };
        let mut last = None;
        let first = profiled("it", named("a", vec![Route::default()]), &mut last).unwrap();
        assert_eq!(first.profile.name.as_deref(), Some("a"));
        assert_eq!(first.refused.as_deref(), Some("routes[0].condition: missing"));
        let good = profiled("it", named("b", vec![]), &mut last).unwrap();
        assert_eq!((good.profile.name.as_deref(), good.refused), (Some("b"), None));
        let kept = profiled("it", named("c", vec![Route::default()]), &mut last).unwrap();
        assert!(kept.profile.name.as_deref() == Some("b") && kept.refused.is_some());
    }

    #[test]
    fn a_controller_that_has_forgotten_takes_nothing_away() {
        let (sender, latest) = watch::channel(Known::Pending);
        absent("it", &sender, &Status::not_found("yet"), Absence::NotFound);
        assert!(matches!(&*latest.borrow(), Known::Absent(Absence::NotFound)), "nothing was known");
        publish(&sender, 7);
        for absence in [Absence::NotFound, Absence::Refused("no".into())] {
            absent("it", &sender, &Status::not_found("any more"), absence);
            assert!(matches!(&*latest.borrow(), Known::Is(seven) if **seven == 7));
        }
    }
}
