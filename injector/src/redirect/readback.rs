//! Do the kernel's rules do what the plan's would?
//!
//! Pure. Not "are they the same text": packets are run through the planned table and through the one that was read
//! back, and every difference is reported by the name of the *planned* rule that does not hold. The packets are
//! chosen so that each port range, network and owner that either table mentions is tried inside and just outside,
//! so a planted rule is found wherever it is.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
#[cfg(planted)]
use remora_core::planted;

use super::table::Table;
use super::walk::{Direction, Effect, Packet, Protocol, Verdict, walk};
use super::{Family, INBOUND_CHAIN, OUTBOUND_CHAIN, Plan, PortRange, Target, What};

/// A rule of the plan that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub family: Family,
    /// The planned rule that should have decided.
    pub rule: String,
    /// A packet for which it does not.
    pub packet: Packet,
    pub expected: Effect,
    pub found: Effect,
    /// The rule that decides instead; `None` if none does.
    pub by: Option<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, rule, packet, expected, found, by } = self;
        write!(f, "{family} rule {rule} does not hold: {packet} should be {}, but ", said(*expected))?;
        match by {
            Some(by) => write!(f, "is {} by the rule `{by}`", said(*found)),
            None => write!(f, "is {}, for no rule takes it", said(*found)),
        }
    }
}

fn said(effect: Effect) -> String {
    match effect {
        Effect::Redirect(port) => format!("redirected to port {port}"),
        Effect::Return | Effect::Accept => "left alone".to_owned(),
        Effect::Foreign => "rewritten".to_owned(),
        Effect::Undecided => "decided in a way this program cannot follow".to_owned(),
    }
}

/// The rules of the plan that `found` does not keep, each once, with the first packet that shows it.
pub fn broken(plan: &Plan, family: Family, found: &Table) -> Vec<Broken> {
    let planned = Table::planned(plan, family);
    let mut reported = BTreeSet::new();
    let mut broken = Vec::new();
    for packet in packets(&planned, found, plan, family) {
        let (expected, actual) = (walk(&planned, &packet), walk(found, &packet));
        if agree(expected.effect, &actual) {
            continue;
        }
        let rule = name(&expected);
        if reported.insert(rule.clone()) {
            broken.push(Broken {
                family,
                rule,
                packet,
                expected: expected.effect,
                found: actual.effect,
                by: actual.by.map(|by| format!("-A {} {by}", by.chain)),
            });
        }
    }
    broken
}

/// Traffic that nothing of ours takes belongs to whoever else has rules here.
fn agree(expected: Effect, found: &Verdict<'_>) -> bool {
    if let Effect::Redirect(_) = expected {
        return found.effect == expected;
    }
    match found.effect {
        Effect::Return | Effect::Accept | Effect::Foreign => true,
        Effect::Redirect(_) => false,
        // Whether it matches or not, it does not capture; unless it calls a chain, which might.
        Effect::Undecided => found.by.is_some_and(|by| {
            matches!(by.target, Target::Return | Target::Accept | Target::Pass | Target::Other(_))
        }),
    }
}

/// Where no planned rule decides, it is that only TCP (and, where ports are listed, only those) is taken.
fn name(expected: &Verdict<'_>) -> String {
    expected.by.map_or_else(|| "leave-the-rest-alone".to_owned(), super::Rule::name)
}

