//! Pure. Sets of ports as annotations and flags write them: `25,587,8000-8010,admin`. Contract 6.1.

use std::fmt;

/// A set of TCP ports, kept as sorted, disjoint ranges: `1-65535` is one entry, not 65 535. Never holds port 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortSet {
    ranges: Vec<(u16, u16)>,
}

/// A piece of a port list that is no port, no range, and no name of a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no port (1 to 65535), no increasing range such as 8000-8010, and no name of a port here")]
pub struct InvalidPort(pub String);

impl PortSet {
    /// Reads a comma-separated list of ports, ranges and names. Names are looked up with `named`. A piece that
    /// cannot be read is reported and left out, so that one slip does not undo the rest of the list.
    pub fn parse(text: &str, named: impl Fn(&str) -> Option<u16>) -> (Self, Vec<InvalidPort>) {
        let mut ranges = Vec::new();
        let mut invalid = Vec::new();
        for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
            match range(piece).or_else(|| named(piece).filter(|port| *port > 0).map(|port| (port, port))) {
                Some(range) => ranges.push(range),
                None => invalid.push(InvalidPort(piece.to_owned())),
            }
        }
        (Self::from_ranges(ranges), invalid)
    }

    /// Is the port in the set?
    pub fn contains(&self, port: u16) -> bool {
        let after = self.ranges.partition_point(|(low, _)| *low <= port);
        after.checked_sub(1).and_then(|at| self.ranges.get(at)).is_some_and(|(_, high)| port <= *high)
    }

    /// Is there no port in it?
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn from_ranges(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                Some((_, last)) if u32::from(low) <= u32::from(*last) + 1 => *last = (*last).max(high),
                _ => merged.push((low, high)),
            }
        }
        Self { ranges: merged }
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self::from_ranges(ports.into_iter().filter(|port| *port > 0).map(|port| (port, port)).collect())
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (low, high)) in self.ranges.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            if low == high {
                write!(f, "{comma}{low}")?;
            } else {
                write!(f, "{comma}{low}-{high}")?;
            }
        }
        Ok(())
    }
}

fn range(piece: &str) -> Option<(u16, u16)> {
    let (low, high) = piece.split_once('-').unwrap_or((piece, piece));
    let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
    (0 < low && low <= high).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_of_ports_is_read() {
        check("25,587, 3306", "25,587,3306", &[]);
    }

    #[test]
    fn ranges_are_merged() {
        check("10-20,15-30,31,40", "10-31,40", &[]);
    }

    #[test]
    fn the_whole_range_is_one_entry() {
        check("1-65535", "1-65535", &[]);
    }

    #[test]
    fn a_name_is_looked_up() {
        check("smtp,80", "25,80", &[]);
    }

    #[test]
    fn nothing_is_the_empty_set() {
        check(" , ", "", &[]);
    }

    #[test]
    fn a_slip_is_named_and_the_rest_is_kept() {
        check("80,0,65536,20-10,x,90", "80,90", &["0", "65536", "20-10", "x"]);
    }

    #[track_caller]
    fn check(text: &str, expected: &str, slips: &[&str]) {
        let (ports, invalid) = PortSet::parse(text, |name| (name == "smtp").then_some(25));
        assert_eq!(ports.to_string(), expected);
        assert_eq!(invalid, slips.iter().map(|slip| InvalidPort((*slip).to_owned())).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn contains_what_was_listed_and_nothing_else(listed in proptest::collection::vec(1_u16.., 0..20), asked in 1_u16..) {
            let set: PortSet = listed.iter().copied().collect();
            prop_assert_eq!(set.contains(asked), listed.contains(&asked));
            prop_assert!(listed.iter().all(|port| set.contains(*port)));
        }

        #[test]
        fn printing_and_reading_gives_the_same_set(listed in proptest::collection::vec(1_u16.., 0..20)) {
            let set: PortSet = listed.into_iter().collect();
            prop_assert_eq!(PortSet::parse(&set.to_string(), |_| None), (set, vec![]));
        }
    }
}
