//! The errors of building, and the way of an [`AcquireError`] through sqlx's executors and back.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use pool_core::{AcquireError, DriverError, DriverErrorKind};
use pool_manager::StartError;
use sqlx::error::{BoxDynError, DatabaseError, ErrorKind};
use sqlx::migrate::MigrateError;
use thiserror::Error;

use crate::config_error::ConfigError;

/// Why a pool could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no default for the budget: only its owner knows what the server can spare.
    #[error(
        "the limits are missing: write `.limits(Limits::new(90))` with as many connections as the server can spare, or \
         `.limits(Limits::of_server(5))` for all that it has but 5"
    )]
    NoLimits,
    /// The limits cannot hold, or there is no runtime.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A migration that new workspaces are to begin with cannot be applied; nothing of it is left.
    #[error("the template {database} for new workspaces cannot be made")]
    Template {
        /// What it was to be called.
        database: String,
        /// The cause.
        source: MigrateError,
    },
    /// The server could not be reached or refused us; host, port, database and phase are named.
    #[error(transparent)]
    Connect(#[from] Arc<DriverError>),
}

/// A failed acquire as sqlx's users know it, and as the executors of this crate return it:
///
/// - [`TimedOut`](AcquireError::TimedOut) is [`sqlx::Error::PoolTimedOut`]. That has no room for what was waited for and how
///   full things were, so it is logged, at `debug`; `db.acquire()` and `pools.acquire()` return it as it is.
/// - [`Closed`](AcquireError::Closed) is [`sqlx::Error::PoolClosed`].
/// - An open that failed because the database does not exist is [`sqlx::Error::Database`], in the server's own words and
///   with its code, `3D000`, where it has refused the connection. (Where the budget is spent, the catalog is asked instead, and
///   the error is of the last kind.) It can be looked at as a `PgDatabaseError` (`downcast_ref`), but not made into one
///   (`downcast`): other callers have the same error.
/// - Everything else is [`sqlx::Error::Io`], with the [`AcquireError`] inside.
///
/// [`acquire_error`] finds the [`AcquireError`] again in the last two, and its
/// [`DriverErrorKind`] says in both that the database is missing.
pub fn into_sqlx(error: AcquireError) -> sqlx::Error {
    match error {
        AcquireError::Closed => sqlx::Error::PoolClosed,
        AcquireError::TimedOut { .. } => {
            tracing::debug!(%error, "an acquire timed out");
            sqlx::Error::PoolTimedOut
        }
        error if missing_database(&error).is_some() => {
            sqlx::Error::Database(Box::new(MissingDatabase(error)))
        }
        error => sqlx::Error::Io(io::Error::other(error)),
    }
}

/// The failed acquire behind an error of an executor, if that is what it was; nothing where [`into_sqlx`] had no room for it.
pub fn acquire_error(error: &sqlx::Error) -> Option<&AcquireError> {
    match error {
        sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
        sqlx::Error::Database(error) => {
            let error: &dyn StdError = &**error;
            error.source()?.downcast_ref()
        }
        _ => None,
    }
}

/// The server's word that there is no such database.
fn missing_database(error: &AcquireError) -> Option<&dyn DatabaseError> {
    let AcquireError::OpenFailed { source, .. } = error else { return None };
    if source.kind != DriverErrorKind::DatabaseMissing {
        return None;
    }
    source.source.as_ref()?.downcast_ref::<sqlx::Error>()?.as_database_error()
}

/// An acquire that failed because of a missing database, as a database error of sqlx.
#[derive(Debug, Error)]
#[error("{0}")]
struct MissingDatabase(#[source] AcquireError);

impl DatabaseError for MissingDatabase {
    fn message(&self) -> &str {
        missing_database(&self.0).map_or("the database does not exist", DatabaseError::message)
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        missing_database(&self.0)?.code()
    }

    // sqlx looks here for the server's error when it is asked for one as a `PgDatabaseError`.
    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        missing_database(&self.0).map_or(self, DatabaseError::as_error)
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> BoxDynError {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pool_core::{Phase, Pressure, Stage, Target};

    use super::*;

    #[test]
    fn w3_a_timeout_reads_as_one_of_the_pool_also_where_the_last_open_has_failed() {
        let unreachable = DriverError::new(Phase::Connect, DriverErrorKind::Unreachable, "db:5432/acme");
        for last_failure in [None, Some(Arc::new(unreachable))] {
            let error = into_sqlx(AcquireError::TimedOut {
                target: Target::System,
                waiting_for: Stage::Budget,
                after: Duration::from_secs(1),
                pressure: Pressure::default(),
                last_failure,
            });
            assert_eq!(error.to_string(), "pool timed out while waiting for an open connection");
        }
    }

    #[test]
    fn an_acquire_that_was_refused_is_found_again_behind_the_error_of_an_executor() {
        let error = into_sqlx(AcquireError::QueueFull { target: Target::System, waiting: 3, limit: 3 });
        assert!(matches!(acquire_error(&error), Some(AcquireError::QueueFull { waiting: 3, .. })), "{error}");
    }
}
