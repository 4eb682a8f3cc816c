//! What a table does to one packet: a small interpreter of the kernel's.
//!
//! Pure. It walks the *first* packet of a connection, the only one that the `nat` table sees, and never guesses:
//! a rule whose condition it does not know makes the answer [`Effect::Undecided`], by that rule.

use std::fmt;
use std::net::IpAddr;

use super::table::Table;
use super::{Condition, Rule, Target, What};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub direction: Direction,
    /// It travels over the loopback interface.
    pub loopback: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    /// Destination port; means nothing for [`Protocol::Icmp`].
    pub port: u16,
    /// Who owns the socket; only outbound packets have an owner.
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Icmp => "ICMP",
        };
        let lo = if self.loopback { " over loopback" } else { "" };
        match self.direction {
            Direction::Inbound => {
                write!(f, "inbound {protocol}{lo} from {} to port {}", self.source, self.port)
            }
            Direction::Outbound => write!(
                f,
                "outbound {protocol}{lo} of uid {} gid {} to {} port {}",
                self.uid, self.gid, self.destination, self.port
            ),
        }
    }
}

/// What happens, and by which rule; `None` is the end of the chain, where the packet goes its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'t> {
    pub effect: Effect,
    pub by: Option<&'t Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Sent to this port of the pod itself.
    Redirect(u16),
    /// A rule exempted it, and no later one took it.
    Return,
    /// No rule took it, or one accepted it outright.
    Accept,
    /// Someone else's rule decides (DNAT, …).
    Foreign,
    /// Someone else's rule asks something this interpreter does not know.
    Undecided,
}

/// Chains call chains; the kernel refuses loops, so a table that goes deeper than this was not the kernel's.
const DEEPEST: usize = 32;

/// Runs the packet through the table.
pub fn walk<'t>(table: &'t Table, packet: &Packet) -> Verdict<'t> {
    let start = match packet.direction {
        Direction::Inbound => "PREROUTING",
        Direction::Outbound => "OUTPUT",
    };
    let mut returned = None;
    match chain(table, start, packet, DEEPEST, &mut returned) {
        Some(verdict) => verdict,
        None if returned.is_some() => Verdict { effect: Effect::Return, by: returned },
        None => Verdict { effect: Effect::Accept, by: None },
    }
}

/// `None` if the chain decides nothing. `returned` is the last RETURN that was met.
fn chain<'t>(
    table: &'t Table,
    name: &str,
    packet: &Packet,
    depth: usize,
    returned: &mut Option<&'t Rule>,
) -> Option<Verdict<'t>> {
    for line in table.chain(name).unwrap_or_default() {
        let rule = &line.rule;
        let decided = |effect| Some(Verdict { effect, by: Some(rule) });
        match meets_all(rule, packet) {
            Some(false) => continue,
            // A rule that decides nothing may ask what it likes.
            None if rule.target == Target::Pass => continue,
            None => return decided(Effect::Undecided),
            Some(true) => {}
        }
        match &rule.target {
            Target::Return => {
                *returned = Some(rule);
                return None;
            }
            Target::Accept => return decided(Effect::Accept),
            Target::Redirect(port) => return decided(Effect::Redirect(*port)),
            Target::Jump(_) | Target::Goto(_) if depth == 0 => return decided(Effect::Undecided),
            Target::Jump(to) => {
                let verdict = chain(table, to, packet, depth - 1, returned);
                if verdict.is_some() {
                    return verdict;
                }
            }
            Target::Goto(to) => return chain(table, to, packet, depth - 1, returned),
            Target::Pass => {}
            Target::Other(_) => return decided(Effect::Foreign),
        }
    }
    None
}

/// `None`: some condition is unknown and no other one settles it.
fn meets_all(rule: &Rule, packet: &Packet) -> Option<bool> {
    let mut known = true;
    for condition in &rule.conditions {
        match meets(condition, packet) {
            Some(false) => return Some(false),
            Some(true) => {}
            None => known = false,
        }
    }
    known.then_some(true)
}

fn meets(condition: &Condition, packet: &Packet) -> Option<bool> {
    let outbound = packet.direction == Direction::Outbound;
    let ports = packet.protocol != Protocol::Icmp;
    let meets = match &condition.what {
        What::Source(net) => net.contains(&packet.source),
        What::Destination(net) => net.contains(&packet.destination),
        What::InLoopback => !outbound && packet.loopback,
        What::OutLoopback => outbound && packet.loopback,
        What::Protocol(name) => is_protocol(name, packet.protocol),
        What::Port { module, port } => {
            ports && is_protocol(module, packet.protocol) && port.contains(packet.port)
        }
        What::Ports(ranges) => ports && ranges.iter().any(|range| range.contains(packet.port)),
        // The owner is looked up only for packets made here; for others the kernel's match fails either way.
        What::Uid(..) | What::Gid(..) if !outbound => return Some(false),
        What::Uid(first, last) => (*first..=*last).contains(&packet.uid),
        What::Gid(first, last) => (*first..=*last).contains(&packet.gid),
        What::Other(_) => return None,
    };
    Some(meets != condition.negated)
}

fn is_protocol(name: &str, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp => ["tcp", "6", "all"].contains(&name),
        Protocol::Udp => ["udp", "17", "all"].contains(&name),
        Protocol::Icmp => ["icmp", "ipv6-icmp", "icmpv6", "1", "58", "all"].contains(&name),
    }
}
