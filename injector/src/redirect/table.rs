//! The `nat` table as text: rules printed as iptables prints them, and `iptables-save` output read back.
//!
//! Pure. What it does not know it keeps as text ([`What::Other`], [`Target::Other`]), so that a rule of someone
//! else's can be named, and deleted if it jumps into our chains, but is never mistaken for one we understand.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Condition, Family, Plan, PortRange, Rule, Target, What, rules};

/// The rules of one family's `nat` table, by chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    chains: BTreeMap<String, Vec<Line>>,
}

/// A rule, and exactly how it was printed: deleting a rule takes its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub rule: Rule,
    /// What follows `-A CHAIN`.
    pub text: String,
}

/// Output of `iptables-save` that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the nat table holds rules that iptables cannot show; look at them with `nft list table nat`")]
    Incompatible,
    #[error("iptables-save printed a line that is not understood: {0:?}")]
    Line(String),
}

impl Table {
    /// The table as the plan alone would make it.
    pub fn planned(plan: &Plan, family: Family) -> Self {
        let mut table = Self::default();
        for rule in rules(plan, family) {
            let text = rule.to_string();
            table.chains.entry(rule.chain.clone()).or_default().push(Line { rule, text });
        }
        table
    }

    /// Reads `iptables-save -t nat`. Nothing at all is an empty table: some versions print nothing for it.
    pub fn parse(saved: &str, family: Family) -> Result<Self, Unreadable> {
        let mut table = Self::default();
        let mut in_nat = false;
        for line in saved.lines().map(str::trim) {
            if line.starts_with('#') && line.contains("incompatible") && line.contains("nat") {
                return Err(Unreadable::Incompatible);
            }
            if let Some(name) = line.strip_prefix('*') {
                in_nat = name == "nat";
                continue;
            }
            if !in_nat || line.is_empty() || line.starts_with('#') || line == "COMMIT" {
                continue;
            }
            if let Some(declared) = line.strip_prefix(':') {
                let name = declared.split(' ').next().unwrap_or_default();
                table.chains.entry(name.to_owned()).or_default();
            } else {
                let unreadable = || Unreadable::Line(line.to_owned());
                let (chain, text) = line
                    .strip_prefix("-A ")
                    .map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
                    .ok_or_else(unreadable)?;
                let rule = parse_rule(chain, text, family).ok_or_else(unreadable)?;
                table.chains.entry(chain.to_owned()).or_default().push(Line { rule, text: text.to_owned() });
            }
        }
        Ok(table)
    }

    /// The rules of a chain, in order; `None` if there is no such chain.
    pub fn chain(&self, name: &str) -> Option<&[Line]> {
        self.chains.get(name).map(Vec::as_slice)
    }

    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.chains.values().flatten().map(|line| &line.rule)
    }

    /// Every rule, anywhere, that jumps or goes to `chain`.
    pub fn jumps_to<'t>(&'t self, chain: &'t str) -> impl Iterator<Item = &'t Line> {
        self.chains.values().flatten().filter(
            move |line| matches!(&line.rule.target, Target::Jump(to) | Target::Goto(to) if to == chain),
        )
    }
}

/// The rule without `-A CHAIN`, in the words of iptables-save.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(f, "{condition} ")?;
        }
        if let Some(comment) = &self.comment {
            write!(f, "-m comment --comment {} ", quoted(comment))?;
        }
        self.target.fmt(f)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.negated { "! " } else { "" };
        match &self.what {
            What::Source(net) => write!(f, "{not}-s {net}"),
            What::Destination(net) => write!(f, "{not}-d {net}"),
            What::InLoopback => write!(f, "{not}-i lo"),
            What::OutLoopback => write!(f, "{not}-o lo"),
            What::Protocol(name) => write!(f, "{not}-p {name}"),
            What::Port { module, port } => write!(f, "-m {module} {not}--dport {port}"),
            What::Ports(ports) => {
                let ports = ports.iter().map(PortRange::to_string).collect::<Vec<_>>().join(",");
                write!(f, "-m multiport {not}--dports {ports}")
            }
            What::Uid(first, last) => write!(f, "-m owner {not}--uid-owner {}", ids(*first, *last)),
            What::Gid(first, last) => write!(f, "-m owner {not}--gid-owner {}", ids(*first, *last)),
            What::Other(text) => write!(f, "{not}{text}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("-j RETURN"),
            Self::Accept => f.write_str("-j ACCEPT"),
            Self::Redirect(port) => write!(f, "-j REDIRECT --to-ports {port}"),
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Goto(chain) => write!(f, "-g {chain}"),
            Self::Pass => Ok(()),
            Self::Other(text) => write!(f, "-j {text}"),
        }
    }
}

