//! Pure. Reads objects whose every field we know: what is not known, or not of its type, is a mistake with its path,
//! and all mistakes are found in one reading.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};
use std::time::Duration;

/// Mistakes beyond this number are not listed: whoever mends these sees the rest.
const MAX_MISTAKES: usize = 50;

/// What is wrong with an object: the path of each field and why, in the order of reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mistakes(pub(super) Vec<(String, String)>);

impl Mistakes {
    pub(super) fn add(&mut self, path: &str, reason: impl Into<String>) {
        if self.0.len() < MAX_MISTAKES {
            self.0.push((path.to_owned(), reason.into()));
        }
    }

    /// A mapping without other fields than these.
    pub(super) fn object<'v>(&mut self, path: &str, value: &'v Value, known: &[&str]) -> Option<Fields<'v>> {
        let Value::Object(fields) = value else {
            self.add(path, format!("expected an object, found {}", kind(value)));
            return None;
        };
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            let shown: String = name.chars().take(80).collect();
            self.add(&join(path, &shown), format!("unknown field; known are {}", known.join(", ")));
        }
        Some(Fields(fields))
    }

    /// A list of at most `most` items, each with its path.
    pub(super) fn list<'v>(
        &mut self,
        path: &str,
        value: Option<&'v Value>,
        most: usize,
    ) -> Vec<(String, &'v Value)> {
        match value {
            None => Vec::new(),
            Some(Value::Array(items)) if items.len() > most => {
                self.add(path, format!("{} items, more than {most}", items.len()));
                Vec::new()
            }
            Some(Value::Array(items)) => {
                items.iter().enumerate().map(|(at, item)| (format!("{path}[{at}]"), item)).collect()
            }
            Some(other) => {
                self.add(path, format!("expected a list, found {}", kind(other)));
                Vec::new()
            }
        }
    }

    /// A text that is not empty.
    pub(super) fn text<'v>(&mut self, path: &str, value: &'v Value) -> Option<&'v str> {
        match value {
            Value::String(text) if text.is_empty() => {
                self.add(path, "empty");
                None
            }
            Value::String(text) => Some(text),
            other => {
                self.add(path, format!("expected a text, found {}", kind(other)));
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, path: &str, value: Option<&Value>) -> bool {
        match value {
            None => false,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                self.add(path, format!("expected true or false, found {}", kind(other)));
                false
            }
        }
    }

    /// A whole number that is not negative.
    pub(super) fn number(&mut self, path: &str, value: &Value) -> Option<u32> {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        if number.is_none() {
            self.add(path, format!("expected a whole number from 0 to {}, found {}", u32::MAX, kind(value)));
        }
        number
    }

    /// A time as Go writes it: `10s`, `1m30s`, `250ms`.
    pub(super) fn duration(&mut self, path: &str, value: &Value) -> Option<Duration> {
        let text = self.text(path, value)?;
        match duration(text) {
            Ok(duration) => Some(duration),
            Err(reason) => {
                self.add(path, reason);
                None
            }
        }
    }

    /// The metadata of an object, whose name must be a DNS name such as `example`.
    pub(super) fn metadata(&mut self, fields: Fields<'_>, example: &str) -> Option<ObjectMeta> {
        let value = self.required("", fields, "metadata")?;
        let metadata: ObjectMeta = match serde_path_to_error::deserialize(value) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.add(&join("metadata", &error.path().to_string()), error.inner().to_string());
                return None;
            }
        };
        let name = metadata.name.as_deref().unwrap_or_default();
        if !is_dns_name(name) {
            self.add("metadata.name", format!("{:?} is no DNS name such as {example}", shown(name)));
        }
        Some(metadata)
    }

    /// Notes a field that must be there.
    pub(super) fn required<'v>(&mut self, path: &str, fields: Fields<'v>, name: &str) -> Option<&'v Value> {
        let value = fields.get(name);
        if value.is_none() {
            self.add(&join(path, name), "missing");
        }
        value
    }
}

/// The fields of an object. One that is `null` is not there, as for Kubernetes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'v>(&'v Map<String, Value>);

impl<'v> Fields<'v> {
    pub(super) fn get(self, name: &str) -> Option<&'v Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }
}

/// A field's path.
pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// What an error repeats of a text.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A name as Kubernetes has it for most objects (RFC 1123 subdomain).
pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

