//! Pure. What is done with a request or its response on the way. All filters that Gateway API defines are read; whether
//! one can be applied is for others to say.

use super::{
    RouteKind, TargetRef,
    matches::placeholder,
    parts::{optional, target_ref},
};
use crate::resources::strict::{Fields, Mistakes, join, shown};
use serde_json::Value;

/// Most filters of a rule or backend, and most headers of one of a filter's lists. Gateway API.
const MAX_FILTERS: usize = 16;
/// Longest path that replaces another. Gateway API.
const MAX_PATH: usize = 1024;

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// `RequestHeaderModifier`.
    RequestHeaders(HeaderEdit),
    /// `ResponseHeaderModifier`.
    ResponseHeaders(HeaderEdit),
    /// `RequestRedirect`.
    Redirect(Redirect),
    /// `URLRewrite`.
    Rewrite(Rewrite),
    /// `RequestMirror`.
    Mirror(Mirror),
    /// One that this mesh has nothing for, by its type.
    Other(&'static str),
}

/// Changes of headers, whose names are in lower case. No name comes twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Headers that replace others of their names.
    pub set: Vec<(String, String)>,
    /// Headers that come beside others of their names.
    pub add: Vec<(String, String)>,
    /// Headers that are left out.
    pub remove: Vec<String>,
}

/// An answer that sends the client elsewhere; what is not said stays as the client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
    /// Port.
    pub port: Option<u16>,
    /// Status: 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A request that goes on as another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathModifier>,
}

/// A path in place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// In place of all of it.
    Full(String),
    /// In place of the prefix that the rule's only match names.
    Prefix(String),
}

/// A copy of a share of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where it goes.
    pub target: TargetRef,
    /// The share: so many of so many. The second is not 0, the first not larger.
    pub share: (u32, u32),
}

/// Which filters there may be, and what may be in them.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) kind: RouteKind,
    /// Has the rule exactly one match, and that a path's prefix?
    pub(super) one_prefix: bool,
    pub(super) warnings: std::cell::RefCell<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    RequestHeaders,
    ResponseHeaders,
    Redirect,
    Rewrite,
    Mirror,
    Cors,
    ExternalAuth,
    Extension,
}

/// Type, and the field that belongs to it.
const TYPES: [(&str, &str, Type); 8] = [
    ("RequestHeaderModifier", "requestHeaderModifier", Type::RequestHeaders),
    ("ResponseHeaderModifier", "responseHeaderModifier", Type::ResponseHeaders),
    ("RequestMirror", "requestMirror", Type::Mirror),
    ("RequestRedirect", "requestRedirect", Type::Redirect),
    ("URLRewrite", "urlRewrite", Type::Rewrite),
    ("ExtensionRef", "extensionRef", Type::Extension),
    ("CORS", "cors", Type::Cors),
    ("ExternalAuth", "externalAuth", Type::ExternalAuth),
];

impl Filter {
    /// The field that it is in.
    pub fn field(&self) -> &'static str {
        match self {
            Self::RequestHeaders(_) => "requestHeaderModifier",
            Self::ResponseHeaders(_) => "responseHeaderModifier",
            Self::Redirect(_) => "requestRedirect",
            Self::Rewrite(_) => "urlRewrite",
            Self::Mirror(_) => "requestMirror",
            Self::Other(name) => {
                TYPES.iter().find(|(known, ..)| known == name).map_or("type", |(_, field, _)| field)
            }
        }
    }

    /// Its type.
    pub fn name(&self) -> &'static str {
        TYPES.iter().find(|(_, field, _)| *field == self.field()).map_or("", |(name, ..)| name)
    }
}

/// The `filters` of a rule or backend.
pub(super) fn list(
    path: &str,
    fields: Fields<'_>,
    context: &Context,
    mistakes: &mut Mistakes,
) -> Vec<Filter> {
    let path = join(path, "filters");
    let listed = mistakes.list(&path, fields.get("filters"), MAX_FILTERS);
    let mut types: Vec<Type> = Vec::new();
    let mut read = Vec::new();
    for (path, value) in &listed {
        let Some(kind) = filter(path, value, context, mistakes, &mut read) else { continue };
        let once = !matches!(kind, Type::Mirror | Type::Extension);
        if once && types.contains(&kind) {
            mistakes.add(path, "a second filter of this type");
        }
        types.push(kind);
    }
    if types.contains(&Type::Redirect) && types.contains(&Type::Rewrite) {
        mistakes.add(&path, "RequestRedirect and URLRewrite exclude each other");
    }
    read
}

