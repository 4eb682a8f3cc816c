//! What a pod's traffic is put through: a plan of ports, uids and subnets becomes firewall rules.
//!
//! Pure: knows the rules and their meaning, never a process, a file or a socket. `init` applies what this module
//! says and asks [`readback`] whether the kernel holds it. Rules, order and names are the Linkerd contract's
//! (6.5), so either side's init container may run over the other's work.
//!
//! Reading order: this file (plan → typed rules), [`table`] (the types as text, both ways), [`restore`] (one
//! atomic transaction), [`walk`] (what the rules do to one packet), [`readback`] (do the kernel's rules do what
//! the plan's would?).

pub mod readback;
pub mod restore;
pub mod table;
pub mod walk;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;

use ipnet::IpNet;
#[cfg(planted)]
use remora_core::planted;

/// The chain of inbound rules; Linkerd's name, so that each side finds and refills the other's.
pub const INBOUND_CHAIN: &str = "PROXY_INIT_REDIRECT";
/// The chain of outbound rules.
pub const OUTBOUND_CHAIN: &str = "PROXY_INIT_OUTPUT";
/// Comments begin with this, as Linkerd's do; what follows is the rule's name.
pub const COMMENT_PREFIX: &str = "proxy-init/";
/// `multiport` holds this many ports; a range takes two of them (iptables-extensions(8)).
const MULTIPORT_SLOTS: usize = 15;

/// Which traffic goes through the proxy.
///
/// Invariant, kept by whoever builds it (`init::flags` does): a uid or a gid is set, for without either the
/// proxy's own connections would be sent back to it for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where inbound connections go, never 0.
    pub incoming_proxy_port: u16,
    /// Where outbound connections go, never 0.
    pub outgoing_proxy_port: u16,
    /// Sockets of this user are the proxy's own and are left alone.
    pub proxy_uid: Option<NonZeroU32>,
    /// Sockets of this group are the proxy's own and are left alone.
    pub proxy_gid: Option<NonZeroU32>,
    /// Inbound ports to redirect; empty means all.
    pub ports_to_redirect: Vec<u16>,
    pub inbound_ports_to_ignore: Vec<PortRange>,
    pub outbound_ports_to_ignore: Vec<PortRange>,
    /// *Sources* whose inbound connections are left alone; no effect outbound (contract 12, item 8).
    pub subnets_to_ignore: Vec<IpNet>,
    /// Whether IPv6 is redirected too.
    pub ipv6: bool,
}

impl Plan {
    /// The families that get rules.
    pub fn families(&self) -> &'static [Family] {
        if self.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }
}

/// An address family; each has its own tables in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One port, or several in a row. Both bounds belong to it, and `first <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` if the bounds are the wrong way round.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    pub fn first(self) -> u16 {
        self.first
    }

    pub fn last(self) -> u16 {
        self.last
    }

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn slots(self) -> usize {
        #[cfg(planted)]
        if planted::makes(planted::Mistake::RangeIsOneSlot) {
            return 1;
        }
        if self.first == self.last { 1 } else { 2 }
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

/// As iptables writes it: `80` or `8000:8100`.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// As annotations and flags write it: `80` or `8000-8100`.
impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bound = |bound: &str| {
            let bound = bound.trim();
            bound.parse::<u16>().map_err(|_| format!("{text:?}: {bound:?} is not a port (0 to 65535)"))
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (bound(first)?, bound(last)?);
        Self::new(first, last).ok_or_else(|| format!("{text:?}: the range ends before it begins"))
    }
}

/// One rule of the `nat` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: String,
    /// All must hold. In the order in which iptables prints them.
    pub conditions: Vec<Condition>,
    pub comment: Option<String>,
    pub target: Target,
}

impl Rule {
    /// What people call the rule: its comment without our prefix, or else its text.
    pub fn name(&self) -> String {
        match self.comment.as_deref() {
            Some(comment) => comment.strip_prefix(COMMENT_PREFIX).unwrap_or(comment).to_owned(),
            None => self.to_string(),
        }
    }
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub negated: bool,
    pub what: What,
}

impl From<What> for Condition {
    fn from(what: What) -> Self {
        Self { negated: false, what }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Source(IpNet),
    Destination(IpNet),
    /// It came in on the loopback interface.
    InLoopback,
    /// It leaves by the loopback interface.
    OutLoopback,
    /// As iptables prints it: `tcp`, `udp`, `icmp`, …
    Protocol(String),
    /// `-m tcp --dport` or `-m udp --dport`: the module it was written with.
    Port {
        module: String,
        port: PortRange,
    },
    /// `-m multiport --dports`.
    Ports(Vec<PortRange>),
    /// The socket's owner, first and last of a range.
    Uid(u32, u32),
    Gid(u32, u32),
    /// Someone else's rule asks something we do not model; its text.
    Other(String),
}

/// What a rule does with a packet that meets its conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Return,
    Accept,
    Redirect(u16),
    /// Calls a chain, and comes back if that decides nothing.
    Jump(String),
    /// Goes to a chain, and does not come back.
    Goto(String),
    /// Counts or logs, and decides nothing.
    Pass,
    /// Someone else's decision (DNAT, …); its text.
    Other(String),
}

