//! Descriptors kept for the admin port, so that it answers also when connections have taken all others.

use crate::listen::{OUT_OF_DESCRIPTORS, is_out_of_descriptors};
use std::{
    fs::File,
    io,
    sync::{PoisonError, RwLock},
    task::Poll,
};

/// How many are kept: so many admin connections can be served at once when nothing else can be opened.
const KEPT: usize = 4;

/// Descriptors held for nothing but to be given up in need. Whoever accepts a connection asks here first: those that are
/// missing are taken back before others get any, and none is lost between being given up and being used.
pub struct Spare {
    held: RwLock<Vec<File>>,
    /// What each of them is opened on.
    file: &'static str,
}

impl Default for Spare {
    fn default() -> Self {
        Self { held: RwLock::default(), file: "/dev/null" }
    }
}

impl Spare {
    /// One step of accepting an ordinary connection.
    ///
    /// # Errors
    /// Those of `accept`; and that of a process without descriptors while some of ours are missing.
    pub fn after_ours<T>(&self, accept: impl FnOnce() -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= KEPT {
            return accept();
        }
        drop(held);
        if self.refill() {
            accept()
        } else {
            Poll::Ready(Err(io::Error::from_raw_os_error(OUT_OF_DESCRIPTORS)))
        }
    }

    /// One step of accepting an admin connection; with one of ours, if there is no other descriptor.
    ///
    /// # Errors
    /// Those of `accept`.
    pub fn with_ours<T>(&self, mut accept: impl FnMut() -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match accept() {
            Poll::Ready(Err(error)) if is_out_of_descriptors(&error) => {
                let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                if held.pop().is_some() { accept() } else { Poll::Ready(Err(error)) }
            }
            done => done,
        }
    }

    /// Takes what is missing and can be had. Says whether nothing is missing any more.
    pub fn refill(&self) -> bool {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        while held.len() < KEPT {
            let Ok(file) = File::open(self.file) else { return false };
            held.push(file);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exhausted() -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::from_raw_os_error(OUT_OF_DESCRIPTORS)))
    }

    #[test]
    fn ordinary_connections_come_after_what_is_missing() {
        let spare = Spare::default();
        assert!(matches!(spare.after_ours(|| Poll::Ready(Ok(7))), Poll::Ready(Ok(7))));
        assert_eq!(spare.held.read().unwrap().len(), KEPT);
    }

    #[test]
    fn ordinary_connections_are_not_even_asked_for_while_one_is_missing() {
        let spare = Spare { file: "/nowhere", ..Spare::default() };
        let accepted = spare.after_ours(|| -> Poll<io::Result<()>> { panic!("it took what is missing") });
        assert!(matches!(accepted, Poll::Ready(Err(error)) if is_out_of_descriptors(&error)));
    }

    #[test]
    fn each_admin_connection_without_a_descriptor_takes_one_of_ours_and_no_more() {
        let spare = Spare::default();
        assert!(spare.refill());
        for left in (0..KEPT).rev() {
            let mut asked = 0;
            let accepted = spare.with_ours(|| {
                asked += 1;
                if asked == 1 { exhausted() } else { Poll::Ready(Ok(())) }
            });
            assert!(matches!(accepted, Poll::Ready(Ok(()))));
            assert_eq!(spare.held.read().unwrap().len(), left);
        }
        let mut asked = 0;
        let accepted = spare.with_ours(|| {
            asked += 1;
            exhausted()
        });
        assert!(matches!(accepted, Poll::Ready(Err(_))));
        assert_eq!(asked, 1, "there is nothing to try again with");
    }

    #[test]
    fn who_can_be_accepted_takes_nothing() {
        let spare = Spare::default();
        assert!(spare.refill());
        assert!(matches!(spare.with_ours(|| Poll::Ready(Ok(()))), Poll::Ready(Ok(()))));
        assert!(spare.with_ours(|| Poll::<io::Result<()>>::Pending).is_pending());
        assert_eq!(spare.held.read().unwrap().len(), KEPT);
    }
}
