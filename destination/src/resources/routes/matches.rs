//! Pure. What a request must be like: path, headers, query and method of HTTP, service and method of gRPC.

use super::{
    Match,
    parts::{MAX_HEADER_VALUE, optional},
};
use crate::resources::strict::{Fields, Mistakes, join, shown};
use remora_core::route::whole_match;
use serde_json::Value;

/// Most headers, or query parameters, of a match. Gateway API.
const MAX_CONDITIONS: usize = 16;
/// Longest path, query value, and name in gRPC. Gateway API.
const MAX_TEXT: usize = 1024;
/// Most regular expressions of a route: each is compiled by every proxy that has the route. Gateway API has no bound.
const MAX_PATTERNS: usize = 128;

/// Bytes that one of them may take, compiled: the bound of `remora_runtime::api`.
const MAX_COMPILED: usize = 64 << 10;

/// What an HTTP request must be like: all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpMatch {
    /// The path.
    pub path: PathMatch,
    /// Headers, by names in lower case.
    pub headers: Vec<(String, ValueMatch)>,
    /// Query parameters.
    pub query: Vec<(String, ValueMatch)>,
    /// The method.
    pub method: Option<&'static str>,
}

/// What a gRPC request must be like: all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcMatch {
    /// Its service.
    pub service: Option<GrpcName>,
    /// Its method.
    pub method: Option<GrpcName>,
    /// Headers, by names in lower case.
    pub headers: Vec<(String, ValueMatch)>,
}

/// A path that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// On segment boundaries.
    Prefix(String),
    /// A pattern of the whole path; it has been compiled once, to see that it can be.
    Regex(String),
}

/// A value that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// A pattern of the whole value; it has been compiled once, to see that it can be.
    Regex(String),
}

/// A service or method of gRPC that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcName {
    /// The whole name.
    Exact(String),
    /// A pattern of it.
    Regex(String),
}

/// The patterns of a route, counted; and what is to be said of its matches.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    pub(super) count: usize,
    pub(super) warnings: Vec<String>,
}

impl HttpMatch {
    /// Of a rule without matches: every request.
    pub(crate) fn every() -> Self {
        let (headers, query) = (Vec::new(), Vec::new());
        Self { path: PathMatch::Prefix("/".to_owned()), headers, query, method: None }
    }
}

#[derive(Clone, Copy)]
enum ValueType {
    Exact,
    Regex,
}

const VALUE_TYPES: [(&str, ValueType); 2] =
    [("Exact", ValueType::Exact), ("RegularExpression", ValueType::Regex)];

pub(super) fn http(
    path: &str,
    value: &Value,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<Match> {
    let fields = mistakes.object(path, value, &["path", "headers", "queryParams", "method"])?;
    let every = Some(PathMatch::Prefix("/".to_owned()));
    let wanted = match fields.get("path") {
        Some(value) => path_match(&join(path, "path"), value, patterns, mistakes),
        None => every,
    };
    let headers = values(path, fields, "headers", patterns, mistakes);
    let query = values(path, fields, "queryParams", patterns, mistakes);
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let methods = methods.map(|method| (method, method));
    let method = optional(path, fields, "method", |path, value| mistakes.one_of(path, value, &methods));
    Some(Match::Http(HttpMatch { path: wanted?, headers, query, method }))
}

pub(super) fn grpc(
    path: &str,
    value: &Value,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<Match> {
    let fields = mistakes.object(path, value, &["method", "headers"])?;
    let headers = values(path, fields, "headers", patterns, mistakes);
    let (mut service, mut method) = (None, None);
    if let Some(value) = fields.get("method") {
        (service, method) = grpc_method(&join(path, "method"), value, patterns, mistakes)?;
    }
    Some(Match::Grpc(GrpcMatch { service, method, headers }))
}

fn path_match(
    path: &str,
    value: &Value,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<PathMatch> {
    #[derive(Clone, Copy)]
    enum Type {
        Exact,
        Prefix,
        Regex,
    }
    let types = [("Exact", Type::Exact), ("PathPrefix", Type::Prefix), ("RegularExpression", Type::Regex)];
    let fields = mistakes.object(path, value, &["type", "value"])?;
    let kind = match fields.get("type") {
        Some(value) => mistakes.one_of(&join(path, "type"), value, &types),
        None => Some(Type::Prefix),
    };
    let value_at = join(path, "value");
    let text = match fields.get("value") {
        Some(value) => mistakes.short(&value_at, value, MAX_TEXT),
        None => Some("/"),
    };
    let (kind, text) = (kind?, text?);
    if let Type::Regex = kind {
        return pattern(&value_at, text, patterns, mistakes).map(PathMatch::Regex);
    }
    if let Some(reason) = not_a_path(text) {
        mistakes.add(&value_at, format!("{:?} {reason}", shown(text)));
        return None;
    }
    let text = text.to_owned();
    Some(if let Type::Exact = kind { PathMatch::Exact(text) } else { PathMatch::Prefix(text) })
}

/// Why a text can be no path that is compared byte by byte. Gateway API.
fn not_a_path(text: &str) -> Option<&'static str> {
    if !text.starts_with('/') {
        return Some("does not begin with a slash");
    }
    let within = ["//", "/./", "/../", "%2f", "%2F"];
    if within.iter().any(|part| text.contains(part)) || text.ends_with("/.") || text.ends_with("/..") {
        return Some("has a part that is not a plain segment: //, /./, /../ or %2F");
    }
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let plain = byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(&byte);
        let mut hex = || bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit());
        let escaped = byte == b'%' && hex() && hex();
        if !plain && !escaped {
            return Some("has a character that no path has");
        }
    }
    None
}

