//! The manager: starts and ends the shell, and is the door to everything else.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use pool_core::{
    Acquire, AcquireError, Catalog, CloseError, Counts, Driver, Event, Leased, LimitsError, PoolStats,
    Target, WorkspaceId, WorkspacePools,
};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::closing::{CONFIRM_LIMIT, CloseGuard, close_all};
use crate::engine::{Engine, ShareOf};
use crate::ensure::WorkspaceLocks;
use crate::lease::Lease;
use crate::settings::Settings;
use crate::workspace_pool::WorkspacePool;
use crate::{maintenance, opener, waiting};

/// Every connection to every workspace's database of one server, under one hard budget.
///
/// Cloning costs one reference count. When the last clone is dropped without [`PoolManager::close`],
/// background work is abandoned and the sockets are closed; leases that are still out stay usable.
pub struct PoolManager<D: Driver> {
    pub(crate) inner: Arc<Inner<D>>,
}

pub(crate) struct Inner<D: Driver> {
    pub(crate) engine: Arc<Engine<D>>,
    pub(crate) catalog: Arc<dyn Catalog<D::Connection>>,
    pub(crate) locks: WorkspaceLocks,
    /// Held by a `close` under way; another one waits here for it.
    tasks: Mutex<Tasks>,
}

/// What is left to be ended; each part is forgotten when it has been, so that a `close` that was dropped
/// half-way can be taken up by the next.
struct Tasks {
    stop: Option<oneshot::Sender<()>>,
    dispatcher: Option<JoinHandle<()>>,
    maintenance: Option<JoinHandle<()>>,
    /// What the first close to come to its end has found.
    outcome: Option<Result<(), CloseError>>,
}

/// Why a manager could not be started.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The ceilings cannot hold.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The manager owns background tasks.
    #[error("a manager must be started inside a tokio runtime")]
    NoRuntime,
}

impl<D: Driver> PoolManager<D> {
    /// Starts a manager. Opens no connection.
    ///
    /// # Errors
    /// [`StartError`] when the limits cannot hold, or outside a tokio runtime.
    pub fn start(
        driver: D,
        catalog: Arc<dyn Catalog<D::Connection>>,
        settings: Settings,
    ) -> Result<Self, StartError> {
        let ceilings = settings.limits.ceilings(driver.control_connections())?;
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let every = maintenance::period(&settings);
        let (jobs, todo) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let engine = Arc::new(Engine::new(driver, settings, ceilings, jobs));
        let dispatcher = runtime.spawn(opener::dispatch(Arc::downgrade(&engine), todo, stopped));
        let maintenance = runtime.spawn(maintenance::maintain(Arc::downgrade(&engine), every));
        let tasks = Mutex::new(Tasks {
            stop: Some(stop),
            dispatcher: Some(dispatcher),
            maintenance: Some(maintenance),
            outcome: None,
        });
        let locks = WorkspaceLocks::new();
        Ok(Self { inner: Arc::new(Inner { engine, catalog, locks, tasks }) })
    }

    /// A lease on a connection to `workspace`'s database: an idle one at once, otherwise in turn.
    ///
    /// # Errors
    /// [`AcquireError`]: timed out (what was waited for, and how full things were), the database cannot
    /// be opened, the workspace is being closed, or the pool is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue. An open it started goes on, and its
    /// connection serves the next waiter.
    ///
    /// # Cost
    /// With an idle connection: one short lock here and one on return; no allocation, no task, no round
    /// trip.
    pub async fn acquire(&self, workspace: &WorkspaceId) -> Result<Lease<D>, AcquireError> {
        self.acquire_target(&Target::from(workspace)).await
    }

