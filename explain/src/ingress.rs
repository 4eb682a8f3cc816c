//! Pure. What the client's proxy does in ingress mode: a request goes to the Service that it names, and what a connection is
//! is looked for whatever is declared. Contract 4.9.

use crate::{
    World,
    answer::{Course, Reply},
    known::Discovered,
    outbound::{Carried, stripped},
    question::{Speaks, over_http2},
    sound::{unread, unsound},
    spoken::{Spoken, spoken},
};
use http::Request;
use remora_core::route::OutboundProtocol;
use remora_proxy::{
    discover::Place,
    fault::Fault,
    http::{headers, ingress},
};
use std::net::SocketAddr;

impl World<'_> {
    /// What becomes of it on the way to this address, or to the Service that the request names instead.
    pub(crate) fn ingress(&self, addr: SocketAddr, dialled: Discovered, request: &Request<()>) -> Course {
        let speaks = &self.question.speaks;
        let named = request.headers().get(&headers::DST_OVERRIDE);
        let Some(named) = named.filter(|_| !matches!(speaks, Speaks::Bytes | Speaks::Tls(_))) else {
            let speaks = spoken(speaks, &dialled.policy.protocol);
            return self.looked_for(addr, &dialled, &speaks, request);
        };
        let suffix = format!("svc.{}", self.settings.cluster_domain);
        let service = ingress::service(named, &[suffix]);
        let known = match &service {
            Ok(name) => self.known(Place::Name(name.clone()), ""),
            Err(_) => dialled,
        };
        let speaks = match spoken(speaks, &known.policy.protocol) {
            // Whoever names a Service speaks HTTP.
            Spoken::Bytes => Spoken::Http1,
            speaks => speaks,
        };
        if let Err(fault) = service {
            let mut course = self.course(addr, &known, &speaks);
            self.fails(&mut course, &fault, request);
            // What is no request is asked nothing.
            course.reply = untaken(&speaks, request).or(course.reply);
            return course;
        }
        self.looked_for(addr, &known, &speaks, request)
    }

    /// What is spoken decides, and not what is declared.
    fn looked_for(
        &self,
        addr: SocketAddr,
        known: &Discovered,
        speaks: &Spoken,
        request: &Request<()>,
    ) -> Course {
        let mut course = self.course(addr, known, speaks);
        course.reply = untaken(speaks, request);
        if course.reply.is_some() {
            return course;
        }
        let (policy, http2) = (&known.policy, *speaks == Spoken::Http2);
        let bytes = matches!(speaks, Spoken::Bytes | Spoken::Tls(_));
        let mut sent = if http2 { over_http2(request) } else { request.clone() };
        let (first, second) = (policy.accrual.http1.as_deref(), policy.accrual.http2.as_deref());
        match &policy.protocol {
            OutboundProtocol::Invalid(reason) => {
                let fault =
                    Fault::InvalidPolicy { target: policy.parent.name.clone(), reason: reason.clone() };
                self.fails(&mut course, &fault, request);
            }
            OutboundProtocol::Detect { opaque, .. } | OutboundProtocol::Opaque(opaque) if bytes => {
                self.bytes(&mut course, known, opaque, request);
            }
            OutboundProtocol::Tls(routes) if bytes => self.tls(&mut course, known, routes, speaks, request),
            OutboundProtocol::Http1(_) | OutboundProtocol::Http2(_) | OutboundProtocol::Grpc(_) if bytes => {
                let fault =
                    Fault::BadTarget("its Service declares HTTP, and the client speaks something else");
                course.reply = Some(Reply::ended(fault.to_string()));
            }
            OutboundProtocol::Opaque(distribution) => {
                let required = stripped(&mut sent);
                let carried = Carried::Request(Box::new(sent));
                course.backends = self.backends_of(distribution, &carried, required.as_deref(), None);
            }
            OutboundProtocol::Tls(_) => {
                self.fails(&mut course, &Fault::NoRoute(policy.parent.name.clone()), request);
            }
            OutboundProtocol::Detect { http2: routes, .. } if http2 => {
                self.http(&mut course, known, routes, second, sent);
            }
            OutboundProtocol::Detect { http1: routes, .. } | OutboundProtocol::Http1(routes) => {
                self.http(&mut course, known, routes, first, sent);
            }
            OutboundProtocol::Http2(routes) | OutboundProtocol::Grpc(routes) => {
                self.http(&mut course, known, routes, second, sent);
            }
        }
        course
    }
}

/// What is answered to what is no request, before it is asked what it is for.
fn untaken(speaks: &Spoken, request: &Request<()>) -> Option<Reply> {
    let of = |request: &Request<()>| unread(request).or_else(|| unsound(request));
    match speaks {
        Spoken::Bytes | Spoken::Tls(_) => None,
        Spoken::Http1 => of(request),
        Spoken::Http2 => of(&over_http2(request)),
    }
}
