//! Where a client's bytes stand among the frames of HTTP/2 (RFC 9113): what it has begun and may not leave so.
//!
//! The h2 crate reads frames and does not tell when a part of one has come. Whether a client owes the rest is decided
//! here, over the same bytes.

/// Of what a client says first (section 3.4).
const PREFACE: u8 = 24;
/// Of the head of a frame (section 4.1).
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_HEADERS: u8 = 0x4;

/// The bytes of one client so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Of the preface, what is to come.
    preface: u8,
    /// Of the head of a frame, what has come.
    head: [u8; FRAME_HEAD],
    headed: usize,
    /// Of the payload of a frame, what is to come: less than 2^24.
    payload: usize,
    /// The frame is DATA: how long its payload takes is a body's business.
    is_data: bool,
    /// The fields of a head go on in a CONTINUATION (section 6.10).
    continues: bool,
    /// What has been begun and ended.
    ended: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            preface: PREFACE,
            head: [0; FRAME_HEAD],
            headed: 0,
            payload: 0,
            is_data: false,
            continues: false,
            ended: 0,
        }
    }
}

impl Progress {
    /// These came. Whether they are right is not looked at: a connection on which they are not does not last.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = if self.preface > 0 {
                let taken = bytes.len().min(self.preface.into());
                self.preface = self.preface.saturating_sub(taken as u8);
                taken
            } else if self.payload > 0 {
                let taken = bytes.len().min(self.payload);
                self.payload -= taken;
                taken
            } else {
                self.take_head(bytes)
            };
            self.ended += u64::from(self.unfinished().is_none());
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    fn take_head(&mut self, bytes: &[u8]) -> usize {
        let rest = self.head.get_mut(self.headed..).unwrap_or_default();
        let taken = bytes.len().min(rest.len());
        rest.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.headed += taken;
        if self.headed == FRAME_HEAD {
            let [high, middle, low, kind, flags, ..] = self.head;
            self.headed = 0;
            self.payload = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.is_data = kind == DATA;
            if matches!(kind, HEADERS | CONTINUATION) {
                self.continues = flags & END_HEADERS == 0;
            }
        }
        taken
    }

    /// What has been begun and not ended, by a number that no earlier one had: the preface, the head of a frame, the fields
    /// of a request. Nothing of a client that has said nothing yet, nor amid the payload of DATA.
    pub fn unfinished(&self) -> Option<u64> {
        let amid_preface = (1..PREFACE).contains(&self.preface);
        let amid_frame = self.headed > 0 || self.payload > 0 && !self.is_data;
        (amid_preface || amid_frame || self.continues).then_some(self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{vec, vec::Vec};
    use proptest::prelude::*;

    const SETTINGS: u8 = 0x4;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], &vec![7; payload]].concat()
    }

    fn after(parts: &[&[u8]]) -> Progress {
        let mut progress = Progress::default();
        progress.take(&parts.concat());
        progress
    }

    #[test]
    fn what_a_client_owes() {
        let preface = [b'P'; PREFACE as usize];
        let settings = frame(SETTINGS, 0, 6);
        let request = frame(HEADERS, END_HEADERS, 20);
        let begun = frame(HEADERS, 0, 20);
        let more = frame(CONTINUATION, 0, 5);
        let last = frame(CONTINUATION, END_HEADERS, 0);
        let data = frame(DATA, 0, 100);
        for (what, parts, owes) in [
            ("nothing", &[][..], false),
            ("half a preface", &[&preface[..3]], true),
            ("a preface", &[&preface], false),
            ("settings", &[&preface, &settings], false),
            ("half of its length", &[&preface, &settings[..2]], true),
            ("no payload", &[&preface, &settings[..9]], true),
            ("half a payload", &[&preface, &settings[..11]], true),
            ("a request", &[&preface, &settings, &request], false),
            ("half a request", &[&preface, &settings, &request[..20]], true),
            ("fields without an end", &[&preface, &begun], true),
            ("and more", &[&preface, &begun, &more], true),
            ("and their end", &[&preface, &begun, &more, &last], false),
            ("half a body", &[&preface, &request, &data[..50]], false),
            ("a body's frame without a byte", &[&preface, &request, &data[..9]], false),
            ("half its head", &[&preface, &request, &data, &data[..5]], true),
            ("data amid fields", &[&preface, &begun, &data], true),
        ] {
            assert_eq!(after(parts).unfinished().is_some(), owes, "{what}");
        }
    }

    #[test]
    fn what_is_owed_next_is_another() {
        let mut progress = after(&[&[0; PREFACE as usize]]);
        let request = frame(HEADERS, END_HEADERS, 20);
        let mut owed = Vec::new();
        for _ in 0..3 {
            progress.take(&request[..10]);
            owed.push(progress.unfinished().unwrap());
            progress.take(&request[10..15]);
            assert_eq!(progress.unfinished(), owed.last().copied(), "it is still the same");
            progress.take(&request[15..]);
        }
        assert!(owed.is_sorted_by(|a, b| a < b), "{owed:?}");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(
            bytes in proptest::collection::vec(0u8..12, 0..200),
            cuts in proptest::collection::vec(0usize..200, 0..8),
        ) {
            let mut in_parts = Progress::default();
            let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            ends.extend([bytes.len()]);
            ends.sort_unstable();
            let mut from = 0;
            for end in ends {
                in_parts.take(&bytes[from..end]);
                from = end;
            }
            let whole = after(&[&bytes]);
            prop_assert_eq!(in_parts.unfinished().is_some(), whole.unfinished().is_some());
        }
    }
}
