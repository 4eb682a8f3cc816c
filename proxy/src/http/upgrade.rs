//! Connections that stop being HTTP: after `101 Switching Protocols` or an accepted `CONNECT`, bytes are copied.

use super::{body::Body, talk::ClientIo};
use crate::{Proxy, fault::Fault, stream::Stream, tcp};
use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::{future::Future, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, info};

/// The client's half of an upgrade that may come.
pub struct Offered {
    client: OnUpgrade,
    request: Request<()>,
}

/// Takes the client's half before the request is sent on.
pub fn offered(request: &mut Request<Body>) -> Offered {
    let client = hyper::upgrade::on(&mut *request);
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Offered { client, request: copy }
}

impl Offered {
    /// The request as it was when it was authorised.
    pub fn request(&mut self) -> Request<()> {
        std::mem::take(&mut self.request)
    }

    /// The server agreed: copies between both halves when the answer has been sent, until both have ended or `stop` says
    /// that they must.
    pub fn join(
        self,
        response: &mut Response<Body>,
        proxy: &Proxy,
        permit: Option<Arc<OwnedSemaphorePermit>>,
        stop: impl Future<Output = Fault> + Send + 'static,
    ) {
        let server = hyper::upgrade::on(response);
        let client = self.client;
        let busy = proxy.drain.guard();
        let upgraded = proxy.metrics.upgraded.guard();
        proxy.tasks.spawn("upgraded connection", async move {
            let _held = (busy, upgraded, permit);
            let (client, server) = match tokio::try_join!(client, server) {
                Ok((client, server)) => (stream(client), stream(server)),
                Err(error) => return debug!(%error, "an upgrade was agreed on and then not made"),
            };
            let (Some(client), Some(server)) = (client, server) else {
                return debug!("an upgraded connection was none of ours");
            };
            match tcp::forward(client, server, stop).await {
                Ok(()) => {}
                Err(fault) if fault.is_early_end() => debug!(%fault, "an upgraded connection broke"),
                Err(fault) => info!(%fault, "an upgraded connection was ended"),
            }
        });
    }
}

/// The connection below, with what of it was read beyond the last head.
fn stream(upgraded: Upgraded) -> Option<Stream> {
    let (mut stream, read) = match upgraded.downcast::<TokioIo<ClientIo>>() {
        Ok(client) => (client.io.into_inner().into_inner(), client.read_buf),
        Err(upgraded) => {
            let server = upgraded.downcast::<TokioIo<Stream>>().ok()?;
            (server.io.into_inner(), server.read_buf)
        }
    };
    stream.put_back(read);
    Some(stream)
}
