//! HTTP/2 without TLS, by prior knowledge: many streams on each connection.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode, Version};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Counted, Target};

/// `streams` requests at once on one connection, each followed by the next. A connection that failed is replaced.
pub(super) async fn streams(target: Arc<Target>, counted: Arc<Counted>, streams: usize) {
    while !counted.over() {
        if let Err(error) = connection(&target, &counted, streams).await {
            counted.failed(&error).await;
        }
    }
}

/// One request on a connection of its own.
pub(super) async fn once(target: &Target) -> Result<()> {
    let stream = TcpStream::connect(target.addr).await.context("connecting")?;
    let (sender, connection) = h2::client::handshake(stream).await.context("the HTTP/2 preface")?;
    let driver = tokio::spawn(connection);
    let asked = ask(sender, target, &Counted::limited(1)).await;
    driver.abort();
    asked.map(drop)
}

async fn connection(target: &Arc<Target>, counted: &Arc<Counted>, streams: usize) -> Result<()> {
    let stream = TcpStream::connect(target.addr).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await.context("the HTTP/2 preface")?;
    let driver = tokio::spawn(connection);
    let mut askers = JoinSet::new();
    for _ in 0..streams {
        let (sender, target, counted) = (sender.clone(), target.clone(), counted.clone());
        askers.spawn(async move {
            let mut sender = sender;
            while counted.another() {
                let began = Instant::now();
                sender = ask(sender, &target, &counted).await?;
                counted.answered(began);
            }
            anyhow::Ok(())
        });
    }
    let mut outcome = Ok(());
    while let Some(asker) = askers.join_next().await {
        outcome = outcome.and(asker.context("a stream's task panicked")?);
    }
    // What ended the connection has been told by the requests that it carried.
    driver.abort();
    outcome
}

async fn ask(sender: SendRequest<Bytes>, target: &Target, counted: &Counted) -> Result<SendRequest<Bytes>> {
    let mut sender = sender.ready().await.context("opening a stream")?;
    let request = Request::get(format!("http://{}{}", target.host, target.path)).version(Version::HTTP_2);
    let (response, _) = sender.send_request(request.body(())?, true).context("sending the request")?;
    let response = response.await.context("reading the answer")?;
    let status = response.status();
    let mut body = response.into_body();
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data.context("reading the body")?;
        body.flow_control().release_capacity(data.len())?;
        got += data.len() as u64;
        counted.received(data.len());
    }
    if status != StatusCode::OK {
        bail!("status {status}");
    }
    if got != target.body {
        bail!("the answer has {got} bytes, not {}", target.body);
    }
    Ok(sender)
}
