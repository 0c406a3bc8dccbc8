//! Why a command stops, and the exit code that scripts read.
//!
//! Sorted by what the caller can do: look at a case, correct the command line, repair the machine, or nothing at all
//! because it was the caller who interrupted.

use std::process::ExitCode;

use crate::display::complain;

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// All there is to say has been printed, in its place in the output; only the exit code is left to give.
    #[error("exit code {0}")]
    Told(u8),
    /// The command line asks for something that does not exist.
    #[error("{0}")]
    Usage(String),
    /// The work could not be done: no server, no build, no runner.
    #[error("{0}")]
    Infrastructure(String),
    /// There is no PostgreSQL on this machine, and none was named.
    #[error("{0}")]
    NoPostgres(String),
    /// A signal asked to stop, and everything that was held has been let go.
    #[error("stopped by {}", signal_name(*.0))]
    Interrupted(i32),
}

impl Failure {
    /// A failed case, a leak, a broken rule, no case at all: found, and printed.
    pub const FOUND: Self = Self::Told(1);

    /// The number a script sees: 1 found something, 2 wrong usage, 3 infrastructure, 128 + n after signal n.
    pub fn code(&self) -> u8 {
        match self {
            Self::Told(code) => *code,
            Self::Usage(_) => 2,
            Self::Infrastructure(_) | Self::NoPostgres(_) => 3,
            Self::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(130),
        }
    }

    /// An infrastructure failure that says what was being done and what went wrong.
    pub fn while_doing(what: &str, why: impl std::fmt::Display) -> Self {
        Self::Infrastructure(format!("could not {what}: {why}"))
    }
}

/// Says what stopped a command, unless that has been said, and gives its exit code.
pub fn ended_with(outcome: Result<(), Failure>) -> ExitCode {
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    if !matches!(failure, Failure::Told(_)) {
        complain(&failure.to_string());
    }
    ExitCode::from(failure.code())
}

/// The name of the signals that [`crate::process`] listens for.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        signal_hook::consts::SIGINT => "Ctrl-C",
        signal_hook::consts::SIGTERM => "SIGTERM",
        signal_hook::consts::SIGHUP => "SIGHUP",
        _ => "a signal",
    }
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn every_kind_has_the_code_that_the_help_promises() {
        assert_eq!(Failure::FOUND.code(), 1);
        assert_eq!(Failure::Usage(String::new()).code(), 2);
        assert_eq!(Failure::Infrastructure(String::new()).code(), 3);
        assert_eq!(Failure::Interrupted(signal_hook::consts::SIGINT).code(), 130);
        assert_eq!(Failure::Interrupted(signal_hook::consts::SIGTERM).code(), 143);
    }
}
