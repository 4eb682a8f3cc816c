//! A body in chunks, read as it comes. RFC 9112 section 7.1. What an extension says is for the next reader only and is
//! dropped.

use super::Malformed;
#[cfg(planted)]
use crate::planted;
use alloc::vec::Vec;

/// Bytes of all chunk extensions of a message. They are nobody's, and a sender pays for each with a byte of a chunk.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// How far a body has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Of the chunk at hand: its size while that is read, then what is left of it.
    left: u64,
    extensions: usize,
    trailers: Vec<u8>,
    /// Bytes of a trailer section.
    max_trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Size,
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line of the trailer section.
    Line,
    Trailer,
    EndLf,
    End,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// All bytes were used, and more are needed.
    More,
    /// The next so many bytes are the body's; at least one.
    Data(usize),
    /// The body is over. The lines of its trailer section, each with its line end, perhaps none.
    End(Vec<u8>),
}

impl Chunks {
    /// At the beginning of a body, whose trailer section may have so many bytes.
    pub fn new(max_trailers: usize) -> Self {
        Self { state: State::Start, left: 0, extensions: 0, trailers: Vec::new(), max_trailers }
    }

    /// Whether the body is over.
    pub fn is_over(&self) -> bool {
        self.state == State::End
    }

    /// Reads on: how many bytes before the piece were used, and the piece. The bytes of [`Piece::Data`] are to be taken
    /// before the next call.
    ///
    /// # Errors
    /// The bytes are not what a sender of chunks writes.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(usize, Piece), Malformed> {
        let mut used = 0;
        loop {
            if self.state == State::Data {
                let here = bytes.len() - used;
                if here == 0 {
                    return Ok((used, Piece::More));
                }
                let data = usize::try_from(self.left).unwrap_or(usize::MAX).min(here);
                self.left -= data as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok((used, Piece::Data(data)));
            }
            if self.state == State::End {
                return Ok((used, Piece::End(core::mem::take(&mut self.trailers))));
            }
            let Some(byte) = bytes.get(used) else { return Ok((used, Piece::More)) };
            self.state = self.step(*byte)?;
            used += 1;
        }
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        use State as S;
        let next = match (self.state, byte) {
            (S::Start | S::Size, digit) if digit.is_ascii_hexdigit() => {
                let digit = char::from(digit).to_digit(16).unwrap_or_default();
                let size = self.left.checked_mul(16).ok_or(Malformed::Chunk("a size is beyond 2^64"))?;
                self.left = size | u64::from(digit);
                S::Size
            }
            (S::Start, _) => return Err(Malformed::Chunk("a size has no digit")),
            (S::Size | S::Space, b' ' | b'\t') => S::Space,
            (S::Size | S::Space, b';') => S::Extension,
            (S::Size | S::Space | S::Extension, b'\r') => S::SizeLf,
            (S::Size | S::Space, _) => return Err(Malformed::Chunk("a size is followed by something else")),
            (S::Extension, b'\n') => return Err(Malformed::Chunk("an extension holds a line feed")),
            (S::Extension, _) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(Malformed::Chunk("its extensions are longer than 16 KiB"));
                }
                S::Extension
            }
            (S::SizeLf, b'\n') if self.left == 0 => S::Line,
            (S::SizeLf, b'\n') => S::Data,
            (S::DataCr, b'\r') => S::DataLf,
            (S::DataLf, b'\n') => S::Start,
            #[cfg(planted)]
            (S::DataCr | S::DataLf, _) if planted::makes(planted::Mistake::ChunkEndsAnyhow) => self.state,
            (S::DataCr | S::DataLf, _) => return Err(Malformed::Chunk("a chunk is longer than it says")),
            (S::Line, b'\r') => S::EndLf,
            (S::EndLf, b'\n') => S::End,
            (S::SizeLf | S::EndLf, _) => return Err(Malformed::Chunk("a line ends without a line feed")),
            (S::Line | S::Trailer, byte) => {
                if self.trailers.len() >= self.max_trailers {
                    return Err(Malformed::Chunk("its trailer section is longer than a head may be"));
                }
                // Nobody ends a line otherwise here: what looks like an end to one reader is none to another.
                if (self.trailers.last() == Some(&b'\r')) != (byte == b'\n') {
                    return Err(Malformed::Chunk("a line of its trailer section does not end with CRLF"));
                }
                self.trailers.push(byte);
                if byte == b'\n' { S::Line } else { S::Trailer }
            }
            // Not reached: whoever reads takes these without a step.
            (state @ (S::Data | S::End), _) => state,
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use proptest::prelude::*;

    /// The body, its trailer section and how many bytes were used.
    type Whole = (Vec<u8>, Vec<u8>, usize);

    /// Reads in pieces of `at`; `None` if there is more to come.
    fn read(bytes: &[u8], at: usize) -> Result<Option<Whole>, Malformed> {
        let mut chunks = Chunks::new(100);
        let (mut body, mut used) = (Vec::new(), 0);
        for end in (0..=bytes.len()).filter(|end| end % at == 0 || *end == bytes.len()) {
            loop {
                let (skipped, piece) = chunks.read(&bytes[used..end])?;
                used += skipped;
                match piece {
                    Piece::More => break,
                    Piece::Data(count) => {
                        body.extend_from_slice(&bytes[used..used + count]);
                        used += count;
                    }
                    Piece::End(trailers) => return Ok(Some((body, trailers, used))),
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn what_is_in_chunks_is_read_and_what_follows_is_left() {
        for (bytes, body, trailers, rest) in [
            ("0\r\n\r\n", "", "", 0),
            ("5\r\nhello\r\n0\r\n\r\nGET", "hello", "", 3),
            ("05 \t\r\nhello\r\n1;a=\"b\";c\r\n!\r\n000\r\n\r\n", "hello!", "", 0),
            ("0\r\na: b\r\nc: d\r\n\r\nx", "", "a: b\r\nc: d\r\n", 1),
        ] {
            for at in 1..=bytes.len() {
                let used = bytes.len() - rest;
                let expected = Ok(Some((body.into(), trailers.into(), used)));
                assert_eq!(read(bytes.as_bytes(), at), expected, "{bytes:?} in pieces of {at}");
            }
        }
    }

    #[test]
    fn what_is_not_in_chunks_is_refused() {
        for bytes in [
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "\r\nhello\r\n",
            "5\nhello\r\n",
            "5 5\r\nhello\r\n",
            "5;a\nb\r\nhello\r\n",
            "5\r\nhello!\r\n",
            "5\r\nhello\n0\r\n",
            "5\r\rhello\r\n",
            "10000000000000005\r\nhello\r\n",
            "0\r\n\rx",
            "0\r\na: b\n\r\n",
            "0\r\na: b\rc\r\n\r\n",
        ] {
            assert!(read(bytes.as_bytes(), 1).is_err(), "{bytes:?}");
        }
        let long = alloc::format!("1;{}\r\n", "x".repeat(MAX_EXTENSIONS + 1));
        assert!(read(long.as_bytes(), 1).is_err());
        let bomb = alloc::format!("0\r\n{}\r\n", "a: b\r\n".repeat(20));
        assert!(read(bomb.as_bytes(), 1).is_err());
    }

    proptest! {
        #[test]
        fn every_split_reads_the_same(bytes in "[0-9a-f;\r\n x]{0,60}", at in 1_usize..8) {
            prop_assert_eq!(read(bytes.as_bytes(), at), read(bytes.as_bytes(), bytes.len().max(1)));
        }

        #[test]
        fn what_was_cut_into_chunks_is_whole_again(parts in proptest::collection::vec("[a-z\r\n]{1,40}", 0..8)) {
            let cut = parts.iter().map(|part| alloc::format!("{:x}\r\n{part}\r\n", part.len()));
            let cut: String = cut.chain([String::from("0\r\n\r\n")]).collect();
            let (body, _, used) = read(cut.as_bytes(), 3).unwrap().unwrap();
            prop_assert_eq!(body, parts.concat().into_bytes());
            prop_assert_eq!(used, cut.len());
        }
    }
}
