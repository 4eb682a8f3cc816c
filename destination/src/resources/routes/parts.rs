//! Pure. The small fields that routes are made of: names, hosts, numbers, times, headers, and references.

use super::{BackendRef, GATEWAY_GROUP, Hostname, ParentRef, TargetRef, filters, is_core};
use crate::resources::strict::{Fields, Mistakes, is_dns_label, is_dns_name, join, shown};
use serde_json::Value;
use std::time::Duration;

/// Gateway API's largest weight.
const MAX_WEIGHT: u32 = 1_000_000;
/// Longest name of a header or query parameter. Gateway API.
const MAX_HEADER_NAME: usize = 256;
/// Longest value of a header. Gateway API.
pub(super) const MAX_HEADER_VALUE: usize = 4096;

impl Mistakes {
    /// A whole number within bounds.
    pub(in crate::resources) fn within(
        &mut self,
        path: &str,
        value: &Value,
        low: u32,
        high: u32,
    ) -> Option<u32> {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| (low..=high).contains(number));
        if number.is_none() {
            let found = shown(&value.to_string());
            self.add(path, format!("expected a whole number from {low} to {high}, found {found}"));
        }
        number
    }

    /// A text of at most so many bytes that is not empty.
    pub(super) fn short<'v>(&mut self, path: &str, value: &'v Value, most: usize) -> Option<&'v str> {
        let text = self.text(path, value)?;
        if text.len() > most {
            self.add(path, format!("{} bytes, more than {most}", text.len()));
            return None;
        }
        Some(text)
    }

    /// One of a few words.
    pub(in crate::resources) fn one_of<T: Copy>(
        &mut self,
        path: &str,
        value: &Value,
        words: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(path, value)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.add(path, format!("{:?} is none of {}", shown(text), known.join(", ")));
        }
        found
    }

    /// A time as GEP-2257 has it: one to four whole numbers of at most five digits, each with h, m, s or ms.
    pub(super) fn gateway_duration(&mut self, path: &str, value: &Value) -> Option<Duration> {
        let text = self.text(path, value)?;
        if is_gateway_duration(text) {
            return self.duration(path, value);
        }
        self.add(path, format!("{:?} is no time such as 10s, 1m30s or 250ms", shown(text)));
        None
    }

    /// The name of a header, in lower case.
    pub(super) fn header_name(&mut self, path: &str, value: &Value) -> Option<String> {
        let text = self.short(path, value, MAX_HEADER_NAME)?;
        let name = http::HeaderName::from_bytes(text.as_bytes()).ok();
        if name.is_none() {
            self.add(path, format!("{:?} is no name of a header", shown(text)));
        }
        name.map(|name| name.as_str().to_owned())
    }

    /// The value of a header.
    pub(super) fn header_value<'v>(&mut self, path: &str, value: &'v Value) -> Option<&'v str> {
        let text = self.short(path, value, MAX_HEADER_VALUE)?;
        let trimmed = text.trim_matches([' ', '\t']) == text;
        if !trimmed || http::HeaderValue::from_str(text).is_err() {
            self.add(path, format!("{:?} is no value of a header", shown(text)));
            return None;
        }
        Some(text)
    }

    /// A host, with or without `*.` in front.
    pub(super) fn hostname(&mut self, path: &str, value: &Value) -> Option<Hostname> {
        let text = self.text(path, value)?;
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        if !is_host(name) || text.len() > 253 {
            self.add(path, format!("{:?} is no host name such as example.com or *.example.com", shown(text)));
            return None;
        }
        Some(if wildcard { Hostname::Suffix(name.to_owned()) } else { Hostname::Exact(name.to_owned()) })
    }

    /// A host without `*`.
    pub(super) fn precise_hostname(&mut self, path: &str, value: &Value) -> Option<String> {
        let text = self.text(path, value)?;
        if !is_host(text) {
            self.add(path, format!("{:?} is no host name such as example.com", shown(text)));
            return None;
        }
        Some(text.to_owned())
    }

    /// The name of an object or of one of its sections.
    pub(in crate::resources) fn object_name(&mut self, path: &str, value: &Value) -> Option<String> {
        let text = self.text(path, value)?;
        if !is_dns_name(text) {
            self.add(path, format!("{:?} is no name of an object", shown(text)));
            return None;
        }
        Some(text.to_owned())
    }

    /// An API group, which may be empty.
    pub(in crate::resources) fn group(&mut self, path: &str, value: &Value) -> Option<String> {
        if value.as_str().is_some_and(str::is_empty) {
            return Some(String::new());
        }
        self.object_name(path, value)
    }

    /// A kind.
    pub(in crate::resources) fn kind(&mut self, path: &str, value: &Value) -> Option<String> {
        let text = self.short(path, value, 63)?;
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let begins = text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic());
        if !begins || text.ends_with('-') || !text.bytes().all(inner) {
            self.add(path, format!("{:?} is no kind", shown(text)));
            return None;
        }
        Some(text.to_owned())
    }
}

