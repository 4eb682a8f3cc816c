//! The one place that reads clocks and rolls dice. Decisions are told the time and the number.

use remora_core::time::{Time, UnixTime};
use std::{
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;

/// What [`now`] says at the first question. Not zero: a paused clock stands still at the time when its test began,
/// which may be before another test of the process asked first.
const FIRST: Duration = Duration::from_hours(1);

/// Monotonic time. Follows tokio's clock, so a test that pauses time pauses this too.
pub fn now() -> Time {
    let (now, start) = (Instant::now(), start());
    Time(match now.checked_duration_since(start) {
        Some(since) => FIRST + since,
        None => FIRST.saturating_sub(start.saturating_duration_since(now)),
    })
}

/// Wall-clock time. A clock set before 1970 reads as 1970, when every certificate is invalid: nothing fails open.
pub fn unix_now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

/// A number for jitter and for choices among equals: fast, per thread, differently seeded in each process. Not for
/// secrets.
pub fn random() -> u64 {
    fastrand::u64(..)
}

/// Waits until `time`; returns at once if it has passed.
pub async fn sleep_until(time: Time) {
    // A time too far away to be represented is never reached by a process.
    match start().checked_add(time.0.saturating_sub(FIRST)) {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn start() -> Instant {
    // The machine's clock, not tokio's: paused and advanced it would be in the future for everybody else.
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    Instant::from_std(*START.get_or_init(std::time::Instant::now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleeping_moves_the_clock_by_what_was_asked() {
        let before = now();
        sleep_until(before + Duration::from_hours(1)).await;
        let slept = now().since(before);
        assert!(slept >= Duration::from_hours(1) && slept < Duration::from_secs(3601), "{slept:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_a_test_moved_does_not_move_that_of_another() {
        let before = now();
        tokio::time::advance(Duration::from_hours(1000)).await;
        let elsewhere = std::thread::spawn(now).join().unwrap();
        assert!(elsewhere.since(before) < Duration::from_mins(1), "{elsewhere:?} {before:?}");
        assert!(now().since(before) >= Duration::from_hours(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_has_passed_is_not_waited_for() {
        let before = now();
        sleep_until(Time(Duration::ZERO)).await;
        assert!(now().since(before) < Duration::from_secs(1));
    }

    #[test]
    fn the_dice_do_not_repeat_themselves() {
        let rolls: std::collections::BTreeSet<u64> = (0..1000).map(|_| random()).collect();
        assert_eq!(rolls.len(), 1000);
    }

    #[test]
    fn the_wall_clock_is_after_this_was_written() {
        assert!(unix_now() > UnixTime::from_secs(1_760_000_000));
    }
}
