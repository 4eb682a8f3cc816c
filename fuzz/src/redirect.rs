//! The redirect rules: for every packet they do what the plan means, said here once more without any rule; whatever was
//! in the table before, one transaction makes it so, a second changes nothing, and removal leaves what was not ours; and
//! a table that does something else is never taken for one that holds.

use arbitrary::{Arbitrary, Unstructured};
use ipnet::IpNet;
use remora_injector::redirect::{
    Family, INBOUND_CHAIN, OUTBOUND_CHAIN, Plan, PortRange,
    readback::broken,
    restore::{removal, restore},
    table::Table,
    walk::{Direction, Effect, Packet, Protocol, walk},
};
use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32};

/// The description of two plans, one applied over the other, a table before them, packets, and damage.
pub fn redirect(data: &[u8]) {
    if let Ok(described) = Described::arbitrary(&mut Unstructured::new(data)) {
        described.holds();
    }
}

#[derive(Arbitrary, Debug)]
struct Described {
    plan: Wish,
    earlier: Option<Wish>,
    foreign: Vec<Foreign>,
    packets: Vec<Sent>,
    damage: Option<(u8, Damage)>,
}

/// Few ports and ids, so that plans and packets meet.
#[derive(Arbitrary, Debug)]
struct Wish {
    incoming: u8,
    outgoing: u8,
    uid: Option<u8>,
    gid: Option<u8>,
    only: Vec<Port>,
    inbound: Vec<(Port, u8)>,
    outbound: Vec<(Port, u8)>,
    subnets: Vec<(bool, [u8; 4], u8)>,
    ipv6: bool,
}

#[derive(Arbitrary, Debug)]
enum Port {
    Near(u8),
    Far(u16),
}

#[derive(Arbitrary, Debug)]
struct Sent {
    inbound: bool,
    loopback: bool,
    v6: bool,
    source: [u8; 4],
    protocol: u8,
    port: Port,
    uid: u8,
    gid: u8,
}

/// What somebody else may have in the same table: nothing that takes packets before ours.
#[derive(Arbitrary, Debug)]
enum Foreign {
    Postrouting,
    LogsFirst,
    OwnChain,
    /// Calls our chain besides, with a condition.
    Jumps(bool),
    StaleChain,
}

#[derive(Arbitrary, Debug)]
enum Damage {
    Removed,
    Doubled,
    Swapped,
    ReturnsFirst(Port),
    RedirectsFirst(Port),
}

impl Described {
    fn holds(&self) {
        let Some(plan) = self.plan.plan() else { return };
        let packets: Vec<Packet> = self.packets.iter().take(40).map(Sent::packet).collect();
        for &family in &[Family::V4, Family::V6] {
            let planned = Table::planned(&plan, family);
            let here = |packet: &&Packet| Family::of(packet.source) == family;
            for packet in packets.iter().filter(here) {
                assert_eq!(
                    taken(walk(&planned, packet).effect),
                    intent(&plan, packet),
                    "{packet} under {plan:?}"
                );
            }
            assert!(broken(&plan, family, &planned).is_empty(), "the plan does not keep itself: {plan:?}");
            self.applied(&plan, family, &packets);
        }
    }

    fn applied(&self, plan: &Plan, family: Family, packets: &[Packet]) {
        let mut kernel = Kernel::default();
        self.foreign.iter().take(6).for_each(|foreign| foreign.put(&mut kernel));
        let strangers = kernel.strangers();
        if let Some(earlier) = self.earlier.as_ref().and_then(Wish::plan) {
            kernel.restore(&restore(&earlier, family, &kernel.table(family)));
        }
        kernel.restore(&restore(plan, family, &kernel.table(family)));
        let table = kernel.table(family);
        let found = broken(plan, family, &table);
        assert!(
            found.is_empty(),
            "{:?} after {}",
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            kernel.save()
        );
        for packet in packets.iter().filter(|packet| Family::of(packet.source) == family) {
            assert_eq!(
                taken(walk(&table, packet).effect),
                intent(plan, packet),
                "{packet}: {}",
                kernel.save()
            );
        }
        let once = kernel.save();
        kernel.restore(&restore(plan, family, &table));
        assert_eq!(kernel.save(), once, "applied twice it is another table");
        assert_eq!(kernel.strangers(), strangers, "what is not ours was changed");

        if let Some((at, damage)) = &self.damage {
            let mut damaged = kernel.clone();
            damage.put(&mut damaged, usize::from(*at));
            let table = damaged.table(family);
            let found = broken(plan, family, &table);
            for packet in
                packets.iter().filter(|packet| Family::of(packet.source) == family && is_possible(packet))
            {
                let effect = taken(walk(&table, packet).effect);
                assert!(
                    effect == intent(plan, packet) || !found.is_empty(),
                    "{packet} goes to {effect:?} and nobody notices: {}",
                    damaged.save()
                );
            }
        }
        if let Some(text) = removal(&kernel.table(family)) {
            kernel.restore(&text);
        }
        assert_eq!(kernel.strangers(), strangers, "removal took what is not ours");
        assert!(!kernel.save().contains(INBOUND_CHAIN) && !kernel.save().contains(OUTBOUND_CHAIN));
    }
}

