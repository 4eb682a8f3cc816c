//! The buffers that bytes are read into, and sealed into: a pair for a worker's thread, not for each of its connections.
//! Decisions 8 and 18.

use std::cell::RefCell;

/// Bytes read at once: two of the largest packets that Linux passes on whole, and an answer of 64 KiB with its head.
pub const SIZE: usize = 128 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SIZE]);
    static SEALED: RefCell<Vec<u8>> = RefCell::new(vec![0; SEALED_SIZE]);
}

/// The same for records of TLS, so that they can be opened into the other buffer and sealed from it.
const SEALED_SIZE: usize = crate::tls::codec::SEALED;

/// Lends the buffer for records. What is in it when this ends is nobody's. Not to be nested, but within [`with`].
pub fn with_sealed<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SEALED.with_borrow_mut(|buffer| use_it(buffer))
}

/// Lends the buffer. What is in it when this ends is nobody's. Not to be nested.
pub fn with<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| use_it(buffer))
}