/// Conditions on headers or query parameters. Of two with the same name only the first counts, as Gateway API has it.
fn values(
    path: &str,
    fields: Fields<'_>,
    name: &str,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Vec<(String, ValueMatch)> {
    let path = join(path, name);
    let is_header = name == "headers";
    let mut read: Vec<(String, ValueMatch)> = Vec::new();
    for (path, value) in mistakes.list(&path, fields.get(name), MAX_CONDITIONS) {
        let Some(condition) = value_match(&path, value, is_header, patterns, mistakes) else { continue };
        if read.iter().any(|(known, _)| *known == condition.0) {
            patterns.warnings.push(format!(
                "{path}: {:?} has a condition already; only the first one counts",
                shown(&condition.0)
            ));
        } else {
            read.push(condition);
        }
    }
    read
}

fn value_match(
    path: &str,
    value: &Value,
    is_header: bool,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<(String, ValueMatch)> {
    let fields = mistakes.object(path, value, &["type", "name", "value"])?;
    let kind = match fields.get("type") {
        Some(value) => mistakes.one_of(&join(path, "type"), value, &VALUE_TYPES),
        None => Some(ValueType::Exact),
    };
    let name_at = join(path, "name");
    let name = mistakes.required(path, fields, "name");
    let name = name.and_then(|value| mistakes.header_name(&name_at, value).map(|lower| (value, lower)));
    // The names of query parameters are looked for as they are written.
    let name = name.and_then(
        |(value, lower)| {
            if is_header { Some(lower) } else { value.as_str().map(str::to_owned) }
        },
    );
    let value_at = join(path, "value");
    let most = if is_header { MAX_HEADER_VALUE } else { MAX_TEXT };
    let text = mistakes.required(path, fields, "value");
    let text = text.and_then(|value| mistakes.short(&value_at, value, most));
    let (kind, text) = (kind?, text?);
    let wanted = match kind {
        ValueType::Regex => pattern(&value_at, text, patterns, mistakes).map(ValueMatch::Regex),
        ValueType::Exact if is_header && http::HeaderValue::from_bytes(text.as_bytes()).is_err() => {
            mistakes.add(&value_at, format!("{:?} is no value of a header", shown(text)));
            None
        }
        ValueType::Exact => {
            patterns.warnings.extend(placeholder(&value_at, text, "compared as it is written"));
            Some(ValueMatch::Exact(text.to_owned()))
        }
    };
    Some((name?, wanted?))
}

type GrpcNames = (Option<GrpcName>, Option<GrpcName>);

fn grpc_method(
    path: &str,
    value: &Value,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<GrpcNames> {
    let fields = mistakes.object(path, value, &["type", "service", "method"])?;
    let kind = match fields.get("type") {
        Some(value) => mistakes.one_of(&join(path, "type"), value, &VALUE_TYPES),
        None => Some(ValueType::Exact),
    };
    let mut name = |name: &str| {
        // An empty name is one that is left out.
        let value = fields.get(name).filter(|value| value.as_str() != Some(""))?;
        let at = join(path, name);
        let text = mistakes.short(&at, value, MAX_TEXT)?;
        if let Some(ValueType::Regex) = kind {
            return pattern(&at, text, patterns, mistakes).map(GrpcName::Regex);
        }
        if !is_grpc_name(text, name == "service") {
            mistakes.add(&at, format!("{:?} is no name of a gRPC {name}", shown(text)));
            return None;
        }
        Some(GrpcName::Exact(text.to_owned()))
    };
    let names = (name("service"), name("method"));
    if fields.get("service").is_none() && fields.get("method").is_none() {
        mistakes.add(path, "neither service nor method");
    }
    Some(names)
}

/// Words of letters, digits and `_`, with dots between them in the name of a service.
fn is_grpc_name(text: &str, dots: bool) -> bool {
    let word = |word: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let begins = word.bytes().next().is_some_and(|first| !first.is_ascii_digit());
        begins && word.bytes().all(inner)
    };
    // One dot in front is allowed as well: the name as protobuf has it.
    if dots { text.strip_prefix('.').unwrap_or(text).split('.').all(word) } else { word(text) }
}

fn pattern(path: &str, text: &str, patterns: &mut Patterns, mistakes: &mut Mistakes) -> Option<String> {
    patterns.count += 1;
    if patterns.count > MAX_PATTERNS {
        mistakes.add(path, format!("more than {MAX_PATTERNS} regular expressions in one route"));
        return None;
    }
    match whole_match(text).map_err(|error| error.to_string()).and_then(|_| fits(text)) {
        Ok(()) => Some(text.to_owned()),
        Err(error) => {
            // The pattern comes first, whole; the reason is the last line.
            let why = shown(error.lines().last().unwrap_or_default());
            mistakes.add(path, format!("{:?} is no regular expression: {why}", shown(text)));
            None
        }
    }
}

/// Is it small enough for proxies, which refuse what takes more?
fn fits(pattern: &str) -> Result<(), String> {
    let mut builder = regex::RegexBuilder::new(&format!("^(?:{pattern})$"));
    let compiled = builder.size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
    compiled.map(drop).map_err(|error| error.to_string())
}

/// A warning about what looks like a variable, which nobody fills in.
pub(super) fn placeholder(path: &str, text: &str, what: &str) -> Option<String> {
    let begin = text.find("${")?;
    let found = text.get(begin..).unwrap_or_default();
    let end = found.find('}').map_or(found.len(), |end| end + 1);
    let found = shown(found.get(..end).unwrap_or(found));
    Some(format!("{path}: {found} is no variable here; it is {what}"))
}
