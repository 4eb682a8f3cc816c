//! Text → typed values, for the environment and for command lines (each function fits clap's `value_parser`). Says
//! what is wrong and what would be right; never which setting it is reading. Contract 1.13.

use ipnet::IpNet;
use remora_core::identity::Identity;
use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// Why a text is not the value it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}; expected {expected}")]
pub struct Invalid {
    /// What is wrong, as a clause.
    pub wrong: Cow<'static, str>,
    /// What would be right.
    pub expected: Cow<'static, str>,
}

impl Invalid {
    /// A reason and its remedy.
    pub fn new(wrong: impl Into<Cow<'static, str>>, expected: impl Into<Cow<'static, str>>) -> Self {
        Self { wrong: wrong.into(), expected: expected.into() }
    }
}

/// A host (DNS name without brackets, or an IP address) and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A DNS name as written (a trailing dot is kept: it makes the name absolute), or an IP address.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl HostPort {
    /// Is the host this machine by its text alone: a loopback address, `localhost` or `localhost.`?
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => self.host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An integer with a unit: `250ms`, `10s`, `5m`, `1h`, `365d`. A bare number only if it is 0.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    let expected = "an integer followed by ms, s, m, h or d, or 0";
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(Invalid::new("does not begin with a digit", expected));
    }
    let number: u64 = number.parse().map_err(|_| Invalid::new("the number is too large", expected))?;
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if number == 0 => 0,
        "" => return Err(Invalid::new("the number has no unit", expected)),
        _ => return Err(Invalid::new(format!("{unit:?} is no unit"), expected)),
    };
    let millis =
        number.checked_mul(millis_per_unit).ok_or_else(|| Invalid::new("the time is too long", expected))?;
    Ok(Duration::from_millis(millis))
}

/// A number of bytes, alone or with `Ki`, `Mi` or `Gi`, as Kubernetes writes quantities of memory.
pub fn bytes(text: &str) -> Result<u64, Invalid> {
    let expected = "a number of bytes, alone or followed by Ki, Mi or Gi";
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => return Err(Invalid::new(format!("{unit:?} is no unit"), expected)),
    };
    let number: u64 = number.parse().map_err(|_| Invalid::new("is no number, or too large", expected))?;
    number.checked_mul(1 << shift).ok_or_else(|| Invalid::new("is too large", expected))
}

/// `true` or `false`.
pub fn boolean(text: &str) -> Result<bool, Invalid> {
    match text.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Invalid::new("is neither", "true or false")),
    }
}

/// A whole or decimal number that fits its type.
pub fn number<T: FromStr>(text: &str) -> Result<T, Invalid>
where
    T::Err: fmt::Display,
{
    text.trim().parse().map_err(|error: T::Err| Invalid::new(error.to_string(), "a number"))
}

/// A number within bounds, both included.
pub fn number_within<T: FromStr + PartialOrd + fmt::Display>(
    min: T,
    max: T,
) -> impl FnOnce(&str) -> Result<T, Invalid>
where
    T::Err: fmt::Display,
{
    move |text| {
        let value: T = number(text)?;
        if value < min || value > max {
            return Err(Invalid::new("is out of bounds", format!("a number from {min} to {max}")));
        }
        Ok(value)
    }
}

/// Any text, kept as it is. Used for values that are opaque to this process (`DESTINATION_CONTEXT`,
/// `POLICY_WORKLOAD`): Linkerd's are JSON today and were `ns:pod` once, and only the controller reads them.
pub fn text(text: &str) -> Result<String, Invalid> {
    Ok(text.to_owned())
}

/// A path of a file or folder.
pub fn path(text: &str) -> Result<PathBuf, Invalid> {
    Ok(PathBuf::from(text))
}

/// `IP:port`, IPv6 in brackets.
pub fn socket_addr(text: &str) -> Result<SocketAddr, Invalid> {
    let expected = "an IP address and port such as 127.0.0.1:4140 or [::1]:4140";
    text.trim().parse().map_err(|_| Invalid::new(format!("{:?} is no socket address", text.trim()), expected))
}

/// A comma-separated list of [`socket_addr`].
pub fn socket_addrs(text: &str) -> Result<Vec<SocketAddr>, Invalid> {
    list(text, socket_addr)
}

