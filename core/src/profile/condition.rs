//! What routes and response classes are made of: conditions on a request's method and path, and on a response's status.

#[cfg(planted)]
use crate::planted;
use crate::route::RequestView;
use alloc::{
    boxed::Box,
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use regex_automata::{
    meta::{Config, Regex},
    nfa::thompson::WhichCaptures,
    util::syntax,
};

/// How deep conditions may be nested. A reader that descends no further needs no more stack than this.
pub const MAX_DEPTH: usize = 16;

/// A condition on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestMatch {
    /// All of these; of no condition: always.
    All(Vec<Self>),
    /// One of these; of no condition: never.
    Any(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// The method, as it is written.
    Method(String),
    /// The path, without the query, as it was received.
    Path(PathRegex),
}

impl RequestMatch {
    /// Does the request meet it?
    pub fn matches<R: RequestView + ?Sized>(&self, request: &R) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.matches(request)),
            Self::Any(any) => any.iter().any(|one| one.matches(request)),
            Self::Not(not) => !not.matches(request),
            Self::Method(method) => request.method() == method,
            Self::Path(path) => path.matches(request.path()),
        }
    }
}

/// A condition on a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResponseMatch {
    /// All of these.
    All(Vec<Self>),
    /// One of these.
    Any(Vec<Self>),
    /// Not this.
    Not(Box<Self>),
    /// The status is one of these.
    Status(StatusRange),
}

impl ResponseMatch {
    /// Does a response with this status meet it?
    pub fn matches(&self, status: u16) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.matches(status)),
            Self::Any(any) => any.iter().any(|one| one.matches(status)),
            Self::Not(not) => !not.matches(status),
            Self::Status(range) => range.contains(status),
        }
    }
}

/// HTTP statuses, both ends included, between 100 and 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    min: u16,
    max: u16,
}

/// Why two numbers are no range of statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStatuses {
    /// Neither end is given.
    #[error("neither min nor max is given")]
    Neither,
    /// An end that no status has.
    #[error("{0} is no HTTP status (100 to 599)")]
    NoStatus(u32),
    /// The ends are the wrong way round.
    #[error("max {max} is below min {min}")]
    Empty {
        /// The lower end.
        min: u16,
        /// The upper end.
        max: u16,
    },
}

impl StatusRange {
    /// Reads a range as Linkerd's API has it: 0 is not given, and an end that is not given is the other one.
    pub fn new(min: u32, max: u32) -> Result<Self, InvalidStatuses> {
        let status = |number: u32| {
            let status = u16::try_from(number).ok().filter(|status| (100..=599).contains(status));
            status.ok_or(InvalidStatuses::NoStatus(number))
        };
        let (min, max) = match (min, max) {
            (0, 0) => return Err(InvalidStatuses::Neither),
            (0, only) | (only, 0) => (status(only)?, status(only)?),
            (min, max) => (status(min)?, status(max)?),
        };
        if min > max { Err(InvalidStatuses::Empty { min, max }) } else { Ok(Self { min, max }) }
    }

    /// Is the status one of them?
    pub fn contains(self, status: u16) -> bool {
        (self.min..=self.max).contains(&status)
    }

    /// The lowest one.
    pub fn min(self) -> u16 {
        self.min
    }

    /// The highest one.
    pub fn max(self) -> u16 {
        self.max
    }
}

/// A pattern that covers the whole path, in time linear in the path.
///
/// Linkerd's proxy puts `^` and `$` where a pattern lacks them, without brackets, so that there `/a|/b` is every path
/// that begins with `/a` or ends with `/b`. Here it is `/a` and `/b`.
#[derive(Clone, Debug)]
pub struct PathRegex {
    pattern: Arc<str>,
    regex: Regex,
}

impl PathRegex {
    /// Does it cover the path?
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }
}

impl PartialEq for PathRegex {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

impl Eq for PathRegex {}

/// Bytes of a pattern as it is written.
const MAX_PATTERN: usize = 4096;
/// Bytes of a compiled pattern, and again of the automaton that is built while it is used. 512 KiB.
const MAX_COMPILED: usize = 512 << 10;
/// Bytes of all compiled patterns of a profile. 16 MiB.
const MAX_TOGETHER: usize = 16 << 20;

/// Compiles the patterns of one profile, within what they may take together.
#[derive(Debug)]
pub struct Patterns {
    left: usize,
}

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// As it is written.
    #[error("the pattern has {0} bytes, more than {MAX_PATTERN}")]
    Long(usize),
    /// It is no regular expression, and why.
    #[error("no regular expression: {0}")]
    Invalid(String),
    /// Compiled it takes too much memory.
    #[error("the pattern needs more than 512 KiB when it is compiled")]
    Large,
    /// All patterns of the profile take too much.
    #[error("the patterns of this profile need more than 16 MiB together")]
    Together,
}

impl Patterns {
    /// No pattern yet.
    pub fn new() -> Self {
        Self { left: MAX_TOGETHER }
    }

    /// Compiles a pattern. White space around it does not count, as in Linkerd.
    pub fn compile(&mut self, pattern: &str) -> Result<PathRegex, TooMuch> {
        if pattern.len() > MAX_PATTERN {
            return Err(TooMuch::Long(pattern.len()));
        }
        let trimmed = pattern.trim();
        // First by itself: `a)|(b` is nothing alone, but between our brackets it would escape the anchors.
        compile(trimmed)?;
        let whole = format!("^(?:{trimmed})$");
        #[cfg(planted)]
        let whole = if planted::makes(planted::Mistake::AnchorsWithoutBrackets) {
            format!("^{trimmed}$")
        } else {
            whole
        };
        let regex = compile(&whole)?;
        let size = regex.memory_usage();
        if size > MAX_COMPILED {
            return Err(TooMuch::Large);
        }
        self.left = self.left.checked_sub(size).ok_or(TooMuch::Together)?;
        Ok(PathRegex { pattern: trimmed.into(), regex })
    }
}

impl Default for Patterns {
    fn default() -> Self {
        Self::new()
    }
}

/// Compiles with the tables of Unicode that this build has (`\d`, `\s`, `\w`). What needs others, such as `(?i)`, is about
/// ASCII only.
fn compile(pattern: &str) -> Result<Regex, TooMuch> {
    match compile_with(pattern, true) {
        Err(TooMuch::Invalid(_)) if pattern.is_ascii() => compile_with(pattern, false),
        compiled => compiled,
    }
}

fn compile_with(pattern: &str, unicode: bool) -> Result<Regex, TooMuch> {
    let syntax = syntax::Config::new().nest_limit(64).unicode(unicode).utf8(unicode);
    let config = Config::new()
        .which_captures(WhichCaptures::Implicit)
        .nfa_size_limit(Some(MAX_COMPILED))
        .onepass_size_limit(Some(MAX_COMPILED / 8))
        .hybrid_cache_capacity(MAX_COMPILED);
    Regex::builder().configure(config).syntax(syntax).build(pattern).map_err(|error| {
        match error.size_limit() {
            Some(_) => TooMuch::Large,
            None => TooMuch::Invalid(reason(&error)),
        }
    })
}

/// The last line of what the parser says: before it, it repeats the pattern.
fn reason(error: &regex_automata::meta::BuildError) -> String {
    let text = error.syntax_error().map_or_else(|| error.to_string(), ToString::to_string);
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).chars().take(200).collect()
}
