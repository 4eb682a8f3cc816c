//! The command line: linkerd2-proxy-init's flags by name, so that either init container can be given the same
//! arguments (contract 6.3, 6.5). All mistakes are found at once.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Parser};

use super::report::{Format, Level};
use crate::redirect::{Plan, PortRange};

/// What to do, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub plan: Plan,
    pub netns: Option<PathBuf>,
    /// How long to wait for the lock of xtables-legacy.
    pub lock_wait: Duration,
    pub simulate: bool,
    /// The binaries to try first: the tool and the one that saves.
    pub configured: Option<(String, String)>,
    pub close_wait_seconds: Option<u32>,
    pub log_format: Format,
    pub log_level: Level,
}

/// Why there are no settings.
#[derive(Debug)]
pub enum Stop {
    /// `--help` or `--version`: the text to print.
    Asked(String),
    Mistakes(Vec<String>),
}

/// Sets the redirect rules of a pod, proves that they hold, and exits.
///
/// Exit codes: 0 the rules hold; 64 wrong arguments; 71 the rules could not be set; 95 the rules do not hold.
// Everything is text here and checked below, for clap would stop at the first value it cannot read.
#[derive(Debug, Default, Parser)]
#[command(name = "remora-init", version, args_override_self = true, allow_negative_numbers = true)]
struct Raw {
    /// Port of the proxy to which inbound traffic goes
    #[arg(short = 'p', long, value_name = "PORT")]
    incoming_proxy_port: Option<String>,
    /// Port of the proxy to which outbound traffic goes
    #[arg(short = 'o', long, value_name = "PORT")]
    outgoing_proxy_port: Option<String>,
    /// User of the proxy, whose own traffic is left alone (0 or less: none)
    #[arg(short = 'u', long, value_name = "UID")]
    proxy_uid: Option<String>,
    /// Group of the proxy, whose own traffic is left alone (0 or less: none)
    #[arg(short = 'g', long, value_name = "GID")]
    proxy_gid: Option<String>,
    /// Inbound ports to redirect (default: all)
    #[arg(short = 'r', long, value_name = "PORT,..", action = ArgAction::Append)]
    ports_to_redirect: Vec<String>,
    /// Inbound ports and ranges (first-last) to leave alone
    #[arg(long, value_name = "PORTS,..", action = ArgAction::Append)]
    inbound_ports_to_ignore: Vec<String>,
    /// Outbound ports and ranges (first-last) to leave alone
    #[arg(long, value_name = "PORTS,..", action = ArgAction::Append)]
    outbound_ports_to_ignore: Vec<String>,
    /// Source networks whose inbound traffic is left alone
    #[arg(long, value_name = "CIDR,..", action = ArgAction::Append)]
    subnets_to_ignore: Vec<String>,
    /// Print what would be applied and change nothing
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    simulate: Option<String>,
    /// Network namespace to enter first (needs SYS_ADMIN)
    #[arg(long, value_name = "FILE")]
    netns: Option<String>,
    /// Wait up to 60 s for the xtables lock, not 10 s
    #[arg(short = 'w', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    use_wait_flag: Option<String>,
    /// Set nf_conntrack_tcp_timeout_close_wait (needs root in a privileged container; 0: leave it)
    #[arg(long, value_name = "SECONDS")]
    timeout_close_wait_secs: Option<String>,
    /// plain or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// error, warn, info or debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Variant to try first: nft, plain or legacy; takes precedence over the two paths
    #[arg(long, value_name = "MODE")]
    iptables_mode: Option<String>,
    /// Set rules for IPv6 too (default: true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipv6: Option<String>,
    /// The iptables to try first; ip6tables and -restore are found beside it by name
    #[arg(long, value_name = "FILE")]
    firewall_bin_path: Option<String>,
    /// The iptables-save that belongs to it
    #[arg(long, value_name = "FILE")]
    firewall_save_bin_path: Option<String>,
}

/// Reads the arguments, which come without the program's name.
pub fn parse(arguments: Vec<String>) -> Result<Settings, Stop> {
    let mut mistakes = Mistakes::default();
    let raw = raw(arguments, &mut mistakes)?;
    let settings = settings(&raw, &mut mistakes);
    if mistakes.0.is_empty() { Ok(settings) } else { Err(Stop::Mistakes(mistakes.0)) }
}

