//! Who the endpoints of a destination are: a stream of differences → the whole set; asked for anew when one of them refuses
//! connections.

use super::{follow, noted};
use crate::discover::{AskAgain, Known};
use futures_util::StreamExt;
use linkerd2_proxy_api::destination::{GetDestination, destination_client::DestinationClient};
use remora_core::{backoff::Pace, endpoint::Endpoint};
use remora_runtime::{
    api::{self, destination::Update},
    clock,
    control::{Client, StreamLimits, subscribe},
    metrics::Counter,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;
use tonic::{Request, metadata::MetadataValue};
use tracing::{debug, warn};

/// Endpoints of one destination; further ones are not used until others go. A hundred times what Kubernetes means one
/// EndpointSlice to hold.
const MAX_ENDPOINTS: usize = 10_000;

/// How endpoints are looked up.
#[derive(Clone)]
pub(super) struct Endpoints {
    pub(super) channel: Client,
    pub(super) context: Arc<str>,
    /// Say what only our control plane understands.
    pub(super) own_api: bool,
    pub(super) limits: StreamLimits,
    /// Counts endpoints beyond [`MAX_ENDPOINTS`].
    pub(super) refused: Counter,
    pub(super) asked_again: Counter,
}

impl Endpoints {
    /// Endpoints come as differences; every new stream begins with the whole state. Asked to ask again, it begins a new
    /// stream, no oftener than once a second, and rarer the longer that goes on.
    pub(super) async fn follow(
        self,
        authority: Arc<str>,
        sender: watch::Sender<Known<Vec<Endpoint>>>,
        again: AskAgain,
    ) {
        let what = format!("the endpoints of {authority}");
        let streams = AtomicU64::new(0);
        let open = || {
            let (mut client, request) =
                (DestinationClient::new(self.channel.clone()), self.request(&authority));
            let opened = streams.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                let stream = client.get(request).await?.into_inner();
                Ok(stream.map(move |message| message.map(|message| (opened, message))))
            }
        };
        let messages = || subscribe(self.limits, &open).boxed();
        let mut set = BTreeMap::<SocketAddr, Endpoint>::new();
        let mut of_stream = 0;
        let mut read = |(stream, message)| match api::destination::update(message) {
            Ok(converted) => {
                noted(&what, &converted.ignored);
                if stream != of_stream {
                    of_stream = stream;
                    set.clear();
                }
                self.beyond(&what, apply(&mut set, converted.value));
                Some(set.values().cloned().collect())
            }
            Err(invalid) => {
                warn!(what, %invalid, "the control plane sent what cannot be understood; what was known stays");
                None
            }
        };
        let mut pace = Pace::default();
        loop {
            let began = clock::now();
            let due = async {
                again.asked().await;
                let lived = clock::now().since(began);
                tokio::time::sleep(pace.wait(lived, lived, clock::random())).await;
            };
            tokio::select! {
                () = follow(&messages, &what, &sender, &mut read) => {}
                () = due => {
                    self.asked_again.inc();
                    debug!(what, "an endpoint refuses connections: asking again who they are");
                }
            }
        }
    }

    fn request(&self, authority: &str) -> Request<GetDestination> {
        let mut request = Request::new(GetDestination {
            path: authority.to_owned(),
            context_token: self.context.to_string(),
            ..Default::default()
        });
        if self.own_api {
            let (name, all) = api::destination::ZONES;
            request.metadata_mut().insert(name, MetadataValue::from_static(all));
        }
        request
    }

    fn beyond(&self, what: &str, beyond: u64) {
        if beyond > 0 {
            self.refused.inc_by(beyond);
            let most = MAX_ENDPOINTS;
            warn!(what, beyond, most, "more endpoints than one destination may have; they are not used");
        }
    }
}

/// How many endpoints did not fit.
fn apply(set: &mut BTreeMap<SocketAddr, Endpoint>, update: Update) -> u64 {
    let mut beyond = 0;
    match update {
        Update::Add(endpoints) => {
            for endpoint in endpoints {
                if set.len() < MAX_ENDPOINTS || set.contains_key(&endpoint.addr) {
                    set.insert(endpoint.addr, endpoint);
                } else {
                    beyond += 1;
                }
            }
        }
        Update::Remove(addrs) => {
            for addr in addrs {
                set.remove(&addr);
            }
        }
        Update::NoEndpoints { .. } => set.clear(),
    }
    beyond
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_has_no_more_endpoints_than_it_may_and_known_ones_still_change() {
        let mut set = BTreeMap::new();
        let at = |n: usize| Endpoint::bare(([10, 0, (n >> 8) as u8, n as u8], 80).into());
        let many = |from: usize, to: usize| Update::Add((from..to).map(at).collect());
        assert_eq!(apply(&mut set, many(0, MAX_ENDPOINTS)), 0);
        assert_eq!(apply(&mut set, many(MAX_ENDPOINTS - 1, MAX_ENDPOINTS + 5)), 5);
        assert_eq!(set.len(), MAX_ENDPOINTS);
        let heavier = Endpoint { weight: 7, ..at(0) };
        assert_eq!(apply(&mut set, Update::Add(vec![heavier])), 0);
        assert_eq!(set[&at(0).addr].weight, 7);
        assert_eq!(apply(&mut set, Update::Remove(vec![at(0).addr])), 0);
        assert_eq!(apply(&mut set, many(MAX_ENDPOINTS, MAX_ENDPOINTS + 1)), 0, "there is room again");
    }
}
