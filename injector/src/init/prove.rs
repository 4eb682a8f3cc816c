//! The outbound rules proven by dialling: what was meant to be captured reaches us, what was not does not.
//!
//! Inbound rules and the proxy's exemption cannot be dialled from here; they are read back and followed
//! (`redirect::readback`), as these are too.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};

use crate::redirect::readback::{documentation, loopback};
use crate::redirect::table::Table;
use crate::redirect::walk::{Direction, Effect, Packet, Protocol, walk};
use crate::redirect::{Family, Plan, PortRange};

/// A redirected dial stays in this network namespace and takes microseconds; the rest is for a starved node.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a dial that must not be redirected is given to turn up at our listener. It runs beside the one that
/// must be, and its rule is read back as well, so this need not be long.
const SILENCE: Duration = Duration::from_millis(100);
/// Dialled if no rule exempts it.
const USUAL_PORT: u16 = 20_001;

/// What a dial showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    Holds(String),
    /// It could not be dialled here, and why.
    Skipped(String),
    Broken(String),
}

/// Proves one family's outbound rules: each with its name.
pub fn outbound(plan: &Plan, family: Family) -> Vec<(String, Proof)> {
    let ignore_loopback = ("ignore-loopback".to_owned(), undisturbed_loopback(family));
    let all = "redirect-all-outgoing-to-proxy-port".to_owned();
    let proxy = match Answering::on(SocketAddr::new(loopback(family), plan.outgoing_proxy_port)) {
        Ok(proxy) => proxy,
        Err(error) => {
            let why =
                format!("cannot listen on port {} in the proxy's place: {error}", plan.outgoing_proxy_port);
            return vec![(all, Proof::Skipped(why)), ignore_loopback];
        }
    };
    let away = documentation(family);
    if let Err(error) = route(away) {
        let why = format!("this pod has no {family} route to {away}: {error}");
        return vec![(all, Proof::Skipped(why)), ignore_loopback];
    }
    let planned = Table::planned(plan, family);
    let skipped = skipped_port(plan).map(|port| SocketAddr::new(away, port));
    let (planned, proxy) = (&planned, &proxy);
    std::thread::scope(|scope| {
        let beside = skipped.map(|target| scope.spawn(move || left_alone(planned, target, proxy)));
        let mut proofs = vec![(all, captured(planned, plan, away, proxy)), ignore_loopback];
        proofs.extend(beside.and_then(|dialled| dialled.join().ok()));
        proofs
    })
}

/// Dials where nothing is, and expects to meet our own listener.
fn captured(planned: &Table, plan: &Plan, away: IpAddr, proxy: &Answering) -> Proof {
    let Some(port) = unskipped_port(plan) else {
        return Proof::Skipped("every outbound port is to be left alone".to_owned());
    };
    let target = SocketAddr::new(away, port);
    let verdict = walk(planned, &our_packet(target));
    if !matches!(verdict.effect, Effect::Redirect(_)) {
        let by = verdict.by.map_or_else(String::new, crate::redirect::Rule::name);
        return Proof::Skipped(format!("this process is itself exempted by {by}"));
    }
    match dial(target, ANSWER) {
        Ok(answer) if answer == proxy.token => {
            Proof::Holds(format!("a dial to {target} reached port {}", plan.outgoing_proxy_port))
        }
        Ok(_) => Proof::Broken(format!(
            "a dial to {target} reached someone else than port {}",
            plan.outgoing_proxy_port
        )),
        Err(error) => Proof::Broken(format!(
            "a dial to {target} did not reach port {}: {error}",
            plan.outgoing_proxy_port
        )),
    }
}

/// Dials a skipped port where nothing is, and expects anything but our listener.
fn left_alone(planned: &Table, target: SocketAddr, proxy: &Answering) -> (String, Proof) {
    let rule = walk(planned, &our_packet(target)).by.map_or_else(String::new, crate::redirect::Rule::name);
    let proof = match dial(target, SILENCE) {
        Ok(answer) if answer == proxy.token => {
            Proof::Broken(format!("a dial to {target} reached the proxy's port"))
        }
        Ok(_) | Err(_) => Proof::Holds(format!("a dial to {target} left the pod")),
    };
    (rule, proof)
}

/// Dials a listener of our own over loopback, and expects that one.
fn undisturbed_loopback(family: Family) -> Proof {
    let app = match Answering::on(SocketAddr::new(loopback(family), 0)) {
        Ok(app) => app,
        Err(error) => return Proof::Skipped(format!("this pod has no {family} loopback: {error}")),
    };
    match dial(app.address, ANSWER) {
        Ok(answer) if answer == app.token => Proof::Holds(format!("a dial to {} reached it", app.address)),
        Ok(_) => Proof::Broken(format!("a dial to {} reached someone else", app.address)),
        Err(error) => Proof::Broken(format!("a dial to {} did not reach it: {error}", app.address)),
    }
}

fn our_packet(target: SocketAddr) -> Packet {
    Packet {
        direction: Direction::Outbound,
        loopback: false,
        source: target.ip(),
        destination: target.ip(),
        protocol: Protocol::Tcp,
        port: target.port(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

fn skipped_port(plan: &Plan) -> Option<u16> {
    plan.outbound_ports_to_ignore.iter().map(|range| range.last()).find(|port| *port > 0)
}

fn unskipped_port(plan: &Plan) -> Option<u16> {
    let skipped =
        |port: &u16| plan.outbound_ports_to_ignore.iter().any(|range: &PortRange| range.contains(*port));
    std::iter::once(USUAL_PORT).chain(1..=u16::MAX).find(|port| !skipped(port))
}

/// Asks the routing table only: connecting a datagram socket sends nothing.
fn route(away: IpAddr) -> io::Result<()> {
    let any: IpAddr = match away {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))?.connect((away, USUAL_PORT))
}

/// Connects, and reads a token's length; fewer bytes are an answer too.
fn dial(target: SocketAddr, deadline: Duration) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&target, deadline)?;
    stream.set_read_timeout(Some(deadline))?;
    let mut answer = Vec::new();
    stream.take(TOKEN_BYTES as u64).read_to_end(&mut answer)?;
    Ok(answer)
}

const TOKEN_BYTES: usize = 16;

/// A listener that tells whoever comes a token which only this process knows. Ends when dropped.
#[derive(Debug)]
struct Answering {
    address: SocketAddr,
    token: Vec<u8>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    fn on(address: SocketAddr) -> io::Result<Self> {
        let mut token = vec![0; TOKEN_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut token)?;
        let listener = TcpListener::bind(address)?;
        let (accepting, saying) = (listener.try_clone()?, token.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((mut peer, _)) = accepting.accept() {
                // Whoever hangs up early has not proven anything.
                let _gone = peer.write_all(&saying);
            }
        });
        Ok(Self { address: listener.local_addr()?, token, listener, thread: Some(thread) })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // Wakes the thread out of accept.
        if shutdown(&self.listener, Shutdown::Both).is_ok() {
            let _panicked = self.thread.take().map(JoinHandle::join);
        }
    }
}
