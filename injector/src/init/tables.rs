//! The kernel's tables through the xtables binaries: which ones work here, what is set, and setting it.
//!
//! Each family is applied by one `iptables-restore --noflush` that reads its input from us: if we die in the middle
//! of writing, it meets the end of its input before `COMMIT` and changes nothing.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::flags::Settings;
use super::report::{Exit, Failure, Report};
use crate::redirect::restore::{removal, restore};
use crate::redirect::table::Table;
use crate::redirect::{Family, Plan};

/// No binary takes this long by itself; waiting for the lock comes on top.
const SLOWEST: Duration = Duration::from_secs(20);

/// One set of binaries: `iptables-nft` with its -save and -restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    tool: String,
    save: String,
}

impl Variant {
    fn named(tool: &str) -> Self {
        Self { tool: tool.to_owned(), save: format!("{tool}-save") }
    }

    /// `iptables…` or `ip6tables…`.
    pub fn tool(&self, family: Family) -> String {
        of_family(&self.tool, family)
    }

    fn save(&self, family: Family) -> String {
        of_family(&self.save, family)
    }

    fn restore(&self, family: Family) -> String {
        format!("{}-restore", self.tool(family))
    }
}

/// Only the file's name says the family: a folder may be called iptables.
fn of_family(path: &str, family: Family) -> String {
    if family == Family::V4 {
        return path.to_owned();
    }
    let (folder, file) = path.rsplit_once('/').map_or(("", path), |(folder, file)| (folder, file));
    let file = file.replacen("iptables", "ip6tables", 1);
    if path.contains('/') { format!("{folder}/{file}") } else { file }
}

/// What to try, in order: what is configured, then nft, whatever the image calls iptables, legacy.
pub fn variants(settings: &Settings) -> Vec<Variant> {
    let configured =
        settings.configured.iter().map(|(tool, save)| Variant { tool: tool.clone(), save: save.clone() });
    let known = ["iptables-nft", "iptables", "iptables-legacy"].map(Variant::named);
    let mut variants: Vec<Variant> = Vec::new();
    for variant in configured.chain(known) {
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    variants
}

/// What would be given to iptables-restore in a pod without rules.
pub fn simulate(plan: &Plan) -> String {
    let text = |&family: &Family| {
        format!(
            "# {family}: {}\n{}",
            Variant::named("iptables").restore(family),
            restore(plan, family, &Table::default())
        )
    };
    plan.families().iter().map(text).collect()
}

/// Moves this thread, and those that it starts, into another network namespace. Called before any other thread
/// exists.
pub fn enter(path: &Path) -> Result<(), Failure> {
    let entered = File::open(path)
        .and_then(|netns| Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?));
    entered.map_err(|error| Failure {
        exit: Exit::Tables,
        problems: vec![format!("cannot enter the network namespace {}: {error}", path.display())],
        advice: "--netns needs the capability SYS_ADMIN and a path such as /proc/PID/ns/net; in a pod leave it out"
            .to_owned(),
    })
}

/// The `nat` table as it is.
pub fn read(variant: &Variant, family: Family) -> Result<Table, String> {
    let program = variant.save(family);
    let output = run(&program, &["-t", "nat"], "", SLOWEST)?;
    Table::parse(&String::from_utf8_lossy(&output.stdout), family)
        .map_err(|error| format!("{program}: {error}"))
}

/// Sets the plan in one transaction. Tried once more if somebody changed the table between reading and writing.
pub fn apply(
    variant: &Variant,
    plan: &Plan,
    family: Family,
    wait: Duration,
    report: &Report,
) -> Result<(), String> {
    let mut existing = read(variant, family)?;
    loop {
        let input = restore(plan, family, &existing);
        report.debug(&format!("{family}: input of {}:\n{input}", variant.restore(family)));
        let Err(problem) = write(variant, family, &input, wait) else { return Ok(()) };
        let now = read(variant, family)?;
        if now == existing {
            return Err(problem);
        }
        existing = now;
    }
}

/// Removes our chains from the kernel's other rule set, where an earlier run with other binaries may have left
/// them: the kernel asks both, and what the new rules leave alone the old ones would still take.
pub fn clear_others(used: &Variant, family: Family, wait: Duration, report: &Report) -> Result<(), Failure> {
    let version =
        run(&used.tool(family), &["--version"], "", SLOWEST).map_err(|why| Failure::tables(vec![why]))?;
    let other = if String::from_utf8_lossy(&version.stdout).contains("nf_tables") {
        if !legacy_nat_possible(family) {
            return Ok(());
        }
        Variant::named("iptables-legacy")
    } else {
        Variant::named("iptables-nft")
    };
    // What cannot be read by its own binary (absent, or no such thing in this kernel) is not there to be cleared.
    let Ok(existing) = read(&other, family) else { return Ok(()) };
    let Some(input) = removal(&existing) else { return Ok(()) };
    report.warn(&format!("{family}: removing the rules that were left by {}", other.tool(family)));
    write(&other, family, &input, wait).map_err(|why| Failure::tables(vec![why]))
}

/// Asking legacy for its table makes the kernel load it, so first see whether it can have one: without ip_tables
/// there is no such file, and where we may read it, it names the tables. It is readable for root only.
fn legacy_nat_possible(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match fs::read_to_string(names) {
        Ok(tables) => tables.lines().any(|table| table == "nat"),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn write(variant: &Variant, family: Family, input: &str, wait: Duration) -> Result<(), String> {
    let wait_flag = format!("--wait={}", wait.as_secs());
    run(&variant.restore(family), &["--noflush", &wait_flag], input, SLOWEST + wait).map(drop)
}

/// Runs a program to its end, or kills it at the deadline. A failure is told with the program's own words.
fn run(program: &str, arguments: &[&str], input: &str, deadline: Duration) -> Result<Output, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: cannot be run: {error}"))?;
    let pid = Pid::from_child(&child);
    let input = input.to_owned();
    let (done, ended) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        // A child that dies early does not read to the end; what it says of that is in its output.
        let _early_death = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let _deadline_passed = done.send(child.wait_with_output());
    });
    let output = match ended.recv_timeout(deadline) {
        Ok(output) => output.map_err(|error| format!("{program}: {error}"))?,
        Err(_elapsed) => {
            // The thread still holds the child, so the id cannot have been given to another process.
            let _already_dead = kill_process(pid, Signal::KILL);
            return Err(format!("{program}: did not end within {} s", deadline.as_secs()));
        }
    };
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    Err(format!("{program}: {}: {said}", output.status))
}
