//! Timeouts and retries of routes. Contract 4.2, 4.3.

use super::{Invalid, Reading, parts};
use linkerd2_proxy_api::{http_route as wire, outbound};
use remora_core::{
    backoff::Backoff,
    profile::StatusRange,
    retry::BACKOFF,
    route::{GrpcCodes, RetryPolicy, Timeouts},
};
use std::time::Duration;

/// The timeouts of a rule; `older` is what controllers sent before there were three of them.
pub(super) fn timeouts(
    reading: &mut Reading,
    wire: Option<wire::Timeouts>,
    older: Option<prost_types::Duration>,
) -> Result<Timeouts, Invalid> {
    let Some(wire) = wire else {
        return Ok(Timeouts { request: time(reading, "request_timeout", older)?, ..Timeouts::default() });
    };
    reading.at("timeouts", |reading| {
        Ok(Timeouts {
            request: time(reading, "request", wire.request)?,
            response: time(reading, "response", wire.response)?,
            idle: time(reading, "idle", wire.idle)?,
        })
    })
}

/// A time of zero is none.
fn time(
    reading: &mut Reading,
    place: &str,
    wire: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let time = reading.at(place, |_| wire.map(parts::duration).transpose())?;
    Ok(time.filter(|time| !time.is_zero()))
}

/// The retries of an HTTP route's rule.
pub(super) fn http(reading: &mut Reading, wire: outbound::http_route::Retry) -> Result<RetryPolicy, Invalid> {
    let statuses = reading.required("conditions", wire.conditions, |reading, conditions| {
        reading.each("status_ranges", conditions.status_ranges, |_, range| {
            StatusRange::new(range.start, range.end).map_err(|error| Invalid::new(error.to_string()))
        })
    })?;
    let timeout = time(reading, "timeout", wire.timeout)?;
    Ok(RetryPolicy {
        statuses: statuses.into(),
        codes: GrpcCodes::default(),
        limit: wire.max_retries,
        max_bytes: wire.max_request_bytes as usize,
        timeout,
        backoff: backoff(reading, wire.backoff)?,
    })
}

/// The retries of a gRPC route's rule.
pub(super) fn grpc(reading: &mut Reading, wire: outbound::grpc_route::Retry) -> Result<RetryPolicy, Invalid> {
    let codes = reading.required("conditions", wire.conditions, |_, conditions| {
        let codes = [
            (conditions.cancelled, 1),
            (conditions.deadine_exceeded, 4),
            (conditions.resource_exhausted, 8),
            (conditions.internal, 13),
            (conditions.unavailable, 14),
        ];
        let named = codes.into_iter().filter(|(named, _)| *named);
        Ok(named.fold(GrpcCodes::default(), |codes, (_, code)| codes.with(code)))
    })?;
    let timeout = time(reading, "timeout", wire.timeout)?;
    Ok(RetryPolicy {
        statuses: Vec::new().into(),
        codes,
        limit: wire.max_retries,
        max_bytes: wire.max_request_bytes as usize,
        timeout,
        backoff: backoff(reading, wire.backoff)?,
    })
}