/// clap gives up at the first unknown flag; so it is written down, taken out, and clap asked again.
fn raw(mut arguments: Vec<String>, mistakes: &mut Mistakes) -> Result<Raw, Stop> {
    loop {
        let error = match Raw::try_parse_from(
            std::iter::once("remora-init").chain(arguments.iter().map(String::as_str)),
        ) {
            Ok(raw) => return Ok(raw),
            Err(error) => error,
        };
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Err(Stop::Asked(error.to_string()));
        }
        let unknown = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(unknown)) if error.kind() == ErrorKind::UnknownArgument => {
                unknown.clone()
            }
            _ => {
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                mistakes.0.push(first.trim_start_matches("error: ").to_owned());
                return Err(Stop::Mistakes(std::mem::take(&mut mistakes.0)));
            }
        };
        let is_it = |argument: &String| *argument == unknown || argument.starts_with(&format!("{unknown}="));
        let Some(at) = arguments.iter().position(is_it) else {
            mistakes.0.push(format!("{unknown}: no such flag"));
            return Err(Stop::Mistakes(std::mem::take(&mut mistakes.0)));
        };
        let removed = arguments.remove(at);
        mistakes.0.push(format!("{unknown}: no such flag"));
        // Its value, if it has one, is no mistake of its own.
        let value_follows = removed.starts_with("--") && !removed.contains('=');
        if value_follows && arguments.get(at).is_some_and(|value| !value.starts_with('-')) {
            arguments.remove(at);
        }
    }
}

fn settings(raw: &Raw, mistakes: &mut Mistakes) -> Settings {
    let plan = Plan {
        incoming_proxy_port: mistakes.proxy_port("--incoming-proxy-port", raw.incoming_proxy_port.as_ref()),
        outgoing_proxy_port: mistakes.proxy_port("--outgoing-proxy-port", raw.outgoing_proxy_port.as_ref()),
        proxy_uid: mistakes.owner("--proxy-uid", raw.proxy_uid.as_ref()),
        proxy_gid: mistakes.owner("--proxy-gid", raw.proxy_gid.as_ref()),
        ports_to_redirect: mistakes.list("--ports-to-redirect", &raw.ports_to_redirect, |port| {
            let port: u16 = port.parse().map_err(|_| format!("{port:?} is not a port (0 to 65535)"))?;
            Ok(port)
        }),
        inbound_ports_to_ignore: mistakes.list(
            "--inbound-ports-to-ignore",
            &raw.inbound_ports_to_ignore,
            str::parse::<PortRange>,
        ),
        outbound_ports_to_ignore: mistakes.list(
            "--outbound-ports-to-ignore",
            &raw.outbound_ports_to_ignore,
            str::parse::<PortRange>,
        ),
        subnets_to_ignore: mistakes.list("--subnets-to-ignore", &raw.subnets_to_ignore, |subnet| {
            subnet.parse().map_err(|_| format!("{subnet:?} is not a network such as 10.0.0.0/8 or fd00::/8"))
        }),
        ipv6: mistakes.boolean("--ipv6", raw.ipv6.as_ref(), true),
    };
    if plan.proxy_uid.is_none()
        && plan.proxy_gid.is_none()
        && raw.proxy_uid.is_none()
        && raw.proxy_gid.is_none()
    {
        mistakes.0.push(
            "--proxy-uid or --proxy-gid: one is needed, or the proxy's own connections come back to it for ever"
                .to_owned(),
        );
    } else if plan.proxy_uid.is_none() && plan.proxy_gid.is_none() && mistakes.0.is_empty() {
        mistakes.0.push(
            "--proxy-uid and --proxy-gid: one must be above 0 (the proxy cannot run as root), or the proxy's own \
             connections come back to it for ever"
                .to_owned(),
        );
    }
    Settings {
        plan,
        netns: raw.netns.as_ref().filter(|path| !path.is_empty()).map(PathBuf::from),
        lock_wait: Duration::from_secs(
            if mistakes.boolean("--use-wait-flag", raw.use_wait_flag.as_ref(), false) { 60 } else { 10 },
        ),
        simulate: mistakes.boolean("--simulate", raw.simulate.as_ref(), false),
        configured: configured(raw, mistakes),
        close_wait_seconds: mistakes
            .number("--timeout-close-wait-secs", raw.timeout_close_wait_secs.as_ref())
            .filter(|seconds| *seconds > 0),
        log_format: match raw.log_format.as_deref().unwrap_or("plain") {
            "json" => Format::Json,
            "plain" => Format::Plain,
            other => {
                mistakes.add(Format::Plain, format!("--log-format: {other:?} is neither plain nor json"))
            }
        },
        // Linkerd's levels have three more names for the ends of the same scale.
        log_level: match raw.log_level.as_deref().unwrap_or("info") {
            "panic" | "fatal" | "error" => Level::Error,
            "warn" | "warning" => Level::Warn,
            "info" => Level::Info,
            "debug" | "trace" => Level::Debug,
            other => {
                mistakes.add(Level::Info, format!("--log-level: {other:?} is not error, warn, info or debug"))
            }
        },
    }
}

