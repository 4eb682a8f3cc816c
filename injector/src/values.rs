//! Pure. How values are written in annotations and manifests: Kubernetes quantities, Go durations, lists of ports.
//!
//! Every parser here meets text from users: it never panics, and its error says what was expected.

use std::{collections::BTreeMap, fmt, time::Duration};

/// Why a value was not understood: the end of a sentence that begins with the annotation's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// A Kubernetes quantity, in thousandths of its unit, rounded up as Kubernetes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u128);

impl Millis {
    /// Rounded up to whole units: what a CPU request means as a number of worker threads.
    pub fn whole(self) -> u128 {
        self.0.div_ceil(1000)
    }

    /// Whether nothing is asked.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Reads a quantity that may be asked of a container: `100m`, `0.5`, `64Mi`, `1e3`. Negative ones are refused.
pub fn quantity(text: &str) -> Result<Millis, Invalid> {
    let invalid = || Invalid(format!("{text:?} is not a Kubernetes quantity such as 100m, 0.5 or 64Mi"));
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at_checked(end).ok_or_else(invalid)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // 18 digits of each hold every quantity Kubernetes accepts (2^63-1) and keep the product inside u128.
    if (whole.is_empty() && fraction.is_empty())
        || whole.len() > 18
        || fraction.len() > 9
        || fraction.contains('.')
    {
        return Err(invalid());
    }
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| invalid())?;
    let (multiplier, divisor) = scale(suffix).ok_or_else(invalid)?;
    let divisor = divisor * 10u128.pow(u32::try_from(fraction.len()).map_err(|_| invalid())?);
    let millis = digits.checked_mul(multiplier).and_then(|n| n.checked_mul(1000)).ok_or_else(invalid)?;
    Ok(Millis(millis.div_ceil(divisor)))
}

/// Multiplier and divisor of a quantity's suffix.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let ten = 10u128.checked_pow(power.unsigned_abs()).filter(|_| power.unsigned_abs() <= 18)?;
            if power < 0 { (1, ten) } else { (ten, 1) }
        }
    })
}

/// Reads a duration as Linkerd's annotations write it: Go's form (`1m30s`, `1.5s`, `100ms`), with `d` besides. At most
/// a year, to the millisecond: finer parts are dropped, and a positive duration never becomes zero.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    const YEAR: Duration = Duration::from_hours(365 * 24);
    let invalid =
        || Invalid(format!("{text:?} is not a duration such as 100ms, 5s or 1m30s, of at most 365d"));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, after) = rest.split_at_checked(unit_at).ok_or_else(invalid)?;
        let next = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(next).ok_or_else(invalid)?;
        nanos += decimal(number, unit_nanos(unit).ok_or_else(invalid)?).ok_or_else(invalid)?;
        if nanos > YEAR.as_nanos() {
            return Err(invalid());
        }
        rest = after;
    }
    match u64::try_from(nanos / 1_000_000) {
        Ok(0) if nanos > 0 => Ok(Duration::from_millis(1)),
        Ok(millis) if nanos > 0 || text.starts_with('0') => Ok(Duration::from_millis(millis)),
        _ => Err(invalid()),
    }
}

fn unit_nanos(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" => 1000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    })
}

/// `number` (decimal, no sign) times `unit`, rounded down; `None` if it is no number or has over nine digits a side.
fn decimal(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 12 || fraction.len() > 9 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    Some(digits * unit / 10u128.pow(u32::try_from(fraction.len()).ok()?))
}

/// A duration as the proxies' environment wants it (contract 1.13): an integer and a unit.
pub fn env_duration(duration: Duration) -> String {
    if duration.subsec_millis() == 0 && !duration.is_zero() {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// One port or an inclusive range of ports, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port, not below `first`.
    pub last: u16,
}

impl PortRange {
    /// Reads `80` or `8000-8010`.
    pub fn parse(text: &str) -> Option<Self> {
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        (first <= last).then_some(Self { first, last })
    }

    /// Whether `port` lies in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Ports in the order they were written, as init's arguments and the proxies' environment take them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(pub Vec<PortRange>);

impl Ports {
    /// Reads a list separated by commas, where an item may be a name in `named`. Returns what was understood and the
    /// items that were not: one slip must not change what the other ports mean.
    pub fn parse(text: &str, named: &BTreeMap<String, u16>) -> (Self, Vec<String>) {
        let mut ports = Vec::new();
        let mut unknown = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let by_name = named.get(item).map(|port| PortRange { first: *port, last: *port });
            match by_name.or_else(|| PortRange::parse(item)) {
                Some(range) if ports.contains(&range) => {}
                Some(range) => ports.push(range),
                None => unknown.push(item.to_owned()),
            }
        }
        (Self(ports), unknown)
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&[u16]> for Ports {
    fn from(ports: &[u16]) -> Self {
        Self(ports.iter().map(|port| PortRange { first: *port, last: *port }).collect())
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_mean_what_kubernetes_means() {
        for (text, millis) in [
            ("1", 1000),
            ("100m", 100),
            ("0.5", 500),
            (".5", 500),
            ("1.", 1000),
            ("+2", 2000),
            ("0.1m", 1),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1k", 1_000_000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("1500e-3", 1500),
            ("1E", 1_000_000_000_000_000_000_000),
            ("0", 0),
        ] {
            assert_eq!(quantity(text), Ok(Millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in
            ["", ".", "-1", "1.2.3", "1 Gi", "1KiB", "abc", "1e99", "99999999999999999999", "１", "1e", "m"]
        {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_rounded_up() {
        for (text, cores) in [("0", 0), ("1m", 1), ("1", 1), ("1001m", 2), ("2.5", 3)] {
            assert_eq!(quantity(text).unwrap().whole(), cores, "{text}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("100ms", 100),
            ("1.5s", 1500),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("365d", 31_536_000_000),
            ("1us", 1),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "1", "s", "-1s", "1 s", "1y", "366d", "1..5s", "99999999999999999999s", "1s2", "½s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_printed_as_integers_with_a_unit() {
        for (millis, text) in [(0, "0ms"), (100, "100ms"), (1500, "1500ms"), (90_000, "90s")] {
            assert_eq!(env_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn port_lists_keep_what_they_understand() {
        let named = BTreeMap::from([("mysql".to_owned(), 3306)]);
        for (text, ports, unknown) in [
            ("", "", vec![]),
            ("25, 587,", "25,587", vec![]),
            ("8000-8010,mysql", "8000-8010,3306", vec![]),
            ("80,80", "80", vec![]),
            ("0,65536,9-8,http,-1,80-", "", vec!["0", "65536", "9-8", "http", "-1", "80-"]),
        ] {
            let (parsed, bad) = Ports::parse(text, &named);
            assert_eq!(
                (parsed.to_string().as_str(), bad),
                (ports, unknown.iter().map(|s| (*s).to_owned()).collect())
            );
        }
    }
}