/// An IP address.
pub fn ip(text: &str) -> Result<IpAddr, Invalid> {
    text.trim()
        .parse()
        .map_err(|_| Invalid::new(format!("{:?} is no IP address", text.trim()), "an IP address"))
}

/// A comma-separated list of [`ip`].
pub fn ips(text: &str) -> Result<Vec<IpAddr>, Invalid> {
    list(text, ip)
}

/// A network in CIDR notation; a bare address is a network of one. Bits beyond the prefix are cleared.
pub fn network(text: &str) -> Result<IpNet, Invalid> {
    let text = text.trim();
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let expected = "networks such as 10.0.0.0/8 or fd00::/8, or IP addresses";
    net.map(|net| net.trunc()).ok_or_else(|| Invalid::new(format!("{text:?} is no network"), expected))
}

/// A comma-separated list of [`network`].
pub fn networks(text: &str) -> Result<Vec<IpNet>, Invalid> {
    list(text, network)
}

/// A comma-separated list of ports and ranges: `25,587,4000-4010`. Bounded by the number of ports there are.
pub fn ports(text: &str) -> Result<BTreeSet<u16>, Invalid> {
    let ranges = list(text, |item| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(Invalid::new(format!("{item:?} ends before it begins"), "ranges from low to high"));
        }
        Ok(first..=last)
    })?;
    Ok(ranges.into_iter().flatten().collect())
}

/// A port, 1 to 65535.
pub fn port(text: &str) -> Result<u16, Invalid> {
    let text = text.trim();
    let port = text.parse::<u16>().ok().filter(|port| *port != 0);
    port.ok_or_else(|| {
        Invalid::new(format!("{text:?} is no port"), "ports from 1 to 65535, or ranges such as 4000-4010")
    })
}

/// `host:port` of a control-plane service; an IPv6 address stands in brackets.
pub fn host_port(text: &str) -> Result<HostPort, Invalid> {
    let expected = "host:port, such as remora-dst-headless.remora.svc.cluster.local:8086";
    let text = text.trim();
    let (host, number) = text.rsplit_once(':').ok_or_else(|| Invalid::new("has no port", expected))?;
    let port = port(number).map_err(|invalid| Invalid::new(invalid.wrong, expected))?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => v6,
        Some(_) => return Err(Invalid::new("the brackets hold no IPv6 address", expected)),
        None if host.contains(':') => return Err(Invalid::new("an IPv6 address needs brackets", expected)),
        None => host,
    };
    if host.parse::<IpAddr>().is_err() && !is_dns_name(host) {
        return Err(Invalid::new(format!("{host:?} is no DNS name"), expected));
    }
    Ok(HostPort { host: host.to_owned(), port })
}

/// The identity of a workload: a DNS-like name or a URI.
pub fn identity(text: &str) -> Result<Identity, Invalid> {
    Identity::parse(text.trim()).map_err(|error| {
        Invalid::new(error.to_string(), "a name such as sa.ns.serviceaccount.identity.remora.cluster.local")
    })
}

/// One of a few words.
pub fn one_of<T: Copy>(choices: &[(&'static str, T)]) -> impl FnOnce(&str) -> Result<T, Invalid> {
    move |text| {
        let found = choices.iter().find(|(word, _)| *word == text.trim());
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            Invalid::new(format!("{:?} is none of them", text.trim()), words.join(", "))
        })
    }
}

/// Splits at commas; spaces around items and empty items do not count.
fn list<T>(text: &str, item: impl Fn(&str) -> Result<T, Invalid>) -> Result<Vec<T>, Invalid> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(item).collect()
}

