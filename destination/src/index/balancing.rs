//! Pure. What annotations of ours say of how a Service is balanced, and what share a pod has. Every one is described in
//! `docs/balancing.md`.

use super::traffic::{Annotations, Problem, number, one, shown};
use remora_core::balance::{Balancing, Limited, Limits, Strategy};
use std::num::NonZeroU32;

/// Prefix of the annotations of Services and pods.
const PREFIX: &str = "balancer.remora.io/";
/// What a Service says: by what endpoints are told apart.
const STRATEGY: &str = "balancer.remora.io/strategy";
/// Prefix of the annotations of Services that limit what is under way to them.
const LIMITS: &str = "limits.remora.io/";
/// What a pod says: its share, in percent of an ordinary pod's.
const WEIGHT: &str = "balancer.remora.io/weight";
/// The largest share, in percent.
const MOST: u32 = 10_000;

/// Reads the annotations of a Service. What cannot be read counts as not being there.
pub(super) fn balancing(annotations: Option<&Annotations>, problems: &mut Vec<Problem>) -> Balancing {
    let Some(annotations) = annotations else { return Balancing::default() };
    strangers(annotations, STRATEGY, "a Service", problems);
    for name in annotations.keys() {
        let known = |name: &str| Limited::ALL.iter().any(|what| what.as_str() == name);
        if name.strip_prefix(LIMITS).is_some_and(|name| !known(name)) {
            let known = Limited::ALL.map(Limited::as_str).join(", ");
            problems.push((name.clone(), format!("there is no such limit; known are {known}")));
        }
    }
    let mut limit =
        |what: Limited| one(annotations, &format!("{LIMITS}{}", what.as_str()), problems, above_zero);
    let limits = Limits {
        connections: limit(Limited::Connections),
        pending_requests: limit(Limited::PendingRequests),
        concurrent_streams: limit(Limited::ConcurrentStreams),
    };
    Balancing { strategy: one(annotations, STRATEGY, problems, strategy).unwrap_or_default(), limits }
}

/// The weight that a pod's annotation says, in ten-thousandths of an ordinary pod's, if it says one.
pub(super) fn weight(annotations: &Annotations, reasons: &mut Vec<String>) -> Option<u32> {
    let mut problems = Vec::new();
    strangers(annotations, WEIGHT, "a pod", &mut problems);
    let percent = one(annotations, WEIGHT, &mut problems, |text| number(text, MOST));
    reasons.extend(problems.into_iter().map(told));
    percent.map(|percent| percent * 100)
}

/// What is wrong with an annotation that counts as not being there.
pub(super) fn told((name, reason): Problem) -> String {
    format!("annotation {name}: {reason}; it is ignored")
}

fn above_zero(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| format!("{:?} is no whole number from 1 to {}", shown(text), u32::MAX))
}

/// The word of the annotation for a strategy.
pub(crate) fn strategy_word(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::PeakEwma => "ewma",
        Strategy::LeastRequest => "least-request",
        Strategy::RoundRobin => "round-robin",
    }
}

fn strategy(text: &str) -> Result<Strategy, String> {
    let all = [Strategy::PeakEwma, Strategy::LeastRequest, Strategy::RoundRobin];
    let known = || format!("{:?} is none of {}", shown(text), all.map(strategy_word).join(", "));
    all.into_iter().find(|strategy| strategy_word(*strategy) == text).ok_or_else(known)
}

/// An annotation of ours that is none is a slip of the pen, or of another kind of object.
fn strangers(annotations: &Annotations, known: &str, whose: &str, problems: &mut Vec<Problem>) {
    for name in annotations.keys().filter(|name| name.starts_with(PREFIX) && *name != known) {
        problems.push((name.clone(), format!("there is no such annotation of {whose}; {known} is")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn strategies() {
        for (text, expected, problems) in [
            ("ewma", Strategy::PeakEwma, 0),
            ("least-request", Strategy::LeastRequest, 0),
            (" round-robin ", Strategy::RoundRobin, 0),
            ("ROUND_ROBIN", Strategy::PeakEwma, 1),
            ("", Strategy::PeakEwma, 1),
        ] {
            let mut found = Vec::new();
            let read = balancing(Some(&annotations(&[(STRATEGY, text)])), &mut found);
            assert_eq!((read.strategy, found.len()), (expected, problems), "{text:?}: {found:?}");
        }
        let mut found = Vec::new();
        balancing(Some(&annotations(&[(WEIGHT, "5"), ("balancer.linkerd.io/x", "")])), &mut found);
        assert_eq!(found.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), [WEIGHT]);
    }

    #[test]
    fn limits() {
        for (name, text, expected) in [
            ("connections", "5", Some(5)),
            ("connections", "0", None),
            ("connections", "many", None),
            ("connections", "4294967296", None),
            ("conections", "5", None),
        ] {
            let mut found = Vec::new();
            let name = format!("{LIMITS}{name}");
            let read = balancing(Some(&annotations(&[(&name, text)])), &mut found);
            assert_eq!(read.limits.connections.map(NonZeroU32::get), expected, "{name}: {text}");
            let named = found.iter().all(|(found, _)| *found == name) && found.len() == 1;
            assert_eq!(named, expected.is_none(), "{found:?}");
        }
        let both = [("limits.remora.io/pending-requests", "1"), ("limits.remora.io/concurrent-streams", "2")];
        let read = balancing(Some(&annotations(&both)), &mut Vec::new());
        let numbers = [read.limits.pending_requests, read.limits.concurrent_streams];
        assert_eq!(numbers, [NonZeroU32::new(1), NonZeroU32::new(2)]);
    }

    #[test]
    fn weights() {
        for (text, expected) in [
            ("100", Some(10_000)),
            ("0", Some(0)),
            ("10000", Some(1_000_000)),
            ("10001", None),
            ("-1", None),
            ("1.5", None),
            ("50%", None),
        ] {
            let mut reasons = Vec::new();
            assert_eq!(weight(&annotations(&[(WEIGHT, text)]), &mut reasons), expected, "{text}");
            assert_eq!(reasons.is_empty(), expected.is_some(), "{reasons:?}");
        }
    }
}
