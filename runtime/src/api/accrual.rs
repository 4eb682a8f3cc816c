//! Failure accrual: when the breakers of a target's balancers shut. Contract 4.6.

use super::{Invalid, Reading, parts};
use linkerd2_proxy_api::outbound as wire;
use remora_core::{
    backoff::Backoff,
    breaker::{Accrual, Accruals, SuccessRate},
};
use std::{sync::Arc, time::Duration};

/// Linkerd's bound of what jitter may add; [`Backoff`] adds no more than the delay itself.
const MAX_JITTER: f32 = 100.0;

/// Reads what a protocol says of it. The routes of each version of HTTP have their own.
pub(super) fn accruals(
    reading: &mut Reading,
    wire: &wire::proxy_protocol::Kind,
) -> Result<Accruals, Invalid> {
    use wire::proxy_protocol::Kind;
    let mut at = |place, wire: Option<&wire::FailureAccrual>| match wire {
        Some(wire) => reading.at(place, |reading| accrual(reading, wire)).map(|one| one.map(Arc::new)),
        None => Ok(None),
    };
    Ok(match wire {
        Kind::Detect(detect) => Accruals {
            http1: at(
                "detect.http1.failure_accrual",
                detect.http1.as_ref().and_then(|http| http.failure_accrual.as_ref()),
            )?,
            http2: at(
                "detect.http2.failure_accrual",
                detect.http2.as_ref().and_then(|http| http.failure_accrual.as_ref()),
            )?,
        },
        Kind::Http1(http) => {
            let http1 = at("http1.failure_accrual", http.failure_accrual.as_ref())?;
            Accruals { http1, http2: None }
        }
        Kind::Http2(http) => {
            let http2 = at("http2.failure_accrual", http.failure_accrual.as_ref())?;
            Accruals { http1: None, http2 }
        }
        Kind::Grpc(grpc) => {
            let http2 = at("grpc.failure_accrual", grpc.failure_accrual.as_ref())?;
            Accruals { http1: None, http2 }
        }
        Kind::Opaque(_) | Kind::Tls(_) => Accruals::default(),
    })
}

/// One that can never shut a breaker is none.
fn accrual(reading: &mut Reading, wire: &wire::FailureAccrual) -> Result<Option<Accrual>, Invalid> {
    use wire::failure_accrual::Kind;
    let (max_failures, rate, backoff, place) = match &wire.kind {
        None => return Ok(None),
        Some(Kind::ConsecutiveFailures(row)) => {
            (row.max_failures, None, row.backoff, "consecutive_failures.backoff")
        }
        Some(Kind::Unified(unified)) => {
            let rate = reading.at("unified", |reading| rate(reading, unified))?;
            (unified.max_consecutive_failures, rate, unified.backoff, "unified.backoff")
        }
    };
    if max_failures == 0 && rate.is_none() {
        return Ok(None);
    }
    let retry_after = backoff.as_ref().is_some_and(|backoff| backoff.respect_retry_after_hint);
    Ok(Some(Accrual {
        max_failures,
        rate,
        backoff: reading.required(place, backoff, self::backoff)?,
        retry_after,
        min_ready: wire.ejection.as_ref().map_or(0, |ejection| ejection.min_ready_endpoints),
    }))
}

/// A threshold of zero is none.
fn rate(
    reading: &mut Reading,
    wire: &wire::failure_accrual::Unified,
) -> Result<Option<SuccessRate>, Invalid> {
    let threshold = wire.success_rate_threshold;
    if !(0.0..=1.0).contains(&threshold) {
        return Err(
            Invalid::new(format!("{threshold} is not between 0 and 1")).within("success_rate_threshold")
        );
    }
    if threshold == 0.0 {
        return Ok(None);
    }
    let window = reading.required("decay", wire.decay, |_, decay| above_zero(decay))?;
    Ok(Some(SuccessRate { threshold, window, min_requests: wire.min_requests }))
}

fn backoff(reading: &mut Reading, wire: wire::ExponentialBackoff) -> Result<Backoff, Invalid> {
    let min = reading.required("min_backoff", wire.min_backoff, |_, time| parts::duration(time))?;
    let max = reading.required("max_backoff", wire.max_backoff, |_, time| above_zero(time))?;
    if min > max {
        return Err(Invalid::new(format!("{max:?} is less than min_backoff")).within("max_backoff"));
    }
    let jitter = wire.jitter_ratio;
    if !(0.0..=MAX_JITTER).contains(&jitter) {
        return Err(
            Invalid::new(format!("{jitter} is not between 0 and {MAX_JITTER}")).within("jitter_ratio")
        );
    }
    if jitter > 1.0 {
        reading.ignore("jitter_ratio (more than 1)");
    }
    Ok(Backoff { min, max, jitter: jitter.into() })
}