/// The namespace of an object.
pub(in crate::resources) fn namespace(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<String> {
    let text = mistakes.text(path, value)?;
    if !is_dns_label(text) {
        mistakes.add(path, format!("{:?} is no name of a namespace", shown(text)));
        return None;
    }
    Some(text.to_owned())
}

/// A field that may be missing.
pub(in crate::resources) fn optional<T>(
    path: &str,
    fields: Fields<'_>,
    name: &str,
    read: impl FnOnce(&str, &Value) -> Option<T>,
) -> Option<T> {
    fields.get(name).and_then(|value| read(&join(path, name), value))
}

pub(super) fn parent_ref(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<ParentRef> {
    let known = ["group", "kind", "namespace", "name", "sectionName", "port"];
    let fields = mistakes.object(path, value, &known)?;
    let name = mistakes.required(path, fields, "name");
    let name = name.and_then(|value| mistakes.object_name(&join(path, "name"), value));
    let group = optional(path, fields, "group", |path, value| mistakes.group(path, value));
    let kind = optional(path, fields, "kind", |path, value| mistakes.kind(path, value));
    let namespace = optional(path, fields, "namespace", |path, value| namespace(path, value, mistakes));
    let section = optional(path, fields, "sectionName", |path, value| mistakes.object_name(path, value));
    let port = optional(path, fields, "port", |path, value| mistakes.within(path, value, 1, 65_535));
    Some(ParentRef {
        group: group.unwrap_or_else(|| GATEWAY_GROUP.to_owned()),
        kind: kind.unwrap_or_else(|| "Gateway".to_owned()),
        namespace,
        name: name?,
        section,
        port: port.and_then(|port| u16::try_from(port).ok()),
    })
}

/// A backend of a rule: `filters` are known to HTTPRoutes and GRPCRoutes only.
pub(super) fn backend_ref(
    path: &str,
    value: &Value,
    http: Option<&filters::Context>,
    mistakes: &mut Mistakes,
) -> Option<BackendRef> {
    let known = ["group", "kind", "namespace", "name", "port", "weight", "filters"];
    let known = known.get(..if http.is_some() { 7 } else { 6 }).unwrap_or(&known);
    let fields = mistakes.object(path, value, known)?;
    let target = target(path, fields, mistakes);
    let weight = optional(path, fields, "weight", |path, value| mistakes.within(path, value, 0, MAX_WEIGHT));
    let filters = http.map_or_else(Vec::new, |context| filters::list(path, fields, context, mistakes));
    Some(BackendRef { target: target?, weight: weight.unwrap_or(1), filters })
}

/// The object that a mirror sends to.
pub(super) fn target_ref(path: &str, value: &Value, mistakes: &mut Mistakes) -> Option<TargetRef> {
    let fields = mistakes.object(path, value, &["group", "kind", "namespace", "name", "port"])?;
    target(path, fields, mistakes)
}

fn target(path: &str, fields: Fields<'_>, mistakes: &mut Mistakes) -> Option<TargetRef> {
    let name = mistakes.required(path, fields, "name");
    let name = name.and_then(|value| mistakes.object_name(&join(path, "name"), value));
    let group = optional(path, fields, "group", |path, value| mistakes.group(path, value));
    let kind = optional(path, fields, "kind", |path, value| mistakes.kind(path, value));
    let namespace = optional(path, fields, "namespace", |path, value| namespace(path, value, mistakes));
    let port = optional(path, fields, "port", |path, value| mistakes.within(path, value, 1, 65_535));
    let (group, kind) = (group.unwrap_or_default(), kind.unwrap_or_else(|| "Service".to_owned()));
    if is_core(&group) && kind == "Service" && fields.get("port").is_none() {
        mistakes.add(&join(path, "port"), "missing; a Service is referred to with a port");
    }
    let port = port.and_then(|port| u16::try_from(port).ok());
    Some(TargetRef { group, kind, namespace, name: name?, port })
}

/// A name of hosts: no IP address, which the last label tells.
fn is_host(name: &str) -> bool {
    let ip = || name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    is_dns_name(name) && !(ip() && name.parse::<std::net::IpAddr>().is_ok())
}

fn is_gateway_duration(text: &str) -> bool {
    let (mut rest, mut parts) = (text, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = rest.get(digits..).unwrap_or_default();
        // `ms` before `m`.
        let tail = ["ms", "h", "m", "s"].iter().find_map(|unit| after.strip_prefix(unit));
        match tail {
            Some(tail) if (1..=5).contains(&digits) => rest = tail,
            _ => return false,
        }
        parts += 1;
    }
    (1..=4).contains(&parts)
}
