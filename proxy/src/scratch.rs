//! The buffer that bytes are read into: one for a worker's thread, not for each of its connections. Decision 8.

use std::cell::RefCell;

/// Bytes read at once: two of the largest packets that Linux passes on whole, and an answer of 64 KiB with its head.
pub const SIZE: usize = 128 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SIZE]);
}

/// Lends the buffer. What is in it when this ends is nobody's. Not to be nested.
pub fn with<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| use_it(buffer))
}