fn filter(
    path: &str,
    value: &Value,
    context: &Context,
    mistakes: &mut Mistakes,
    into: &mut Vec<Filter>,
) -> Option<Type> {
    let allowed = TYPES.iter().filter(|(_, _, kind)| context.allows(*kind));
    let fields: Vec<&str> =
        std::iter::once("type").chain(allowed.clone().map(|(_, field, _)| *field)).collect();
    let names: Vec<(&str, Type)> = allowed.map(|(name, _, kind)| (*name, *kind)).collect();
    let found = mistakes.object(path, value, &fields)?;
    let kind = mistakes.required(path, found, "type");
    let kind = kind.and_then(|value| mistakes.one_of(&join(path, "type"), value, &names))?;
    let (name, field, _) = TYPES.iter().find(|(_, _, known)| *known == kind)?;
    for other in fields.iter().filter(|other| **other != "type" && *other != field) {
        if found.get(other).is_some() {
            mistakes.add(&join(path, other), format!("does not belong to a filter of type {name}"));
        }
    }
    let value = mistakes.required(path, found, field)?;
    let path = join(path, field);
    into.extend(match kind {
        Type::RequestHeaders => header_edit(&path, value, context, mistakes).map(Filter::RequestHeaders),
        Type::ResponseHeaders => header_edit(&path, value, context, mistakes).map(Filter::ResponseHeaders),
        Type::Redirect => redirect(&path, value, context, mistakes).map(Filter::Redirect),
        Type::Rewrite => rewrite(&path, value, context, mistakes).map(Filter::Rewrite),
        Type::Mirror => mirror(&path, value, mistakes).map(Filter::Mirror),
        Type::Cors | Type::ExternalAuth | Type::Extension => Some(Filter::Other(name)),
    });
    Some(kind)
}

impl Context {
    fn allows(&self, kind: Type) -> bool {
        match self.kind {
            RouteKind::Grpc => {
                matches!(kind, Type::RequestHeaders | Type::ResponseHeaders | Type::Mirror | Type::Extension)
            }
            RouteKind::LinkerdHttp => {
                matches!(kind, Type::RequestHeaders | Type::ResponseHeaders | Type::Redirect)
            }
            _ => true,
        }
    }

    fn warn(&self, warning: Option<String>) {
        self.warnings.borrow_mut().extend(warning);
    }
}

fn header_edit(path: &str, value: &Value, context: &Context, mistakes: &mut Mistakes) -> Option<HeaderEdit> {
    let fields = mistakes.object(path, value, &["set", "add", "remove"])?;
    let mut names: Vec<String> = Vec::new();
    let mut edit = HeaderEdit::default();
    for (field, into) in [("set", &mut edit.set), ("add", &mut edit.add)] {
        for (path, value) in mistakes.list(&join(path, field), fields.get(field), MAX_FILTERS) {
            let Some(fields) = mistakes.object(&path, value, &["name", "value"]) else { continue };
            let name = mistakes.required(&path, fields, "name");
            let name = name.and_then(|value| unique(&join(&path, "name"), value, &mut names, mistakes));
            let value_at = join(&path, "value");
            let value = mistakes.required(&path, fields, "value");
            let value = value.and_then(|value| mistakes.header_value(&value_at, value));
            let (Some(name), Some(value)) = (name, value) else { continue };
            context.warn(placeholder(&value_at, value, "sent as it is written"));
            into.push((name, value.to_owned()));
        }
    }
    for (path, value) in mistakes.list(&join(path, "remove"), fields.get("remove"), MAX_FILTERS) {
        edit.remove.extend(unique(&path, value, &mut names, mistakes));
    }
    Some(edit)
}

/// The name of a header that has no other action in the same filter.
fn unique(path: &str, value: &Value, names: &mut Vec<String>, mistakes: &mut Mistakes) -> Option<String> {
    let name = mistakes.header_name(path, value)?;
    if names.contains(&name) {
        mistakes.add(path, format!("{:?} has an action in this filter already", shown(&name)));
        return None;
    }
    names.push(name.clone());
    Some(name)
}

