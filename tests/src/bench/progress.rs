//! Progress while it runs: finished blocks as lines, and on a terminal what is being done.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

/// Columns of the line that says what is being done: it is wiped by blanks.
const WIDTH: usize = 79;

/// Tells on standard output how far the run is.
pub struct Progress {
    began: Instant,
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { began: Instant::now(), terminal: std::io::stdout().is_terminal() }
    }
}

impl Progress {
    /// What is done now; a line of its own only where nobody would see it being replaced.
    pub fn at(&self, what: &str) {
        if self.terminal {
            let seconds = self.began.elapsed().as_secs();
            let text: String = format!(" {seconds:>4} s  {what}").chars().take(WIDTH).collect();
            write(&format!("\r{text:<WIDTH$}"));
        }
    }

    /// Something that is done.
    pub fn line(&self, what: &str) {
        let seconds = self.began.elapsed().as_secs();
        if self.terminal {
            write(&format!("\r{:WIDTH$}\r", ""));
        }
        write(&format!(" {seconds:>4} s  {what}\n"));
    }
}

/// Text on standard output as it is.
pub fn write(text: &str) {
    let mut out = anstream::stdout().lock();
    // Whoever closed our output does not want to be told so.
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
