//! The errors of building, and the way of an [`AcquireError`] through sqlx's executors and back.

use std::io;
use std::path::PathBuf;

use pool_core::{AcquireError, NamingError};
use pool_manager::StartError;
use thiserror::Error;

/// Why a pool could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The prefix cannot be one.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// The limits cannot hold, or there is no runtime.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No limits were given: only the owner knows how many connections, each a thread, the process can spare.
    #[error("no limits are given: call `.limits(Limits::new(connections))` before `build`")]
    NoLimits,
    /// The directory of the databases cannot be used.
    #[error("the directory {} cannot be used", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A failed acquire in the form that sqlx's executors can return: what sqlx's own pool says where that is the same, and otherwise an
/// I/O error that keeps its cause.
pub fn into_sqlx(error: AcquireError) -> sqlx::Error {
    match error {
        AcquireError::Closed => sqlx::Error::PoolClosed,
        AcquireError::TimedOut { .. } => {
            tracing::debug!(%error, "an acquire timed out");
            sqlx::Error::PoolTimedOut
        }
        _ => sqlx::Error::Io(io::Error::other(error)),
    }
}

/// The failed acquire behind an error of an executor, if that is what it was and sqlx has no error of its own for it.
pub fn acquire_error(error: &sqlx::Error) -> Option<&AcquireError> {
    match error {
        sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}
