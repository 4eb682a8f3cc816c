//! How the story is told: short lines that line up, a mark for every claim, a sign of life while something takes long.
//!
//! Knows nothing of the mesh.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::Result;

/// Waits that are shorter are not mentioned.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between signs of life.
const TICK: Duration = Duration::from_millis(250);
/// Columns that a line may have. A sign of life has all of them: it is wiped by blanks, which also works without escape
/// sequences.
const WIDTH: usize = 79;
/// Where the evidence of a claim begins.
const COLUMN: usize = 38;

const BOLD: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Tells the story on standard output, and remembers what did not hold. Colour only on a terminal, never with `NO_COLOR`.
#[derive(Debug)]
pub struct Teller {
    proved: usize,
    broken: usize,
    began: Instant,
}

impl Default for Teller {
    fn default() -> Self {
        Self { proved: 0, broken: 0, began: Instant::now() }
    }
}

impl Teller {
    /// One numbered part. What keeps it from being told is a claim that does not hold; the story goes on.
    pub fn part(&mut self, number: usize, title: &str, tell: impl FnOnce(&mut Self) -> Result<()>) {
        say(format_args!("\n{BOLD}{number}  {title}{BOLD:#}"));
        if let Err(error) = tell(self) {
            self.claim("this part could be told to its end", Err(format!("{error:#}")));
        }
    }

    /// A line of what is, without a claim.
    pub fn line(&self, what: &str, detail: impl Display) {
        told(format_args!("   "), what, FAINT, &detail.to_string());
    }

    /// A claim with its evidence, or with what was seen instead.
    pub fn claim(&mut self, what: &str, seen: Result<String, String>) {
        match seen {
            Ok(evidence) => {
                self.proved += 1;
                told(format_args!(" {GOOD}✓{GOOD:#} "), what, FAINT, &evidence);
            }
            Err(instead) => {
                self.broken += 1;
                told(format_args!(" {BAD}✗{BAD:#} "), what, BAD, &instead);
            }
        }
    }

    /// [`Self::claim`] for a claim whose evidence is the same text either way.
    pub fn holds(&mut self, what: &str, holds: bool, seen: impl Display) {
        let seen = seen.to_string();
        self.claim(what, if holds { Ok(seen) } else { Err(seen) });
    }

    /// Does `work`; while it takes long, says what is being waited for.
    pub fn wait<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let (done, is_done) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let began = Instant::now();
                let mut next = PATIENCE;
                let terminal = std::io::stdout().is_terminal();
                while is_done.recv_timeout(next) == Err(RecvTimeoutError::Timeout) {
                    next = if terminal { TICK } else { Duration::MAX };
                    sign_of_life(what, began.elapsed(), terminal);
                }
                if terminal && began.elapsed() >= PATIENCE {
                    write(format_args!("\r{:WIDTH$}\r", ""));
                }
            });
            let worked = work();
            drop(done);
            worked
        })
    }

    /// Since the story began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The last line. True if everything held.
    pub fn end(&self) -> bool {
        let Self { proved, broken, .. } = self;
        let took = self.elapsed().as_secs_f64();
        if *broken == 0 {
            say(format_args!("\n{GOOD}All {proved} claims held{GOOD:#}, in {took:.0} s."));
        } else {
            say(format_args!(
                "\n{BAD}{broken} of {} claims did not hold{BAD:#} (marked ✗), in {took:.0} s.",
                proved + broken
            ));
        }
        *broken == 0
    }
}

/// One line on standard output.
pub fn say(text: impl Display) {
    write(format_args!("{text}\n"));
}

fn write(text: impl Display) {
    let mut out = anstream::stdout().lock();
    // Whoever closed our output does not want to be told so.
    let _ = write!(out, "{text}");
    let _ = out.flush();
}

fn sign_of_life(what: &str, elapsed: Duration, terminal: bool) {
    const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
    if terminal {
        let nth = (elapsed.as_millis() / TICK.as_millis()) as usize % FRAMES.len();
        let frame = FRAMES.get(nth).copied().unwrap_or('.');
        let text = format!(" {frame} {what} ({} s)", elapsed.as_secs());
        write(format_args!("\r{FAINT}{text:<WIDTH$}{FAINT:#}"));
    } else {
        say(format_args!(" . {what} ..."));
    }
}

/// A line of three parts, of which the last goes below where it would end beyond the last column.
fn told(mark: impl Display, what: &str, style: Style, detail: &str) {
    let below = below(what, detail);
    match below.as_slice() {
        // `{:<n}` counts characters, and each of ours takes one column.
        [] => say(format_args!("{mark}{what:<COLUMN$}  {style}{detail}{style:#}")),
        lines => {
            let lines: Vec<String> =
                lines.iter().map(|line| format!("\n      {style}{line}{style:#}")).collect();
            let first = if what.is_empty() { String::new() } else { format!("{mark}{what}") };
            say(format_args!("{first}{}", lines.concat()).to_string().trim_start_matches('\n'));
        }
    }
}

/// The lines of a detail that does not fit beside what it is about; nothing where it fits.
fn below(what: &str, detail: &str) -> Vec<String> {
    const INDENT: usize = 6;
    let column = what.chars().count().max(COLUMN) + 5;
    if !detail.contains('\n') && column + detail.chars().count() <= WIDTH {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for line in detail.trim_end().lines() {
        if line.chars().count() + INDENT <= WIDTH {
            lines.push(line.to_owned());
            continue;
        }
        // Columns within it stay as they are.
        let mut rest = line;
        while let Some((end, _)) = rest.char_indices().nth(WIDTH - INDENT) {
            let (fits, _) = rest.split_at(end);
            let Some(space) = fits.rfind(' ').or_else(|| rest.find(' ')) else { break };
            let (filled, left) = rest.split_at(space);
            lines.push(filled.trim_end().to_owned());
            rest = left.trim_start();
        }
        lines.push(rest.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_whose_claims_all_hold_ends_well() {
        let mut teller = Teller::default();
        teller.part(1, "a part", |teller| {
            teller.holds("a claim", true, "evidence");
            Ok(())
        });
        assert!(teller.end());
    }

    #[test]
    fn one_claim_that_does_not_hold_is_enough() {
        let mut teller = Teller::default();
        teller.holds("a claim", true, "evidence");
        teller.holds("another", false, "what was seen instead");
        assert!(!teller.end());
    }

    #[test]
    fn a_part_that_breaks_off_does_not_hold_and_the_next_is_told() {
        let mut teller = Teller::default();
        teller.part(1, "a part", |_| anyhow::bail!("no such pod"));
        let mut told = false;
        teller.part(2, "the next", |_| {
            told = true;
            Ok(())
        });
        assert!(told && !teller.end());
    }

    #[test]
    fn a_detail_that_is_too_long_goes_below_its_claim_in_lines_that_fit() {
        assert_eq!(below("a claim", "short"), [""; 0]);
        assert_eq!(below("a claim", "two\nlines"), ["two", "lines"]);
        let long = "word ".repeat(30);
        let lines = below("a claim", &long);
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= 73), "{lines:?}");
        assert_eq!(lines.join(" "), long.trim());
        assert_eq!(below("a claim", "kept   as it is, because it fits alone").len(), 1);
    }

    #[test]
    fn a_wait_gives_what_was_waited_for() {
        assert_eq!(Teller::default().wait("nothing", || 7), 7);
    }
}
