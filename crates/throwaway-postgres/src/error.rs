//! What can go wrong between asking for a server and having one, and what to do about it.
//!
//! Each message is read by somebody whose tests have just failed, so each one ends with a way out.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const WAYS_OUT: &str = "Do one of these:
  Debian, Ubuntu:  apt-get install postgresql
  Fedora, RHEL:    dnf install postgresql-server
  macOS:           brew install postgresql@17
  elsewhere:       PG_BIN=/path/to/bin, the directory that holds initdb and postgres";

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// No directory with working server binaries: install `PostgreSQL`.
    #[error(
        "no PostgreSQL server binaries (initdb and postgres) found. Looked in:\n{}\n{WAYS_OUT}",
        bullets(looked)
    )]
    NoBinaries {
        /// Each place and why it would not do.
        looked: Vec<String>,
    },
    /// `PG_BIN` is set, but does not work. It is never passed over in silence for another installation.
    #[error(
        "PG_BIN is set to {}, which has no working PostgreSQL server: {why}. \
         Correct PG_BIN, or unset it to have the usual places searched",
        dir.display()
    )]
    PgBin {
        /// The value of `PG_BIN`.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The test runs as root and there is nobody to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user `postgres` nor `nobody` to run it as. \
         Create one (useradd --system postgres), or run the tests as an ordinary user"
    )]
    NoUser,
    /// The base directory cannot be trusted, or belongs to something else.
    #[error("{} cannot hold test servers: {why}", base.display())]
    Base {
        /// The directory.
        base: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The user that runs the server cannot get at the base directory.
    #[error(
        "the user `{user}`, who has to run PostgreSQL because root may not, cannot write to {}. \
         Let all its parent directories be traversed by others (chmod o+x), or set TMPDIR to such a place, as in TMPDIR=/tmp",
        base.display()
    )]
    Unreachable {
        /// The directory.
        base: PathBuf,
        /// Who cannot reach it.
        user: String,
    },
    /// `initdb` or the server gave up while starting.
    #[error("PostgreSQL {version} did not start. The end of its log:\n{log}")]
    StartFailed {
        /// The version that was tried.
        version: String,
        /// The end of the log.
        log: String,
    },
    /// The server did not become ready in time.
    #[error(
        "PostgreSQL {version} was not ready after {after:?}, while it was {stage}. \
         Is the machine overloaded, or the disk full? The end of its log:\n{log}"
    )]
    StartTimedOut {
        /// The version that was tried.
        version: String,
        /// What it was busy with.
        stage: &'static str,
        /// How long it was given.
        after: Duration,
        /// The end of the log.
        log: String,
    },
    /// Servers kept ending under our hands.
    #[error(
        "no server could be joined within {after:?}: each one ended at once. \
         Read the logs in {}, and delete that directory if no test runs",
        base.display()
    )]
    JoinTimedOut {
        /// Where the servers live.
        base: PathBuf,
        /// How long it was tried.
        after: Duration,
    },
    /// The server was let go, but did not end in time.
    #[error(
        "the server in {} was let go, but is not gone after {after:?}. Read watchdog.log there; the next start removes it",
        dir.display()
    )]
    ReleaseTimedOut {
        /// Its directory.
        dir: PathBuf,
        /// How long it was given.
        after: Duration,
    },
    /// A process could not be found, started or told; the text says which.
    #[error("{0}")]
    System(#[from] io::Error),
    /// The operating system refused something; the text says what.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
}

fn bullets(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  - {line}")).collect::<Vec<_>>().join("\n")
}

/// Says what was being done to which path when the system refused.
pub(crate) trait Doing<T> {
    fn doing(self, what: &str, path: &Path) -> Result<T, ServerError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str, path: &Path) -> Result<T, ServerError> {
        self.map_err(|source| ServerError::Io {
            doing: format!("{what} {}", path.display()),
            source: source.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_binaries_say_where_and_what_to_install() {
        let text = ServerError::NoBinaries { looked: vec!["PATH: no initdb".into()] }.to_string();
        for part in [
            "- PATH: no initdb",
            "apt-get install postgresql",
            "dnf install postgresql-server",
            "brew install postgresql@17",
            "PG_BIN=",
        ] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
}
