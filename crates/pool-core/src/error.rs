//! Errors, sorted by what the caller can do about them. Every one names the phase, the target and the
//! numbers; the cause is kept as `source`; no password can be in any of them, since none is ever given
//! to this crate.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::ids::Target;

pub use crate::ids::WorkspaceIdError;
pub use crate::limits::LimitsError;
pub use crate::naming::NamingError;

/// What a driver was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Opening a session: network, handshake, authentication, choice of the database.
    Connect,
    /// Doing with a new session what the configuration says, before it is lent.
    Prepare,
    /// Asking an idle connection whether it lives.
    Check,
    /// Making a returned connection clean.
    Recycle,
    /// Ending a session.
    Close,
    /// Creating, dropping or finding a workspace's database.
    Catalog,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Prepare => "preparing a connection",
            Self::Check => "checking a connection",
            Self::Recycle => "recycling a connection",
            Self::Close => "closing a connection",
            Self::Catalog => "managing a database",
        })
    }
}

/// What kind of failure a driver met, in terms that hold for every driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DriverErrorKind {
    /// Nobody answers there: refused, unknown host, network down.
    Unreachable,
    /// It did not answer in time.
    TimedOut,
    /// The user, the password or the right to connect was refused.
    Refused,
    /// What a login needs, such as a password, could not be had: the server was not asked.
    NoCredentials,
    /// The database does not exist.
    DatabaseMissing,
    /// The server has no connection left for us.
    ServerFull,
    /// The server starts up, shuts down or recovers.
    ServerNotReady,
    /// The session broke.
    ConnectionLost,
    /// Anything else; see the source.
    Other,
}

impl DriverErrorKind {
    /// Whether the same attempt can succeed later without anybody changing anything.
    pub fn is_retryable(self) -> bool {
        !matches!(self, Self::Refused | Self::DatabaseMissing | Self::Other)
    }

    /// Whether such a failure may be the fault of the server rather than of one session, or of one database: the session
    /// was lost, or nobody answers.
    pub fn may_concern_all(self) -> bool {
        matches!(self, Self::Unreachable | Self::TimedOut | Self::ServerNotReady | Self::ConnectionLost)
    }
}

impl fmt::Display for DriverErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the server cannot be reached",
            Self::TimedOut => "no answer in time",
            Self::Refused => "access was refused",
            Self::NoCredentials => "there is nothing to log in with",
            Self::DatabaseMissing => "the database does not exist",
            Self::ServerFull => "the server has no free connection",
            Self::ServerNotReady => "the server is not ready",
            Self::ConnectionLost => "the connection was lost",
            Self::Other => "the driver failed",
        })
    }
}

/// A failure of a driver: the phase, the kind, where, and the cause as `source`.
#[derive(Debug, Error)]
#[error("{phase} to {address} failed: {kind}{}", cause(.source.as_deref()))]
pub struct DriverError {
    /// What was being done.
    pub phase: Phase,
    /// What kind of failure it was.
    pub kind: DriverErrorKind,
    /// Host, port and database, in the driver's form; never a password.
    pub address: String,
    /// The cause, if there is one beyond the kind.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl DriverError {
    /// A failure without a deeper cause.
    pub fn new(phase: Phase, kind: DriverErrorKind, address: impl Into<String>) -> Self {
        Self { phase, kind, address: address.into(), source: None }
    }

    /// The same, with its cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

fn cause(source: Option<&(dyn StdError + Send + Sync)>) -> String {
    source.map_or_else(String::new, |why| format!(" ({why})"))
}

/// What a waiter was waiting for when its time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The budget is spent and nothing is idle.
    Budget,
    /// The workspace has all the connections it may have.
    WorkspaceCeiling,
    /// A connection to the workspace is being opened, or its turn to open has not come.
    Opening,
    /// An idle connection is being asked whether it lives.
    Check,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Budget => "a slot of the budget",
            Self::WorkspaceCeiling => "a connection of the workspace, which is at its ceiling",
            Self::Opening => "a connection to be opened",
            Self::Check => "the check of an idle connection",
        })
    }
}