/// RFC 1123 labels plus the underscore that Kubernetes and SRV names may hold; at most 253 characters (RFC 1035).
fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, expected) in [
            ("250ms", Ok(250)),
            ("10000ms", Ok(10_000)),
            ("10s", Ok(10_000)),
            (" 5m ", Ok(300_000)),
            ("1h", Ok(3_600_000)),
            ("365d", Ok(31_536_000_000)),
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("10", Err("the number has no unit")),
            ("1.5s", Err("\".5s\" is no unit")),
            ("-1s", Err("does not begin with a digit")),
            ("s", Err("does not begin with a digit")),
            ("10 s", Err("\" s\" is no unit")),
            ("10S", Err("\"S\" is no unit")),
            ("99999999999999999999s", Err("the number is too large")),
            ("18446744073709551615d", Err("the time is too long")),
        ] {
            let read = duration(text);
            let read = read.as_ref().map(Duration::as_millis).map_err(|invalid| invalid.wrong.as_ref());
            assert_eq!(read, expected, "{text:?}");
        }
    }

    #[test]
    fn bytes_may_have_a_unit_of_kubernetes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("67108864", Some(64 << 20)),
            (" 64Mi ", Some(64 << 20)),
            ("1Ki", Some(1024)),
            ("2Gi", Some(2 << 30)),
            ("64M", None),
            ("64 Mi", None),
            ("Mi", None),
            ("-1", None),
            ("18446744073709551615Ki", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn ports_may_be_ranges() {
        let set = |ports: &[u16]| Some(ports.iter().copied().collect::<BTreeSet<u16>>());
        for (text, expected) in [
            ("25", set(&[25])),
            ("25, 587,,4000-4002", set(&[25, 587, 4000, 4001, 4002])),
            ("65535-65535", set(&[65535])),
            ("0", None),
            ("65536", None),
            ("20-10", None),
            ("10-", None),
            ("a", None),
        ] {
            assert_eq!(ports(text).ok(), expected, "{text:?}");
        }
        assert_eq!(ports("1-65535").unwrap().len(), 65535);
    }

    #[test]
    fn networks_may_be_bare_addresses() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("192.0.2.7", Some("192.0.2.7/32")),
            ("fd00::/8", Some("fd00::/8")),
            ("::1", Some("::1/128")),
            ("10.0.0.0/33", None),
            ("example.org", None),
        ] {
            assert_eq!(network(text).ok().map(|net| net.to_string()).as_deref(), expected, "{text:?}");
        }
        assert_eq!(networks("10.0.0.0/8, 192.168.0.0/16").unwrap().len(), 2);
        assert!(networks("10.0.0.0/8,nonsense").is_err());
    }

    #[test]
    fn control_addresses_are_names_or_addresses_with_ports() {
        for (text, expected) in [
            (
                "linkerd-dst-headless.linkerd.svc.cluster.local.:8086",
                Some("linkerd-dst-headless.linkerd.svc.cluster.local."),
            ),
            ("localhost.:8086", Some("localhost.")),
            ("127.0.0.1:8086", Some("127.0.0.1")),
            ("[::1]:8086", Some("::1")),
            ("::1:8086", None),
            ("[nonsense]:8086", None),
            ("host", None),
            ("host:0", None),
            ("host:99999", None),
            (":8086", None),
            ("ho st:8086", None),
            ("-host:8086", None),
            ("a..b:8086", None),
        ] {
            assert_eq!(host_port(text).ok().map(|addr| addr.host).as_deref(), expected, "{text:?}");
        }
        assert_eq!(host_port("[::1]:8086").unwrap().to_string(), "[::1]:8086");
        assert_eq!(host_port("a.b:1").unwrap().to_string(), "a.b:1");
    }

    #[test]
    fn loopback_is_judged_by_text() {
        for (text, expected) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost:1", true),
            ("LOCALHOST.:1", true),
            ("localhost.example.org:1", false),
            ("10.0.0.1:1", false),
        ] {
            assert_eq!(host_port(text).unwrap().is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn words_numbers_and_addresses() {
        assert_eq!(one_of(&[("plain", 1), ("json", 2)])("json"), Ok(2));
        let invalid = one_of(&[("plain", 1), ("json", 2)])("xml").unwrap_err();
        assert_eq!(invalid.to_string(), "\"xml\" is none of them; expected plain, json");
        assert_eq!(number::<u32>(" 7 "), Ok(7));
        assert!(number::<u32>("-7").is_err());
        assert!(number_within(1_u32, 5)("6").is_err());
        assert_eq!(number_within(1_u32, 5)("5"), Ok(5));
        assert_eq!(socket_addrs("127.0.0.1:4140,[::1]:4140").unwrap().len(), 2);
        assert!(socket_addr("localhost:4140").is_err());
        assert!(boolean("True").is_err());
        assert_eq!(ips("10.0.0.1, fd00::1").unwrap().len(), 2);
    }
}
