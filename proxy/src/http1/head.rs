//! Bytes → the head of a request or an answer. httparse finds its parts, [`remora_core::http1`] says what they mean.

use super::{Error, Limits};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use remora_core::http1::{Framing, Keep, Malformed};
use std::mem::MaybeUninit;

/// The longest target of a request, in bytes: what a [`Uri`] holds.
const MAX_TARGET: usize = u16::MAX as usize - 1;
/// An unfinished head is read so often as if it were whole: what is no head is refused early, and a head that comes byte
/// by byte is not read once for each.
const MAX_TRIES: u8 = 8;
/// Fields for which there is room on the stack.
const USUAL_FIELDS: usize = 128;

/// The reason phrase of an answer, where it is not the usual one.
#[derive(Clone, Debug)]
pub struct Reason(pub Bytes);

/// How the names of a head's fields, or of a trailer section's, were written. HTTP/1 does not care, and some of its readers do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Spelling {
    /// `content-type`.
    #[default]
    Lower,
    /// `Content-Type`, but `l5d-client-id`.
    Title,
    /// As it is said here, in their order.
    Mixed(Vec<Bytes>),
}

/// What was read of a connection and not used yet.
#[derive(Debug, Default)]
pub struct Ahead {
    pub bytes: BytesMut,
    /// How much of it holds no end of a head.
    scanned: usize,
    /// How often it was read as a head in vain.
    tries: u8,
}

impl Ahead {
    fn take_head(&mut self, length: usize) -> Bytes {
        (self.scanned, self.tries) = (0, 0);
        if length == self.bytes.len() {
            return std::mem::take(&mut self.bytes).freeze();
        }
        self.bytes.split_to(length).freeze()
    }

    /// Whether this may be a whole head, or shows early that it is none.
    fn is_worth_a_try(&mut self) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        // The end may have begun before: a line feed, perhaps with a carriage return behind it.
        let from = self.scanned.saturating_sub(2);
        let fresh = self.bytes.get(from..).unwrap_or_default();
        // What follows the end may be long, and is no head's: the first one is enough.
        let whole = memchr::memchr_iter(b'\n', fresh).any(|at| {
            let next = fresh.get(at + 1..).unwrap_or_default();
            next.starts_with(b"\n") || next.starts_with(b"\r\n")
        });
        self.scanned = self.bytes.len();
        self.tries = self.tries.saturating_add(1);
        whole || self.tries <= MAX_TRIES
    }

    fn too_large(&self, limits: &Limits) -> Result<(), Error> {
        if self.bytes.len() <= limits.head_bytes {
            Ok(())
        } else if self.bytes.contains(&b'\n') {
            Err(Error::TooLarge)
        } else {
            Err(Error::LongTarget)
        }
    }
}

/// A head and what follows from it.
pub struct Head<T> {
    pub head: T,
    pub framing: Framing,
    pub spelling: Spelling,
    /// HTTP/1.1, not 1.0.
    pub http11: bool,
}

/// The next request's head out of what was read; `None` if it is not whole.
pub fn request(ahead: &mut Ahead, limits: &Limits) -> Result<Option<Head<Request<()>>>, Error> {
    // RFC 9112 section 2.2: an empty line before a request line is nothing.
    while ahead.bytes.starts_with(b"\r\n") {
        ahead.bytes.advance(2);
        ahead.scanned = 0;
    }
    let found = find(ahead, limits, |bytes, fields| {
        let mut request = httparse::Request::new(&mut []);
        let httparse::Status::Complete(length) = request.parse_with_uninit_headers(bytes, fields)? else {
            return Ok(None);
        };
        let target = span(bytes, request.path.unwrap_or_default().as_bytes());
        let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes());
        Ok(Some((length, (method, target, request.version == Some(1)), spans(bytes, request.headers))))
    })?;
    let Some(Found { bytes, line: (method, target, http11), fields, framing }) = found else {
        return Ok(None);
    };
    let method = method.map_err(|_| Malformed::Head("its method is no token"))?;
    let target = slice(&bytes, target);
    if target.len() > MAX_TARGET {
        return Err(Error::LongTarget);
    }
    let mut head = Request::new(());
    *head.uri_mut() = parse_target(&method, target)?;
    *head.method_mut() = method;
    *head.version_mut() = version(http11);
    *head.headers_mut() = fields.headers;
    Ok(Some(Head { head, framing, spelling: fields.spelling, http11 }))
}

