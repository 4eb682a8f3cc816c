//! The environment → typed values, with every mistake reported at once. Which settings exist is not said here: each
//! process has its own list (the proxy's is `proxy/src/config.rs`).
//!
//! Contract 1.13: an empty value counts as unset; mistakes end the process with exit code 64.

pub mod parse;

pub use parse::{HostPort, Invalid};

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
};

/// Exit code of a process that was configured wrongly (`EX_USAGE` of sysexits.h).
pub const EX_USAGE: u8 = 64;

/// Characters of a value that a message repeats; what is longer is cut.
const SHOWN: usize = 80;
/// Characters of what is wrong with it.
const SHOWN_WRONG: usize = 160;

/// An environment that is being read. Readers never fail: they take note of the mistake and go on, so that a person
/// meets all mistakes at once, from [`Env::finish`].
#[derive(Debug, Default)]
pub struct Env {
    vars: BTreeMap<String, OsString>,
    read: BTreeSet<String>,
    mistakes: Vec<Mistake>,
}

/// One setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The variable.
    pub name: String,
    /// Its value as messages may show it: cut to 80 characters, secrets replaced. `None` when it is unset.
    pub value: Option<String>,
    /// What is wrong, as a clause: `"10" has no unit`.
    pub wrong: String,
    /// What would be right: `an integer followed by ms, s, m, h or d`.
    pub expected: String,
}

/// All that is wrong with an environment, one line each. Never empty when it comes from [`Env::finish`].
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl Env {
    /// The environment of this process.
    pub fn from_process() -> Self {
        let vars =
            std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value)).collect();
        Self { vars, ..Self::default() }
    }

    /// An environment from a list; of a name given twice the last value counts.
    pub fn from_pairs<N: Into<String>, V: Into<OsString>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let vars = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { vars, ..Self::default() }
    }

    /// The value of a setting, or `None` if it is unset, empty or wrong.
    pub fn optional<T, E: Into<Invalid>>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.read.insert(name.to_owned());
        let raw = self.vars.get(name).filter(|value| !value.is_empty())?.clone();
        let Some(text) = raw.to_str() else {
            self.complain(name, "is not UTF-8", "text in UTF-8");
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                let invalid: Invalid = error.into();
                // What is wrong may repeat the value.
                let wrong = if redacted(name, text) == text {
                    shorten(&invalid.wrong, SHOWN_WRONG)
                } else {
                    "cannot be read".to_owned()
                };
                self.complain(name, wrong, invalid.expected);
                None
            }
        }
    }

    /// The value of a setting, or `default` if it is unset, empty or wrong.
    pub fn or<T, E: Into<Invalid>>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    /// The value of a setting that must be there. `None` always comes with a mistake; `why` says who needs it.
    pub fn required<T, E: Into<Invalid>>(
        &mut self,
        name: &str,
        why: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.is_set(name) {
            self.read.insert(name.to_owned());
            self.complain(name, "is not set", why);
            return None;
        }
        self.optional(name, parse)
    }

    /// Is there a value that is not empty?
    pub fn is_set(&self, name: &str) -> bool {
        self.vars.get(name).is_some_and(|value| !value.is_empty())
    }

    /// Notes a mistake that a parser cannot see, such as two settings that contradict each other.
    pub fn complain(&mut self, name: &str, wrong: impl Into<String>, expected: impl Into<String>) {
        #[cfg(planted)]
        if !self.mistakes.is_empty()
            && remora_core::planted::makes(remora_core::planted::Mistake::FirstMistakeOnly)
        {
            return;
        }
        let value = self.vars.get(name).filter(|value| !value.is_empty());
        let value = value.map(|value| shorten(&redacted(name, &value.to_string_lossy()), SHOWN));
        self.mistakes.push(Mistake {
            name: name.to_owned(),
            value,
            wrong: wrong.into(),
            expected: expected.into(),
        });
    }

    /// Every name with this prefix that nobody has read so far is a mistake, also an empty one: a setting with a
    /// typing error must not pass for its default. Call it after all readers.
    pub fn refuse_unknown(&mut self, prefix: &str) {
        let unknown: Vec<String> = self
            .vars
            .keys()
            .filter(|name| name.starts_with(prefix) && !self.read.contains(*name))
            .cloned()
            .collect();
        for name in unknown {
            let expected = match self.closest(&name) {
                Some(known) => format!("a known setting (did you mean {known}?)"),
                None => "a known setting".to_owned(),
            };
            self.complain(&name, "is not a setting of this process", expected);
        }
    }

    /// The names that were asked for so far: what a list of settings can be held against.
    pub fn names_read(&self) -> impl Iterator<Item = &str> {
        self.read.iter().map(String::as_str)
    }

    /// All values with secrets replaced, by name: what an operator may be shown.
    pub fn shown(&self) -> Vec<(String, String)> {
        self.vars
            .iter()
            .map(|(name, value)| (name.clone(), redacted(name, &value.to_string_lossy())))
            .collect()
    }

    /// Ends the reading: what is wrong, if anything.
    pub fn finish(self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes(self.mistakes)) }
    }

    /// The name among those already read that differs least, if it differs little.
    fn closest(&self, name: &str) -> Option<&str> {
        let near = self.read.iter().map(|known| (distance(known, name), known.as_str()));
        near.filter(|(edits, _)| *edits <= 3).min().map(|(_, known)| known)
    }
}

