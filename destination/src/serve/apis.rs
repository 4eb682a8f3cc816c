//! The APIs, Linkerd's three and our own: request → view → message, one function per method.

use super::{
    Caller,
    streams::{Streams, Updates},
};
use crate::{
    metrics::Api,
    view::{
        Context, Endpoints, Lens, Outbound, Refusal, Settings, Target, Workload, endpoints, inbound,
        outbound, profile,
    },
    wire,
};
use linkerd2_proxy_api::{
    destination::{DestinationProfile, GetDestination, Update, destination_server::Destination},
    inbound::{PortSpec, Server, inbound_server_policies_server::InboundServerPolicies},
    outbound::{OutboundPolicy, TrafficSpec, outbound_policies_server::OutboundPolicies, traffic_spec},
};
use remora_runtime::api::destination::ZONES;
use remora_runtime::proto::{self, outbound_policies_server::OutboundPolicies as OwnOutboundPolicies};
use std::{net::IpAddr, net::SocketAddr, sync::Arc};
use tonic::{Request, Response, Status, async_trait};

/// `Destination`.
#[derive(Clone, Debug)]
pub(super) struct DestinationApi {
    pub(super) streams: Streams,
    pub(super) settings: Arc<Settings>,
}

/// `OutboundPolicies`, in Linkerd's words and in ours, and `InboundServerPolicies`.
#[derive(Clone, Debug)]
pub(super) struct PolicyApi {
    pub(super) streams: Streams,
    pub(super) settings: Arc<Settings>,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(reason) => Self::invalid_argument(reason),
            Refusal::NotFound(reason) => Self::not_found(reason),
        }
    }
}

#[async_trait]
impl Destination for DestinationApi {
    type GetStream = Updates<Update>;
    type GetProfileStream = Updates<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let api = Api::Endpoints;
        let (target, context) = self.read(&request).map_err(|status| self.streams.refused(api, status))?;
        let Target::Service { name, host, port } = target else {
            let status =
                Status::invalid_argument("endpoints are looked up by the name of a Service, not by address");
            return Err(self.streams.refused(api, status));
        };
        let settings = self.settings.clone();
        let mut told = Told::Nothing;
        self.streams.open(api, move |lens| {
            let found = endpoints(lens, &settings, (&name, host.as_deref(), port), &context);
            told.next(found).map_err(Status::from)
        })
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        let api = Api::Profile;
        let (target, context) = self.read(&request).map_err(|status| self.streams.refused(api, status))?;
        let settings = self.settings.clone();
        self.streams.open(
            api,
            when_changed(move |lens| {
                Ok(wire::destination_profile(&profile(lens, &settings, &target, &context)?, &settings))
            }),
        )
    }
}

impl DestinationApi {
    fn read(&self, request: &Request<GetDestination>) -> Result<(Target, Context), Status> {
        let caller = Caller::of(request, &self.settings)?;
        let GetDestination { path, context_token, .. } = request.get_ref();
        let target = Target::parse(path, &self.settings.cluster_domain)?;
        let chooses_zones = request.metadata().get(ZONES.0).is_some_and(|zones| zones == ZONES.1);
        let context = Context { chooses_zones, ..Context::parse(context_token) };
        Ok((target, caller.believe(context)))
    }
}

#[async_trait]
impl OutboundPolicies for PolicyApi {
    type WatchStream = Updates<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        let view = self.outbound(&request, wire::policy)?;
        self.streams.once(Api::Outbound, view)
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        let view = self.outbound(&request, wire::policy)?;
        self.streams.open(Api::Outbound, when_changed(view))
    }
}

#[async_trait]
impl OwnOutboundPolicies for PolicyApi {
    type WatchStream = Updates<proto::OutboundPolicy>;

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        let view = self.outbound(&request, wire::own_policy)?;
        self.streams.open(Api::Outbound, when_changed(view))
    }
}

#[async_trait]
impl InboundServerPolicies for PolicyApi {
    type WatchPortStream = Updates<Server>;

    async fn get_port(&self, request: Request<PortSpec>) -> Result<Response<Server>, Status> {
        let view = self.inbound(&request)?;
        self.streams.once(Api::Inbound, view)
    }

    async fn watch_port(
        &self,
        request: Request<PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        let view = self.inbound(&request)?;
        self.streams.open(Api::Inbound, when_changed(view))
    }
}

