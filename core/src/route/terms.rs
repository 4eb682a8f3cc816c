//! How long requests of a rule may take, which are sent again, and what a request may say of both itself. Contract 4.2,
//! 4.3, 4.9.

use super::RequestView;
use crate::{backoff::Backoff, profile::StatusRange, retry::BACKOFF};
use alloc::{sync::Arc, vec::Vec};
use core::time::Duration;

/// Bounds of time. Contract 4.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From a request's arrival to the last byte of its answer, retries included.
    pub request: Option<Duration>,
    /// From the last byte of the request, or the first of its answer, to the answer's last.
    pub response: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
}

impl Timeouts {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which requests are sent again. Contract 4.3.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Answers with one of these statuses count as failures.
    pub statuses: Arc<[StatusRange]>,
    /// And those with one of these gRPC statuses.
    pub codes: GrpcCodes,
    /// Retries of one request at most.
    pub limit: u32,
    /// Bytes of a body that are kept.
    pub max_bytes: usize,
    /// How long the head of an answer may take where another try could follow.
    pub timeout: Option<Duration>,
    /// How long is waited before each.
    pub backoff: Backoff,
}

/// What Linkerd's controller sends where nothing is said.
const DEFAULT_LIMIT: u32 = 1;
const DEFAULT_BYTES: usize = 64 * 1024;

impl RetryPolicy {
    /// Whether an answer is one that another try may replace.
    pub fn is_failure(&self, status: u16, grpc: Option<u16>) -> bool {
        grpc.is_some_and(|code| self.codes.contains(code))
            || self.statuses.iter().any(|range| range.contains(status))
    }
}

/// A set of gRPC statuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcCodes(u32);

impl GrpcCodes {
    /// With one more. Statuses beyond 31, which gRPC does not have, are never in a set.
    #[must_use]
    pub fn with(self, code: u16) -> Self {
        Self(self.0 | Self::bit(code))
    }

    /// Is it one of them?
    pub fn contains(self, code: u16) -> bool {
        self.0 & Self::bit(code) != 0
    }

    /// Is there none?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(code: u16) -> u32 {
        1u32.checked_shl(code.into()).unwrap_or_default()
    }
}

/// What a request says of its own timeouts and retries, where its route allows it. What cannot be read is not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    statuses: Option<Arc<[StatusRange]>>,
    codes: Option<GrpcCodes>,
    limit: Option<u32>,
    try_timeout: Option<Duration>,
    request: Option<Duration>,
    response: Option<Duration>,
}

const RETRY_HTTP: &str = "l5d-retry-http";
const RETRY_GRPC: &str = "l5d-retry-grpc";
const RETRY_LIMIT: &str = "l5d-retry-limit";
const RETRY_TIMEOUT: &str = "l5d-retry-timeout";
const TIMEOUT: &str = "l5d-timeout";
const REQUEST_TIMEOUT: &str = "l5d-request-timeout";
const RESPONSE_TIMEOUT: &str = "l5d-response-timeout";

impl Wishes {
    /// The headers that are honoured where that is allowed, and then never passed on.
    pub const HEADERS: [&'static str; 7] =
        [RETRY_HTTP, RETRY_GRPC, RETRY_LIMIT, RETRY_TIMEOUT, TIMEOUT, REQUEST_TIMEOUT, RESPONSE_TIMEOUT];

    /// What a request's headers say. Of a header that comes more than once the first one counts.
    pub fn of<R: RequestView + ?Sized>(request: &R) -> Self {
        let text = |name: &str| core::str::from_utf8(request.header(name).next()?).ok();
        let time = |name: &str| text(name).and_then(duration);
        Self {
            statuses: text(RETRY_HTTP).map(statuses),
            codes: text(RETRY_GRPC).map(codes),
            limit: text(RETRY_LIMIT).and_then(|limit| limit.trim().parse().ok()),
            try_timeout: time(RETRY_TIMEOUT),
            // Of the two names the longer one counts.
            request: time(REQUEST_TIMEOUT).or_else(|| time(TIMEOUT)),
            response: time(RESPONSE_TIMEOUT),
        }
    }

    /// What holds for the request: its own word before the route's. A time of zero is none.
    pub fn over(&self, timeouts: Timeouts, retry: Option<&RetryPolicy>) -> (Timeouts, Option<RetryPolicy>) {
        let time =
            |own: Option<Duration>, other: Option<Duration>| own.or(other).filter(|limit| !limit.is_zero());
        let timeouts = Timeouts {
            request: time(self.request, timeouts.request),
            response: time(self.response, timeouts.response),
            idle: timeouts.idle,
        };
        let says = self.statuses.is_some()
            || self.codes.is_some()
            || self.limit.is_some()
            || self.try_timeout.is_some();
        let base = || RetryPolicy {
            statuses: Arc::new([]),
            codes: GrpcCodes::default(),
            limit: DEFAULT_LIMIT,
            max_bytes: DEFAULT_BYTES,
            timeout: None,
            backoff: BACKOFF,
        };
        let retry = if says { Some(retry.cloned().unwrap_or_else(base)) } else { retry.cloned() };
        let retry = retry.map(|retry| RetryPolicy {
            statuses: self.statuses.clone().unwrap_or(retry.statuses),
            codes: self.codes.unwrap_or(retry.codes),
            limit: self.limit.unwrap_or(retry.limit),
            timeout: time(self.try_timeout, retry.timeout),
            ..retry
        });
        (timeouts, retry)
    }
}

/// `5xx`, `gateway-error`, statuses and ranges of them, separated by commas.
fn statuses(text: &str) -> Arc<[StatusRange]> {
    let range = |from: &str, to: &str| {
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|number| *number > 0);
        StatusRange::new(number(from)?.into(), number(to)?.into()).ok()
    };
    let ranges: Vec<StatusRange> = text
        .split(',')
        .filter_map(|entry| match entry.trim() {
            entry if entry.eq_ignore_ascii_case("5xx") => range("500", "599"),
            entry if entry.eq_ignore_ascii_case("gateway-error") => range("502", "504"),
            entry => match entry.split_once('-') {
                Some((from, to)) => range(from, to),
                None => range(entry, entry),
            },
        })
        .collect();
    ranges.into()
}

