//! Connections that stop being HTTP: after `101 Switching Protocols` or an accepted `CONNECT`, bytes are copied.

use super::body::Body;
use crate::{Proxy, fault::Fault, stream::Stream, tcp};
use http::{Request, Response};
use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{debug, info};

/// In a request's extensions: where its connection comes when it has stopped being HTTP.
#[derive(Clone)]
pub struct Upgradable(Arc<Mutex<Option<oneshot::Receiver<Stream>>>>);

impl Upgradable {
    pub fn new(connection: oneshot::Receiver<Stream>) -> Self {
        Self(Arc::new(Mutex::new(Some(connection))))
    }

    fn take(&self) -> Option<oneshot::Receiver<Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The client's half of an upgrade that may come.
pub struct Offered {
    client: oneshot::Receiver<Stream>,
}

/// Takes the client's half before the request is sent on; `None` if its connection cannot stop being what it is.
pub fn offered(request: &mut Request<Body>) -> Option<Offered> {
    let client = request.extensions_mut().remove::<Upgradable>()?.take()?;
    Some(Offered { client })
}

impl Offered {
    /// The server agreed: copies between both halves when the answer has been sent, until both have ended or `stop` says
    /// that they must.
    pub fn join(
        self,
        response: &mut Response<Body>,
        proxy: &Proxy,
        permit: Option<Arc<OwnedSemaphorePermit>>,
        stop: impl Future<Output = Fault> + Send + 'static,
    ) {
        let server = response.body_mut().take_stream();
        let client = self.client;
        let busy = proxy.drain.guard();
        let upgraded = proxy.metrics.upgraded.guard();
        proxy.tasks.spawn("upgraded connection", async move {
            let _held = (busy, upgraded, permit);
            let (Ok(client), Some(server)) = (client.await, server) else {
                return debug!("an upgrade was agreed on and then not made");
            };
            match tcp::forward(client, server, stop).await {
                Ok(()) => {}
                Err(fault) if fault.is_early_end() => debug!(%fault, "an upgraded connection broke"),
                Err(fault) => info!(%fault, "an upgraded connection was ended"),
            }
        });
    }
}
