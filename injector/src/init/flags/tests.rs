//! What command lines mean, and what is said about those that mean nothing.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Settings, Stop, parse};
use crate::init::report::{Format, Level};

const MINIMAL: &str = "--incoming-proxy-port 4143 --outgoing-proxy-port 4140 --proxy-uid 2102";

fn arguments(line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect()
}

#[track_caller]
fn settings(more: &str) -> Settings {
    match parse(arguments(&format!("{MINIMAL} {more}"))) {
        Ok(settings) => settings,
        Err(stop) => panic!("{more}: {stop:?}"),
    }
}

#[track_caller]
fn mistakes(line: &str) -> Vec<String> {
    match parse(arguments(line)) {
        Err(Stop::Mistakes(mistakes)) => mistakes,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn what_linkerds_injector_writes_is_accepted() {
    let settings = settings(
        "--ipv6=false --firewall-bin-path iptables-nft --firewall-save-bin-path iptables-nft-save \
         --proxy-gid -1 --inbound-ports-to-ignore 4190,4191,4567-4568 --outbound-ports-to-ignore 4567,4568 \
         --subnets-to-ignore 10.0.0.0/8 --timeout-close-wait-secs 0 --log-format json --log-level debug",
    );
    assert_eq!((settings.plan.incoming_proxy_port, settings.plan.outgoing_proxy_port), (4143, 4140));
    assert_eq!((settings.plan.proxy_uid, settings.plan.proxy_gid), (NonZeroU32::new(2102), None));
    assert!(!settings.plan.ipv6);
    assert_eq!(settings.plan.inbound_ports_to_ignore.len(), 3);
    assert_eq!(settings.configured, Some(("iptables-nft".to_owned(), "iptables-nft-save".to_owned())));
    assert_eq!(settings.close_wait_seconds, None);
    assert_eq!((settings.log_format, settings.log_level), (Format::Json, Level::Debug));
}

#[test]
fn short_flags_and_booleans_are_linkerds() {
    let settings = settings("-p 1 -o 2 -u 3 -g 4 -r 80,8080 -r 81 -w --simulate --ipv6");
    assert_eq!((settings.plan.incoming_proxy_port, settings.plan.outgoing_proxy_port), (1, 2));
    assert_eq!((settings.plan.proxy_uid, settings.plan.proxy_gid), (NonZeroU32::new(3), NonZeroU32::new(4)));
    assert_eq!(settings.plan.ports_to_redirect, [80, 8080, 81]);
    assert_eq!(settings.lock_wait, Duration::from_mins(1));
    assert!(settings.simulate && settings.plan.ipv6);
}

#[test]
fn empty_lists_are_no_entries() {
    let settings =
        settings("--inbound-ports-to-ignore '' --outbound-ports-to-ignore ,,80, --subnets-to-ignore=");
    assert!(settings.plan.inbound_ports_to_ignore.is_empty() && settings.plan.subnets_to_ignore.is_empty());
    assert_eq!(settings.plan.outbound_ports_to_ignore, [80.into()]);
}

#[test]
fn the_mode_wins_over_the_paths() {
    let settings = settings("--iptables-mode legacy --firewall-bin-path iptables-nft");
    assert_eq!(settings.configured, Some(("iptables-legacy".to_owned(), "iptables-legacy-save".to_owned())));
}

#[test]
fn all_mistakes_are_found_at_once() {
    let found = mistakes(
        "--incoming-proxy-port 0 --unknown --outgoing-proxy-port http --proxy-uid root --what ever \
         --inbound-ports-to-ignore 1,x,9-7 --subnets-to-ignore 10.0.0.0/40 --ipv6=maybe --log-format xml \
         --firewall-bin-path /bin/sh",
    );
    for named in [
        "--unknown: no such flag",
        "--what: no such flag",
        "--incoming-proxy-port: \"0\"",
        "--outgoing-proxy-port: \"http\"",
        "--proxy-uid: \"root\"",
        "--inbound-ports-to-ignore: \"x\"",
        "--inbound-ports-to-ignore: \"9-7\"",
        "--subnets-to-ignore: \"10.0.0.0/40\"",
        "--ipv6: \"maybe\"",
        "--log-format: \"xml\"",
        "--firewall-bin-path: ",
    ] {
        assert!(found.iter().any(|mistake| mistake.starts_with(named)), "{named} is not in {found:#?}");
    }
    assert_eq!(found.len(), 11, "{found:#?}");
}

#[test]
fn nothing_at_all_says_what_is_required() {
    assert_eq!(mistakes("").len(), 3);
}

#[test]
fn a_proxy_without_an_exemption_is_refused() {
    let found = mistakes("-p 4143 -o 4140 --proxy-uid 0");
    assert!(found.len() == 1 && found[0].contains("above 0"), "{found:?}");
}

#[test]
fn a_flag_without_its_value_is_named() {
    let found = mistakes("-p 4143 -o 4140 --proxy-uid");
    assert!(found.iter().any(|mistake| mistake.contains("--proxy-uid")), "{found:?}");
}

#[test]
fn stray_words_and_unknown_letters_are_mistakes() {
    assert_eq!(mistakes(&format!("{MINIMAL} stray -x")).len(), 2);
}

#[test]
fn help_is_not_a_mistake() {
    assert!(matches!(parse(arguments("--help")), Err(Stop::Asked(text)) if text.contains("--proxy-uid")));
}
