//! Tables of what a plan becomes, and properties of what its rules do to packets.

use std::net::IpAddr;

use proptest::prelude::*;

use super::readback::broken;
use super::restore::{removal, restore};
use super::table::{Table, Unreadable};
use super::walk::{Direction, Effect, Packet, Protocol, walk};
use super::*;

/// Contract 6.5's own example, with a little of everything.
fn plan() -> Plan {
    Plan {
        incoming_proxy_port: 4143,
        outgoing_proxy_port: 4140,
        proxy_uid: NonZeroU32::new(2102),
        proxy_gid: None,
        ports_to_redirect: Vec::new(),
        inbound_ports_to_ignore: ranges("4190,4191,4567,4568"),
        outbound_ports_to_ignore: ranges("4567-4568,443"),
        subnets_to_ignore: vec!["10.9.8.7/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ipv6: true,
    }
}

fn ranges(text: &str) -> Vec<PortRange> {
    text.split(',').filter(|range| !range.is_empty()).map(|range| range.parse().unwrap()).collect()
}

// What a plan becomes.

#[test]
fn a_plan_is_one_transaction_per_family() {
    assert_eq!(restore(&plan(), Family::V4, &Table::default()), include_str!("golden/v4.txt"));
    assert_eq!(restore(&plan(), Family::V6, &Table::default()), include_str!("golden/v6.txt"));
}

#[test]
fn listed_ports_replace_the_rule_for_all() {
    let plan = Plan { ports_to_redirect: vec![80, 8080], subnets_to_ignore: Vec::new(), ..plan() };
    let names: Vec<String> = rules(&plan, Family::V4).iter().map(Rule::name).collect();
    let expected = [
        "ignore-port-4190,4191,4567,4568",
        "redirect-port-80-to-proxy-port",
        "redirect-port-8080-to-proxy-port",
        "install-proxy-init-prerouting",
        "ignore-proxy-user-id",
        "ignore-loopback",
        "ignore-port-4567:4568,443",
        "redirect-all-outgoing-to-proxy-port",
        "install-proxy-init-output",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_group_is_exempted_beside_the_user() {
    let plan = Plan { proxy_gid: NonZeroU32::new(2103), ..plan() };
    let names: Vec<String> = rules(&plan, Family::V4).iter().map(Rule::name).collect();
    assert!(
        names.windows(2).any(|pair| pair == ["ignore-proxy-user-id", "ignore-proxy-group-id"]),
        "{names:?}"
    );
}

#[test]
fn fifteen_ports_fit_in_one_rule() {
    check_chunks("1,2,3,4,5,6,7,8,9,10,11,12,13,14,15", &[15]);
}

#[test]
fn the_sixteenth_port_begins_another() {
    check_chunks("1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", &[15, 1]);
}

#[test]
fn a_range_takes_two_slots() {
    check_chunks("1-2,3-4,5-6,7-8,9-10,11-12,13-14,15", &[8]);
    check_chunks("1-2,3-4,5-6,7-8,9-10,11-12,13-14,15-16", &[7, 1]);
}

#[test]
fn a_range_of_one_port_takes_one_slot() {
    check_chunks("1-1,2,3,4,5,6,7,8,9,10,11,12,13,14,15-15", &[15]);
}

#[test]
fn repeated_ports_take_no_slots() {
    check_chunks("80,80,80-80,81", &[2]);
}

#[test]
fn no_ports_make_no_rule() {
    check_chunks("", &[]);
}

#[track_caller]
fn check_chunks(ports: &str, sizes: &[usize]) {
    let chunks = chunks(&ranges(ports));
    assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
}

#[test]
fn ranges_are_read_as_annotations_write_them() {
    for (text, expected) in
        [("80", "80"), ("8000-8100", "8000:8100"), (" 7 - 9 ", "7:9"), ("0-65535", "0:65535")]
    {
        assert_eq!(text.parse::<PortRange>().map(|range| range.to_string()).as_deref(), Ok(expected));
    }
    for text in ["", "http", "-1", "65536", "9-7", "1-2-3", "80:90"] {
        assert!(text.parse::<PortRange>().is_err(), "{text}");
    }
}

// What is already there.

#[test]
fn a_jump_that_is_there_is_kept_under_any_comment() {
    let existing =
        table("-A OUTPUT -j PROXY_INIT_OUTPUT\n-A PREROUTING -m comment --comment x -j PROXY_INIT_REDIRECT");
    let text = restore(&plan(), Family::V4, &existing);
    assert!(!text.contains("-A OUTPUT") && !text.contains("-A PREROUTING") && !text.contains("-D"), "{text}");
}

#[test]
fn doubled_conditional_and_misplaced_jumps_are_replaced_by_one() {
    let cases = [
        "-A OUTPUT -j PROXY_INIT_OUTPUT\n-A OUTPUT -j PROXY_INIT_OUTPUT",
        "-A OUTPUT -p tcp -m tcp --dport 80 -j PROXY_INIT_OUTPUT",
        "-A OUTPUT -g PROXY_INIT_OUTPUT",
        "-A POSTROUTING -j PROXY_INIT_OUTPUT",
        "-A OUTPUT -m addrtype ! --dst-type LOCAL -m comment --comment \"two words\" -j PROXY_INIT_OUTPUT",
    ];
    for case in cases {
        let text = restore(&plan(), Family::V4, &table(case));
        for line in case.lines() {
            assert!(text.contains(&line.replacen("-A ", "-D ", 1)), "{text}");
        }
        assert_eq!(text.matches("-A OUTPUT").count(), 1, "{text}");
    }
}

#[test]
fn removal_takes_jumps_and_chains_and_nothing_else() {
    assert_eq!(removal(&table("-A OUTPUT -j MY_OWN\n-A MY_OWN -j RETURN")), None);
    let existing = table(":PROXY_INIT_OUTPUT - [0:0]\n-A OUTPUT -j PROXY_INIT_OUTPUT\n-A OUTPUT -j MY_OWN");
    let expected =
        "*nat\n-D OUTPUT -j PROXY_INIT_OUTPUT\n-F PROXY_INIT_OUTPUT\n-X PROXY_INIT_OUTPUT\nCOMMIT\n";
    assert_eq!(removal(&existing).as_deref(), Some(expected));
}

fn table(lines: &str) -> Table {
    Table::parse(&format!("# Generated\n*nat\n:OUTPUT ACCEPT [0:0]\n{lines}\nCOMMIT\n"), Family::V4).unwrap()
}

#[test]
fn what_iptables_cannot_show_is_not_taken_for_empty() {
    let saved = "# Table `nat' is incompatible, use 'nft' tool.\n";
    assert_eq!(Table::parse(saved, Family::V4), Err(Unreadable::Incompatible));
}

#[test]
fn other_tables_and_nothing_at_all_are_empty() {
    assert_eq!(Table::parse("", Family::V4), Ok(Table::default()));
    let filter = "*filter\n:INPUT DROP [0:0]\n-A INPUT -j DROP\nCOMMIT\n";
    assert_eq!(Table::parse(filter, Family::V4), Ok(Table::default()));
}

#[test]
fn garbage_is_refused() {
    for line in ["hello", "-A OUTPUT -m comment --comment \"open", "-A OUTPUT -j", "-N CHAIN"] {
        let saved = format!("*nat\n{line}\nCOMMIT\n");
        assert_eq!(Table::parse(&saved, Family::V4), Err(Unreadable::Line(line.to_owned())));
    }
}

// What other people's rules do to a packet.

const WEB: Packet = Packet {
    direction: Direction::Outbound,
    loopback: false,
    source: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)),
    destination: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 80)),
    protocol: Protocol::Tcp,
    port: 80,
    uid: 1000,
    gid: 1000,
};