    pub(crate) async fn acquire_target(&self, target: &Target) -> Result<Lease<D>, AcquireError> {
        let engine = &self.inner.engine;
        let started = Engine::<D>::now();
        let answer = engine.with(ShareOf::from(target), |registry, now| registry.acquire(target, now));
        let mut lease = match answer {
            Acquire::Leased(Leased { conn, debt, check_first: false, .. }) => {
                Lease::new(Arc::clone(engine), target.clone(), conn, debt)
            }
            other => waiting::wait(engine, target, other, started).await?,
        };
        if engine.driver.wants_check(&lease)
            && let Some((conn, debt)) = lease.take()
        {
            let unchecked = Acquire::Leased(Leased { conn, debt, check_first: true, waited: None });
            lease = waiting::wait(engine, target, unchecked, started).await?;
        }
        if engine.settings.observer.is_some() {
            let waited = Engine::<D>::now().saturating_duration_since(started);
            engine.emit(&Event::Acquired { target, waited });
        }
        Ok(lease)
    }

    /// A handle on one workspace. Costs no connection.
    pub fn workspace(&self, workspace: &WorkspaceId) -> WorkspacePool<D> {
        WorkspacePool::new(self.clone(), workspace.into())
    }

    /// A handle on the system database, which is served from the reserved share.
    pub fn system(&self) -> WorkspacePool<D> {
        WorkspacePool::new(self.clone(), Target::System)
    }

    /// The driver that makes the connections.
    pub fn driver(&self) -> &D {
        &self.inner.engine.driver
    }

    /// A consistent snapshot; its sums agree.
    pub fn stats(&self) -> PoolStats {
        self.inner.engine.stats()
    }

    pub(crate) fn counts(&self, target: &Target) -> Counts {
        self.inner.engine.with(target.into(), |registry, _| registry.target_counts(target))
    }

    /// Closes the workspace's connections: idle ones now, those in use when they come back, or by force
    /// at the close timeout. Callers that ask meanwhile are refused; afterwards it takes work again.
    ///
    /// # Errors
    /// [`CloseError`] tells what was not graceful; the connections are gone all the same.
    ///
    /// # Cancel safety
    /// Dropping the future ends the close: what was closed stays closed, and the workspace takes work.
    pub async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError> {
        CloseGuard::begin(&self.inner.engine, workspace.into()).finish().await
    }

    /// Closes everything for good: refuses new work, fails waiters, waits for leases until the close
    /// timeout, then cuts. When it returns, and not with `Unconfirmed`, the server sees no connection of
    /// ours. Idempotent and safe to race: everybody who calls it is told the same when it is done.
    ///
    /// # Errors
    /// [`CloseError::Cut`] when leases had to be cut; [`CloseError::Unconfirmed`] when the server did not
    /// say that connections are gone.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the pool closed to new work; call it again to finish.
    pub async fn close(&self) -> Result<(), CloseError> {
        let mut tasks = self.inner.tasks.lock().await;
        if let Some(outcome) = &tasks.outcome {
            return outcome.clone();
        }
        let outcome = close_all(&self.inner.engine).await;
        tasks.stop = None;
        if let Some(maintenance) = &tasks.maintenance {
            maintenance.abort();
        }
        let Tasks { dispatcher, maintenance, .. } = &mut *tasks;
        for task in [dispatcher, maintenance] {
            join(task).await;
        }
        if timeout(CONFIRM_LIMIT, self.driver().shutdown()).await.is_err() {
            tracing::warn!("the driver did not end its own connections in time");
        }
        tasks.outcome = Some(outcome.clone());
        outcome
    }

    /// Whether `close` has been called.
    pub fn is_closed(&self) -> bool {
        self.inner.engine.with(ShareOf::Workspaces, |registry, _| registry.is_closed())
    }
}

async fn join(slot: &mut Option<JoinHandle<()>>) {
    let Some(task) = slot else { return };
    if let Err(error) = task.await
        && error.is_panic()
    {
        tracing::error!(%error, "a background task of the pool panicked");
    }
    *slot = None;
}

impl<D: Driver> Clone for PoolManager<D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<D: Driver> fmt::Debug for PoolManager<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolManager").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

#[async_trait]
impl<D: Driver> WorkspacePools for PoolManager<D> {
    type Lease = Lease<D>;

    async fn acquire(&self, workspace: &WorkspaceId) -> Result<Lease<D>, AcquireError> {
        self.acquire(workspace).await
    }

    async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError> {
        self.close_workspace(workspace).await
    }

    fn stats(&self) -> PoolStats {
        self.stats()
    }
}
