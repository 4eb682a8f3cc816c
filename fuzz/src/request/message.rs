//! HTTP/1.1 requests by the letter of RFC 9112, as bytes: what they say, or why nobody can be sure.

/// A request as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) method: String,
    pub(super) target: Vec<u8>,
    /// Names in lower case, in their order.
    pub(super) headers: Vec<(String, Vec<u8>)>,
    /// What there is of it.
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, Vec<u8>)>,
    pub(super) minor: u8,
    /// It was told by a content-length and by chunks at once; the chunks count (section 6.3).
    pub(super) framed_twice: bool,
    /// Nothing in it that a recipient may refuse: it must go through.
    pub(super) plain: bool,
}

/// What some bytes are.
#[derive(Debug)]
pub(super) enum Read {
    /// The beginning of a head.
    NeedMore,
    /// A head, and not the whole body.
    Unfinished(Message),
    /// A request, and how many bytes it took.
    Whole(Message, usize),
    /// No request, or one that recipients read differently.
    Never(&'static str),
}

/// How the bytes are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// As a recipient may at most: lines that end with LF alone, empty lines before a request, chunk extensions, equal
    /// lengths said twice.
    Lenient,
    /// As a sender has to write.
    Strict,
}

/// Reads one request.
pub(super) fn read(bytes: &[u8], reader: Reader) -> Read {
    let strict = reader == Reader::Strict;
    let mut at = 0;
    if !strict {
        while let Some(length) =
            [&b"\r\n"[..], b"\n"].iter().find(|end| bytes[at..].starts_with(end)).map(|end| end.len())
        {
            at += length;
        }
    }
    let mut message = Message { plain: at == 0, ..Message::default() };
    let (line, after) = match line(&bytes[at..], reader, &mut message.plain) {
        Line::Is(line, length) => (line, at + length),
        Line::NeedMore => return Read::NeedMore,
        Line::Never(why) => return Read::Never(why),
    };
    if let Err(why) = request_line(line, &mut message) {
        return Read::Never(why);
    }
    let (headers, after) = match fields(bytes, after, reader, &mut message.plain) {
        Fields::Are(headers, after) => (headers, after),
        Fields::NeedMore => return Read::NeedMore,
        Fields::Never(why) => return Read::Never(why),
    };
    message.headers = headers;
    let framing = match framing(&mut message, reader) {
        Ok(framing) => framing,
        Err(why) => return Read::Never(why),
    };
    match framing {
        Framing::Length(length) => {
            let rest = &bytes[after..];
            let Some(body) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
                message.body = rest.to_vec();
                return Read::Unfinished(message);
            };
            message.body = body.to_vec();
            let used = after + body.len();
            Read::Whole(message, used)
        }
        Framing::Chunked => chunks(bytes, after, reader, message),
    }
}

enum Line<'a> {
    Is(&'a [u8], usize),
    NeedMore,
    Never(&'static str),
}

/// A line without its end, and its length with it. A CR that ends no line may be taken for an end by somebody.
fn line<'a>(bytes: &'a [u8], reader: Reader, plain: &mut bool) -> Line<'a> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        let body = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        return if body.contains(&b'\r') { Line::Never("a CR alone") } else { Line::NeedMore };
    };
    let line = match bytes[..end].strip_suffix(b"\r") {
        Some(line) => line,
        None if reader == Reader::Strict => return Line::Never("an LF alone"),
        None => {
            *plain = false;
            &bytes[..end]
        }
    };
    if line.contains(&b'\r') { Line::Never("a CR alone") } else { Line::Is(line, end + 1) }
}

fn request_line(line: &[u8], message: &mut Message) -> Result<(), &'static str> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("not three words");
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err("no method");
    }
    if target.is_empty() || target.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err("no target");
    }
    message.minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        _ => return Err("no version"),
    };
    message.method = String::from_utf8_lossy(method).into_owned();
    message.target = target.to_vec();
    message.plain &= target.starts_with(b"/")
        && target.iter().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~?=&".contains(byte));
    message.plain &=
        ["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"].contains(&message.method.as_str());
    Ok(())
}

enum Fields {
    Are(Vec<(String, Vec<u8>)>, usize),
    NeedMore,
    Never(&'static str),
}

/// Header or trailer lines up to the empty one.
fn fields(bytes: &[u8], mut at: usize, reader: Reader, plain: &mut bool) -> Fields {
    let mut fields = vec![];
    loop {
        let line = match line(&bytes[at..], reader, plain) {
            Line::Is(line, length) => {
                at += length;
                line
            }
            Line::NeedMore => return Fields::NeedMore,
            Line::Never(why) => return Fields::Never(why),
        };
        if line.is_empty() {
            return Fields::Are(fields, at);
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Fields::Never("a folded line");
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Fields::Never("no colon");
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Fields::Never("no header name");
        }
        if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Fields::Never("a control character in a value");
        }
        *plain &= value.is_ascii();
        fields.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()));
    }
}

