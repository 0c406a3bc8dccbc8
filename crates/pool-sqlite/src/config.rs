//! Where the databases are, and what their sessions begin with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use crate::files::Directory;

/// The prefix of database files, unless another is given.
pub const PREFIX_DEFAULT: &str = "app";

/// How the databases of a directory are opened: with WAL, foreign keys on, `synchronous = normal`, and a busy timeout.
#[derive(Clone, Debug)]
pub struct SqliteConfig {
    directory: PathBuf,
    prefix: String,
    busy_timeout: Duration,
    template: Option<PathBuf>,
    thread_name: Option<String>,
}

impl SqliteConfig {
    /// The databases in `directory`, which is made at build unless it exists.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            prefix: PREFIX_DEFAULT.to_owned(),
            busy_timeout: Duration::from_secs(2),
            template: None,
            thread_name: None,
        }
    }

    /// What the names of database files begin with (default: `app`).
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// How long a statement waits for a lock that another connection has (default: 2 s). Keep it below the recycle timeout of the
    /// pool: a statement that was dropped while it waits cannot be ended before.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// A database that new workspaces begin as a copy of (default: they begin empty). Nobody may have it open: what is in its log
    /// would be missing, and `ensure_workspace` fails.
    pub fn template(mut self, file: impl Into<PathBuf>) -> Self {
        self.template = Some(file.into());
        self
    }

    /// What the threads of connections are named, with a number behind: each connection has one.
    pub fn thread_name(mut self, name: &str) -> Self {
        self.thread_name = Some(name.to_owned());
        self
    }

    pub(crate) fn directory(&self) -> Directory {
        Directory::new(self.directory.clone())
    }

    pub(crate) fn get_prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn get_template(&self) -> Option<&Path> {
        self.template.as_deref()
    }

    pub(crate) fn get_busy_timeout(&self) -> Duration {
        self.busy_timeout
    }

    pub(crate) fn connect_options(&self, file: &Path) -> SqliteConnectOptions {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(self.busy_timeout);
        match &self.thread_name {
            Some(name) => {
                let name = name.clone();
                options.thread_name(move |number| format!("{name}{number}"))
            }
            None => options,
        }
    }
}
