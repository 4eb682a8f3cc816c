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
/// Columns of the line that is a sign of life: it is wiped by blanks, which also works without escape sequences.
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
        say(format_args!("   {} {FAINT}{detail}{FAINT:#}", padded(what, COLUMN + 1)));
    }

    /// A claim with its evidence, or with what was seen instead.
    pub fn claim(&mut self, what: &str, seen: Result<String, String>) {
        let what = padded(what, COLUMN);
        match seen {
            Ok(evidence) => {
                self.proved += 1;
                say(format_args!(" {GOOD}✓{GOOD:#} {what}  {FAINT}{evidence}{FAINT:#}"));
            }
            Err(instead) => {
                self.broken += 1;
                say(format_args!(" {BAD}✗{BAD:#} {what}  {BAD}{instead}{BAD:#}"));
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

/// Padded by what is seen: `{:<n}` counts characters, and each of ours takes one column.
fn padded(text: &str, width: usize) -> String {
    format!("{text:<width$}")
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
    fn a_wait_gives_what_was_waited_for() {
        assert_eq!(Teller::default().wait("nothing", || 7), 7);
    }
}