/// One packet for each combination that could make a difference.
fn packets(planned: &Table, found: &Table, plan: &Plan, family: Family) -> impl Iterator<Item = Packet> {
    let tcp = [Direction::Inbound, Direction::Outbound].into_iter().flat_map(move |direction| {
        let Samples { ports, paths, uids, gids } = Samples::of(direction, planned, found, plan, family);
        let owners: BTreeSet<(u32, u32)> = product(&uids, &gids).collect();
        let crossed: Vec<_> = product(&ports, &paths).collect();
        crossed.into_iter().flat_map(move |(port, (source, destination))| {
            let packet = move |(uid, gid)| Packet {
                direction,
                loopback: false,
                source,
                destination,
                protocol: Protocol::Tcp,
                port,
                uid,
                gid,
            };
            owners.clone().into_iter().map(packet)
        })
    });
    tcp.flat_map(move |packet| {
        let own = loopback(family);
        let looped = Packet { loopback: true, source: own, destination: own, ..packet };
        // Inbound over loopback is the second half of an outbound packet that was left alone: the kernel asks
        // the nat table once for a connection, and outbound comes first.
        let looped = (packet.direction == Direction::Outbound).then_some(looped);
        let udp = Packet { protocol: Protocol::Udp, ..packet };
        let icmp = Packet { protocol: Protocol::Icmp, ..packet };
        [Some(packet), looped, Some(udp), Some(icmp)].into_iter().flatten()
    })
}

/// The values at which either table may change its mind about one direction's packets.
struct Samples {
    ports: BTreeSet<u16>,
    /// Source and destination.
    paths: BTreeSet<(IpAddr, IpAddr)>,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
}

impl Samples {
    fn of(direction: Direction, planned: &Table, found: &Table, plan: &Plan, family: Family) -> Self {
        let (pod, other) = (pod_address(family), documentation(family));
        let (source, destination, elsewhere) = match direction {
            Direction::Inbound => (other, pod, [OUTBOUND_CHAIN, "OUTPUT"]),
            Direction::Outbound => (pod, other, [INBOUND_CHAIN, "PREROUTING"]),
        };
        let mut samples = Self {
            ports: BTreeSet::from([1, 80, 443, plan.incoming_proxy_port, plan.outgoing_proxy_port, u16::MAX]),
            paths: BTreeSet::from([(source, destination)]),
            uids: BTreeSet::from([0]),
            gids: BTreeSet::from([0]),
        };
        let rules = planned.rules().chain(found.rules());
        let rules = rules.filter(|rule| !elsewhere.contains(&rule.chain.as_str()));
        for condition in rules.flat_map(|rule| &rule.conditions) {
            match &condition.what {
                // Networks nest or are disjoint, so the ends of each and one address of none tell them apart.
                What::Source(net) => samples.paths.extend(ends(*net).map(|end| (end, destination))),
                What::Destination(net) => samples.paths.extend(ends(*net).map(|end| (source, end))),
                What::Port { port, .. } => samples.range(*port),
                What::Ports(ranges) => ranges.iter().for_each(|range| samples.range(*range)),
                #[cfg(planted)]
                What::Uid(..) if planted::makes(planted::Mistake::OwnersAreNotTried) => {}
                What::Uid(first, last) => around(&mut samples.uids, *first, *last),
                What::Gid(first, last) => around(&mut samples.gids, *first, *last),
                What::InLoopback | What::OutLoopback | What::Protocol(_) | What::Other(_) => {}
            }
        }
        samples
    }

    fn range(&mut self, range: PortRange) {
        let (first, last) = (range.first(), range.last());
        self.ports.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
    }
}

fn ends(net: IpNet) -> [IpAddr; 2] {
    [net.network(), net.broadcast()]
}

fn around(ids: &mut BTreeSet<u32>, first: u32, last: u32) {
    ids.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
}

fn product<A: Copy, B: Copy>(first: &BTreeSet<A>, second: &BTreeSet<B>) -> impl Iterator<Item = (A, B)> {
    let second: Vec<B> = second.iter().copied().collect();
    let first: Vec<A> = first.iter().copied().collect();
    first.into_iter().flat_map(move |a| second.clone().into_iter().map(move |b| (a, b)))
}

/// An address that is nobody's (RFC 5737, RFC 6666): whatever a rule mentions, this is most likely outside it.
pub fn documentation(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Stands for the pod's own address: what it is decides nothing in the plan.
fn pod_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// The loopback address of a family.
pub fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}