/// Names of gRPC statuses, separated by commas: those that Linkerd's API can name.
fn codes(text: &str) -> GrpcCodes {
    const NAMES: [(&str, u16); 5] = [
        ("cancelled", 1),
        ("deadline-exceeded", 4),
        ("resource-exhausted", 8),
        ("internal", 13),
        ("unavailable", 14),
    ];
    let known = |entry: &str| NAMES.iter().find(|(name, _)| entry.trim().eq_ignore_ascii_case(name));
    text.split(',').filter_map(known).fold(GrpcCodes::default(), |codes, (_, code)| codes.with(*code))
}

/// A whole number and its unit, as annotations have it: `ms`, `s`, `m`, `h` or `d`. Zero needs none.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "" if number == 0 => 0,
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn what_a_request_does_not_say_is_the_routes() {
        let (timeouts, retry) = over(&[]);
        assert_eq!((timeouts, retry.as_ref()), (ROUTE, Some(&policy())));
        assert_eq!(Wishes::of(&Headers(&[])).over(ROUTE, None), (ROUTE, None));
    }

    #[test]
    fn what_a_request_says_comes_before_the_route() {
        let (timeouts, retry) = over(&[
            ("l5d-timeout", "300ms"),
            ("l5d-response-timeout", "2s"),
            ("l5d-retry-limit", "3"),
            ("l5d-retry-timeout", "1m"),
            ("l5d-retry-http", "429, gateway-error,bad,200-100"),
            ("l5d-retry-grpc", "Unavailable,internal,ok"),
        ]);
        let expected = Timeouts { request: ms(300), response: ms(2_000), idle: ROUTE.idle };
        assert_eq!(timeouts, expected);
        let retry = retry.unwrap();
        assert_eq!((retry.limit, retry.timeout, retry.max_bytes), (3, ms(60_000), 7));
        let statuses: Vec<u16> = (100..600).filter(|status| retry.is_failure(*status, None)).collect();
        assert_eq!(statuses, [429, 502, 503, 504]);
        let codes: Vec<u16> = (0..40).filter(|code| retry.is_failure(200, Some(*code))).collect();
        assert_eq!(codes, [13, 14]);
    }

    #[test]
    fn where_the_route_has_no_retries_a_request_may_ask_for_them() {
        let headers = [("l5d-retry-http", "5xx")];
        let (_, retry) = Wishes::of(&Headers(&headers)).over(Timeouts::default(), None);
        let retry = retry.unwrap();
        assert!(retry.is_failure(599, None) && !retry.is_failure(499, None));
        assert_eq!((retry.limit, retry.max_bytes, retry.backoff), (1, 65_536, BACKOFF));
    }

    #[test]
    fn the_longer_name_counts_and_zero_is_none() {
        let both = [("l5d-timeout", "1s"), ("l5d-request-timeout", "2s")];
        assert_eq!(over(&both).0.request, ms(2_000));
        assert_eq!(over(&[("l5d-timeout", "0")]).0.request, None);
        assert_eq!(over(&[("l5d-retry-timeout", "0s")]).1.unwrap().timeout, None);
    }

    #[test]
    fn what_cannot_be_read_is_not_said() {
        for bad in
            ["", "5", "1.5s", "-1s", "s", "1 s", "99999999999999999999s", "18446744073709551615d", "1s1"]
        {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
        assert_eq!(duration(" 1h "), ms(3_600_000));
        assert_eq!(over(&[("l5d-retry-limit", "many")]).1.unwrap().limit, 2);
    }

    const ROUTE: Timeouts = Timeouts {
        request: Some(Duration::from_secs(10)),
        response: None,
        idle: Some(Duration::from_secs(5)),
    };

    fn policy() -> RetryPolicy {
        RetryPolicy {
            statuses: vec![StatusRange::new(500, 0).unwrap()].into(),
            codes: GrpcCodes::default(),
            limit: 2,
            max_bytes: 7,
            timeout: None,
            backoff: BACKOFF,
        }
    }

    fn over(headers: &[(&str, &str)]) -> (Timeouts, Option<RetryPolicy>) {
        Wishes::of(&Headers(headers)).over(ROUTE, Some(&policy()))
    }

    #[expect(clippy::unnecessary_wraps, reason = "what it is compared with is optional")]
    fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    struct Headers<'a>(&'a [(&'a str, &'a str)]);

    impl RequestView for Headers<'_> {
        fn method(&self) -> &'static str {
            "GET"
        }
        fn authority(&self) -> &'static str {
            ""
        }
        fn path(&self) -> &'static str {
            "/"
        }
        fn query(&self) -> Option<&str> {
            None
        }
        fn header(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.0.iter().filter(move |(one, _)| *one == name).map(|(_, value)| value.as_bytes())
        }
    }
}