/// Where a packet must end up: a port of the proxy, or its own way. Contract 6.5.
fn intent(plan: &Plan, packet: &Packet) -> Option<u16> {
    if packet.protocol != Protocol::Tcp {
        return None;
    }
    let among = |ranges: &[PortRange]| {
        ranges.iter().any(|range| range.first() <= packet.port && packet.port <= range.last())
    };
    match packet.direction {
        Direction::Inbound => {
            let spared = among(&plan.inbound_ports_to_ignore)
                || plan.subnets_to_ignore.iter().any(|net| net.contains(&packet.source));
            let wanted = plan.ports_to_redirect.is_empty() || plan.ports_to_redirect.contains(&packet.port);
            (wanted && !spared).then_some(plan.incoming_proxy_port)
        }
        Direction::Outbound => {
            let own = plan.proxy_uid.is_some_and(|uid| uid.get() == packet.uid)
                || plan.proxy_gid.is_some_and(|gid| gid.get() == packet.gid);
            let spared = own || packet.loopback || among(&plan.outbound_ports_to_ignore);
            (!spared).then_some(plan.outgoing_proxy_port)
        }
    }
}

fn taken(effect: Effect) -> Option<u16> {
    match effect {
        Effect::Redirect(port) => Some(port),
        Effect::Return | Effect::Accept => None,
        Effect::Foreign | Effect::Undecided => panic!("{effect:?} in a table that holds nothing of the kind"),
    }
}

/// An inbound connection over loopback has been through the outbound rules, and is not asked about again.
fn is_possible(packet: &Packet) -> bool {
    !(packet.direction == Direction::Inbound && packet.loopback)
}

impl Wish {
    /// What `init::flags` would let through.
    fn plan(&self) -> Option<Plan> {
        let owner = |id: Option<u8>| id.and_then(|id| NonZeroU32::new(u32::from(id % 8)));
        let (proxy_uid, proxy_gid) = (owner(self.uid), owner(self.gid));
        proxy_uid.or(proxy_gid)?;
        let ranges = |wishes: &[(Port, u8)]| -> Vec<PortRange> {
            let range = |(port, more): &(Port, u8)| {
                let first = port.number();
                PortRange::new(first, first.saturating_add((more % 4).into()))
            };
            wishes.iter().take(10).filter_map(range).collect()
        };
        Some(Plan {
            incoming_proxy_port: 4100 + u16::from(self.incoming),
            outgoing_proxy_port: 4100 + u16::from(self.outgoing),
            proxy_uid,
            proxy_gid,
            ports_to_redirect: self.only.iter().take(8).map(Port::number).collect(),
            inbound_ports_to_ignore: ranges(&self.inbound),
            outbound_ports_to_ignore: ranges(&self.outbound),
            subnets_to_ignore: self
                .subnets
                .iter()
                .take(4)
                .filter_map(|(v6, bytes, length)| {
                    let address = address(*v6, *bytes);
                    IpNet::new(address, length % if *v6 { 129 } else { 33 }).ok()
                })
                .collect(),
            ipv6: self.ipv6,
        })
    }
}

impl Port {
    fn number(&self) -> u16 {
        match self {
            Self::Near(port) => 4096 + u16::from(*port),
            Self::Far(port) => *port,
        }
    }
}

fn address(v6: bool, [a, b, c, d]: [u8; 4]) -> IpAddr {
    if v6 { [a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, c, d].into() } else { [a, b, c, d].into() }
}

impl Sent {
    fn packet(&self) -> Packet {
        let there: IpAddr =
            if self.v6 { [0xfd00, 0, 0, 0, 0, 0, 0, 9].into() } else { [192, 0, 2, 9].into() };
        Packet {
            direction: if self.inbound { Direction::Inbound } else { Direction::Outbound },
            loopback: self.loopback,
            source: address(self.v6, self.source),
            destination: there,
            protocol: [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Icmp]
                [usize::from(self.protocol % 4)],
            port: self.port.number(),
            uid: u32::from(self.uid % 8),
            gid: u32::from(self.gid % 8),
        }
    }
}

