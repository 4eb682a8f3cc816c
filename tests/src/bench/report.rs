//! Pure. The table, as text.

use std::fmt::Write as _;

use super::loads::Measure;
use super::stats::Spread;
use super::verdict::{Lane, NULL, Verdict};

/// The table of all rows, and below it what makes a row void.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut text = format!(
        "{:<44} {:>9} {:>9} {:>9} {:>7} {:>13} {:>6}  {:<12} {:<12}\n",
        "", "Remora", "Envoy", "direct", "ratio", "least-most", "A/A", "floor", "aim"
    );
    for verdict in verdicts {
        text.push_str(&line(verdict));
    }
    for verdict in verdicts {
        if let Some(why) = &verdict.void {
            let _ = writeln!(text, "VOID: {}: {why}", verdict.row.title);
        }
    }
    text
}

fn line(verdict: &Verdict) -> String {
    let row = verdict.row;
    let lane = |lane: Lane| {
        verdict.lanes.get(&lane).map_or_else(|| "-".to_owned(), |spread| value(row.measure, spread.median))
    };
    // What is not judged by the ratio has its own spread.
    let judged =
        if row.measure.is_relative() { verdict.ratio } else { verdict.lanes.get(&Lane::Remora).copied() };
    let median = |spread: Option<Spread>| {
        spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.2}", spread.median))
    };
    let spread =
        judged.map_or_else(|| "-".to_owned(), |spread| format!("{:.2}-{:.2}", spread.least, spread.greatest));
    let goal = |goal: f64, met: Option<bool>| {
        let verdict = match met {
            _ if verdict.void.is_some() => "void",
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "-",
        };
        format!("{goal:<5} {verdict}")
    };
    format!(
        "{:<44} {:>9} {:>9} {:>9} {:>7} {:>13} {:>6}  {:<12} {:<12}\n",
        row.title,
        lane(Lane::Remora),
        lane(Lane::Envoy),
        lane(Lane::Direct),
        median(verdict.ratio),
        spread,
        median(verdict.null),
        goal(row.floor, verdict.floor_met),
        goal(row.aim, verdict.aim_met)
    )
    .trim_end()
    .to_owned()
        + "\n"
}

fn value(measure: Measure, value: f64) -> String {
    match measure {
        Measure::Cpu | Measure::Added => format!("{value:.1} us"),
        Measure::Throughput => format!("{value:.0}"),
        Measure::Idle | Measure::Held | Measure::Closed | Measure::Change => format!("{value:.2}"),
    }
}

/// How to read the table, in a few lines.
pub fn legend() -> String {
    let (least, most) = NULL;
    format!(
        "Medians over the blocks. ratio: Remora by Envoy within a block, with the least and the most of all blocks; where the\n\
         goal is no ratio, the spread is that of Remora's own figure. A/A: Remora by a second pair of Remora; outside {least:.2}\n\
         to {most:.2} the row is void. docs/bench.md says what each row is.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::loads::{ROWS, Row};
    use std::collections::BTreeMap;

    #[test]
    fn a_row_says_what_was_met_and_what_was_missed() {
        let told = table(&[verdict(ROWS[0], 0.30, None)]);
        let line = told.lines().nth(1).unwrap();
        let columns: Vec<&str> = line.split_whitespace().rev().take(8).collect();
        assert_eq!(columns, ["MISSED", "0.22", "met", "0.4", "1.01", "0.28-0.33", "0.30", "-"], "{line}");
    }

    #[test]
    fn a_void_row_says_why_and_claims_nothing() {
        let told = table(&[verdict(ROWS[0], 0.30, Some("too noisy".to_owned()))]);
        assert!(told.contains("VOID: HTTP/1.1, 64 connections, CPU per request: too noisy"), "{told}");
        assert!(!told.contains("met") && !told.contains("MISSED"), "{told}");
    }

    fn verdict(row: Row, ratio: f64, void: Option<String>) -> Verdict {
        let known = void.is_none();
        Verdict {
            row,
            lanes: BTreeMap::from([(Lane::Remora, spread(30.0)), (Lane::Envoy, spread(100.0))]),
            ratio: Some(Spread { median: ratio, least: 0.28, greatest: 0.33 }),
            null: Some(spread(1.01)),
            void,
            floor_met: known.then_some(true),
            aim_met: known.then_some(false),
        }
    }

    fn spread(median: f64) -> Spread {
        Spread { median, least: median, greatest: median }
    }
}
