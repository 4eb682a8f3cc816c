//! Pure. The conditions of routes and response classes: `all`, `any`, `not`, and what they are made of. Several fields
//! of one condition must all hold, in the order in which Linkerd's controller sends them.

use super::super::strict::{Fields, Mistakes, join};
use remora_core::profile::{MAX_DEPTH, Patterns, ResponseMatch, StatusRange};
use serde_json::Value;
use std::sync::Arc;

/// Most conditions side by side.
const MAX_SIDE_BY_SIDE: usize = 256;

/// A condition on a request, as it is written: its patterns have been compiled once, to see that they can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestMatch {
    /// All of these.
    All(Vec<Self>),
    /// One of these.
    Any(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// The method.
    Method(String),
    /// The pattern of the path.
    Path(Arc<str>),
}

pub(super) fn request(
    path: &str,
    value: &Value,
    depth: usize,
    patterns: &mut Patterns,
    mistakes: &mut Mistakes,
) -> Option<RequestMatch> {
    let fields = fields(path, value, depth, &["all", "any", "not", "method", "pathRegex"], mistakes)?;
    let mut parts: Vec<Option<RequestMatch>> = Vec::new();
    for name in ["all", "any"] {
        let Some(value) = fields.get(name) else { continue };
        let items = mistakes.list(&join(path, name), Some(value), MAX_SIDE_BY_SIDE);
        let items: Option<Vec<_>> =
            each(&items, |path, value| request(path, value, depth + 1, patterns, mistakes));
        parts.push(items.map(if name == "all" { RequestMatch::All } else { RequestMatch::Any }));
    }
    if let Some(value) = fields.get("method") {
        parts.push(method(&join(path, "method"), value, mistakes).map(RequestMatch::Method));
    }
    if let Some(value) = fields.get("not") {
        let (path, value) = only(join(path, "not"), value);
        let not = request(&path, value, depth + 1, patterns, mistakes);
        parts.push(not.map(|not| RequestMatch::Not(Box::new(not))));
    }
    if let Some(value) = fields.get("pathRegex") {
        parts.push(pattern(&join(path, "pathRegex"), value, patterns, mistakes).map(RequestMatch::Path));
    }
    together(path, parts, RequestMatch::All, mistakes)
}

pub(super) fn response(
    path: &str,
    value: &Value,
    depth: usize,
    mistakes: &mut Mistakes,
) -> Option<ResponseMatch> {
    let fields = fields(path, value, depth, &["all", "any", "not", "status"], mistakes)?;
    let mut parts: Vec<Option<ResponseMatch>> = Vec::new();
    for name in ["all", "any"] {
        let Some(value) = fields.get(name) else { continue };
        let path = join(path, name);
        let items = mistakes.list(&path, Some(value), MAX_SIDE_BY_SIDE);
        if matches!(value, Value::Array(none) if none.is_empty()) {
            // Linkerd's proxy drops it, and with it the class.
            mistakes.add(&path, "empty; a condition on responses needs something to hold");
        }
        let items: Option<Vec<_>> = each(&items, |path, value| response(path, value, depth + 1, mistakes));
        parts.push(items.map(if name == "all" { ResponseMatch::All } else { ResponseMatch::Any }));
    }
    if let Some(value) = fields.get("status") {
        parts.push(status(&join(path, "status"), value, mistakes).map(ResponseMatch::Status));
    }
    if let Some(value) = fields.get("not") {
        let not = response(&join(path, "not"), value, depth + 1, mistakes);
        parts.push(not.map(|not| ResponseMatch::Not(Box::new(not))));
    }
    together(path, parts, ResponseMatch::All, mistakes)
}

fn fields<'v>(
    path: &str,
    value: &'v Value,
    depth: usize,
    known: &[&str],
    mistakes: &mut Mistakes,
) -> Option<Fields<'v>> {
    if depth >= MAX_DEPTH {
        mistakes.add(path, format!("conditions are nested deeper than {MAX_DEPTH}"));
        return None;
    }
    mistakes.object(path, value, known)
}

/// Reads every item, also after a mistake, so that all mistakes are found.
fn each<T>(items: &[(String, &Value)], mut read: impl FnMut(&str, &Value) -> Option<T>) -> Option<Vec<T>> {
    let read: Vec<Option<T>> = items.iter().map(|(path, value)| read(path, value)).collect();
    read.into_iter().collect()
}

/// The only item of a list: the CRD's schema wants one where everybody else, Linkerd's controller too, wants an object.
fn only(path: String, value: &Value) -> (String, &Value) {
    match value {
        Value::Array(items) if items.len() == 1 => match items.first() {
            Some(item) => (format!("{path}[0]"), item),
            None => (path, value),
        },
        _ => (path, value),
    }
}

fn together<T>(
    path: &str,
    parts: Vec<Option<T>>,
    all: impl Fn(Vec<T>) -> T,
    mistakes: &mut Mistakes,
) -> Option<T> {
    if parts.is_empty() {
        mistakes.add(path, "a condition without a field; it needs at least one");
        return None;
    }
    let mut parts: Vec<T> = parts.into_iter().collect::<Option<_>>()?;
    if parts.len() == 1 { parts.pop() } else { Some(all(parts)) }
}

fn method(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<String> {
    let method = mistakes.text(path, value)?;
    let upper = method.to_ascii_uppercase();
    if http::Method::from_bytes(upper.as_bytes()).is_err() {
        let shown: String = method.chars().take(80).collect();
        mistakes.add(path, format!("{shown:?} is no method"));
        return None;
    }
    Some(upper)
}

fn pattern(path: &str, value: &Value, patterns: &mut Patterns, mistakes: &mut Mistakes) -> Option<Arc<str>> {
    let pattern = mistakes.text(path, value)?;
    match patterns.compile(pattern) {
        Ok(compiled) => Some(compiled.as_str().into()),
        Err(error) => {
            mistakes.add(path, error.to_string());
            None
        }
    }
}

fn status(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<StatusRange> {
    let fields = mistakes.object(path, value, &["min", "max"])?;
    let mut end = |name: &str| match fields.get(name) {
        Some(value) => mistakes.number(&join(path, name), value),
        None => Some(0),
    };
    let (min, max) = (end("min"), end("max"));
    match StatusRange::new(min?, max?) {
        Ok(range) => Some(range),
        Err(error) => {
            mistakes.add(path, error.to_string());
            None
        }
    }
}