/// A value as it may be shown: credentials are replaced. A name that ends in `_FILE`, `_DIR`, `_PATH`, `_ADDR` or
/// `_NAME` says where a credential is, not what it is; a private key, a JWT or a URL with a password is replaced under
/// any name.
pub fn redacted(name: &str, value: &str) -> String {
    // Headers that are sent to other systems authenticate more often than not.
    const SECRET: [&str; 9] =
        ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "APIKEY", "CREDENTIAL", "CREDENTIALS", "HEADERS"];
    const PLACE: [&str; 5] = ["FILE", "DIR", "PATH", "ADDR", "NAME"];
    let upper = name.to_ascii_uppercase();
    let is_place = upper.rsplit('_').next().is_some_and(|last| PLACE.contains(&last));
    let named_secret = upper.split('_').any(|word| SECRET.contains(&word)) && !is_place;
    let holds_secret = has_jwt(value) || has_userinfo(value) || value.contains("PRIVATE KEY");
    if !value.is_empty() && (named_secret || holds_secret) {
        return format!("<redacted, {} bytes>", value.len());
    }
    value.to_owned()
}

/// Whether there is a JSON web token anywhere in it (RFC 7519): three parts in base64url with dots between, of which the
/// first is a JSON object.
fn has_jwt(value: &str) -> bool {
    let in_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    value.split(|c| !in_token(c)).any(|word| word.starts_with("eyJ") && word.split('.').count() == 3)
}

/// Whether there is a URL with a password in it: `scheme://user:password@host`.
fn has_userinfo(value: &str) -> bool {
    value.split("://").skip(1).any(|rest| {
        let authority = rest.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    })
}

fn shorten(value: &str, shown: usize) -> String {
    match value.char_indices().nth(shown) {
        Some((end, _)) => format!("{}… ({} bytes)", value.get(..end).unwrap_or_default(), value.len()),
        None => value.to_owned(),
    }
}

