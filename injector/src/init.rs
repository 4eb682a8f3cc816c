//! The init container: sets a pod's redirect rules, proves that they hold, exits.
//!
//! The world around [`crate::redirect`], which decides. [`flags`] is the command line, [`tables`] the kernel through
//! the xtables binaries, [`mod@prove`] the dials, [`report`] what people are told. This file is the script.
//!
//! Runs as any user whose permitted set holds `NET_ADMIN` and `NET_RAW` through file capabilities on this program
//! and on the xtables binaries. Under `no_new_privs` an exec gains nothing, but file capabilities still hand on what
//! the old permitted set has, so the children keep both without ambient capabilities. No shell, no temporary files.

pub mod flags;
pub mod prove;
pub mod report;
pub mod tables;

use std::fs;

use crate::redirect::{Family, Plan, readback};
use flags::Settings;
use prove::Proof;
use report::{Exit, Failure, Report};
use tables::Variant;

/// The whole life of the init container. `arguments` without the program's name.
pub fn run(arguments: Vec<String>) -> Exit {
    let settings = match flags::parse(arguments) {
        Ok(settings) => settings,
        Err(flags::Stop::Asked(text)) => {
            Report::plain().say(&text);
            return Exit::Done;
        }
        Err(flags::Stop::Mistakes(mistakes)) => {
            let advice = "correct the arguments; --help lists them".to_owned();
            return Report::plain().failed(&Failure { exit: Exit::Usage, problems: mistakes, advice });
        }
    };
    let report = Report::new(settings.log_format, settings.log_level);
    if settings.simulate {
        report.say(&tables::simulate(&settings.plan));
        return Exit::Done;
    }
    match redirect(&settings, &report) {
        Ok(()) => Exit::Done,
        Err(failure) => report.failed(&failure),
    }
}

fn redirect(settings: &Settings, report: &Report) -> Result<(), Failure> {
    if let Some(path) = &settings.netns {
        tables::enter(path)?;
    }
    if let Some(seconds) = settings.close_wait_seconds {
        close_wait(seconds)?;
    }
    let variants = tables::variants(settings);
    for &family in settings.plan.families() {
        let Some(used) = apply(settings, family, &variants, report)? else { continue };
        let found = tables::read(&used, family).map_err(|problem| Failure::tables(vec![problem]))?;
        let broken = readback::broken(&settings.plan, family, &found);
        if !broken.is_empty() {
            return Err(Failure::broken(broken.iter().map(ToString::to_string).collect()));
        }
        report.info(&format!(
            "{family}: rules set with {}, read back and followed: they hold",
            used.tool(family)
        ));
    }
    prove(&settings.plan, report)
}

/// `None` if this kernel has no such family at all, so that nothing can travel by it.
fn apply(
    settings: &Settings,
    family: Family,
    variants: &[Variant],
    report: &Report,
) -> Result<Option<Variant>, Failure> {
    if family == Family::V6 && !fs::exists("/proc/net/if_inet6").unwrap_or(true) {
        report.info("IPv6: no rules, because this kernel runs without IPv6");
        return Ok(None);
    }
    let wait = settings.lock_wait;
    let mut problems = Vec::new();
    for variant in variants {
        match tables::apply(variant, &settings.plan, family, wait, report) {
            Ok(()) => {
                tables::clear_others(variant, family, wait, report)?;
                return Ok(Some(variant.clone()));
            }
            Err(problem) => problems.push(problem),
        }
    }
    Err(Failure::tables(problems))
}

fn prove(plan: &Plan, report: &Report) -> Result<(), Failure> {
    let mut broken = Vec::new();
    for &family in plan.families() {
        for (rule, proof) in prove::outbound(plan, family) {
            match proof {
                Proof::Holds(how) => report.info(&format!("{family}: {rule}: proven: {how}")),
                Proof::Skipped(why) => report.info(&format!("{family}: {rule}: not dialled: {why}")),
                Proof::Broken(what) => broken.push(format!("{family} rule {rule} does not hold: {what}")),
            }
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::broken(broken)) }
}

/// Sets how long a half-closed connection is remembered (contract 6.5); the kernel lets only root do it.
fn close_wait(seconds: u32) -> Result<(), Failure> {
    const SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    fs::write(SETTING, seconds.to_string()).map_err(|error| Failure {
        exit: Exit::Tables,
        problems: vec![format!("cannot set {SETTING} to {seconds}: {error}")],
        advice: "--timeout-close-wait-secs needs a privileged container that runs as root: allow that, or leave it out"
            .to_owned(),
    })
}
