//! What is going on, on standard error: a line that is written over where a person watches, else one now and then.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

/// How often a line is written where nobody watches.
const EVERY: Duration = Duration::from_secs(10);

/// Tells what is going on.
pub struct Progress {
    is_watched: bool,
    told: Option<Instant>,
}

impl Progress {
    /// Nothing is told yet.
    pub fn new() -> Self {
        Self { is_watched: stderr().is_terminal(), told: None }
    }

    /// Says what is being done.
    pub fn tell(&mut self, what: &str) {
        if self.is_watched {
            let _ = write!(stderr(), "\r\x1b[K  {what}");
        } else if self.told.is_none_or(|at| at.elapsed() >= EVERY) {
            self.told = Some(Instant::now());
            let _ = writeln!(stderr(), "  {what}");
        }
    }

    /// Takes the line away, before others write.
    pub fn clear(&mut self) {
        if self.is_watched {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