/// Levenshtein's distance, by the two-row method.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            let replaced = diagonal + usize::from(x != y);
            diagonal = above;
            left = replaced.min(above + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(value) = &self.value {
            write!(f, "={value:?}")?;
        }
        write!(f, ": {}; expected {}", self.wrong, self.expected)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_empty_value_is_unset() {
        let mut env = Env::from_pairs([("A", "")]);
        assert_eq!(env.optional("A", parse::duration), None);
        assert_eq!(env.or("A", Duration::from_secs(3), parse::duration), Duration::from_secs(3));
        assert_eq!(env.finish(), Ok(()));
    }

    #[test]
    fn all_mistakes_come_at_once() {
        let mut env = Env::from_pairs([("A", "10"), ("B", "maybe")]);
        assert_eq!(env.optional("A", parse::duration), None);
        assert_eq!(env.optional("B", parse::boolean), None);
        assert_eq!(env.required("C", "the address of the destination service", parse::host_port), None);
        assert_eq!(
            env.finish().unwrap_err().to_string(),
            "A=\"10\": the number has no unit; expected an integer followed by ms, s, m, h or d, or 0\n\
             B=\"maybe\": is neither; expected true or false\n\
             C: is not set; expected the address of the destination service"
        );
    }

    #[test]
    fn a_required_value_that_is_empty_is_missing() {
        let mut env = Env::from_pairs([("C", "")]);
        assert_eq!(env.required("C", "an address", parse::host_port), None);
        assert_eq!(env.finish().unwrap_err().0.len(), 1);
    }

    #[test]
    fn unknown_names_are_mistakes_and_the_nearest_known_one_is_named() {
        let mut env =
            Env::from_pairs([("OURS_LIMT", "1"), ("OURS_ELSE", ""), ("THEIRS_X", "1"), ("OURS_LIMIT", "2")]);
        assert_eq!(env.optional("OURS_LIMIT", parse::number::<u32>), Some(2));
        env.refuse_unknown("OURS_");
        let Mistakes(mistakes) = env.finish().unwrap_err();
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "OURS_ELSE: is not a setting of this process; expected a known setting",
                "OURS_LIMT=\"1\": is not a setting of this process; expected a known setting (did you mean OURS_LIMIT?)",
            ]
        );
    }

    #[test]
    fn secrets_are_not_repeated() {
        for (name, value, secret) in [
            ("REMORA_TOKEN", "hunter2", true),
            ("API_KEY", "hunter2", true),
            ("ANYTHING", "-----BEGIN PRIVATE KEY-----", true),
            ("ANYTHING", "eyJhbGciOi.eyJzdWIi.c2ln", true),
            ("ANYTHING", "{\"bearer\": \"eyJhbGciOi.eyJzdWIi.c2ln\"}", true),
            ("ANYTHING", "postgres://shop:hunter2@db:5432/shop", true),
            ("ANYTHING", "a=http://b/ b=http://me:hunter2@c", true),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2", true),
            ("SHOP_APIKEY", "hunter2", true),
            ("ANYTHING", "http://me@host:80/a:b@c", false),
            ("ANYTHING", "http://host:80/", false),
            ("ANYTHING", "eyJ.of.a.name", false),
            ("LINKERD2_PROXY_IDENTITY_TOKEN_FILE", "/var/run/token", false),
            ("LINKERD2_PROXY_SERVER_HTTP2_KEEP_ALIVE", "10s", false),
            ("MONKEY", "banana", false),
            ("REMORA_TOKEN", "", false),
        ] {
            assert_eq!(redacted(name, value) != value, secret, "{name}={value}");
        }
    }

    #[test]
    fn long_values_are_cut_on_a_character() {
        let mut env = Env::from_pairs([("A", "é".repeat(500))]);
        assert_eq!(env.optional("A", parse::boolean), None);
        let line = env.finish().unwrap_err().to_string();
        assert!(line.len() < 300, "{line}");
        assert!(line.contains("(1000 bytes)"), "{line}");
    }

    #[test]
    fn what_is_wrong_is_short_and_shows_no_secret_either() {
        let long = "1".repeat(20_000);
        let mut env = Env::from_pairs([("A", long.as_str()), ("B", "-----BEGIN PRIVATE KEY-----,MIGHAgEA")]);
        assert_eq!(env.optional("A", parse::socket_addr), None);
        assert_eq!(env.optional("B", parse::ips), None);
        let text = env.finish().unwrap_err().to_string();
        assert!(text.len() < 700, "{text}");
        assert!(!text.contains("MIGHAgEA"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_text_are_a_mistake() {
        use std::os::unix::ffi::OsStringExt;
        let mut env = Env::from_pairs([("A", OsString::from_vec(vec![0xff, 0xfe]))]);
        assert_eq!(env.optional("A", parse::text), None);
        assert!(env.finish().unwrap_err().to_string().contains("is not UTF-8"));
    }
}
