//! TLS records after a handshake, over real handshakes in memory: what one side has sealed the other opens, in order and
//! whole, however pieces and packets are cut and whenever keys change. From where bytes were changed on their way nothing
//! is handed on any more.
#![expect(clippy::expect_used, reason = "what cannot fail, or the target is wrong")]

use arbitrary::{Arbitrary, Result, Unstructured};
use remora_proxy::tls::{
    codec::{FLIGHT, Records, SEALED},
    handshake,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::{self, kx_group},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName},
};
use std::sync::{Arc, OnceLock};
use tokio::io::AsyncWriteExt as _;

/// What follows this is not steps but what somebody sends instead of a handshake.
const GARBAGE: u8 = 255;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Sends so many bytes, in pieces that end at these places.
    Send { from_client: bool, count: u32, cuts: [u16; 3] },
    /// Takes its next key.
    NextKey { client: bool },
    /// Brings so many bytes to the other side.
    Bring { from_client: bool, count: u16 },
    /// Changes what is on its way: a bit, a byte that is lost, a packet that comes twice.
    Spoil { from_client: bool, at: u16, how: Spoil },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Spoil {
    Flip(u8),
    Drop,
    Repeat,
}

/// One direction.
#[derive(Default)]
struct Way {
    wire: Vec<u8>,
    /// Bytes of the wire that were brought.
    brought: usize,
    sent: Vec<u8>,
    /// Where each record ends on the wire, and in what was sent.
    ends: Vec<(usize, usize)>,
    received: Vec<u8>,
    /// How much of what was sent lies before the place from which on the wire is not what was sealed.
    spoiled: Option<usize>,
    failed: bool,
}

pub fn records(data: &[u8]) {
    if let Some((&GARBAGE, rest)) = data.split_first() {
        return garbage(rest);
    }
    let mut input = Unstructured::new(data);
    let steps: Result<Vec<Step>> =
        (0..48).map_while(|_| (!input.is_empty()).then(|| input.arbitrary())).collect();
    let Ok(steps) = steps else { return };
    if steps.is_empty() {
        return;
    }
    let (mut client, mut server) = pair();
    let (mut up, mut down) = (Way::default(), Way::default());
    for step in steps {
        match step {
            Step::Send { from_client: true, count, cuts } => up.send(&mut client, count, cuts),
            Step::Send { from_client: false, count, cuts } => down.send(&mut server, count, cuts),
            Step::NextKey { client: true } => client.use_next_key(),
            Step::NextKey { client: false } => server.use_next_key(),
            Step::Bring { from_client: true, count } => up.bring(&mut server, count.into()),
            Step::Bring { from_client: false, count } => down.bring(&mut client, count.into()),
            Step::Spoil { from_client: true, at, how } => up.spoil(at.into(), how),
            Step::Spoil { from_client: false, at, how } => down.spoil(at.into(), how),
        }
    }
    up.end(&mut server);
    down.end(&mut client);
}

impl Way {
    fn send(&mut self, from: &mut Records, count: u32, cuts: [u16; 3]) {
        // A record at least, sometimes many, and not so many that a run takes long.
        let count = 1 + count as usize % if count & 1 == 0 { 64 } else { 100_000 };
        if self.sent.len() > 1 << 20 {
            return;
        }
        let begin = self.sent.len();
        let bytes: Vec<u8> = (begin..begin + count).map(|i| (i % 251) as u8).collect();
        let mut cuts = cuts.map(|cut| usize::from(cut) % (count + 1));
        cuts.sort_unstable();
        let [a, b, c] = cuts;
        let mut pieces = [&bytes[..a], &bytes[a..b], &bytes[b..c], &bytes[c..]];
        let mut out = vec![0; SEALED];
        let mut left = count;
        while left > 0 {
            let (taken, length) = from.seal(&pieces, &mut out).expect("a fresh connection seals");
            assert!(taken > 0 && taken <= FLIGHT.min(left), "{taken} of {left}");
            self.note(&out[..length], taken);
            left -= taken;
            let mut skip = taken;
            for piece in &mut pieces {
                let now = skip.min(piece.len());
                *piece = &piece[now..];
                skip -= now;
            }
        }
        self.sent.extend_from_slice(&bytes);
    }