fn configured(raw: &Raw, mistakes: &mut Mistakes) -> Option<(String, String)> {
    let pair = |tool: &str| Some((tool.to_owned(), format!("{tool}-save")));
    match raw.iptables_mode.as_deref().unwrap_or_default() {
        "" => {}
        "nft" => return pair("iptables-nft"),
        "plain" => return pair("iptables"),
        "legacy" => return pair("iptables-legacy"),
        other => {
            let mistake = format!("--iptables-mode: {other:?} is not nft, plain or legacy");
            return mistakes.add(None, mistake);
        }
    }
    let given = |path: &Option<String>| path.clone().filter(|path| !path.is_empty());
    for (flag, path) in [
        ("--firewall-bin-path", &raw.firewall_bin_path),
        ("--firewall-save-bin-path", &raw.firewall_save_bin_path),
    ] {
        let path = path.as_deref().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or(path);
        if !file.is_empty() && !file.contains("iptables") {
            let mistake =
                format!("{flag}: {path:?} has no \"iptables\" in its name, from which ip6tables is found");
            mistakes.0.push(mistake);
        }
    }
    let tool = given(&raw.firewall_bin_path)
        .or_else(|| given(&raw.firewall_save_bin_path)?.strip_suffix("-save").map(str::to_owned))?;
    let save = given(&raw.firewall_save_bin_path).unwrap_or_else(|| format!("{tool}-save"));
    Some((tool, save))
}

/// Collects what is wrong and answers with a value that is never used.
#[derive(Debug, Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add<T>(&mut self, unused: T, mistake: String) -> T {
        self.0.push(mistake);
        unused
    }

    fn proxy_port(&mut self, flag: &str, value: Option<&String>) -> u16 {
        match value.map(|value| value.parse::<u16>()) {
            Some(Ok(port)) if port > 0 => port,
            Some(_) => self
                .add(0, format!("{flag}: {:?} is not a port (1 to 65535)", value.map_or("", String::as_str))),
            None => self.add(0, format!("{flag}: is required")),
        }
    }

    fn owner(&mut self, flag: &str, value: Option<&String>) -> Option<NonZeroU32> {
        let value = value?;
        match value.parse::<i64>() {
            Ok(id) if id <= 0 => None,
            // The last one means "no such id" to the kernel.
            Ok(id) if id < i64::from(u32::MAX) => u32::try_from(id).ok().and_then(NonZeroU32::new),
            Ok(_) | Err(_) => self.add(None, format!("{flag}: {value:?} is not an id (1 to 4294967294)")),
        }
    }

    fn number(&mut self, flag: &str, value: Option<&String>) -> Option<u32> {
        let value = value?;
        value
            .parse()
            .map_or_else(|_| self.add(None, format!("{flag}: {value:?} is not a number of seconds")), Some)
    }

    fn boolean(&mut self, flag: &str, value: Option<&String>, unset: bool) -> bool {
        match value.map(String::as_str) {
            None => unset,
            Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
            Some(other) => self.add(unset, format!("{flag}: {other:?} is neither true nor false")),
        }
    }

    /// Comma-separated, and the flag may be repeated; empty entries mean nothing.
    fn list<T>(
        &mut self,
        flag: &str,
        values: &[String],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let entries = values.iter().flat_map(|value| value.split(',')).map(str::trim);
        let mut list = Vec::new();
        for entry in entries.filter(|entry| !entry.is_empty()) {
            match parse(entry) {
                Ok(parsed) => list.push(parsed),
                Err(mistake) => self.0.push(format!("{flag}: {mistake}")),
            }
        }
        list
    }
}

#[cfg(test)]
mod tests;