fn backoff(reading: &mut Reading, wire: Option<outbound::ExponentialBackoff>) -> Result<Backoff, Invalid> {
    let Some(wire) = wire else { return Ok(BACKOFF) };
    reading.at("backoff", |reading| {
        reading.ignore_if(wire.respect_retry_after_hint, "respect_retry_after_hint");
        let mut time = |place: &str, wire: Option<prost_types::Duration>| {
            reading.required(place, wire, |_, wire| parts::duration(wire))
        };
        let (min, max) = (time("min_backoff", wire.min_backoff)?, time("max_backoff", wire.max_backoff)?);
        let jitter = f64::from(wire.jitter_ratio);
        if max < min {
            return Err(Invalid::new("max_backoff is below min_backoff"));
        }
        if !(0.0..=f64::from(f32::MAX)).contains(&jitter) {
            return Err(Invalid::new("below zero, or no number").within("jitter_ratio"));
        }
        Ok(Backoff { min, max, jitter })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_timeouts_and_the_older_one() {
        let wire = wire::Timeouts { request: secs(3), response: secs(2), idle: secs(0) };
        let read = |wire, older| timeouts(&mut Reading::new(), wire, older);
        let expected = Timeouts {
            request: Some(Duration::from_secs(3)),
            response: Some(Duration::from_secs(2)),
            idle: None,
        };
        assert_eq!(read(Some(wire), secs(9)), Ok(expected), "the older one is not looked at");
        let only = Timeouts { request: Some(Duration::from_secs(9)), ..Timeouts::default() };
        assert_eq!(read(None, secs(9)), Ok(only));
        assert_eq!(read(None, None), Ok(Timeouts::default()));
        let negative = wire::Timeouts { idle: secs(-1), ..wire::Timeouts::default() };
        assert_eq!(read(Some(negative), None).unwrap_err().path(), "timeouts.idle");
    }

    #[test]
    fn retries_by_status_and_by_code() {
        use outbound::http_route::retry::{Conditions, conditions::StatusRange as Range};
        let ranges = vec![Range { start: 500, end: 502 }, Range { start: 429, end: 0 }];
        let wire = outbound::http_route::Retry {
            max_retries: 3,
            max_request_bytes: 65_536,
            conditions: Some(Conditions { status_ranges: ranges }),
            timeout: secs(1),
            backoff: None,
        };
        let retry = http(&mut Reading::new(), wire).unwrap();
        let failures: Vec<u16> = (100..600).filter(|status| retry.is_failure(*status, Some(14))).collect();
        assert_eq!(failures, [429, 500, 501, 502]);
        assert_eq!((retry.limit, retry.max_bytes, retry.backoff), (3, 65_536, BACKOFF));
        assert_eq!(retry.timeout, Some(Duration::from_secs(1)));

        let conditions = outbound::grpc_route::retry::Conditions {
            cancelled: true,
            unavailable: true,
            ..outbound::grpc_route::retry::Conditions::default()
        };
        let wire = outbound::grpc_route::Retry {
            conditions: Some(conditions),
            ..outbound::grpc_route::Retry::default()
        };
        let retry = grpc(&mut Reading::new(), wire).unwrap();
        let failures: Vec<u16> = (0..17).filter(|code| retry.is_failure(200, Some(*code))).collect();
        assert_eq!(failures, [1, 14]);
    }

    #[test]
    fn what_is_wrong_with_retries_is_named() {
        use outbound::http_route::{Retry, retry::Conditions};
        let backoff = |min, max, jitter_ratio| {
            Some(outbound::ExponentialBackoff {
                min_backoff: secs(min),
                max_backoff: secs(max),
                jitter_ratio,
                respect_retry_after_hint: true,
            })
        };
        let good = Retry { conditions: Some(Conditions::default()), ..Retry::default() };
        for (wire, why) in [
            (Retry { conditions: None, ..good.clone() }, "conditions: missing"),
            (Retry { backoff: backoff(2, 1, 0.0), ..good.clone() }, "backoff: max_backoff is below"),
            (Retry { backoff: backoff(1, 2, -0.5), ..good.clone() }, "backoff.jitter_ratio: below"),
            (Retry { backoff: backoff(1, 2, f32::NAN), ..good.clone() }, "backoff.jitter_ratio: below"),
            (Retry { timeout: secs(-1), ..good.clone() }, "timeout: "),
        ] {
            let refused = http(&mut Reading::new(), wire).unwrap_err().to_string();
            assert!(refused.starts_with(why), "{refused} should begin with {why}");
        }
        let mut reading = Reading::new();
        let read = http(&mut reading, Retry { backoff: backoff(1, 2, 0.5), ..good }).unwrap();
        let expected = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(2), jitter: 0.5 };
        assert_eq!(
            (read.backoff, &*reading.ignored),
            (expected, &["backoff.respect_retry_after_hint".into()][..])
        );
    }

    #[expect(clippy::unnecessary_wraps, reason = "as messages have it")]
    fn secs(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }
}
