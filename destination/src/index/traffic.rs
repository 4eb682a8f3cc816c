//! Pure. What annotations of Services and routes say of timeouts and retries. Contract 4.2, 4.3; every one has a row in
//! [`crate::annotations`].

use crate::annotations;
use std::{collections::BTreeMap, time::Duration};

/// Prefix of the annotations about timeouts.
const TIMEOUT: &str = "timeout.linkerd.io/";
/// Prefix of the annotations about retries.
const RETRY: &str = "retry.linkerd.io/";
/// The longest time that an annotation may name: a year.
const LONGEST: Duration = Duration::from_hours(365 * 24);
/// Most retries of one request, as Linkerd reads them.
const MAX_RETRIES: u32 = 65_535;

/// How often a request is sent again where retries are asked for and no limit is.
pub(crate) const RETRIES: u32 = 1;

/// Timeouts and retries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Retries of HTTP.
    pub http_retry: Option<Retry<HttpConditions>>,
    /// Retries of gRPC.
    pub grpc_retry: Option<Retry<GrpcConditions>>,
}

/// Timeouts. Zero says that there is none, and that no default holds either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's arrival to the response's end, retries included.
    pub request: Option<Duration>,
    /// From the request's end to the response's end.
    pub response: Option<Duration>,
    /// Without a frame in either direction.
    pub idle: Option<Duration>,
}

/// When a request is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry<Conditions> {
    /// At most so often; 0 says that it never is.
    pub limit: u32,
    /// How long a try may take to the head of its response.
    pub timeout: Option<Duration>,
    /// After which responses.
    pub conditions: Conditions,
}

/// Ranges of statuses, both ends included.
pub type HttpConditions = Vec<(u16, u16)>;

/// Statuses of gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcConditions {
    /// `CANCELLED`.
    pub cancelled: bool,
    /// `DEADLINE_EXCEEDED`.
    pub deadline_exceeded: bool,
    /// `RESOURCE_EXHAUSTED`.
    pub resource_exhausted: bool,
    /// `INTERNAL`.
    pub internal: bool,
    /// `UNAVAILABLE`.
    pub unavailable: bool,
}

/// An annotation that cannot be applied, and why.
pub type Problem = (String, String);

/// Annotations by name.
pub(super) type Annotations = BTreeMap<String, String>;

impl Timeouts {
    /// Does it say anything?
    pub fn stated(&self) -> bool {
        *self != Self::default()
    }
}

impl Traffic {
    /// Reads the annotations of a Service or route. What cannot be read counts as not being there.
    pub(super) fn read(annotations: Option<&Annotations>, problems: &mut Vec<Problem>) -> Self {
        let Some(annotations) = annotations else { return Self::default() };
        unknown(annotations, problems);
        let mut time =
            |prefix: &str, name: &str| one(annotations, &format!("{prefix}{name}"), problems, duration);
        let timeouts = Timeouts {
            request: time(TIMEOUT, "request"),
            response: time(TIMEOUT, "response"),
            idle: time(TIMEOUT, "idle"),
        };
        let try_timeout = time(RETRY, "timeout");
        let limit = one(annotations, "retry.linkerd.io/limit", problems, limit);
        let http = one(annotations, "retry.linkerd.io/http", problems, http_conditions);
        let grpc = one(annotations, "retry.linkerd.io/grpc", problems, grpc_conditions);
        let some = limit.is_some() || try_timeout.is_some();
        Self {
            timeouts,
            http_retry: retry(some || http.is_some(), limit, try_timeout, http),
            grpc_retry: retry(some || grpc.is_some(), limit, try_timeout, grpc),
        }
    }
}

fn retry<C: Default>(
    stated: bool,
    limit: Option<u32>,
    timeout: Option<Duration>,
    conditions: Option<C>,
) -> Option<Retry<C>> {
    let timeout = timeout.filter(|timeout| !timeout.is_zero());
    stated.then(|| Retry {
        limit: limit.unwrap_or(RETRIES),
        timeout,
        conditions: conditions.unwrap_or_default(),
    })
}

/// An annotation of ours that is none is a slip of the pen.
fn unknown(annotations: &Annotations, problems: &mut Vec<Problem>) {
    for name in annotations.keys() {
        if let Some(known) = annotations::unknown(name) {
            problems.push((name.clone(), format!("there is no such annotation; known are {known}")));
        }
    }
}

/// Reads one annotation; what is wrong with it goes to `problems`.
pub(super) fn one<T>(
    annotations: &Annotations,
    name: &str,
    problems: &mut Vec<Problem>,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match read(annotations.get(name)?.trim()) {
        Ok(value) => Some(value),
        Err(reason) => {
            problems.push((name.to_owned(), reason));
            None
        }
    }
}

/// A whole number and its unit, as Linkerd's controller reads times.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{:?} is no time such as 10s or 250ms: a whole number, and ms, s, m, h or d", shown(text));
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = (text.get(..digits).unwrap_or_default(), text.get(digits..).unwrap_or_default());
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" if number == 0 => 0,
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let read = number.checked_mul(factor).map(Duration::from_millis);
    read.filter(|read| *read <= LONGEST).ok_or_else(|| format!("{:?} is more than a year", shown(text)))
}

