//! Connections that stop being HTTP: after `101 Switching Protocols` or an accepted `CONNECT`, bytes are copied.

use super::body::Body;
use crate::Proxy;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

/// The client's half of an upgrade that may come.
pub struct Offered(OnUpgrade);

/// Takes the client's half before the request is sent on.
pub fn offered(request: &mut Request<Incoming>) -> Offered {
    Offered(hyper::upgrade::on(request))
}

impl Offered {
    /// The server agreed: copies between both halves when the answer has been sent.
    pub fn join(
        self,
        response: &mut Response<Body>,
        proxy: &Proxy,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) {
        let server = hyper::upgrade::on(response);
        let client = self.0;
        let busy = proxy.drain.guard();
        let upgraded = proxy.metrics.upgraded.guard();
        proxy.tasks.spawn("upgraded connection", async move {
            let _held = (busy, upgraded, permit);
            match tokio::try_join!(client, server) {
                Ok((client, server)) => copy(client, server).await,
                Err(error) => debug!(%error, "an upgrade was agreed on and then not made"),
            }
        });
    }
}

async fn copy(client: Upgraded, server: Upgraded) {
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        debug!(%error, "an upgraded connection broke");
    }
}
