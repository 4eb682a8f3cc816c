//! Linkerd's wire API → the types of `remora-core`. Every check on what a controller sent is here: past this module
//! nothing sees a message, and nothing has to ask again whether a field was there. Contract 3.1 to 3.4.
//!
//! A message that cannot be understood becomes an error that says where (`authorizations[2].networks: empty`). What is
//! understood but not done yet by this proxy is listed beside the result ([`Converted::ignored`]), unless ignoring it
//! could admit or misdirect a request: then it is an error too.

mod accrual;
pub mod destination;
mod filters;
pub mod inbound;
pub mod outbound;
pub mod own;
mod parts;
pub mod profile;
mod rate;
mod routes;
mod terms;

use std::{fmt, sync::Arc};

/// Most items of any list of a message.
const MAX_ITEMS: usize = 4096;
/// Most notes of what was ignored.
const MAX_IGNORED: usize = 64;
/// Most regular expressions of a message.
const MAX_REGEXES: usize = 1024;

/// A result, and what of the message this proxy does not act on.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted<T> {
    /// What the message says.
    pub value: T,
    /// Fields that are not acted on, by path (`routes[0].rules[1].timeouts`), at most 64. For `/state.json`.
    pub ignored: Vec<Arc<str>>,
}

/// Why a message means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    path: String,
    reason: String,
}

impl Invalid {
    fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// The same reason, seen from one level further out.
    fn within(mut self, place: &str) -> Self {
        self.path = join(place, &self.path);
        self
    }

    /// Where in the message, for instance `authorizations[2].networks`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

/// A message that is being read: what was ignored so far, and what is left of its allowances.
#[derive(Debug)]
struct Reading {
    ignored: Vec<String>,
    regexes_left: usize,
}

impl Reading {
    fn new() -> Self {
        Self { ignored: Vec::new(), regexes_left: MAX_REGEXES }
    }

    fn finish<T>(self, value: T) -> Converted<T> {
        Converted { value, ignored: self.ignored.into_iter().map(Arc::from).collect() }
    }

    /// Notes a field that is there and not acted on.
    fn ignore(&mut self, field: impl Into<String>) {
        if self.ignored.len() < MAX_IGNORED {
            self.ignored.push(field.into());
        }
    }

    fn ignore_if(&mut self, present: bool, field: &str) {
        if present {
            self.ignore(field);
        }
    }

    /// Reads a part of the message; errors and notes get its name.
    fn at<T>(
        &mut self,
        place: &str,
        read: impl FnOnce(&mut Self) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        let noted = self.ignored.len();
        let result = read(self).map_err(|invalid| invalid.within(place));
        for note in self.ignored.iter_mut().skip(noted) {
            *note = join(place, note);
        }
        result
    }

    /// Reads a part that must be there.
    fn required<W, T>(
        &mut self,
        place: &str,
        wire: Option<W>,
        read: impl FnOnce(&mut Self, W) -> Result<T, Invalid>,
    ) -> Result<T, Invalid> {
        let wire = wire.ok_or_else(|| Invalid::new("missing").within(place))?;
        self.at(place, |reading| read(reading, wire))
    }

    /// Reads every item of a list, which must not be longer than any honest one.
    fn each<W, T>(
        &mut self,
        place: &str,
        wire: Vec<W>,
        mut read: impl FnMut(&mut Self, W) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Invalid> {
        if wire.len() > MAX_ITEMS {
            return Err(
                Invalid::new(format!("{} items, at most {MAX_ITEMS} are read", wire.len())).within(place)
            );
        }
        let mut items = Vec::with_capacity(wire.len());
        for (i, item) in wire.into_iter().enumerate() {
            items.push(self.at(&format!("{place}[{i}]"), |reading| read(reading, item))?);
        }
        Ok(items)
    }
}

fn join(outer: &str, inner: &str) -> String {
    if inner.is_empty() { outer.to_owned() } else { format!("{outer}.{inner}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_notes_carry_their_path() {
        let mut reading = Reading::new();
        let result = reading.each("routes", vec![1, 2], |reading, number| {
            reading.each("rules", vec![number], |reading, number| {
                reading.ignore("timeouts");
                if number == 2 { Err(Invalid::new("bad")) } else { Ok(number) }
            })
        });
        assert_eq!(result.unwrap_err().to_string(), "routes[1].rules[0]: bad");
        assert_eq!(reading.ignored, ["routes[0].rules[0].timeouts", "routes[1].rules[0].timeouts"]);
    }

    #[test]
    fn missing_parts_are_named() {
        let result = Reading::new().required("protocol", None::<u8>, |_, value| Ok(value));
        assert_eq!(result.unwrap_err().to_string(), "protocol: missing");
    }

    #[test]
    fn lists_and_notes_are_bounded() {
        let mut reading = Reading::new();
        let read = reading.each("items", vec![0_u8; MAX_ITEMS + 1], |_, item| Ok(item));
        assert_eq!(read.unwrap_err().path(), "items");
        for _ in 0..1000 {
            reading.ignore("field");
        }
        assert_eq!(reading.finish(()).ignored.len(), MAX_IGNORED);
    }
}