impl PolicyApi {
    fn outbound<M: 'static>(
        &self,
        request: &Request<TrafficSpec>,
        write: fn(&Outbound, &Settings) -> M,
    ) -> Result<impl Fn(&mut Lens<'_>) -> Result<M, Status> + Send + use<M>, Status> {
        let (target, client) =
            self.read_traffic(request).map_err(|status| self.streams.refused(Api::Outbound, status))?;
        let settings = self.settings.clone();
        Ok(move |lens: &mut Lens<'_>| {
            Ok(write(&outbound(lens, &settings, &target, Some(&client))?, &settings))
        })
    }

    fn inbound(
        &self,
        request: &Request<PortSpec>,
    ) -> Result<impl Fn(&mut Lens<'_>) -> Result<Server, Status> + Send + use<>, Status> {
        let (workload, port) =
            self.read_port(request).map_err(|status| self.streams.refused(Api::Inbound, status))?;
        let settings = self.settings.clone();
        Ok(move |lens: &mut Lens<'_>| {
            Ok(wire::server(&inbound(lens, &settings, &workload, port)?, &settings))
        })
    }

    /// The target of a request, and the namespace of the client, which its certificate has proven.
    fn read_traffic(&self, request: &Request<TrafficSpec>) -> Result<(Target, String), Status> {
        let caller = Caller::of(request, &self.settings)?;
        let spec = request.get_ref();
        let workload = Workload::parse(&spec.source_workload)?.0;
        caller.may_ask_for(&workload)?;
        let target = match &spec.target {
            None => return Err(Status::invalid_argument("the request names no target")),
            Some(traffic_spec::Target::Authority(authority)) => {
                Target::parse(authority, &self.settings.cluster_domain)?
            }
            Some(traffic_spec::Target::Addr(addr)) => {
                let ip = addr.ip.and_then(|ip| IpAddr::try_from(ip).ok());
                let ip = ip.ok_or_else(|| Status::invalid_argument("the target's address has no IP"))?;
                Target::Addr(SocketAddr::new(ip, port(addr.port)?))
            }
        };
        Ok((target, workload.namespace))
    }

    fn read_port(&self, request: &Request<PortSpec>) -> Result<(Workload, u16), Status> {
        let caller = Caller::of(request, &self.settings)?;
        let spec = request.get_ref();
        let workload = Workload::parse(&spec.workload)?;
        caller.may_ask_for(&workload.0)?;
        Ok((workload, port(spec.port)?))
    }
}

fn port(port: u32) -> Result<u16, Status> {
    let valid = u16::try_from(port).ok().filter(|port| *port > 0);
    valid.ok_or_else(|| Status::invalid_argument(format!("port {port} is not in 1 to 65535")))
}

/// Sends a message only when it differs from the one before.
fn when_changed<T: PartialEq + Clone>(
    view: impl Fn(&mut Lens<'_>) -> Result<T, Status>,
) -> impl FnMut(&mut Lens<'_>) -> Result<Vec<T>, Status> {
    let mut last: Option<T> = None;
    move |lens| {
        let new = view(lens)?;
        if last.as_ref() == Some(&new) {
            return Ok(Vec::new());
        }
        last = Some(new.clone());
        Ok(vec![new])
    }
}

/// What a client of `Destination.Get` has been told.
#[derive(Debug)]
enum Told {
    /// Nothing: an error now is the answer to its request.
    Nothing,
    /// These endpoints.
    Endpoints(Endpoints),
    /// That the Service is gone. The stream stays: Services are replaced by deleting and creating them.
    Gone,
}

impl Told {
    fn next(&mut self, found: Result<Endpoints, Refusal>) -> Result<Vec<Update>, Refusal> {
        let updates = match (&self, &found) {
            (Self::Nothing | Self::Gone, Ok(new)) => vec![wire::everything(new)],
            (Self::Endpoints(old), Ok(new)) => wire::difference(old, new),
            (Self::Endpoints(_), Err(Refusal::NotFound(_))) => vec![wire::does_not_exist()],
            (Self::Gone, Err(Refusal::NotFound(_))) => Vec::new(),
            (Self::Nothing, Err(refusal)) | (_, Err(refusal @ Refusal::Invalid(_))) => {
                return Err(refusal.clone());
            }
        };
        *self = found.map_or(Self::Gone, Self::Endpoints);
        Ok(updates)
    }
}