#[test]
fn foreign_rules_are_followed() {
    let cases = [
        ("", Effect::Accept),
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 4140", Effect::Redirect(4140)),
        ("-A OUTPUT -p 6 -j ACCEPT", Effect::Accept),
        ("-A OUTPUT ! -p tcp -j REDIRECT --to-ports 1", Effect::Accept),
        (
            "-A OUTPUT -d 192.0.2.80/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80",
            Effect::Foreign,
        ),
        ("-A OUTPUT -d 127.0.0.11/32 -j DNAT --to-destination 10.0.0.1", Effect::Accept),
        ("-A OUTPUT -m owner ! --uid-owner 1000 -j REDIRECT --to-ports 1", Effect::Accept),
        ("-A OUTPUT -m owner --uid-owner 900-1100 -j REDIRECT --to-ports 1", Effect::Redirect(1)),
        ("-A OUTPUT -m owner --gid-owner 7 -j REDIRECT --to-ports 1", Effect::Accept),
        ("-A OUTPUT -p tcp -m multiport --dports 1,70:90 -j REDIRECT --to-ports 1", Effect::Redirect(1)),
        ("-A OUTPUT -p tcp -m multiport ! --dports 1,70:90 -j REDIRECT --to-ports 1", Effect::Accept),
        ("-A OUTPUT -p udp -m udp --dport 80 -j REDIRECT --to-ports 1", Effect::Accept),
        ("-A OUTPUT -m addrtype --dst-type LOCAL -j ACCEPT", Effect::Undecided),
        ("-A OUTPUT -p udp -m addrtype --dst-type LOCAL -j ACCEPT", Effect::Accept),
        ("-A OUTPUT -m limit --limit 5/min -j LOG --log-prefix \"a b\"", Effect::Accept),
        ("-A OUTPUT -m statistic --mode random --probability 0.5", Effect::Accept),
        ("-A OUTPUT -j A\n-A OUTPUT -j REDIRECT --to-ports 1\n-A A -j RETURN", Effect::Redirect(1)),
        ("-A OUTPUT -g A\n-A OUTPUT -j REDIRECT --to-ports 1\n-A A -j RETURN", Effect::Return),
        ("-A OUTPUT -j A\n-A A -j B\n-A B -j REDIRECT --to-ports 1", Effect::Redirect(1)),
        ("-A OUTPUT -j A\n-A A -j A", Effect::Undecided),
        ("-A OUTPUT -o eth0 -j ACCEPT", Effect::Undecided),
        ("-A OUTPUT -o lo -j REDIRECT --to-ports 1", Effect::Accept),
        ("-A OUTPUT -j MASQUERADE", Effect::Foreign),
        ("-A PREROUTING -j REDIRECT --to-ports 1", Effect::Accept),
    ];
    for (lines, expected) in cases {
        assert_eq!(walk(&table(lines), &WEB).effect, expected, "{lines}");
    }
}

