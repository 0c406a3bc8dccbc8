//! A handle on one workspace, or on the system database: what a request handler keeps.

use std::fmt;
use std::time::Duration;

use pool_core::{AcquireError, Counts, Driver, Target};

use crate::lease::Lease;
use crate::manager::PoolManager;

/// A cheap handle on one target's connections. Cloning costs two reference counts; keeping one costs no
/// connection.
pub struct WorkspacePool<D: Driver> {
    manager: PoolManager<D>,
    target: Target,
}

impl<D: Driver> WorkspacePool<D> {
    pub(crate) fn new(manager: PoolManager<D>, target: Target) -> Self {
        Self { manager, target }
    }

    /// A lease on a connection to this target.
    ///
    /// # Errors
    /// As [`PoolManager::acquire`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::acquire`].
    pub async fn acquire(&self) -> Result<Lease<D>, AcquireError> {
        self.manager.acquire_target(&self.target).await
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`PoolManager::acquire`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::acquire`].
    pub async fn acquire_within(&self, limit: Duration) -> Result<Lease<D>, AcquireError> {
        self.manager.acquire_target_within(&self.target, limit).await
    }

    /// A lease on an idle connection, if there is one; see [`PoolManager::try_acquire`].
    ///
    /// # Errors
    /// As [`PoolManager::try_acquire`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::try_acquire`].
    pub async fn try_acquire(&self) -> Result<Option<Lease<D>>, AcquireError> {
        self.manager.try_acquire_target(&self.target).await
    }

    /// Whose pool this is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// This target's connections at the moment, by state.
    pub fn counts(&self) -> Counts {
        self.manager.counts(&self.target)
    }
}

impl<D: Driver> Clone for WorkspacePool<D> {
    fn clone(&self) -> Self {
        Self { manager: self.manager.clone(), target: self.target.clone() }
    }
}

impl<D: Driver> fmt::Debug for WorkspacePool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspacePool").field("target", &self.target).finish_non_exhaustive()
    }
}