fn ids(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn parse_rule(chain: &str, text: &str, family: Family) -> Option<Rule> {
    let mut words = words(text)?.into_iter().peekable();
    let mut rule =
        Rule { chain: chain.to_owned(), conditions: Vec::new(), comment: None, target: Target::Pass };
    let mut module = String::new();
    let mut negated = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-m" => module = words.next()?,
            "--comment" => rule.comment = Some(words.next()?),
            "-j" => rule.target = parse_target(&words.next()?, &words.by_ref().collect::<Vec<_>>()),
            "-g" => rule.target = Target::Goto(words.next()?),
            option => {
                let what = parse_condition(option, &module, &values(&mut words), family);
                rule.conditions.push(Condition { negated, what });
            }
        }
        negated = false;
    }
    Some(rule)
}

/// What belongs to an option: every word up to the next option.
fn values(words: &mut Peekable<impl Iterator<Item = String>>) -> Vec<String> {
    let mut values = Vec::new();
    while let Some(value) = words.next_if(|word| !word.starts_with('-') && word != "!") {
        values.push(value);
    }
    values
}

fn parse_condition(option: &str, module: &str, values: &[String], family: Family) -> What {
    let known = match values {
        [value] => match option {
            "-s" => network(value, family).map(What::Source),
            "-d" => network(value, family).map(What::Destination),
            "-i" if value == "lo" => Some(What::InLoopback),
            "-o" if value == "lo" => Some(What::OutLoopback),
            "-p" => Some(What::Protocol(value.clone())),
            "--dport" => port_range(value).map(|port| What::Port { module: module.to_owned(), port }),
            "--dports" => value.split(',').map(port_range).collect::<Option<_>>().map(What::Ports),
            "--uid-owner" => id_range(value).map(|(first, last)| What::Uid(first, last)),
            "--gid-owner" => id_range(value).map(|(first, last)| What::Gid(first, last)),
            _ => None,
        },
        _ => None,
    };
    known.unwrap_or_else(|| {
        let values: String = values.iter().flat_map(|value| [" ", value.as_str()]).collect();
        let module = if option.starts_with("--") { format!("-m {module} ") } else { String::new() };
        What::Other(format!("{module}{option}{values}"))
    })
}

fn parse_target(name: &str, options: &[String]) -> Target {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    match (name, options.as_slice()) {
        ("RETURN", []) => Target::Return,
        ("ACCEPT", []) => Target::Accept,
        ("LOG" | "NFLOG", _) => Target::Pass,
        ("REDIRECT", ["--to-ports", port]) => {
            let several = |_| Target::Other(format!("REDIRECT --to-ports {port}"));
            port.parse().map_or_else(several, Target::Redirect)
        }
        // A user's chain takes no options; extensions' targets nearly always do.
        (chain, []) if !BUILT_IN.contains(&chain) => Target::Jump(chain.to_owned()),
        (name, []) => Target::Other(name.to_owned()),
        (name, options) => Target::Other(format!("{name} {}", options.join(" "))),
    }
}

/// Targets that can stand without options and are not chains.
const BUILT_IN: [&str; 5] = ["DROP", "QUEUE", "REDIRECT", "MASQUERADE", "NETMAP"];

fn network(text: &str, family: Family) -> Option<IpNet> {
    let net: IpNet = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
    (Family::of(net.addr()) == family).then_some(net)
}

fn port_range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    PortRange::new(first.parse().ok()?, last.parse().ok()?)
}

fn id_range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Splits a line as iptables-restore does: blanks separate, double quotes hold together, a backslash escapes.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().push(chars.next()?),
            ' ' | '\t' if !quoted => words.extend(word.take()),
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}
