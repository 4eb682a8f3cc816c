//! HTTP/1 messages: where one ends and the next begins, and whether the connection outlives it. RFC 9112.
//!
//! Whoever sits between two readers of HTTP/1 must see the same messages as both of them. So what can be read in two
//! ways is refused, or passed on in the one way in which it was read.

pub mod chunks;

#[cfg(planted)]
use crate::planted;
use core::fmt;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The line or the fields of a head are not what RFC 9112 section 2 wants.
    Head(&'static str),
    /// A `Content-Length` is not a number below 2^63, or there are two of them.
    Length,
    /// A `Transfer-Encoding` is not `chunked` and nothing else, or HTTP/1.0 has one.
    Coding,
    /// A chunk or a trailer section is not what RFC 9112 section 7.1 wants.
    Chunk(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(what) => out.write_str(what),
            Self::Length => out.write_str("its Content-Length is no length, or there are two"),
            Self::Coding => {
                out.write_str("its Transfer-Encoding is not `chunked` and nothing else, or it is HTTP/1.0")
            }
            Self::Chunk(what) => write!(out, "its body is not in chunks: {what}"),
        }
    }
}

impl core::error::Error for Malformed {}

/// Where a message's body ends. RFC 9112 section 6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// After so many bytes; there is no body if they are none.
    Known(u64),
    /// After the last chunk and its trailer section.
    Chunked,
    /// With the connection. Only an answer's body does.
    Close,
}

/// What an answer is an answer to, as far as its length depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `HEAD`: there is no body, whatever the fields say.
    Head,
    /// `CONNECT`: after success there are no messages any more.
    Connect,
    /// Anything else.
    Other,
}

impl Asked {
    /// By a request's method, which is case-sensitive (RFC 9110 section 9.1).
    pub fn of(method: &str) -> Self {
        match method {
            "HEAD" => Self::Head,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether bytes that are no messages follow an answer of this status. RFC 9110 sections 7.8 and 9.3.6.
    pub fn is_switched_by(self, status: u16) -> bool {
        status == 101 || self == Self::Connect && matches!(status, 200..=299)
    }

    /// Whether an answer of this status has no body, whatever its fields say. RFC 9112 section 6.3.
    pub fn is_without_body(self, status: u16) -> bool {
        self == Self::Head || matches!(status, 100..=199 | 204 | 304) || self.is_switched_by(status)
    }
}

/// What a head's fields say of its message's end and of its connection's. Fields are handed in one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framing {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// There is an `Upgrade`.
    pub upgrade: bool,
}

/// Whether a field belongs to the message as it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It does.
    Yes,
    /// It says again what was said.
    No,
}

impl Framing {
    /// Looks at one field. A second `Content-Length` that equals the first is to be left out, as RFC 9112 section 6.3
    /// allows.
    ///
    /// # Errors
    /// The field contradicts another one, or can be read in two ways.
    pub fn field(&mut self, name: &[u8], value: &[u8]) -> Result<Keep, Malformed> {
        let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
        // Few names are as long as one of these, and begin as it does.
        match name.len() {
            6 if is(b"expect") => {
                self.expects_continue = value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
            }
            7 if is(b"upgrade") => self.upgrade = true,
            10 if is(b"connection") => {
                self.close |= has_token(value, b"close");
                self.keep_alive |= has_token(value, b"keep-alive");
            }
            14 if is(b"content-length") => {
                let length = decimal(value).ok_or(Malformed::Length)?;
                match self.length.replace(length) {
                    Some(before) if before == length => return Ok(Keep::No),
                    #[cfg(planted)]
                    Some(before) if planted::makes(planted::Mistake::FirstLengthCounts) => {
                        self.length = Some(before);
                        return Ok(Keep::No);
                    }
                    Some(_) => return Err(Malformed::Length),
                    None => {}
                }
            }
            17 if is(b"transfer-encoding") => {
                let again = core::mem::replace(&mut self.chunked, true);
                if again || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::Coding);
                }
            }
            _ => {}
        }
        Ok(Keep::Yes)
    }

    /// Where a request's body ends.
    ///
    /// # Errors
    /// HTTP/1.0 knows no chunks: what it calls so was written by somebody else than it was read by.
    pub fn request(&self, http11: bool) -> Result<Length, Malformed> {
        match (self.chunked, http11) {
            (true, true) => Ok(Length::Chunked),
            (true, false) => Err(Malformed::Coding),
            (false, _) => Ok(Length::Known(self.length.unwrap_or(0))),
        }
    }

    /// Where an answer's body ends.
    ///
    /// # Errors
    /// As for a request.
    pub fn answer(&self, http11: bool, status: u16, asked: Asked) -> Result<Length, Malformed> {
        if asked.is_without_body(status) {
            return Ok(Length::Known(0));
        }
        match (self.chunked, self.length) {
            (true, _) if http11 => Ok(Length::Chunked),
            (true, _) => Err(Malformed::Coding),
            (false, Some(length)) => Ok(Length::Known(length)),
            (false, None) => Ok(Length::Close),
        }
    }

    /// Whether both a length and a coding were given: the coding is what counts, and the connection is not used again
    /// (RFC 9112 section 6.1).
    pub fn contradicts_itself(&self) -> bool {
        self.chunked && self.length.is_some()
    }

    /// Whether the connection may carry another message after this one. RFC 9112 section 9.3.
    pub fn persists(&self, http11: bool) -> bool {
        !self.close && (http11 || self.keep_alive) && !self.contradicts_itself()
    }
}

