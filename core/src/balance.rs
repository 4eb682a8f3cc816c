//! Which endpoint takes the next request: the less loaded of two random ones (power of two choices).

/// Picks an index below `count`. `load(i)` is endpoint `i`'s load, or `None` if it cannot be used now; `random` is any
/// number. With fewer than two usable endpoints the choice is obvious; two different ones are always compared.
/// `None` when no endpoint is usable.
pub fn pick(count: usize, load: impl Fn(usize) -> Option<f64>, random: u64) -> Option<usize> {
    let _ = (count, load(0), random);
    todo!()
}
