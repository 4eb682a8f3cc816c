//! What people are told: progress, failures with what to do, and the exit code.

use std::io::Write as _;
use std::process::ExitCode;

/// How the process ends. The codes are an interface: operators and repair controllers act on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: the rules are set and hold.
    Done,
    /// 64 (`EX_USAGE`): the arguments are wrong; all mistakes are listed. Nothing was changed.
    Usage,
    /// 71 (`EX_OSERR`): the rules could not be read or set; each binary that was tried is named. What was there
    /// before is there still, for each family that the output does not call set.
    Tables,
    /// 95: the rules are set and do not hold, as Linkerd's network validator says it (contract 6.6).
    Broken,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 64,
            Self::Tables => 71,
            Self::Broken => 95,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Why the pod must not start, and what to do.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub problems: Vec<String>,
    pub advice: String,
}

impl Failure {
    /// The kernel could not be told, by any of the binaries.
    pub fn tables(problems: Vec<String>) -> Self {
        let told = |sign: &str| problems.iter().any(|problem| problem.contains(sign));
        let advice = if told("xtables.lock") {
            "mount a writable emptyDir at /run, where xtables-legacy keeps its lock"
        } else if told("ermission denied") || told("not permitted") || told("must be root") {
            "this container needs the capabilities NET_ADMIN and NET_RAW, and its image \
             `setcap cap_net_raw,cap_net_admin+eip` on this program and on the xtables binaries"
        } else {
            "the node's kernel must offer nf_tables (or ip_tables) with nat, REDIRECT, owner and multiport; if only \
             IPv6 is missing, --ipv6=false leaves it out"
        };
        Self { exit: Exit::Tables, problems, advice: advice.to_owned() }
    }

    /// Rules do not hold; each problem names its rule.
    pub fn broken(problems: Vec<String>) -> Self {
        let advice = "traffic would bypass the mesh or loop, so the pod must not start: look at \
                      `iptables-save -t nat` in the pod's network namespace for a rule or another program that \
                      interferes (a CNI plugin, another init container), remove it and start the pod again";
        Self { exit: Exit::Broken, problems, advice: advice.to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Writes to standard output, one line (or one JSON object) per message. A reader that has gone away is no reason
/// to leave a pod without rules, so failing to write is ignored.
#[derive(Debug)]
pub struct Report {
    format: Format,
    level: Level,
}

impl Report {
    pub fn new(format: Format, level: Level) -> Self {
        Self { format, level }
    }

    /// For what is said before the flags are understood.
    pub fn plain() -> Self {
        Self::new(Format::Plain, Level::Info)
    }

    /// Text that was asked for: neither a level nor a format applies.
    pub fn say(&self, text: &str) {
        let _reader_gone = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    pub fn debug(&self, message: &str) {
        self.write(Level::Debug, message);
    }

    pub fn info(&self, message: &str) {
        self.write(Level::Info, message);
    }

    pub fn warn(&self, message: &str) {
        self.write(Level::Warn, message);
    }

    /// Says every problem, then what to do.
    pub fn failed(&self, failure: &Failure) -> Exit {
        failure.problems.iter().for_each(|problem| self.write(Level::Error, problem));
        self.write(Level::Error, &format!("what to do: {}", failure.advice));
        failure.exit
    }

    fn write(&self, level: Level, message: &str) {
        if level > self.level {
            return;
        }
        let line = match self.format {
            Format::Plain if level == Level::Info => message.to_owned(),
            Format::Plain => format!("{}: {message}", level.name()),
            Format::Json => serde_json::json!({ "level": level.name(), "message": message }).to_string(),
        };
        let _reader_gone = writeln!(std::io::stdout(), "{line}");
    }
}
