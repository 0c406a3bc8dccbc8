//! The errors of building, and the way of an [`AcquireError`] through sqlx's executors and back.

use std::io;
use std::sync::Arc;

use pool_core::{AcquireError, DriverError};
use pool_manager::StartError;
use thiserror::Error;

use crate::config_error::ConfigError;

/// Why a pool could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The limits cannot hold, or there is no runtime.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The server could not be reached or refused us; host, port, database and phase are named.
    #[error(transparent)]
    Connect(#[from] Arc<DriverError>),
}

/// A failed acquire in the form that sqlx's executors can return: an I/O error that keeps its cause, or
/// [`sqlx::Error::PoolClosed`].
pub(crate) fn to_sqlx(error: AcquireError) -> sqlx::Error {
    match error {
        AcquireError::Closed => sqlx::Error::PoolClosed,
        AcquireError::TimedOut { .. } => sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, error)),
        _ => sqlx::Error::Io(io::Error::other(error)),
    }
}

/// The failed acquire behind an error of an executor, if that is what it was.
pub fn acquire_error(error: &sqlx::Error) -> Option<&AcquireError> {
    match error {
        sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}
