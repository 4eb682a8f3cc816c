//! Whether there is room for more: of memory, of descriptors.

/// How much of its memory a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// Enough is left.
    Low = 0,
    /// Nothing new is begun; what is under way goes on.
    High = 1,
    /// Whoever sends more is cut off: the rest is for ending well.
    Critical = 2,
}

/// Descriptors that connections leave to listeners, the control plane, the admin port and files.
pub const RESERVED_DESCRIPTORS: u64 = 64;

/// The pressure at `used` of `limit` bytes: high from seven tenths, critical from 85 hundredths. Without a limit
/// (`limit` 0) there is none.
pub fn pressure(used: u64, limit: u64) -> Pressure {
    let reaches = |percent: u64| u128::from(used) * 100 >= u128::from(limit) * u128::from(percent);
    match limit {
        0 => Pressure::Low,
        _ if reaches(85) => Pressure::Critical,
        _ if reaches(70) => Pressure::High,
        _ => Pressure::Low,
    }
}

/// Connections that a proxy of `descriptors` may serve at once per direction, where `wanted` were asked for. Each may
/// take a second descriptor, to where it leads, and neither direction may take all: an eighth is left to the other
/// one. At least 1.
pub fn connections(wanted: usize, descriptors: Option<u64>) -> usize {
    let Some(descriptors) = descriptors else { return wanted };
    let pairs = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2;
    let share = pairs - pairs / 8;
    wanted.min(usize::try_from(share).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pressure_rises_in_two_steps() {
        for (used, limit, expected) in [
            (0, 100, Pressure::Low),
            (69, 100, Pressure::Low),
            (70, 100, Pressure::High),
            (84, 100, Pressure::High),
            (85, 100, Pressure::Critical),
            (200, 100, Pressure::Critical),
            (u64::MAX, u64::MAX, Pressure::Critical),
            (u64::MAX, 0, Pressure::Low),
        ] {
            assert_eq!(pressure(used, limit), expected, "{used} of {limit}");
        }
    }

    #[test]
    fn as_many_connections_as_descriptors_allow() {
        for (wanted, descriptors, expected) in [
            (8192, None, 8192),
            (8192, Some(1 << 20), 8192),
            (8192, Some(20_000), 8192),
            (8192, Some(1024), 420),
            (8192, Some(256), 84),
            (8192, Some(10), 1),
            (10, Some(256), 10),
        ] {
            assert_eq!(connections(wanted, descriptors), expected, "{wanted} of {descriptors:?}");
        }
    }

    proptest! {
        #[test]
        fn more_use_is_never_less_pressure(used: u64, more: u64, limit: u64) {
            prop_assert!(pressure(used.saturating_add(more), limit) >= pressure(used, limit));
        }

        #[test]
        fn a_full_direction_leaves_descriptors_to_everything_else(wanted in 1_usize.., descriptors in 80_u64..) {
            let pairs = connections(wanted, Some(descriptors)) as u64;
            prop_assert!(pairs.saturating_mul(2) <= descriptors - RESERVED_DESCRIPTORS);
        }
    }
}