/// The next answer's head out of what was read; `None` if it is not whole.
pub fn answer(ahead: &mut Ahead, limits: &Limits) -> Result<Option<Head<Response<()>>>, Error> {
    let found = find(ahead, limits, |bytes, fields| {
        let mut answer = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut answer,
            bytes,
            fields,
        )?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let reason = answer.reason.filter(|reason| !reason.is_empty());
        let reason = reason.map(|reason| span(bytes, reason.as_bytes()));
        let line = (answer.code.unwrap_or_default(), reason, answer.version == Some(1));
        Ok(Some((length, line, spans(bytes, answer.headers))))
    })?;
    let Some(Found { bytes, line: (code, reason, http11), fields, framing }) = found else {
        return Ok(None);
    };
    let mut head = Response::new(());
    *head.status_mut() =
        StatusCode::from_u16(code).map_err(|_| Malformed::Head("its status is no status"))?;
    *head.version_mut() = version(http11);
    *head.headers_mut() = fields.headers;
    if let Some(reason) = reason.map(|reason| slice(&bytes, reason))
        && head.status().canonical_reason().is_none_or(|usual| usual.as_bytes() != reason)
    {
        head.extensions_mut().insert(Reason(reason));
    }
    Ok(Some(Head { head, framing, spelling: fields.spelling, http11 }))
}

/// The fields of a trailer section, and how their names were written.
pub fn trailers(mut lines: Vec<u8>, fields: usize) -> Result<(HeaderMap, Spelling), Error> {
    lines.extend_from_slice(b"\r\n");
    let bytes = Bytes::from(lines);
    let mut found = vec![httparse::EMPTY_HEADER; fields];
    let spans = match httparse::parse_headers(&bytes, &mut found) {
        Ok(httparse::Status::Complete((_, fields))) => spans(&bytes, fields),
        Ok(httparse::Status::Partial) => {
            return Err(Malformed::Chunk("its trailer section breaks off").into());
        }
        Err(error) => return Err(malformed(error)),
    };
    // Nothing in it says where a message ends.
    let fields = Fields::read(&bytes, &spans, |_, _| Ok(Keep::Yes))?;
    Ok((fields.headers, fields.spelling))
}

/// A head that was found in what was read.
struct Found<L> {
    bytes: Bytes,
    /// What its first line says.
    line: L,
    fields: Fields,
    framing: Framing,
}

/// Finds a head, of which `parse` says how long it is, what its first line says, and where its fields are.
fn find<L>(
    ahead: &mut Ahead,
    limits: &Limits,
    parse: impl for<'b> FnOnce(
        &'b [u8],
        &mut [Field<'b>],
    ) -> Result<Option<(usize, L, Vec<Span>)>, httparse::Error>,
) -> Result<Option<Found<L>>, Error> {
    if !ahead.is_worth_a_try() {
        return ahead.too_large(limits).map(|()| None);
    }
    let parsed = with_fields(limits, |fields| parse(&ahead.bytes, fields)).map_err(malformed)?;
    let Some((length, line, spans)) = parsed else {
        return ahead.too_large(limits).map(|()| None);
    };
    if length > limits.head_bytes {
        return Err(Error::TooLarge);
    }
    let bytes = ahead.take_head(length);
    let mut framing = Framing::default();
    let fields = Fields::read(&bytes, &spans, |name, value| framing.field(name, value))?;
    Ok(Some(Found { bytes, line, fields, framing }))
}

/// Room for a field. It is not filled in beforehand: most heads have few, and may have many.
type Field<'b> = MaybeUninit<httparse::Header<'b>>;

fn with_fields<'b, T>(limits: &Limits, parse: impl FnOnce(&mut [Field<'b>]) -> T) -> T {
    let mut usual = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    if let Some(fields) = usual.get_mut(..limits.fields) {
        return parse(fields);
    }
    let mut more = Vec::new();
    more.resize_with(limits.fields, MaybeUninit::uninit);
    parse(&mut more)
}

/// Where a part is in the bytes it is a part of.
#[derive(Clone, Copy)]
struct Range {
    from: usize,
    to: usize,
}

struct Span {
    name: Range,
    value: Range,
}