    /// Writes down where the records of a flight end. A KeyUpdate is one more, of no bytes of the application's.
    fn note(&mut self, mut flight: &[u8], taken: usize) {
        let mut lengths = Vec::new();
        while let [23, 3, 3, high, low, ..] = *flight {
            let length = 5 + usize::from(u16::from_be_bytes([high, low]));
            lengths.push(length);
            self.wire.extend_from_slice(&flight[..length]);
            flight = &flight[length..];
        }
        assert!(flight.is_empty(), "a flight is whole records");
        let contents: usize = lengths.iter().map(|length| length - 22).sum();
        let update = contents - taken;
        assert!(update == 0 || (update == 5 && lengths[0] == 27), "{contents} bytes for {taken}");
        let (mut wire, mut sent) = self.ends.last().copied().unwrap_or_default();
        for (index, length) in lengths.iter().enumerate() {
            wire += length;
            sent += if index == 0 && update > 0 { 0 } else { length - 22 };
            self.ends.push((wire, sent));
        }
    }

    fn bring(&mut self, to: &mut Records, count: usize) {
        let count = count.min(self.wire.len() - self.brought);
        if count == 0 {
            return;
        }
        let mut sealed = to.partial().to_vec();
        sealed.extend_from_slice(&self.wire[self.brought..self.brought + count]);
        self.brought += count;
        let received = &mut self.received;
        let opened = to.open(&mut sealed, |bytes| received.extend_from_slice(bytes));
        assert!(self.sent.starts_with(&self.received), "other bytes than were sent");
        assert!(!self.failed || opened.is_err(), "goes on after an error");
        match (opened, self.spoiled) {
            (Ok(()), None) => {
                let whole = self.ends.iter().rev().find(|(end, _)| *end <= self.brought);
                let whole = whole.map_or(0, |(_, sent)| *sent);
                assert_eq!(self.received.len(), whole, "all that is whole is handed on");
            }
            (Ok(()), Some(most)) => assert!(self.received.len() <= most, "handed on what was changed"),
            (Err(error), None) => panic!("refused what was sealed: {error}"),
            (Err(_), Some(most)) => {
                assert!(self.received.len() <= most, "handed on what was changed");
                self.failed = true;
            }
        }
    }

    fn spoil(&mut self, at: usize, how: Spoil) {
        let under_way = self.wire.len() - self.brought;
        // Once a direction, so that nothing is mended by a second change.
        if under_way == 0 || self.spoiled.is_some() {
            return;
        }
        let at = self.brought + at % under_way;
        let mut from = at;
        match how {
            Spoil::Flip(bit) => self.wire[at] ^= 1 << (bit % 8),
            Spoil::Drop => drop(self.wire.remove(at)),
            Spoil::Repeat => {
                from = self.wire.len();
                self.wire.extend_from_within(at..);
            }
        }
        let before = self.ends.iter().rev().find(|(end, _)| *end <= from);
        self.spoiled = Some(before.map_or(0, |(_, sent)| *sent));
    }

    fn end(&mut self, to: &mut Records) {
        while self.brought < self.wire.len() {
            self.bring(to, FLIGHT);
        }
    }
}

/// Neither side makes a connection of it, waits for more when there is no more, or panics.
fn garbage(bytes: &[u8]) {
    let (client, server) = both();
    let runtime = runtime();
    let sent = || async {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        near.write_all(bytes).await.expect("it fits");
        near.shutdown().await.expect("an end");
        (near, far)
    };
    let refused = runtime.block_on(async {
        let (_near, far) = sent().await;
        handshake::server(server, far).await.is_err()
    });
    assert!(refused, "a server took garbage for a handshake");
    let refused = runtime.block_on(async {
        let (_near, far) = sent().await;
        handshake::client(client, name(), far).await.is_err()
    });
    assert!(refused, "a client took garbage for a handshake");
}

fn both() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    static CONFIGS: OnceLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = OnceLock::new();
    CONFIGS.get_or_init(configs).clone()
}

fn name() -> ServerName<'static> {
    ServerName::try_from("server.test").expect("a name")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

/// Both sides of a connection.
fn pair() -> (Records, Records) {
    let (client, server) = both();
    let (near, far) = tokio::io::duplex(1 << 16);
    let handshakes =
        async { tokio::join!(handshake::client(client, name(), near), handshake::server(server, far)) };
    let (client, server) = runtime().block_on(handshakes);
    let (_, client, _) = client.expect("a handshake").records().expect("keys");
    let (_, server, _) = server.expect("a handshake").records().expect("keys");
    (client, server)
}

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(["server.test".to_owned()]).expect("a name");
    let leaf = CertificateDer::from(params.self_signed(&key).expect("a certificate").der().to_vec());
    let mut roots = RootCertStore::empty();
    roots.add(leaf.clone()).expect("a root");
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![kx_group::X25519];
    let provider = Arc::new(provider);
    let versions = &[&rustls::version::TLS13];
    let client = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
    let mut client = client.expect("TLS 1.3").with_root_certificates(roots).with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let mut server = server
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .expect("a certificate");
    // What the server sends after the handshake is not looked at here.
    server.send_tls13_tickets = 0;
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}