/// A whole number, and not too large a one.
pub(super) fn number(text: &str, most: u32) -> Result<u32, String> {
    let read = text.parse().ok().filter(|number| *number <= most);
    read.ok_or_else(|| format!("{:?} is no whole number from 0 to {most}", shown(text)))
}

fn limit(text: &str) -> Result<u32, String> {
    number(text, MAX_RETRIES)
}

/// A comma-separated list; one entry that means nothing spoils all of it.
fn http_conditions(text: &str) -> Result<HttpConditions, String> {
    let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
    let range = |entry: &str| match entry {
        "5xx" => Some((500, 599)),
        "gateway-error" => Some((502, 504)),
        _ => {
            let (low, high) = entry.split_once('-').unwrap_or((entry, entry));
            let (low, high): (u16, u16) = (status(low)?, status(high)?);
            (low <= high).then_some((low, high))
        }
    };
    let one = |entry: &str| {
        range(entry.trim()).ok_or_else(|| {
            format!("{:?} is none of 5xx, gateway-error, a status, or a range such as 500-502", shown(entry))
        })
    };
    text.split(',').take(64).map(one).collect()
}

fn grpc_conditions(text: &str) -> Result<GrpcConditions, String> {
    let mut read = GrpcConditions::default();
    for entry in text.split(',') {
        *match entry.trim() {
            "cancelled" => &mut read.cancelled,
            "deadline-exceeded" => &mut read.deadline_exceeded,
            "resource-exhausted" => &mut read.resource_exhausted,
            "internal" => &mut read.internal,
            "unavailable" => &mut read.unavailable,
            other => {
                return Err(format!(
                    "{:?} is none of cancelled, deadline-exceeded, internal, resource-exhausted, unavailable",
                    shown(other)
                ));
            }
        } = true;
    }
    Ok(read)
}

/// As much of a text as is shown of it.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> (Traffic, Vec<String>) {
        let mut problems = Vec::new();
        let read = Traffic::read(Some(&annotations(pairs)), &mut problems);
        (read, problems.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn times_are_linkerds() {
        for (text, ms) in [
            ("10s", Some(10_000)),
            ("250ms", Some(250)),
            ("2m", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("1d", Some(86_400_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("365d", Some(31_536_000_000)),
            ("366d", None),
            ("1m30s", None),
            ("1.5s", None),
            ("-1s", None),
            ("10", None),
            ("s", None),
            ("", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).ok().map(|read| read.as_millis()), ms, "{text}");
        }
    }

    #[test]
    fn http_statuses() {
        for (text, expected) in [
            ("5xx", Some(vec![(500, 599)])),
            ("gateway-error", Some(vec![(502, 504)])),
            ("503, 429,500-502", Some(vec![(503, 503), (429, 429), (500, 502)])),
            ("5xx,perhaps", None),
            ("99", None),
            ("600", None),
            ("504-502", None),
            ("", None),
        ] {
            assert_eq!(http_conditions(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn grpc_statuses() {
        let all = "cancelled, deadline-exceeded,internal,resource-exhausted,unavailable";
        let expected = GrpcConditions {
            cancelled: true,
            deadline_exceeded: true,
            resource_exhausted: true,
            internal: true,
            unavailable: true,
        };
        assert_eq!(grpc_conditions(all), Ok(expected));
        assert!(grpc_conditions("cancelled,unknown").is_err());
        assert!(grpc_conditions("").is_err());
    }

    #[test]
    fn one_annotation_makes_a_group_and_the_rest_has_defaults() {
        let (traffic, problems) = read(&[("retry.linkerd.io/http", "5xx")]);
        assert_eq!(traffic.http_retry, Some(Retry { limit: 1, timeout: None, conditions: vec![(500, 599)] }));
        assert_eq!((traffic.grpc_retry, problems.len()), (None, 0));
        let (traffic, _) = read(&[("retry.linkerd.io/limit", "3"), ("retry.linkerd.io/timeout", "1s")]);
        let timeout = Some(Duration::from_secs(1));
        assert_eq!(traffic.http_retry, Some(Retry { limit: 3, timeout, conditions: vec![] }));
        let none = GrpcConditions::default();
        assert_eq!(traffic.grpc_retry, Some(Retry { limit: 3, timeout, conditions: none }));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_counts_as_missing() {
        let (traffic, problems) = read(&[
            ("timeout.linkerd.io/request", "soon"),
            ("timeout.linkerd.io/idle", "1m"),
            ("timeout.linkerd.io/respnse", "1m"),
            ("retry.linkerd.io/http", "5xx,x"),
            ("retry.linkerd.io/limit", "65536"),
        ]);
        assert_eq!(traffic.timeouts, Timeouts { idle: Some(Duration::from_mins(1)), ..Timeouts::default() });
        assert_eq!((traffic.http_retry, traffic.grpc_retry), (None, None));
        let expected = [
            "timeout.linkerd.io/respnse",
            "timeout.linkerd.io/request",
            "retry.linkerd.io/limit",
            "retry.linkerd.io/http",
        ];
        assert_eq!(problems, expected);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in any::<String>(), likely in "[0-9a-z,. -]{0,24}") {
            for text in [text, likely] {
                let _ = (duration(&text), http_conditions(&text), grpc_conditions(&text));
            }
        }
    }
}