// What is wrong is found, and named.

#[test]
fn the_plan_holds_in_its_own_table() {
    for family in [Family::V4, Family::V6] {
        assert_eq!(broken(&plan(), family, &Table::planned(&plan(), family)), Vec::new());
    }
}

#[test]
fn an_empty_table_breaks_what_redirects_and_nothing_else() {
    check_broken(
        |_| String::new(),
        &["redirect-all-incoming-to-proxy-port", "redirect-all-outgoing-to-proxy-port"],
    );
}

#[test]
fn a_planted_exemption_is_found_wherever_it_is() {
    for (rule, named) in [
        (
            "-A PROXY_INIT_REDIRECT -p tcp -m tcp --dport 31337 -j RETURN",
            "redirect-all-incoming-to-proxy-port",
        ),
        ("-A PROXY_INIT_REDIRECT -s 203.0.113.5/32 -j ACCEPT", "redirect-all-incoming-to-proxy-port"),
        ("-A PROXY_INIT_REDIRECT -d 203.0.113.5/32 -j ACCEPT", "redirect-all-incoming-to-proxy-port"),
        ("-A PROXY_INIT_OUTPUT -d 203.0.113.0/24 -j RETURN", "redirect-all-outgoing-to-proxy-port"),
        ("-A PROXY_INIT_OUTPUT -m owner --uid-owner 1337 -j RETURN", "redirect-all-outgoing-to-proxy-port"),
        ("-A PROXY_INIT_OUTPUT -m owner --gid-owner 1337 -j RETURN", "redirect-all-outgoing-to-proxy-port"),
        (
            "-A OUTPUT -p tcp -m multiport --dports 1,5000:6000 -j ACCEPT",
            "redirect-all-outgoing-to-proxy-port",
        ),
        ("-A PREROUTING -m addrtype --dst-type LOCAL -j ACCEPT", "redirect-all-incoming-to-proxy-port"),
    ] {
        check_broken(|lines| format!("{rule}\n{lines}"), &[named]);
    }
}