/// A name as Kubernetes has it for namespaces and Services (RFC 1123 label).
pub(super) fn is_dns_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = !label.starts_with('-') && !label.ends_with('-');
    (1..=63).contains(&label.len()) && ends && label.bytes().all(allowed)
}

/// A value in words, for the person who wrote it.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Reads a time as Go's `time.ParseDuration` does, without the negative ones.
fn duration(text: &str) -> Result<Duration, String> {
    let shown: String = text.chars().take(80).collect();
    let wrong = || format!("{shown:?} is no time such as 10s, 1m30s or 250ms");
    if text.starts_with('-') {
        return Err(format!("{shown:?} is negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        let (mantissa, scale) = decimal(number).ok_or_else(wrong)?;
        nanos = nanos.saturating_add(mantissa.saturating_mul(unit) / 10_u128.pow(scale));
        rest = tail;
    }
    let nanos = u64::try_from(nanos).ok().filter(|nanos| *nanos <= i64::MAX.unsigned_abs());
    match nanos {
        Some(nanos) if !text.is_empty() => Ok(Duration::from_nanos(nanos)),
        _ => Err(wrong()),
    }
}

/// A decimal number without sign as its digits and how many of them follow the point.
fn decimal(text: &str) -> Option<(u128, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    // 30 digits are more than anything here has, and fewer than a u128 holds.
    if digits.is_empty() || digits.len() > 30 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((digits.parse().ok()?, u32::try_from(fraction.len()).ok()?))
}

/// Reads a Kubernetes quantity (`1`, `500m`, `0.5`, `1e3`, `1Ki`) in thousandths, rounded up as Kubernetes does.
pub(super) fn milli_quantity(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+' && c != '-');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (mantissa, scale) = decimal(number)?;
    let (power, factor): (i32, u128) = match suffix {
        "n" => (-9, 1),
        "u" => (-6, 1),
        "m" => (-3, 1),
        "" => (0, 1),
        "k" => (3, 1),
        "M" => (6, 1),
        "G" => (9, 1),
        "T" => (12, 1),
        "P" => (15, 1),
        "E" => (18, 1),
        "Ki" => (0, 1 << 10),
        "Mi" => (0, 1 << 20),
        "Gi" => (0, 1 << 30),
        "Ti" => (0, 1 << 40),
        "Pi" => (0, 1 << 50),
        "Ei" => (0, 1 << 60),
        exponent => (exponent.strip_prefix(['e', 'E'])?.parse().ok()?, 1),
    };
    if negative && mantissa > 0 {
        return None;
    }
    let power = i64::from(power) + 3 - i64::from(scale);
    let value = mantissa.checked_mul(factor)?;
    let shift = |by: i64| 10_u128.checked_pow(u32::try_from(by).ok()?);
    if power >= 0 || value == 0 {
        if value == 0 { Some(0) } else { value.checked_mul(shift(power)?) }
    } else {
        // What is smaller than any thousandth still counts as one.
        Some(shift(-power).map_or(1, |divisor| value.div_ceil(divisor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1h", 3_600_000),
            ("+2s", 2_000),
            ("0", 0),
            ("0s", 0),
            ("1500us", 1),
            ("1000000ns", 1),
        ] {
            assert_eq!(duration(text).map(|read| read.as_millis()), Ok(ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_time() {
        for text in ["", "10", "s", "10 s", "-1s", "1s-", "1d", "ten seconds", "1.2.3s", "99999999h", "1s1"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities() {
        for (text, milli) in [
            ("1", Some(1_000)),
            ("500m", Some(500)),
            ("0.5", Some(500)),
            ("+1", Some(1_000)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("1e3", Some(1_000_000)),
            ("1E-3", Some(1)),
            ("2k", Some(2_000_000)),
            ("1Ki", Some(1_024_000)),
            ("1u", Some(1)),
            ("1e-40", Some(1)),
            ("0e99", Some(0)),
            (".5", Some(500)),
            ("5.", Some(5_000)),
            ("-1", None),
            ("", None),
            (".", None),
            ("1x", None),
            ("1e99", None),
            ("one", None),
            ("1 ", None),
        ] {
            assert_eq!(milli_quantity(text), milli, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in any::<String>(), likely in "[-+]?[0-9.]{0,40}(n|u|m|k|Ei|e[0-9-]{0,12}|h|ms|s)?") {
            for text in [text, likely] {
                let _ = (duration(&text), milli_quantity(&text));
            }
        }
    }
}
