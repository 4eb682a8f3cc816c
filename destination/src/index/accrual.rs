//! Pure. What annotations of Services say of failing endpoints. Contract 4.6; every one is described in
//! `docs/balancing.md`.

use super::traffic::{Annotations, Problem, duration, number, one, shown};
use remora_core::breaker::SuccessRate;
use std::time::Duration;

/// The annotation that says when an endpoint counts as failing.
const ACCRUAL: &str = "balancer.linkerd.io/failure-accrual";
/// Prefix of what Linkerd has not settled yet.
const ALPHA: &str = "balancer.alpha.linkerd.io/";

/// What holds without the annotation about it: failures in a row.
pub(crate) const MAX_FAILURES: u32 = 7;
/// The shortest time that an endpoint is left alone.
pub(crate) const MIN_PENALTY: Duration = Duration::from_secs(1);
/// The longest.
pub(crate) const MAX_PENALTY: Duration = Duration::from_mins(1);
/// How much of it may be added at random.
pub(crate) const JITTER: f32 = 0.5;
/// The least share of successes.
pub(crate) const THRESHOLD: f64 = 0.8;
/// Of the responses of so long.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// With fewer of them nothing is concluded.
pub(crate) const MIN_REQUESTS: u32 = 5;
/// Is it left alone for as long as it asks for?
pub(crate) const HONOR_RETRY_AFTER: bool = false;

/// When an endpoint is left alone: after so many failures in a row, or with too few successes, for a time that grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accrual {
    /// So many failures in a row.
    pub max_failures: u32,
    /// So few successes; only where the mode is `unified`.
    pub rate: Option<SuccessRate>,
    /// The shortest time that it is left alone.
    pub min_penalty: Duration,
    /// The longest; not shorter than the shortest, and not zero.
    pub max_penalty: Duration,
    /// How much of that time may be added at random: 0 to 100.
    pub jitter: f32,
    /// Is it left alone for as long as it asks for, if that is longer?
    pub honor_retry_after: bool,
}

impl Accrual {
    /// Reads the annotations of a Service.
    pub(super) fn read(annotations: Option<&Annotations>, problems: &mut Vec<Problem>) -> Option<Self> {
        let annotations = annotations?;
        let mode = annotations.get(ACCRUAL).map(String::as_str);
        let unified = mode == Some("unified");
        let before = problems.len();
        let read = match mode {
            Some("consecutive" | "unified") => Some(Self::of(annotations, unified, problems)),
            Some(mode) => {
                let reason = format!("{:?} is none of consecutive, unified", shown(mode));
                problems.push((ACCRUAL.to_owned(), reason));
                None
            }
            None => None,
        };
        // Half of what somebody asked for is something else.
        let read = read.filter(|_| problems.len() == before);
        aimless(annotations, mode, problems);
        read
    }

    fn of(annotations: &Annotations, unified: bool, problems: &mut Vec<Problem>) -> Self {
        let name = |name: &str| format!("{ACCRUAL}-consecutive-{name}");
        let max_failures = one(annotations, &name("max-failures"), problems, |text| number(text, u32::MAX));
        let min = one(annotations, &name("min-penalty"), problems, duration);
        let max = one(annotations, &name("max-penalty"), problems, duration);
        let jitter = one(annotations, &name("jitter-ratio"), problems, jitter);
        let honor = format!("{ALPHA}failure-accrual-honor-retry-after");
        let read = Self {
            max_failures: max_failures.unwrap_or(MAX_FAILURES),
            rate: unified.then(|| rate(annotations, problems)),
            min_penalty: min.unwrap_or(MIN_PENALTY),
            max_penalty: max.unwrap_or(MAX_PENALTY),
            jitter: jitter.unwrap_or(JITTER),
            honor_retry_after: one(annotations, &honor, problems, yes_or_no).unwrap_or(HONOR_RETRY_AFTER),
        };
        if read.max_penalty.is_zero() || read.min_penalty > read.max_penalty {
            let reason = format!("{:?} is zero, or shorter than min-penalty", read.max_penalty);
            problems.push((name("max-penalty"), reason));
        }
        read
    }
}

fn rate(annotations: &Annotations, problems: &mut Vec<Problem>) -> SuccessRate {
    let name = |name: &str| format!("{ALPHA}failure-accrual-success-rate-{name}");
    let threshold = one(annotations, &name("threshold"), problems, threshold);
    let window = one(annotations, &name("window"), problems, window);
    let min_requests = one(annotations, &name("min-requests"), problems, |text| number(text, u32::MAX));
    SuccessRate {
        threshold: threshold.unwrap_or(THRESHOLD),
        window: window.unwrap_or(WINDOW),
        min_requests: min_requests.unwrap_or(MIN_REQUESTS),
    }
}

/// Annotations that change nothing: there is no such one, or the mode makes no use of it. Unknown ones that are not alpha are
/// told with those about timeouts and retries.
fn aimless(annotations: &Annotations, mode: Option<&str>, problems: &mut Vec<Problem>) {
    let consecutive = ["max-failures", "min-penalty", "max-penalty", "jitter-ratio"];
    let rates = ["threshold", "window", "min-requests"];
    for name in annotations.keys().filter(|name| *name != ACCRUAL) {
        let after = |prefix: &str| name.strip_prefix(prefix);
        let reason = if let Some(rest) = after(ACCRUAL) {
            let known = rest.strip_prefix("-consecutive-").is_some_and(|rest| consecutive.contains(&rest));
            if known { needs(mode.is_some(), "consecutive or unified") } else { None }
        } else if let Some(rest) = after(ALPHA) {
            match rest.strip_prefix("failure-accrual-success-rate-") {
                Some(rest) if rates.contains(&rest) => needs(mode == Some("unified"), "unified"),
                None if rest == "failure-accrual-honor-retry-after" => {
                    needs(mode.is_some(), "consecutive or unified")
                }
                _ => Some(UNKNOWN.to_owned()),
            }
        } else {
            None
        };
        problems.extend(reason.map(|reason| (name.clone(), reason)));
    }
}

