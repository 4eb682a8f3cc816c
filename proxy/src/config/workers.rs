//! Pure. How many worker threads. Contract 1.13 `CORES`, `CORES_MIN`, `CORES_MAX`, `CORES_MAX_RATIO`.

/// What the environment says of worker threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cores {
    /// `CORES`: an older name of the minimum.
    pub cores: Option<usize>,
    /// `CORES_MIN`.
    pub min: Option<usize>,
    /// `CORES_MAX`.
    pub max: Option<usize>,
    /// `CORES_MAX_RATIO`, above 0 and at most 1: a share of the machine.
    pub max_ratio: Option<f64>,
}

/// The maximum that is given (as a number, else as a share, else 1), but at least the minimum, and never more than
/// `available` threads can run at once, and at least 1.
pub fn workers(cores: Cores, available: usize) -> usize {
    let share = |ratio: f64| (available as f64 * ratio).round() as usize;
    let wanted = cores.max.or_else(|| cores.max_ratio.map(share)).unwrap_or(1);
    let least = cores.min.or(cores.cores).unwrap_or(1);
    wanted.max(least).min(available).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unless_told_otherwise() {
        let none = Cores::default();
        for (said, available, expected) in [
            (none, 8, 1),
            (none, 0, 1),
            (Cores { cores: Some(2), ..none }, 8, 2),
            (Cores { cores: Some(2), min: Some(3), ..none }, 8, 3),
            (Cores { max: Some(4), ..none }, 8, 4),
            (Cores { max: Some(4), ..none }, 2, 2),
            (Cores { max: Some(2), min: Some(4), ..none }, 8, 4),
            (Cores { max: Some(2), cores: Some(4), ..none }, 8, 4),
            (Cores { max_ratio: Some(0.5), ..none }, 8, 4),
            (Cores { max_ratio: Some(0.2), ..none }, 8, 2),
            (Cores { max_ratio: Some(0.01), ..none }, 8, 1),
            (Cores { max_ratio: Some(1.0), max: Some(3), ..none }, 8, 3),
            (Cores { min: Some(100), ..none }, 8, 8),
        ] {
            assert_eq!(workers(said, available), expected, "{said:?} of {available}");
        }
    }
}
