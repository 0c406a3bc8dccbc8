//! A handle on one workspace, or on the system database: what a request handler keeps.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use pool_core::{AcquireError, Counts, Driver, Target, TargetStats};

use crate::acquire;
use crate::engine::Engine;
use crate::lease::Lease;

/// A cheap handle on one target's connections. Cloning costs two reference counts; keeping one costs no
/// connection.
pub struct WorkspacePool<D: Driver> {
    engine: Arc<Engine<D>>,
    target: Target,
}

impl<D: Driver> WorkspacePool<D> {
    pub(crate) fn new(engine: Arc<Engine<D>>, target: Target) -> Self {
        Self { engine, target }
    }

    /// A lease on a connection to this target.
    ///
    /// # Errors
    /// As [`PoolManager::acquire`](crate::PoolManager::acquire).
    ///
    /// # Cancel safety
    /// As [`PoolManager::acquire`](crate::PoolManager::acquire).
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Lease<D>, AcquireError>> + Send {
        acquire::lease(&self.engine, &self.target, Location::caller())
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`PoolManager::acquire`](crate::PoolManager::acquire).
    ///
    /// # Cancel safety
    /// As [`PoolManager::acquire`](crate::PoolManager::acquire).
    #[track_caller]
    pub fn acquire_within(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<Lease<D>, AcquireError>> + Send {
        acquire::lease_within(&self.engine, &self.target, limit, Location::caller())
    }

    /// A lease on an idle connection, if there is one; see [`PoolManager::try_acquire`](crate::PoolManager::try_acquire).
    ///
    /// # Errors
    /// As [`PoolManager::try_acquire`](crate::PoolManager::try_acquire).
    ///
    /// # Cancel safety
    /// As [`PoolManager::try_acquire`](crate::PoolManager::try_acquire).
    #[track_caller]
    pub fn try_acquire(&self) -> impl Future<Output = Result<Option<Lease<D>>, AcquireError>> + Send {
        acquire::try_lease(&self.engine, &self.target, Location::caller())
    }

    /// Whose pool this is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// This target's connections at the moment, by state.
    pub fn counts(&self) -> Counts {
        self.engine.counts(&self.target)
    }

    /// This target's connections and waiters at the moment, and what its callers were answered since the start. Cost: O(1).
    pub fn stats(&self) -> TargetStats {
        self.engine.target_stats(&self.target)
    }
}

impl<D: Driver> Clone for WorkspacePool<D> {
    fn clone(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), target: self.target.clone() }
    }
}

impl<D: Driver> fmt::Debug for WorkspacePool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkspacePool").field("target", &self.target).finish_non_exhaustive()
    }
}
