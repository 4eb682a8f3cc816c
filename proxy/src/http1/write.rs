//! Heads and bodies → bytes.

use super::{
    head::{self, Reason, Spelling},
    wire::Outgoing,
};
use crate::{fault::Fault, http::body::Body};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Request, Response, Version, header};
use http_body::Frame;
use remora_core::http1::Asked;
use std::fmt::Write as _;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// There is none.
    None,
    /// So many bytes are still to be written.
    Length(u64),
    Chunked,
    /// Until the connection ends.
    Close,
}

/// A body is longer or shorter than its head said.
#[derive(Debug)]
pub struct WrongLength;

impl From<WrongLength> for Fault {
    fn from(_: WrongLength) -> Self {
        Self::Answer("it is not as long as it said".into())
    }
}

impl Coding {
    /// Of a request's body.
    pub fn of_request(request: &Request<Body>) -> Self {
        let body = request.body();
        match (body.is_absent(), body.length()) {
            (true, _) => Self::None,
            (false, Some(length)) => Self::Length(length),
            (false, None) => Self::Chunked,
        }
    }

    /// Of an answer's body, to a client that understands chunks or does not.
    pub fn of_answer(answer: &Response<Body>, asked: Asked, http11: bool) -> Self {
        if asked.is_without_body(answer.status().as_u16()) {
            return Self::None;
        }
        match answer.body().length() {
            Some(length) => Self::Length(length),
            None if http11 => Self::Chunked,
            None => Self::Close,
        }
    }

    /// Adds a piece of the body. `spelling` is that of trailers.
    pub fn frame(
        &mut self,
        out: &mut Outgoing,
        frame: Frame<Bytes>,
        spelling: &Spelling,
    ) -> Result<(), WrongLength> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let (Ok(trailers), Self::Chunked) = (frame.into_trailers(), &self) {
                    out.tail().extend_from_slice(b"0\r\n");
                    fields(out.tail(), &trailers, spelling, |_| true);
                    out.tail().extend_from_slice(b"\r\n");
                    *self = Self::None;
                }
                return Ok(());
            }
        };
        match self {
            _ if data.is_empty() => {}
            Self::None => {}
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?;
                out.piece(data);
            }
            Self::Chunked => {
                // Writing to memory does not fail.
                let _ = write!(out.tail(), "{:x}\r\n", data.len());
                out.piece(data);
                out.tail().extend_from_slice(b"\r\n");
            }
            Self::Close => out.piece(data),
        }
        Ok(())
    }

    /// So many bytes of the body were written elsewhere.
    pub fn relayed(&mut self, bytes: usize) -> Result<(), WrongLength> {
        if let Self::Length(left) = self {
            *left = left.checked_sub(bytes as u64).ok_or(WrongLength)?;
        }
        Ok(())
    }

    /// Ends the body.
    pub fn end(&mut self, out: &mut Outgoing) -> Result<(), WrongLength> {
        match self {
            Self::Length(left) if *left > 0 => return Err(WrongLength),
            Self::Chunked => out.tail().extend_from_slice(b"0\r\n\r\n"),
            Self::None | Self::Length(_) | Self::Close => {}
        }
        Ok(())
    }
}

/// Adds a request's head.
pub fn request(out: &mut BytesMut, request: &Request<Body>, coding: Coding) {
    out.reserve(512);
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.extend_from_slice(b" ");
    let uri = request.uri();
    match (uri.authority(), uri.path_and_query()) {
        (None, Some(path)) => out.extend_from_slice(path.as_str().as_bytes()),
        // Writing to memory does not fail.
        _ => drop(write!(out, "{uri}")),
    }
    let version: &[u8] =
        if request.version() == Version::HTTP_10 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" };
    out.extend_from_slice(version);
    let spelling = &request.body().spelling;
    framing(out, request.headers(), spelling, coding);
    out.extend_from_slice(b"\r\n");
}

/// What an answer's head says of the connection after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Close,
    Persist,
    /// The next bytes are no HTTP.
    Upgrade,
}

/// Adds an answer's head, for a client of HTTP/1.1 or of HTTP/1.0.
pub fn answer(out: &mut BytesMut, answer: &Response<Body>, coding: Coding, http11: bool, then: Then) {
    out.reserve(512);
    let status = answer.status();
    out.extend_from_slice(if http11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    match answer.extensions().get::<Reason>() {
        Some(Reason(reason)) => out.extend_from_slice(reason),
        None => out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    let spelling = &answer.body().spelling;
    framing(out, answer.headers(), spelling, coding);
    let says = match then {
        Then::Close if !answer.headers().contains_key(header::CONNECTION) => Some(&b"close"[..]),
        Then::Persist if !http11 => Some(&b"keep-alive"[..]),
        Then::Close | Then::Persist | Then::Upgrade => None,
    };
    if let Some(says) = says {
        field(out, &header::CONNECTION, says, spelling);
    }
    out.extend_from_slice(b"\r\n");
}

/// Adds fields, with those that say where the body ends as it is written.
fn framing(out: &mut BytesMut, headers: &HeaderMap, spelling: &Spelling, coding: Coding) {
    let mut sized = false;
    fields(out, headers, spelling, |name| {
        if *name == header::CONTENT_LENGTH {
            sized = true;
            // What a head says of a body that is not sent is kept: it is about another answer.
            return matches!(coding, Coding::Length(_) | Coding::None);
        }
        *name != header::TRANSFER_ENCODING
    });
    match coding {
        Coding::Length(length) if !sized => {
            let mut digits = String::with_capacity(20);
            // Writing to memory does not fail.
            let _ = write!(digits, "{length}");
            field(out, &header::CONTENT_LENGTH, digits.as_bytes(), spelling);
        }
        Coding::Chunked => field(out, &header::TRANSFER_ENCODING, b"chunked", spelling),
        Coding::None | Coding::Length(_) | Coding::Close => {}
    }
}

fn fields(
    out: &mut BytesMut,
    headers: &HeaderMap,
    spelling: &Spelling,
    mut wanted: impl FnMut(&HeaderName) -> bool,
) {
    let mut names = match spelling {
        Spelling::Mixed(names) => names.iter().map(Some).collect(),
        Spelling::Lower | Spelling::Title => vec![],
    };
    for (name, value) in headers {
        if !wanted(name) {
            continue;
        }
        let written = names.iter_mut().find(|written| {
            written.is_some_and(|written| written.eq_ignore_ascii_case(name.as_str().as_bytes()))
        });
        match written.and_then(Option::take) {
            Some(written) => out.extend_from_slice(written),
            None => spelled(out, name, spelling),
        }
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn field(out: &mut BytesMut, name: &HeaderName, value: &[u8], spelling: &Spelling) {
    spelled(out, name, spelling);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn spelled(out: &mut BytesMut, name: &HeaderName, spelling: &Spelling) {
    let from = out.len();
    out.extend_from_slice(name.as_str().as_bytes());
    if *spelling == Spelling::Title
        && let Some(written) = out.get_mut(from..)
    {
        head::to_title(written);
    }
}

#[cfg(test)]
mod tests;
