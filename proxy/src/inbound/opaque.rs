//! Bytes for the application: whether a client may send them, and for how long.

use super::{
    Connection, Rest,
    app::{self, AppConnection},
    audit, denied,
};
use crate::{Worker, fault::Fault, metrics::detect::Served, policy::PortPolicy, stream::Stream, tcp};
use remora_core::policy::{self, Refusal, Refused};
use std::{future::Future, sync::Arc};

/// Bytes: may this client connect? What is left then is to copy, for as long as it may.
pub(super) async fn opaque(
    worker: &Arc<Worker>,
    connection: Connection,
    mut policy: PortPolicy,
    stream: Stream,
    spare: Option<AppConnection>,
) -> Result<Rest, Fault> {
    // Whoever is silent may be waiting for what the application says, and a drain with it.
    let busy = worker.proxy.drain.guard();
    let metrics = &worker.proxy.metrics;
    let server = policy.latest();
    let stream = stream.metered(Arc::new(metrics.inbound_tcp(&connection, &server).open()));
    let authorized = policy::authorize_tcp(&server, connection.client.ip(), &connection.peer);
    match authorized {
        Ok(authorization) => {
            metrics.tcp_authorized(&connection, &server, Ok(&authorization));
            audit(&connection, &authorization);
        }
        Err(denial) => {
            let refusal = Refusal { route: None, denial };
            let refused = Refused::of(&server, &refusal);
            metrics.tcp_authorized(&connection, &server, Err(&refused));
            return Err(denied(&connection, refused, refusal.denial));
        }
    }
    let open = metrics.inbound.serve(Served::Opaque);

    let app = match spare {
        Some(app) => app,
        None => match Box::pin(app::for_bytes(worker, connection.target)).await {
            Ok(app) => app,
            Err(fault) => {
                // An orderly end without a byte would look like the application's answer.
                stream.reset_on_close();
                return Err(fault);
            }
        },
    };
    // Boxed: it is held twice, before and while it is awaited.
    let revoked = Box::pin(revoked(worker.clone(), connection, policy));
    let copying = Box::pin(tcp::forward(stream, app.into_stream(), revoked));
    Ok(Box::pin(async move {
        let _held = (busy, open);
        copying.await
    }))
}

/// Ends when a changed policy does not admit the connection any more.
#[expect(
    clippy::manual_async_fn,
    reason = "an async fn holds its arguments twice, and this is held by every connection"
)]
fn revoked(
    worker: Arc<Worker>,
    connection: Connection,
    mut policy: PortPolicy,
) -> impl Future<Output = Fault> + Send {
    async move {
        loop {
            policy.changed().await;
            let server = policy.latest();
            if policy::authorize_tcp(&server, connection.client.ip(), &connection.peer).is_err() {
                worker.proxy.metrics.tcp_terminated(&connection, &server);
                return Fault::Revoked(server.meta.name.clone());
            }
        }
    }
}