enum Framing {
    Length(u64),
    Chunked,
}

/// Section 6.3, and section 3.2 for hosts.
fn framing(message: &mut Message, reader: Reader) -> Result<Framing, &'static str> {
    let all = |name: &str| -> Vec<Vec<u8>> {
        message.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.clone()).collect()
    };
    let (lengths, codings, hosts) = (all("content-length"), all("transfer-encoding"), all("host"));
    if hosts.len() > 1 {
        return Err("two hosts");
    }
    message.plain &= hosts.len() == 1
        && hosts
            .iter()
            .all(|host| host.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte)));
    message.plain &= hosts.iter().all(|host| !host.is_empty());
    let odd = ["expect", "upgrade", "connection", "te"];
    message.plain &= !message.headers.iter().any(|(name, _)| odd.contains(&name.as_str()));
    // A connection of an HTTP/1.0 client ends with its first request.
    message.plain &= message.minor == 1;
    message.plain &= lengths.len() < 2 && codings.len() < 2 && (lengths.is_empty() || codings.is_empty());
    if !codings.is_empty() {
        if message.minor == 0 {
            return Err("chunks of an HTTP/1.0 client");
        }
        let list: Vec<u8> = codings.join(&b","[..]);
        let mut names = list.split(|byte| *byte == b',').map(|name| name.trim_ascii().to_ascii_lowercase());
        let first_chunked = names.by_ref().position(|name| name == b"chunked");
        if first_chunked.is_none() || names.next().is_some() {
            return Err("a transfer coding that does not end with chunked");
        }
        message.plain &= first_chunked == Some(0);
        if !lengths.is_empty() {
            message.framed_twice = true;
            if reader == Reader::Strict {
                return Err("a length and chunks");
            }
        }
        return Ok(Framing::Chunked);
    }
    // A list of equal lengths may be refused: RFC 9110 section 8.6.
    message.plain &= !lengths.iter().any(|value| value.contains(&b','));
    let mut length = None;
    for value in lengths.iter().flat_map(|value| value.split(|byte| *byte == b',')) {
        let digits = value.trim_ascii();
        message.plain &= digits == value && digits.len() < 16;
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err("a length that is no number");
        }
        let number: u64 =
            String::from_utf8_lossy(digits).parse().map_err(|_| "a length that is too large")?;
        if length.replace(number).is_some_and(|other| other != number) {
            return Err("two lengths");
        }
        if reader == Reader::Strict && lengths.iter().map(Vec::len).sum::<usize>() != digits.len() {
            return Err("a length said twice");
        }
    }
    if message.method == "CONNECT" && length.unwrap_or(0) > 0 {
        return Err("CONNECT with a body");
    }
    Ok(Framing::Length(length.unwrap_or(0)))
}

/// Section 7.1.
fn chunks(bytes: &[u8], mut at: usize, reader: Reader, mut message: Message) -> Read {
    if message.method == "CONNECT" {
        return Read::Never("CONNECT with a body");
    }
    loop {
        // Between chunks nobody forgives an LF alone: what is a line to one is an extension to another.
        let (line, length) = match line(&bytes[at..], Reader::Strict, &mut message.plain) {
            Line::Is(line, length) => (line, length),
            Line::NeedMore => return Read::Unfinished(message),
            Line::Never(why) => return unsure(message, why),
        };
        at += length;
        let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let extension = &line[digits..];
        message.plain &= extension.is_empty() && digits < 8;
        let is_extension =
            extension.trim_ascii_start().starts_with(b";") || extension.trim_ascii().is_empty();
        if !is_extension || (reader == Reader::Strict && !extension.is_empty()) {
            return unsure(message, "a chunk of no size");
        }
        let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(&line[..digits]), 16) else {
            return unsure(message, "a chunk of no size");
        };
        if size == 0 {
            break;
        }
        let rest = &bytes[at..];
        let Some(data) = rest.get(..size) else {
            message.body.extend_from_slice(rest);
            return Read::Unfinished(message);
        };
        message.body.extend_from_slice(data);
        at += size;
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Read::Unfinished(message),
            _ => return unsure(message, "a chunk that is longer than it says"),
        }
    }
    match fields(bytes, at, Reader::Strict, &mut message.plain) {
        Fields::Are(trailers, at) => {
            message.plain &= trailers.is_empty();
            message.trailers = trailers;
            Read::Whole(message, at)
        }
        Fields::NeedMore => Read::Unfinished(message),
        Fields::Never(why) => unsure(message, why),
    }
}

/// What came of the body may have gone out already, but never its end.
fn unsure(mut message: Message, _why: &str) -> Read {
    message.plain = false;
    Read::Unfinished(message)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