fn span(whole: &[u8], part: &[u8]) -> Range {
    let from = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
    Range { from, to: from + part.len() }
}

fn spans(whole: &[u8], fields: &[httparse::Header<'_>]) -> Vec<Span> {
    let of = |field: &httparse::Header<'_>| Span {
        name: span(whole, field.name.as_bytes()),
        value: span(whole, field.value),
    };
    fields.iter().map(of).collect()
}

fn slice(bytes: &Bytes, range: Range) -> Bytes {
    bytes.slice(range.from.min(bytes.len())..range.to.min(bytes.len()))
}

fn malformed(error: httparse::Error) -> Error {
    let why = match error {
        httparse::Error::TooManyHeaders => return Error::TooLarge,
        httparse::Error::HeaderName => "a field's name is no token",
        httparse::Error::HeaderValue => "a field's value has a control character",
        httparse::Error::NewLine => "a line ends without a line feed",
        httparse::Error::Status => "its status is no status",
        httparse::Error::Token => "its first line has a character that does not belong there",
        httparse::Error::Version => "its version is neither HTTP/1.1 nor HTTP/1.0",
    };
    Malformed::Head(why).into()
}

fn field_name(name: &[u8]) -> Result<HeaderName, Malformed> {
    HeaderName::from_bytes(name).map_err(|_| Malformed::Head("a field's name is no token"))
}

fn field_value(value: Bytes) -> Result<HeaderValue, Malformed> {
    HeaderValue::from_maybe_shared(value)
        .map_err(|_| Malformed::Head("a field's value has a control character"))
}

fn version(http11: bool) -> Version {
    if http11 { Version::HTTP_11 } else { Version::HTTP_10 }
}

fn parse_target(method: &Method, target: Bytes) -> Result<Uri, Malformed> {
    let uri = Uri::from_maybe_shared(target).map_err(|_| Malformed::Head("its target is no URI"))?;
    // Both forms without a path are for these methods only: RFC 9112 section 3.2.
    let authority_only = uri.scheme().is_none() && uri.authority().is_some();
    if authority_only != (method == Method::CONNECT) {
        return Err(Malformed::Head("its target's form is not its method's"));
    }
    Ok(uri)
}

struct Fields {
    headers: HeaderMap,
    spelling: Spelling,
}

impl Fields {
    /// Those at `spans` that `look` keeps.
    fn read(
        bytes: &Bytes,
        spans: &[Span],
        mut look: impl FnMut(&[u8], &[u8]) -> Result<Keep, Malformed>,
    ) -> Result<Self, Malformed> {
        // One more: of a request, this proxy says who its client is.
        let mut headers = HeaderMap::with_capacity(spans.len() + 1);
        // Whether all names so far are written so.
        let (mut lower, mut title) = (true, true);
        for span in spans {
            let raw = bytes.get(span.name.from..span.name.to).unwrap_or_default();
            let value = slice(bytes, span.value);
            if look(raw, &value)? == Keep::No {
                continue;
            }
            let name = field_name(raw)?;
            lower = lower && raw == name.as_str().as_bytes();
            title = title && is_title(raw);
            headers.append(name, field_value(value)?);
        }
        let spelling = match (lower, title) {
            (true, _) => Spelling::Lower,
            (false, true) => Spelling::Title,
            (false, false) => Spelling::Mixed(spans.iter().map(|span| slice(bytes, span.name)).collect()),
        };
        Ok(Self { headers, spelling })
    }
}

/// Makes of a lower-case name what [`Spelling::Title`] says.
pub fn to_title(name: &mut [u8]) {
    if name.starts_with(b"l5d-") {
        return;
    }
    let mut begins = true;
    for byte in name {
        if begins {
            byte.make_ascii_uppercase();
        }
        begins = *byte == b'-';
    }
}

fn is_title(name: &[u8]) -> bool {
    if name.get(..4).is_some_and(|begins| begins.eq_ignore_ascii_case(b"l5d-")) {
        return !name.iter().any(u8::is_ascii_uppercase);
    }
    let mut begins = true;
    name.iter().all(|byte| {
        let fits = if begins { !byte.is_ascii_lowercase() } else { !byte.is_ascii_uppercase() };
        begins = *byte == b'-';
        fits
    })
}

#[cfg(test)]
mod tests;