#[test]
fn a_capture_too_many_is_found_by_the_exemption_it_breaks() {
    for (rule, named) in [
        ("-A OUTPUT -m owner --uid-owner 2102 -p tcp -j REDIRECT --to-ports 4140", "ignore-proxy-user-id"),
        ("-A OUTPUT -o lo -p tcp -m owner --uid-owner 4000 -j REDIRECT --to-ports 4140", "ignore-loopback"),
        (
            "-A OUTPUT -p tcp -m owner --uid-owner 4000 -m tcp --dport 443 -j REDIRECT --to-ports 1",
            "ignore-port-4567:4568,443",
        ),
        (
            "-A PREROUTING -p tcp -m tcp --dport 4191 -j REDIRECT --to-ports 4143",
            "ignore-port-4190,4191,4567,4568",
        ),
        ("-A PREROUTING -p udp -j REDIRECT --to-ports 4143", "leave-the-rest-alone"),
    ] {
        let found = names_of_broken(&|lines| format!("{rule}\n{lines}"));
        assert!(found.iter().any(|name| name == named), "{rule}: {found:?}");
    }
}

#[test]
fn a_missing_rule_is_named() {
    for missing in [
        "redirect-all-incoming-to-proxy-port",
        "redirect-all-outgoing-to-proxy-port",
        "ignore-proxy-user-id",
        "ignore-loopback",
        "ignore-port-4567:4568,443",
        "ignore-port-4190,4191,4567,4568",
        "ignore-subnet-10.0.0.0/8",
    ] {
        let without =
            |lines: &str| lines.lines().filter(|line| !line.contains(missing)).collect::<Vec<_>>().join("\n");
        check_broken(without, &[missing]);
    }
}

#[test]
fn a_broken_rule_says_the_packet_and_who_took_it() {
    let planted = table(&format!("-A OUTPUT -p tcp -m tcp --dport 81 -j ACCEPT\n{}", own_lines()));
    let found = broken(&plan(), Family::V4, &planted);
    let said = found.first().map(ToString::to_string).unwrap_or_default();
    let expected = "IPv4 rule redirect-all-outgoing-to-proxy-port does not hold: outbound TCP of uid 0 gid 0 to \
                    192.0.2.1 port 81 should be redirected to port 4140, but is left alone by the rule \
                    `-A OUTPUT -p tcp -m tcp --dport 81 -j ACCEPT`";
    assert_eq!(said, expected);
}

#[track_caller]
fn check_broken(change: impl Fn(&str) -> String, expected: &[&str]) {
    assert_eq!(names_of_broken(&change), expected);
}

fn names_of_broken(change: &dyn Fn(&str) -> String) -> Vec<String> {
    let found = table(&change(&own_lines()));
    broken(&plan(), Family::V4, &found).into_iter().map(|broken| broken.rule).collect()
}

fn own_lines() -> String {
    let lines = rules(&plan(), Family::V4);
    lines.iter().map(|rule| format!("-A {} {rule}", rule.chain)).collect::<Vec<_>>().join("\n")
}

// What every plan keeps.

const PROXY_UID: u32 = 2102;
const PROXY_GID: u32 = 2103;

fn port_ranges() -> impl Strategy<Value = Vec<PortRange>> {
    let range = (any::<u16>(), 0_u16..300).prop_map(|(first, more)| {
        PortRange::new(first, first.saturating_add(more)).unwrap_or_else(|| first.into())
    });
    prop::collection::vec(range, 0..40)
}

fn plans() -> impl Strategy<Value = Plan> {
    let subnet = prop_oneof![
        (any::<[u8; 4]>(), 0_u8..=32).prop_map(|(ip, bits)| IpNet::new(IpAddr::from(ip), bits).unwrap()),
        (any::<[u8; 16]>(), 0_u8..=128).prop_map(|(ip, bits)| IpNet::new(IpAddr::from(ip), bits).unwrap()),
    ];
    let listed = prop::collection::vec(any::<u16>(), 0..5);
    (
        1_u16..,
        1_u16..,
        any::<bool>(),
        listed,
        port_ranges(),
        port_ranges(),
        prop::collection::vec(subnet, 0..4),
    )
        .prop_map(|(incoming, outgoing, gid, listed, inbound, outbound, subnets)| Plan {
            incoming_proxy_port: incoming,
            outgoing_proxy_port: outgoing,
            proxy_uid: NonZeroU32::new(PROXY_UID),
            proxy_gid: NonZeroU32::new(PROXY_GID).filter(|_| gid),
            ports_to_redirect: listed,
            inbound_ports_to_ignore: inbound,
            outbound_ports_to_ignore: outbound,
            subnets_to_ignore: subnets,
            ipv6: true,
        })
}