fn redirect(path: &str, value: &Value, context: &Context, mistakes: &mut Mistakes) -> Option<Redirect> {
    let known = ["scheme", "hostname", "path", "port", "statusCode"];
    let fields = mistakes.object(path, value, &known)?;
    let schemes = [("http", "http"), ("https", "https")];
    let scheme = optional(path, fields, "scheme", |path, value| mistakes.one_of(path, value, &schemes));
    let hostname = optional(path, fields, "hostname", |path, value| mistakes.precise_hostname(path, value));
    let modifier =
        optional(path, fields, "path", |path, value| path_modifier(path, value, context, mistakes));
    let port = optional(path, fields, "port", |path, value| mistakes.within(path, value, 1, 65_535));
    let status = optional(path, fields, "statusCode", |path, value| {
        let code = value.as_u64().filter(|code| [301, 302, 303, 307, 308].contains(code));
        if code.is_none() {
            mistakes.add(path, "expected one of 301, 302, 303, 307, 308");
        }
        code.and_then(|code| u16::try_from(code).ok())
    });
    Some(Redirect {
        scheme,
        hostname,
        path: modifier,
        port: port.and_then(|port| u16::try_from(port).ok()),
        status: status.unwrap_or(302),
    })
}

fn rewrite(path: &str, value: &Value, context: &Context, mistakes: &mut Mistakes) -> Option<Rewrite> {
    let fields = mistakes.object(path, value, &["hostname", "path"])?;
    let hostname = optional(path, fields, "hostname", |path, value| mistakes.precise_hostname(path, value));
    let modifier =
        optional(path, fields, "path", |path, value| path_modifier(path, value, context, mistakes));
    Some(Rewrite { hostname, path: modifier })
}

fn path_modifier(
    path: &str,
    value: &Value,
    context: &Context,
    mistakes: &mut Mistakes,
) -> Option<PathModifier> {
    let fields = mistakes.object(path, value, &["type", "replaceFullPath", "replacePrefixMatch"])?;
    let types = [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")];
    let field = mistakes.required(path, fields, "type");
    let field = field.and_then(|value| mistakes.one_of(&join(path, "type"), value, &types))?;
    for (_, other) in types.iter().filter(|(_, other)| *other != field) {
        if fields.get(other).is_some() {
            mistakes.add(&join(path, other), "does not belong to this type");
        }
    }
    let at = join(path, field);
    let value = mistakes.required(path, fields, field)?;
    // A prefix may be replaced by nothing.
    let text = match value.as_str() {
        Some("") => "",
        _ => mistakes.short(&at, value, MAX_PATH)?,
    };
    let plain = text.starts_with('/')
        && !text.contains(['?', '#'])
        && http::uri::PathAndQuery::try_from(text).is_ok_and(|read| read.as_str() == text);
    if !(plain || text.is_empty() && field == "replacePrefixMatch") {
        mistakes.add(&at, format!("{:?} is no path that begins with a slash", shown(text)));
        return None;
    }
    context.warn(placeholder(&at, text, "sent as it is written"));
    if field == "replaceFullPath" {
        return Some(PathModifier::Full(text.to_owned()));
    }
    if !context.one_prefix {
        mistakes.add(&at, "needs a rule with exactly one match, and that of type PathPrefix");
    }
    Some(PathModifier::Prefix(text.to_owned()))
}

fn mirror(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<Mirror> {
    let fields = mistakes.object(path, value, &["backendRef", "percent", "fraction"])?;
    let target = mistakes.required(path, fields, "backendRef");
    let target = target.and_then(|value| target_ref(&join(path, "backendRef"), value, mistakes));
    let percent = optional(path, fields, "percent", |path, value| mistakes.within(path, value, 0, 100));
    let fraction = optional(path, fields, "fraction", |path, value| fraction(path, value, mistakes));
    if fields.get("percent").is_some() && fields.get("fraction").is_some() {
        mistakes.add(path, "percent and fraction exclude each other");
    }
    let share = fraction.unwrap_or_else(|| (percent.unwrap_or(100), 100));
    Some(Mirror { target: target?, share })
}

fn fraction(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<(u32, u32)> {
    let fields = mistakes.object(path, value, &["numerator", "denominator"])?;
    let most = i32::MAX.unsigned_abs();
    let numerator = mistakes.required(path, fields, "numerator");
    let numerator = numerator.and_then(|value| mistakes.within(&join(path, "numerator"), value, 0, most));
    let denominator =
        optional(path, fields, "denominator", |path, value| mistakes.within(path, value, 1, most));
    let share = (numerator?, denominator.unwrap_or(100));
    if share.0 > share.1 {
        mistakes.add(path, "the numerator is larger than the denominator");
        return None;
    }
    Some(share)
}