const UNKNOWN: &str = "there is no such annotation";

fn needs(there: bool, modes: &str) -> Option<String> {
    (!there).then(|| format!("it is about {ACCRUAL}, which is not {modes}"))
}

fn jitter(text: &str) -> Result<f32, String> {
    let read = text.parse().ok().filter(|ratio: &f32| (0.0..=100.0).contains(ratio));
    read.ok_or_else(|| format!("{:?} is no number from 0 to 100", shown(text)))
}

fn threshold(text: &str) -> Result<f64, String> {
    let read = text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
    read.ok_or_else(|| format!("{:?} is no number from 0 to 1", shown(text)))
}

fn window(text: &str) -> Result<Duration, String> {
    let read = duration(text)?;
    if read.is_zero() { Err("a window of no time has no requests".to_owned()) } else { Ok(read) }
}

fn yes_or_no(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{:?} is neither true nor false", shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Option<Accrual>, Vec<String>) {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut problems = Vec::new();
        let read = Accrual::read(Some(&pairs.collect()), &mut problems);
        (read, problems.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn failures_in_a_row() {
        let with = |name: &str, value: &str| {
            let name = format!("balancer.linkerd.io/failure-accrual-consecutive-{name}");
            let (read, problems) = read(&[(ACCRUAL, "consecutive"), (&name, value)]);
            assert_eq!(read.is_none(), !problems.is_empty());
            read.map(|read| {
                (read.max_failures, read.min_penalty.as_millis(), read.max_penalty.as_millis(), read.jitter)
            })
        };
        for (name, value, expected) in [
            ("max-failures", "7", Some((7, 1000, 60_000, 0.5))),
            ("max-failures", "0", Some((0, 1000, 60_000, 0.5))),
            ("max-failures", "-1", None),
            ("min-penalty", "5s", Some((7, 5000, 60_000, 0.5))),
            ("min-penalty", "2m", None),
            ("max-penalty", "0", None),
            ("max-penalty", "1s", Some((7, 1000, 1000, 0.5))),
            ("jitter-ratio", "0", Some((7, 1000, 60_000, 0.0))),
            ("jitter-ratio", "100", Some((7, 1000, 60_000, 100.0))),
            ("jitter-ratio", "100.1", None),
            ("jitter-ratio", "NaN", None),
        ] {
            assert_eq!(with(name, value), expected, "{name} {value}");
        }
        assert_eq!(read(&[]), (None, vec![]));
        assert_eq!(read(&[(ACCRUAL, "sometimes")]), (None, vec![ACCRUAL.to_owned()]));
    }

    #[test]
    fn too_few_successes() {
        let of = |threshold, seconds, min_requests| {
            Some(SuccessRate { threshold, window: Duration::from_secs(seconds), min_requests })
        };
        let (with_defaults, _) = read(&[(ACCRUAL, "unified")]);
        assert_eq!(with_defaults.unwrap().rate, of(0.8, 10, 5));
        assert_eq!(
            (with_defaults.unwrap().max_failures, with_defaults.unwrap().honor_retry_after),
            (7, false)
        );
        for (name, value, expected) in [
            ("threshold", "0.5", of(0.5, 10, 5)),
            ("threshold", "1.01", None),
            ("threshold", "NaN", None),
            ("window", "1m", of(0.8, 60, 5)),
            ("window", "0", None),
            ("min-requests", "20", of(0.8, 10, 20)),
            ("min-requests", "some", None),
        ] {
            let name = format!("balancer.alpha.linkerd.io/failure-accrual-success-rate-{name}");
            let (unified, problems) = read(&[(ACCRUAL, "unified"), (&name, value)]);
            assert_eq!(unified.and_then(|read| read.rate), expected, "{name} {value}");
            assert_eq!(problems.is_empty(), expected.is_some(), "{name} {value}");
            let (consecutive, problems) = read(&[(ACCRUAL, "consecutive"), (&name, value)]);
            assert!(consecutive.unwrap().rate.is_none() && problems == [name.as_str()], "{problems:?}");
        }
    }

    #[test]
    fn what_changes_nothing_is_named() {
        let honor = "balancer.alpha.linkerd.io/failure-accrual-honor-retry-after";
        let (read_with, problems) = read(&[(ACCRUAL, "consecutive"), (honor, "true")]);
        assert!(read_with.unwrap().honor_retry_after && problems.is_empty());
        for name in [
            honor,
            "balancer.linkerd.io/failure-accrual-consecutive-max-failures",
            "balancer.alpha.linkerd.io/load-biaser-penalty",
        ] {
            assert_eq!(read(&[(name, "1")]), (None, vec![name.to_owned()]));
        }
        assert_eq!(read(&[(ACCRUAL, "unified"), (honor, "perhaps")]), (None, vec![honor.to_owned()]));
    }
}
