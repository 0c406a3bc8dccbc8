//! What can go wrong around a test; each says which pool, and what was seen.

use std::fmt;
use std::time::Duration;

use pool_postgres::{BuildError, CatalogError, CloseError};
use thiserror::Error;

use crate::server::ServerError;

/// A session on the server that should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The process id of its backend.
    pub pid: i32,
    /// The database it is connected to; empty while it starts, which PostgreSQL 18 and later show.
    pub database: String,
    /// What it is doing, as `pg_stat_activity` says.
    pub state: String,
    /// The last statement it ran.
    pub last_query: String,
    /// Its `application_name`.
    pub application_name: String,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, database, state, last_query, .. } = self;
        write!(f, "pid {pid} in {database} ({state}): {last_query}")
    }
}

/// Why a test's surroundings failed it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TestError {
    /// No server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The pool could not be built.
    #[error("the test pool could not be built: {0}")]
    Build(#[from] BuildError),
    /// A database could not be created or dropped.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The pool could not be closed gracefully.
    #[error("{pool} was not closed gracefully: {source}")]
    Close {
        /// Which pool.
        pool: String,
        /// What was not graceful.
        source: CloseError,
    },
    /// The server counts more sessions than the pool knows of.
    #[error("{pool} leaked {} sessions: {}", sessions.len(), list(sessions))]
    Leaked {
        /// Which pool.
        pool: String,
        /// The sessions of this pool on the server.
        sessions: Vec<Session>,
    },
    /// The server has no room for a pool of this size, even alone.
    #[error("a test pool of {wanted} connections does not fit: the server can spare {capacity}")]
    TooLarge {
        /// What was asked for, the janitor's own connection included.
        wanted: u32,
        /// What there is for all tests together.
        capacity: u32,
    },
    /// Other tests kept the server's connections for too long.
    #[error(
        "the server had no room for {wanted} more connections within {after:?}. A test that needs several pools \
         asks `TestPools` for them, which keeps room for all at once; several of `TestPool::new` wait for each other"
    )]
    NoRoom {
        /// What was asked for, the janitor's own connection included.
        wanted: u32,
        /// How long was waited.
        after: Duration,
    },
    /// More pools than room was kept for.
    #[error(
        "these test pools have room for {room}: make them with `TestPools::with_room_for` as many as are needed"
    )]
    NotReserved {
        /// For how many pools there is room.
        room: u32,
    },
    /// The janitor's own connection failed.
    #[error("the janitor of the test pool failed while {doing}: {source}")]
    Janitor {
        /// What it was doing.
        doing: &'static str,
        /// The cause.
        source: sqlx::Error,
    },
    /// The janitor is gone.
    #[error("the janitor of the test pool has ended")]
    JanitorGone,
    /// A condition did not come true in time.
    #[error("{what} did not come true within {within:?}")]
    Never {
        /// The condition.
        what: String,
        /// How long it was given.
        within: Duration,
    },
}

fn list(sessions: &[Session]) -> String {
    sessions.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