impl Foreign {
    fn put(&self, kernel: &mut Kernel) {
        let (chain, rule) = match self {
            Self::Postrouting => ("POSTROUTING", "-j MASQUERADE".to_owned()),
            Self::LogsFirst => ("PREROUTING", "-p tcp -j LOG --log-prefix \"a b\"".to_owned()),
            Self::OwnChain => {
                kernel.append("ELSEWHERE", "-p udp -m udp --dport 53 -j RETURN");
                ("OUTPUT", "-p udp -j ELSEWHERE".to_owned())
            }
            Self::Jumps(inbound) => {
                let (from, to) =
                    if *inbound { ("PREROUTING", INBOUND_CHAIN) } else { ("OUTPUT", OUTBOUND_CHAIN) };
                kernel.chains.entry(to.to_owned()).or_default();
                (from, format!("-p tcp -m tcp --dport 80 -m comment --comment \"a \\\"b\\\"\" -j {to}"))
            }
            Self::StaleChain => (INBOUND_CHAIN, "-p tcp -j REDIRECT --to-ports 1".to_owned()),
        };
        kernel.append(chain, &rule);
    }
}

impl Damage {
    /// Damages the chain that `at` picks.
    fn put(&self, kernel: &mut Kernel, at: usize) {
        let names = [INBOUND_CHAIN, OUTBOUND_CHAIN, "PREROUTING", "OUTPUT"];
        let Some(chain) = kernel.chains.get_mut(names[at % names.len()]) else { return };
        let place = at / names.len() % chain.len().max(1);
        match self {
            Self::ReturnsFirst(port) => {
                chain.insert(0, format!("-p tcp -m tcp --dport {} -j RETURN", port.number()));
            }
            Self::RedirectsFirst(port) => {
                chain.insert(0, format!("-p tcp -m tcp --dport {} -j REDIRECT --to-ports 9", port.number()));
            }
            Self::Removed | Self::Doubled | Self::Swapped if chain.is_empty() => {}
            Self::Removed => {
                chain.remove(place);
            }
            Self::Doubled => chain.insert(place, chain[place].clone()),
            Self::Swapped => chain.swap(0, place),
        }
    }
}

/// What `iptables-restore --noflush` and `iptables-save` make of text: chains of rules, each in its own words.
#[derive(Clone, Debug, Default)]
struct Kernel {
    chains: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    fn append(&mut self, chain: &str, rule: &str) {
        self.chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
    }

    /// One transaction; what the real one would refuse panics.
    fn restore(&mut self, text: &str) {
        let mut lines = text.lines();
        assert_eq!((lines.next(), text.lines().last()), (Some("*nat"), Some("COMMIT")), "{text}");
        for line in lines.take_while(|line| *line != "COMMIT") {
            if let Some(declared) = line.strip_prefix(':') {
                let name = declared.split(' ').next().unwrap_or_default();
                self.chains.insert(name.to_owned(), vec![]);
                continue;
            }
            let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match command {
                "-A" => {
                    let target = rule.rsplit("-j ").next().unwrap_or_default();
                    let known = ["RETURN", "REDIRECT"].iter().any(|known| target.starts_with(known));
                    assert!(known || self.chains.contains_key(target), "no chain {target:?}: {line}");
                    let ports = rule
                        .split("--dports ")
                        .nth(1)
                        .and_then(|rest| rest.split(' ').next())
                        .unwrap_or_default();
                    let slots = ports.split([',', ':']).filter(|port| !port.is_empty()).count();
                    assert!(slots <= 15, "multiport takes 15 ports: {line}");
                    self.append(chain, rule);
                }
                "-D" => {
                    let rules =
                        self.chains.get_mut(chain).filter(|rules| rules.iter().any(|other| other == rule));
                    let Some(rules) = rules else { panic!("no such rule: {line}") };
                    let at = rules.iter().position(|other| other == rule).unwrap_or_default();
                    rules.remove(at);
                }
                "-F" => assert!(self.chains.insert(chain.to_owned(), vec![]).is_some(), "{line}"),
                "-X" => {
                    let used =
                        self.chains.values().flatten().any(|rule| rule.ends_with(&format!("-j {chain}")));
                    assert!(!used, "{line}: it is still called");
                    assert!(self.chains.remove(chain).is_some_and(|rules| rules.is_empty()), "{line}");
                }
                _ => panic!("{line}: no such command"),
            }
        }
    }

    fn save(&self) -> String {
        let declared = self.chains.keys().map(|name| format!(":{name} ACCEPT [0:0]\n"));
        let rules = self
            .chains
            .iter()
            .flat_map(|(name, rules)| rules.iter().map(move |rule| format!("-A {name} {rule}\n")));
        format!("*nat\n{}COMMIT\n", declared.chain(rules).collect::<String>())
    }

    fn table(&self, family: Family) -> Table {
        let saved = self.save();
        match Table::parse(&saved, family) {
            Ok(table) => table,
            Err(error) => panic!("{error}: {saved}"),
        }
    }

    /// The rules that neither stand in our chains nor call them.
    fn strangers(&self) -> Vec<(String, String)> {
        let all = self
            .chains
            .iter()
            .flat_map(|(name, rules)| rules.iter().map(|rule| (name.clone(), rule.clone())));
        let ours = |text: &str| text.contains(INBOUND_CHAIN) || text.contains(OUTBOUND_CHAIN);
        all.filter(|(name, rule)| !ours(name) && !ours(rule)).collect()
    }
}
