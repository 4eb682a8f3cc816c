//! `remora check`: a directory of manifests as `remora-destination` would read it, and what it says of them.

use std::{fmt::Write as _, process::ExitCode};

use clap::Args;
use remora_destination::{
    check::{Checked, check},
    view::{Condition, ParentReport},
};

use serde::Serialize;

use crate::{
    Format, complain,
    manifests::{Manifests, Read},
    print,
};

/// A document is invalid, or a condition is false.
const NOT_FINE: u8 = 2;

/// Check a directory of manifests: what cannot be read, and how every route and policy stands.
///
/// Reads every *.yaml, *.yml and *.json of the directory with the reader of remora-destination, and says what that would
/// say of them in its /state.json: mistakes with the paths of their fields, and for each route and parent whether the
/// parent accepts it and whether its references lead somewhere; the same of policies and what they are about. What they
/// refer to has to be in the directory too. Manifests that were never in a cluster are taken for what one would make of
/// them: workloads have a pod, and Services a cluster IP.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        remora check --manifests deploy/\n  \
        remora check --manifests deploy/ -o json | jq '.routes'\n\n\
        Exit codes: 0 everything is fine, whatever warnings there are; 2 a document is invalid, or of a kind of a mesh that \
        is not served, or a condition is False; \
        1 the directory cannot be read; 64 the command line is wrong.")]
pub(crate) struct Check {
    #[command(flatten)]
    manifests: Manifests,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(crate) fn run(args: &Check) -> ExitCode {
    let Read { reading, config, supposed } = match args.manifests.read("remora check", &[]) {
        Ok(read) => read,
        Err(code) => return code,
    };
    let checked = check(&reading, &config.settings);
    let text = match args.output {
        Format::Text => table(&checked, &supposed),
        Format::Json => {
            match serde_json::to_string_pretty(&Printed { checked: &checked, supposed: &supposed }) {
                Ok(text) => format!("{text}\n"),
                Err(why) => {
                    complain(&format!("remora check: {why}"));
                    return ExitCode::FAILURE;
                }
            }
        }
    };
    let printed = print(&text);
    if printed == ExitCode::SUCCESS && !checked.fine { ExitCode::from(NOT_FINE) } else { printed }
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    checked: &'a Checked,
    /// What a cluster would add to these manifests.
    supposed: &'a [String],
}

fn table(checked: &Checked, supposed: &[String]) -> String {
    let mut text = String::new();
    for (file, report) in &checked.files {
        for error in report.wrong() {
            let _infallible = writeln!(text, "invalid: {file}: {error}");
        }
    }
    let mut rows = vec![["OBJECT", "PARENT", "ACCEPTED", "RESOLVED REFS"].map(str::to_owned)];
    let mut messages = Vec::new();
    for (id, report) in &checked.routes {
        for parent in &report.parents {
            let [accepted, resolved] = parent.conditions.each_ref();
            rows.push([id.clone(), named(parent), word(accepted), word(resolved)]);
            for condition in parent.conditions.iter().filter(|condition| !condition.holds()) {
                messages.push(format!("{id}: {}: {}", condition.reason, condition.message));
            }
        }
    }
    for (id, report) in &checked.policies {
        let [accepted] = &report.conditions;
        rows.push([id.clone(), String::new(), word(accepted), String::new()]);
        if !accepted.holds() {
            messages.push(format!("{id}: {}: {}", accepted.reason, accepted.message));
        }
    }
    // What all parents say is said once.
    messages.sort_unstable();
    messages.dedup();
    if rows.len() > 1 {
        aligned(&rows, &mut text);
    }
    for (kind, lines) in
        [("false", &messages[..]), ("warning", &checked.warnings[..]), ("supposed", supposed)]
    {
        for line in lines {
            let _infallible = writeln!(text, "{kind}: {line}");
        }
    }
    let invalid: usize = checked.files.values().map(|file| file.wrong().count()).sum();
    let _infallible = writeln!(
        text,
        "{} files, {} routes, {} policies: {invalid} mistakes in documents, {} routes and {} policies not fine, {} warnings",
        checked.files.len(),
        checked.routes.len(),
        checked.policies.len(),
        checked.routes.values().filter(|report| !report.is_fine()).count(),
        checked.policies.values().filter(|report| !report.is_fine()).count(),
        checked.warnings.len(),
    );
    text
}

/// A parent as people name it.
fn named(parent: &ParentReport) -> String {
    let parent = &parent.parent;
    let namespace = parent.namespace.as_ref().map_or_else(String::new, |namespace| format!("{namespace}/"));
    let section = parent.section.as_ref().map_or_else(String::new, |section| format!(":{section}"));
    let port = parent.port.map_or_else(String::new, |port| format!(":{port}"));
    format!("{namespace}{}{section}{port}", parent.name)
}

fn word(condition: &Condition) -> String {
    if condition.holds() { "yes".to_owned() } else { format!("no: {}", condition.reason) }
}

/// Columns as wide as their widest cell; the last one ends where it ends.
fn aligned(rows: &[[String; 4]], text: &mut String) {
    let mut widths = [0; 4];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _infallible = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
