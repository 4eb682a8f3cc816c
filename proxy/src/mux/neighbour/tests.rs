//! Which carrier a stream is of: as many as are needed, all of the credentials in force.

use super::*;
use crate::mux::tests::{CLIENT, Ca, Happened, SERVER, proxy, takes_carriers};
use rustls::pki_types::CertificateDer;
use std::{future::Future as _, pin::pin, task::Poll};
use tokio::{io::AsyncReadExt as _, sync::mpsc};

const PORT: NonZeroU16 = NonZeroU16::new(8080).unwrap();

#[tokio::test]
async fn new_streams_are_of_a_carrier_of_the_new_credentials_and_the_old_one_drains() {
    let ca = Ca::new();
    let (addr, mut server) = takes_carriers(&ca, 1024).await;
    let (first, second) = (ca.credentials(CLIENT), ca.credentials(CLIENT));
    let (proxy, credentials) = proxy(Some(first.clone()));
    let neighbour = neighbour(&proxy, addr);

    let mut old = neighbour.connect(PORT, None).await.unwrap();
    assert_eq!(came(&mut server).await, first.chain()[0]);
    let mut far_old = opened(&mut server, 0).await;
    credentials.send_replace(Some(second.clone()));
    let mut new = neighbour.connect(PORT, None).await.unwrap();
    assert_eq!(came(&mut server).await, second.chain()[0], "who it is now");
    let mut far_new = opened(&mut server, 1).await;
    let _one_more = neighbour.connect(PORT, None).await.unwrap();
    let _far_one_more = opened(&mut server, 1).await;
    assert_eq!(neighbour.carriers(), (1, 2), "the old one takes no more");

    // What is under way goes on, and the old carrier ends with it.
    exchange(&mut old, &mut far_old).await;
    exchange(&mut new, &mut far_new).await;
    drop((old, far_old));
    assert!(matches!(server.recv().await, Some(Happened::Over(0))));
    exchange(&mut new, &mut far_new).await;
}

#[tokio::test]
async fn who_has_waited_while_credentials_changed_opens_no_carrier_of_the_old_ones() {
    let ca = Ca::new();
    let (addr, mut server) = takes_carriers(&ca, 1024).await;
    let (proxy, credentials) = proxy(Some(ca.credentials(CLIENT)));
    let neighbour = neighbour(&proxy, addr);

    let dialling = neighbour.dialling.lock().await;
    let mut waiting = pin!(neighbour.connect(PORT, None));
    let waits = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
    assert!(waits);
    let new = ca.credentials(CLIENT);
    credentials.send_replace(Some(new.clone()));
    // Whoever dials makes a carrier of the new ones meanwhile.
    let originated = neighbour.dial(neighbour.configs(&new).0).await.unwrap();
    let mut others = neighbour.began(&new, originated, PORT, None).await.unwrap();
    assert_eq!(came(&mut server).await, new.chain()[0]);
    let mut far_others = opened(&mut server, 0).await;
    drop(dialling);

    let mut waited = waiting.await.unwrap();
    assert_eq!(neighbour.carriers(), (1, 2), "it is a stream of the carrier that is there");
    let mut far_waited = opened(&mut server, 0).await;
    exchange(&mut waited, &mut far_waited).await;
    exchange(&mut others, &mut far_others).await;
}

#[tokio::test]
async fn a_carrier_that_is_full_gets_another_beside_it_up_to_32() {
    let ca = Ca::new();
    let (addr, mut server) = takes_carriers(&ca, 1).await;
    let (proxy, _credentials) = proxy(Some(ca.credentials(CLIENT)));
    let neighbour = neighbour(&proxy, addr);
    let mut kept = Vec::new();
    for nth in 0..MAX_CARRIERS {
        let mut near = neighbour.connect(PORT, None).await.unwrap();
        came(&mut server).await;
        let mut far = opened(&mut server, nth).await;
        // How many streams it takes the server has said before anything else.
        exchange(&mut near, &mut far).await;
        kept.push((near, far));
        assert_eq!(neighbour.carriers(), (nth + 1, nth + 1));
    }
    let Err(fault) = neighbour.connect(PORT, None).await else {
        panic!("a stream more than there is room for")
    };
    assert!(fault.to_string().contains("32 carriers are full"), "{fault}");
    // There is room where a stream has ended.
    kept.swap_remove(7);
    let _near = neighbour.connect(PORT, None).await.unwrap();
    let _far = opened(&mut server, 7).await;
    assert_eq!(neighbour.carriers(), (MAX_CARRIERS, MAX_CARRIERS));
}

fn neighbour(proxy: &Arc<Proxy>, addr: SocketAddr) -> Neighbour {
    let tls = EndpointTls { identity: Identity::parse(SERVER).unwrap(), server_name: SERVER.into() };
    Neighbour::new(proxy, addr, tls)
}

async fn came(server: &mut mpsc::Receiver<Happened>) -> CertificateDer<'static> {
    match server.recv().await {
        Some(Happened::Came(leaf)) => leaf,
        Some(Happened::Opened(nth, _)) => panic!("a stream was opened on carrier {nth}"),
        Some(Happened::Over(nth)) => panic!("carrier {nth} is over"),
        None => panic!("the server is gone"),
    }
}

async fn opened(server: &mut mpsc::Receiver<Happened>, on: usize) -> MuxStream {
    match server.recv().await {
        Some(Happened::Opened(nth, stream)) => {
            assert_eq!(nth, on, "the carrier");
            stream
        }
        Some(Happened::Came(_)) => panic!("another carrier came"),
        Some(Happened::Over(nth)) => panic!("carrier {nth} is over"),
        None => panic!("the server is gone"),
    }
}

async fn exchange(near: &mut Stream, far: &mut MuxStream) {
    near.write_all(b"?").await.unwrap();
    near.flush().await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'?');
    far.write_all(b"!").await.unwrap();
    far.flush().await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'!');
}