fn above_zero(wire: prost_types::Duration) -> Result<Duration, Invalid> {
    let time = parts::duration(wire)?;
    if time.is_zero() { Err(Invalid::new("zero")) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{
        failure_accrual::{ConsecutiveFailures, Kind, Unified},
        proxy_protocol,
    };

    #[test]
    fn consecutive_failures() {
        let read = read(row(7, Some(backoff(1, 60, 0.5))), 3).unwrap().unwrap();
        let expected = Accrual {
            max_failures: 7,
            rate: None,
            backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_mins(1), jitter: 0.5 },
            retry_after: false,
            min_ready: 3,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn the_unified_policy() {
        let hinted = wire::ExponentialBackoff { respect_retry_after_hint: true, ..backoff(1, 60, 0.5) };
        let read = read(unified(0.8, Some(10), 7, Some(hinted)), 0).unwrap().unwrap();
        let rate = SuccessRate { threshold: 0.8, window: Duration::from_secs(10), min_requests: 5 };
        assert_eq!((read.rate, read.max_failures, read.retry_after), (Some(rate), 7, true));
    }

    #[test]
    fn what_can_never_shut_a_breaker_is_none() {
        assert_eq!(read(row(0, None), 0), Ok(None));
        assert_eq!(read(unified(0.0, None, 0, None), 0), Ok(None));
        assert!(read(unified(0.0, None, 3, Some(backoff(1, 60, 0.0))), 0).unwrap().unwrap().rate.is_none());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (kind, reason) in [
            (row(3, None), "consecutive_failures.backoff: missing"),
            (row(3, Some(backoff(2, 1, 0.0))), "consecutive_failures.backoff.max_backoff: 1s is less than"),
            (row(3, Some(backoff(0, 0, 0.0))), "consecutive_failures.backoff.max_backoff: zero"),
            (row(3, Some(backoff(-1, 1, 0.0))), "consecutive_failures.backoff.min_backoff: "),
            (row(3, Some(backoff(1, 2, -0.1))), "consecutive_failures.backoff.jitter_ratio: -0.1 is not"),
            (row(3, Some(backoff(1, 2, f32::NAN))), "consecutive_failures.backoff.jitter_ratio: NaN is not"),
            (
                row(3, Some(wire::ExponentialBackoff { min_backoff: None, ..backoff(1, 2, 0.0) })),
                "\
             consecutive_failures.backoff.min_backoff: missing",
            ),
            (unified(1.1, Some(10), 3, None), "unified.success_rate_threshold: 1.1 is not"),
            (unified(f64::NAN, Some(10), 3, None), "unified.success_rate_threshold: NaN is not"),
            (unified(0.8, None, 3, None), "unified.decay: missing"),
            (unified(0.8, Some(0), 3, None), "unified.decay: zero"),
            (unified(0.8, Some(10), 3, None), "unified.backoff: missing"),
        ] {
            let why = read(kind, 0).unwrap_err().to_string();
            assert!(why.starts_with(reason), "{why} should begin with {reason}");
        }
    }

    #[test]
    fn each_version_of_http_has_its_own() {
        let of = |max_failures| {
            let kind = Some(row(max_failures, Some(backoff(1, 60, 0.0))));
            Some(wire::FailureAccrual { kind, ejection: None })
        };
        let http1 = |failure_accrual| proxy_protocol::Http1 { failure_accrual, ..Default::default() };
        let http2 = |failure_accrual| proxy_protocol::Http2 { failure_accrual, ..Default::default() };
        let detect =
            |first, second| proxy_protocol::Detect { http1: first, http2: second, ..Default::default() };
        for (kind, expected) in [
            (proxy_protocol::Kind::Detect(detect(Some(http1(of(1))), Some(http2(of(2))))), [1, 2]),
            (proxy_protocol::Kind::Detect(detect(None, Some(http2(None)))), [0, 0]),
            (proxy_protocol::Kind::Http1(http1(of(3))), [3, 0]),
            (proxy_protocol::Kind::Http2(http2(of(4))), [0, 4]),
            (
                proxy_protocol::Kind::Grpc(proxy_protocol::Grpc {
                    failure_accrual: of(5),
                    ..Default::default()
                }),
                [0, 5],
            ),
            (proxy_protocol::Kind::Opaque(proxy_protocol::Opaque::default()), [0, 0]),
        ] {
            let read = accruals(&mut Reading::new(), &kind).unwrap();
            let found = [read.http1, read.http2].map(|one| one.map_or(0, |one| one.max_failures));
            assert_eq!(found, expected, "{kind:?}");
        }
        let wrong = proxy_protocol::Kind::Detect(detect(None, Some(http2(of(3)))));
        let proxy_protocol::Kind::Detect(mut detect) = wrong else { panic!() };
        if let Some(accrual) = detect.http2.as_mut().and_then(|http| http.failure_accrual.as_mut()) {
            accrual.kind = Some(row(3, None));
        }
        let why = accruals(&mut Reading::new(), &proxy_protocol::Kind::Detect(detect)).unwrap_err();
        assert_eq!(why.path(), "detect.http2.failure_accrual.consecutive_failures.backoff");
    }

    fn read(kind: Kind, min_ready_endpoints: u32) -> Result<Option<Accrual>, Invalid> {
        let ejection = Some(wire::EjectionConfig { min_ready_endpoints });
        accrual(&mut Reading::new(), &wire::FailureAccrual { kind: Some(kind), ejection })
    }

    fn row(max_failures: u32, backoff: Option<wire::ExponentialBackoff>) -> Kind {
        Kind::ConsecutiveFailures(ConsecutiveFailures { max_failures, backoff })
    }

    fn unified(
        success_rate_threshold: f64,
        decay: Option<i64>,
        max_consecutive_failures: u32,
        backoff: Option<wire::ExponentialBackoff>,
    ) -> Kind {
        Kind::Unified(Unified {
            success_rate_threshold,
            decay: decay.map(secs),
            min_requests: 5,
            max_consecutive_failures,
            backoff,
        })
    }

    fn backoff(min: i64, max: i64, jitter_ratio: f32) -> wire::ExponentialBackoff {
        wire::ExponentialBackoff {
            min_backoff: Some(secs(min)),
            max_backoff: Some(secs(max)),
            jitter_ratio,
            respect_retry_after_hint: false,
        }
    }

    fn secs(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }
}