/// Ports are drawn from the plan's own bounds as often as from all.
fn packets(plan: &Plan) -> impl Strategy<Value = Packet> + use<> {
    let both = plan.inbound_ports_to_ignore.iter().chain(&plan.outbound_ports_to_ignore);
    let mut bounds: Vec<u16> =
        both.flat_map(|range| [range.first(), range.last(), range.last().saturating_add(1)]).collect();
    bounds.extend(&plan.ports_to_redirect);
    bounds.push(80);
    let address =
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (
        prop::sample::select(vec![Direction::Inbound, Direction::Outbound]),
        any::<bool>(),
        (address.clone(), address),
        prop::sample::select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Icmp]),
        prop_oneof![any::<u16>(), prop::sample::select(bounds)],
        prop::sample::select(vec![0, 1000, PROXY_UID, PROXY_GID]),
        prop::sample::select(vec![0, 1000, PROXY_UID, PROXY_GID]),
    )
        .prop_map(|(direction, loopback, (source, destination), protocol, port, uid, gid)| Packet {
            direction,
            loopback,
            source,
            destination,
            protocol,
            port,
            uid,
            gid,
        })
}

/// What the contract promises, in a few lines that know nothing of rules.
fn promised(plan: &Plan, family: Family, packet: &Packet) -> Option<u16> {
    let within = |ranges: &[PortRange]| ranges.iter().any(|range| range.contains(packet.port));
    if packet.protocol != Protocol::Tcp {
        return None;
    }
    match packet.direction {
        Direction::Inbound => {
            let source = |net: &IpNet| Family::of(net.addr()) == family && net.contains(&packet.source);
            let listed = plan.ports_to_redirect.is_empty() || plan.ports_to_redirect.contains(&packet.port);
            let ignored = within(&plan.inbound_ports_to_ignore) || plan.subnets_to_ignore.iter().any(source);
            (listed && !ignored).then_some(plan.incoming_proxy_port)
        }
        Direction::Outbound => {
            let own = packet.uid == PROXY_UID || (plan.proxy_gid.is_some() && packet.gid == PROXY_GID);
            let ignored = packet.loopback || within(&plan.outbound_ports_to_ignore);
            (!own && !ignored).then_some(plan.outgoing_proxy_port)
        }
    }
}

proptest! {
    #[test]
    fn exactly_what_is_promised_is_captured((plan, packet) in plans().prop_flat_map(|plan| {
        let packets = packets(&plan);
        (Just(plan), packets)
    })) {
        let family = Family::of(packet.source);
        let table = Table::planned(&plan, family);
        let captured = match walk(&table, &packet).effect {
            Effect::Redirect(port) => Some(port),
            Effect::Return | Effect::Accept => None,
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(captured, promised(&plan, family, &packet));
    }

    #[test]
    fn every_chunk_fits_and_no_port_is_lost(ports in port_ranges()) {
        let chunks = chunks(&ports);
        for chunk in &chunks {
            prop_assert!(chunk.iter().map(|range| range.slots()).sum::<usize>() <= MULTIPORT_SLOTS);
        }
        let kept: Vec<PortRange> = chunks.concat();
        prop_assert!(ports.iter().all(|range| kept.contains(range)));
        prop_assert!(kept.iter().all(|range| ports.contains(range)));
    }

    #[test]
    fn what_is_printed_is_read_back_the_same(plan in plans()) {
        for family in [Family::V4, Family::V6] {
            let text = restore(&plan, family, &Table::default());
            let read = Table::parse(&text, family).unwrap();
            prop_assert_eq!(&read, &Table::planned(&plan, family));
            prop_assert_eq!(broken(&plan, family, &read), Vec::new());
            // Applied over itself, nothing is added twice.
            let again = restore(&plan, family, &read);
            prop_assert!(!again.contains("-A OUTPUT") && !again.contains("-A PREROUTING") && !again.contains("-D "));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\n]{0,200}") {
        if let Ok(table) = Table::parse(&format!("*nat\n{text}"), Family::V4) {
            walk(&table, &WEB);
        }
    }
}