/// The rules of one family in the order in which they are applied: inbound chain and its jump, outbound chain and
/// its jump.
pub fn rules(plan: &Plan, family: Family) -> Vec<Rule> {
    let mut rules = inbound(plan, family);
    rules.push(jump("PREROUTING", INBOUND_CHAIN, "install-proxy-init-prerouting"));
    rules.extend(outbound(plan));
    rules.push(jump("OUTPUT", OUTBOUND_CHAIN, "install-proxy-init-output"));
    rules
}

fn inbound(plan: &Plan, family: Family) -> Vec<Rule> {
    let mut rules = ignored_ports(INBOUND_CHAIN, &plan.inbound_ports_to_ignore);
    for subnet in &plan.subnets_to_ignore {
        #[cfg(planted)]
        if family == Family::V6 && planted::makes(planted::Mistake::SubnetsOfIpv4Only) {
            continue;
        }
        if Family::of(subnet.addr()) == family {
            let subnet = subnet.trunc();
            let name = format!("ignore-subnet-{subnet}");
            rules.push(ours(INBOUND_CHAIN, vec![What::Source(subnet).into()], &name, Target::Return));
        }
    }
    let to_proxy = Target::Redirect(plan.incoming_proxy_port);
    if plan.ports_to_redirect.is_empty() {
        rules.push(ours(INBOUND_CHAIN, vec![tcp()], "redirect-all-incoming-to-proxy-port", to_proxy));
        return rules;
    }
    for &port in &plan.ports_to_redirect {
        let what = What::Port { module: "tcp".to_owned(), port: port.into() };
        let name = format!("redirect-port-{port}-to-proxy-port");
        rules.push(ours(INBOUND_CHAIN, vec![tcp(), what.into()], &name, to_proxy.clone()));
    }
    rules
}

fn outbound(plan: &Plan) -> Vec<Rule> {
    let mut rules = Vec::new();
    if let Some(uid) = plan.proxy_uid {
        let owner = What::Uid(uid.get(), uid.get()).into();
        rules.push(ours(OUTBOUND_CHAIN, vec![owner], "ignore-proxy-user-id", Target::Return));
    }
    if let Some(gid) = plan.proxy_gid {
        let owner = What::Gid(gid.get(), gid.get()).into();
        rules.push(ours(OUTBOUND_CHAIN, vec![owner], "ignore-proxy-group-id", Target::Return));
    }
    rules.push(ours(OUTBOUND_CHAIN, vec![What::OutLoopback.into()], "ignore-loopback", Target::Return));
    rules.extend(ignored_ports(OUTBOUND_CHAIN, &plan.outbound_ports_to_ignore));
    let to_proxy = Target::Redirect(plan.outgoing_proxy_port);
    rules.push(ours(OUTBOUND_CHAIN, vec![tcp()], "redirect-all-outgoing-to-proxy-port", to_proxy));
    rules
}

fn ignored_ports(chain: &str, ports: &[PortRange]) -> Vec<Rule> {
    let rule = |chunk: Vec<PortRange>| {
        let listed = chunk.iter().map(PortRange::to_string).collect::<Vec<_>>().join(",");
        let name = format!("ignore-port-{listed}");
        ours(chain, vec![tcp(), What::Ports(chunk).into()], &name, Target::Return)
    };
    chunks(ports).into_iter().map(rule).collect()
}

/// Repeated entries are dropped: they would only use up slots.
fn chunks(ports: &[PortRange]) -> Vec<Vec<PortRange>> {
    let mut chunks: Vec<Vec<PortRange>> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut free = 0;
    for &range in ports.iter().filter(|range| seen.insert(**range)) {
        match chunks.last_mut() {
            Some(chunk) if range.slots() <= free => chunk.push(range),
            Some(_) | None => {
                chunks.push(vec![range]);
                free = MULTIPORT_SLOTS;
            }
        }
        free -= range.slots();
    }
    chunks
}

fn tcp() -> Condition {
    What::Protocol("tcp".to_owned()).into()
}

fn jump(from: &str, to: &str, name: &str) -> Rule {
    ours(from, Vec::new(), name, Target::Jump(to.to_owned()))
}

fn ours(chain: &str, conditions: Vec<Condition>, name: &str, target: Target) -> Rule {
    Rule { chain: chain.to_owned(), conditions, comment: Some(format!("{COMMENT_PREFIX}{name}")), target }
}

#[cfg(test)]
mod tests;