/// Whether a list such as `Connection`'s has a token, in whatever case. RFC 9110 section 5.6.1.
pub fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(token))
}

/// A number of digits and nothing else, below 2^63.
fn decimal(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit).filter(|number| *number < 1 << 63)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(fields: &[(&str, &str)]) -> Result<Framing, Malformed> {
        let mut framing = Framing::default();
        for (name, value) in fields {
            framing.field(name.as_bytes(), value.as_bytes())?;
        }
        Ok(framing)
    }

    #[test]
    fn a_request_ends_where_its_fields_say() {
        const CL: &str = "content-length";
        const TE: &str = "Transfer-Encoding";
        for (fields, ends) in [
            (&[][..], Ok(Length::Known(0))),
            (&[(CL, "0")], Ok(Length::Known(0))),
            (&[(CL, "5")], Ok(Length::Known(5))),
            (&[("Content-Length", "005")], Ok(Length::Known(5))),
            (&[(CL, "5"), (CL, "5")], Ok(Length::Known(5))),
            (&[(CL, "5"), (CL, "6")], Err(Malformed::Length)),
            (&[(CL, "5, 5")], Err(Malformed::Length)),
            (&[(CL, "+5")], Err(Malformed::Length)),
            (&[(CL, "-5")], Err(Malformed::Length)),
            (&[(CL, "0x5")], Err(Malformed::Length)),
            (&[(CL, "")], Err(Malformed::Length)),
            (&[(CL, "9223372036854775807")], Ok(Length::Known((1 << 63) - 1))),
            (&[(CL, "9223372036854775808")], Err(Malformed::Length)),
            (&[(CL, "18446744073709551621")], Err(Malformed::Length)),
            (&[(TE, "chunked")], Ok(Length::Chunked)),
            (&[(TE, "Chunked")], Ok(Length::Chunked)),
            (&[(TE, "chunked"), (CL, "5")], Ok(Length::Chunked)),
            (&[(TE, "chunked"), (TE, "chunked")], Err(Malformed::Coding)),
            (&[(TE, "gzip, chunked")], Err(Malformed::Coding)),
            (&[(TE, "chunked, chunked")], Err(Malformed::Coding)),
            (&[(TE, "chunked;q=1")], Err(Malformed::Coding)),
            (&[(TE, "\u{b}chunked")], Err(Malformed::Coding)),
            (&[(TE, "")], Err(Malformed::Coding)),
        ] {
            let ended = framing(fields).and_then(|framing| framing.request(true));
            assert_eq!(ended, ends, "{fields:?}");
        }
        let chunked = framing(&[(TE, "chunked")]).unwrap();
        assert_eq!(chunked.request(false), Err(Malformed::Coding));
    }

    #[test]
    fn an_answer_ends_where_its_status_and_its_request_say() {
        let sized = framing(&[("content-length", "5")]).unwrap();
        let chunked = framing(&[("transfer-encoding", "chunked")]).unwrap();
        let bare = Framing::default();
        for (framing, status, asked, ends) in [
            (&sized, 200, Asked::Other, Length::Known(5)),
            (&sized, 200, Asked::Head, Length::Known(0)),
            (&sized, 304, Asked::Other, Length::Known(0)),
            (&chunked, 204, Asked::Other, Length::Known(0)),
            (&chunked, 200, Asked::Other, Length::Chunked),
            (&bare, 200, Asked::Other, Length::Close),
            (&bare, 101, Asked::Other, Length::Known(0)),
            (&sized, 200, Asked::Connect, Length::Known(0)),
            (&sized, 404, Asked::Connect, Length::Known(5)),
        ] {
            assert_eq!(framing.answer(true, status, asked), Ok(ends), "{framing:?} {status} {asked:?}");
        }
        assert_eq!(chunked.answer(false, 200, Asked::Other), Err(Malformed::Coding));
    }

    #[test]
    fn a_connection_persists_as_its_version_and_its_fields_say() {
        for (fields, new, old) in [
            (&[][..], true, false),
            (&[("connection", "keep-alive")], true, true),
            (&[("connection", "Close")], false, false),
            (&[("connection", "keep-alive, close")], false, false),
            (&[("connection", "x, CLOSE"), ("connection", "keep-alive")], false, false),
            (&[("content-length", "5"), ("transfer-encoding", "chunked")], false, false),
        ] {
            let framing = framing(fields).unwrap();
            assert_eq!((framing.persists(true), framing.persists(false)), (new, old), "{fields:?}");
        }
    }
}