/// How full things were when a waiter gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Connections in use in the share.
    pub in_use: u32,
    /// Everything that counts in the share: in use, idle, opening and closing.
    pub counted: u32,
    /// The share's ceiling.
    pub limit: u32,
    /// Connections that this target holds or is opening.
    pub target_counted: u32,
    /// The ceiling of this target.
    pub target_limit: u32,
    /// Callers waiting in the share, this one included.
    pub waiting: u32,
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} in use, {} counted; here {} of {}; {} waiting",
            self.in_use, self.limit, self.counted, self.target_counted, self.target_limit, self.waiting
        )
    }
}

/// Why an acquire failed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Retry later, or shed load.
    #[error("acquire for {target} timed out after {after:?}, waiting for {waiting_for} ({pressure}){}", last(.last_failure.as_ref()))]
    TimedOut {
        /// What was asked for.
        target: Target,
        /// What was being waited for at the end.
        waiting_for: Stage,
        /// How long the caller waited.
        after: Duration,
        /// How full things were.
        pressure: Pressure,
        /// Why the last open for this target failed, if it did: an exhausted server looks different from
        /// a busy pool.
        last_failure: Option<Arc<DriverError>>,
    },
    /// This database cannot be opened; the pool is fine.
    #[error("acquire for {target} failed: {source}; the next attempt is made in {retry_in:?}")]
    OpenFailed {
        /// What was asked for.
        target: Target,
        /// Whether it may work later without anybody changing anything.
        retryable: bool,
        /// When the next open may start.
        retry_in: Duration,
        /// The cause.
        source: Arc<DriverError>,
    },
    /// Too many callers wait for this target already: shed load.
    #[error("acquire for {target} refused: {waiting} callers wait for it, of at most {limit}")]
    QueueFull {
        /// What was asked for.
        target: Target,
        /// How many wait for it.
        waiting: u32,
        /// How many may.
        limit: u32,
    },
    /// The workspace is being closed; it may be asked for again afterwards.
    #[error("acquire for {target} refused: it is being closed")]
    WorkspaceClosing {
        /// What was asked for.
        target: Target,
    },
    /// The adapter has no system database: ask for a workspace.
    #[error("acquire for {target} refused: this adapter has no system database")]
    NoSystemDatabase {
        /// What was asked for.
        target: Target,
    },
    /// The manager is closed: stop asking.
    #[error("acquire refused: the pool is closed")]
    Closed,
}

fn last(failure: Option<&Arc<DriverError>>) -> String {
    failure.map_or_else(String::new, |why| format!("; the last attempt to open failed: {why}"))
}

/// What a close could not do gracefully. All that could be closed is closed.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Leases were still out at the deadline; their sessions were ended behind their holders.
    #[error("{leases} leases were still held {after:?} after the close began, and were cut")]
    Cut {
        /// How many.
        leases: usize,
        /// How long they were waited for.
        after: Duration,
    },
    /// Leases were still out at the deadline, and could not be cut: the server refused, or nothing can end sessions of this adapter
    /// from outside. Each counts until its holder gives it back.
    #[error(
        "{leases} leases were still held {after:?} after the close began, and could not be cut; they count until they come back"
    )]
    Held {
        /// How many.
        leases: usize,
        /// How long they were waited for.
        after: Duration,
    },
    /// The server did not confirm in time that the sessions are gone.
    #[error("the server did not confirm within {after:?} that {connections} connections are gone")]
    Unconfirmed {
        /// How many.
        connections: u32,
        /// How long was waited.
        after: Duration,
    },
}

/// Why a workspace could not be created, dropped or looked up.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// No system connection could be had.
    #[error("no system connection for the catalog: {0}")]
    Acquire(#[from] AcquireError),
    /// The statement, or its turn, took too long.
    #[error("{target}: its database could not be managed within {after:?}")]
    TimedOut {
        /// Whose database it is about.
        target: Target,
        /// How long was waited.
        after: Duration,
    },
    /// The statement failed.
    #[error("{target}: {source}")]
    Driver {
        /// Whose database it is about.
        target: Target,
        /// The cause.
        source: Arc<DriverError>,
    },
}
