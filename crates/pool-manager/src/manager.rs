//! The manager: starts and ends the shell, and is the door to everything else.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pool_core::{
    Acquire, AcquireError, Catalog, CloseError, Counts, Driver, Event, Leased, Limits, LimitsError,
    PoolStats, Target, Terms, WorkspaceId, WorkspacePools,
};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::closing::{CONFIRM_LIMIT, CloseGuard, close_all};
use crate::engine::{Engine, Part, divide};
use crate::ensure::WorkspaceLocks;
use crate::lease::Lease;
use crate::settings::Settings;
use crate::tasks::Tasks;
use crate::workspace_pool::WorkspacePool;
use crate::{look_ups, maintenance, moments, opener, server, waiting};

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
    /// Connections would never yield, or only after their waiters have given up.
    #[error(
        "a quantum of {quantum:?} cannot hold: give more than zero and at most the acquire timeout, {acquire_timeout:?}"
    )]
    Quantum {
        /// The wish.
        quantum: Duration,
        /// How long a caller waits.
        acquire_timeout: Duration,
    },
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
        let ceilings = divide(&driver, settings.limits)?;
        if let Some(quantum) = settings.quantum.filter(|_| !settings.quantum_is_sound()) {
            return Err(StartError::Quantum { quantum, acquire_timeout: settings.acquire_timeout });
        }
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let every = maintenance::period(&settings);
        let (jobs, todo) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let (look_ups, asked) = mpsc::unbounded_channel();
        let engine = Arc::new(Engine::new(driver, settings, ceilings, jobs, look_ups));
        let dispatcher = runtime.spawn(opener::dispatch(Arc::downgrade(&engine), todo, stopped));
        let breakage = Arc::clone(&engine.breakage);
        let mut others = vec![
            runtime.spawn(maintenance::maintain(Arc::downgrade(&engine), every)),
            runtime.spawn(maintenance::find_departed(Arc::downgrade(&engine), breakage)),
            runtime.spawn(server::watch_over(Arc::downgrade(&engine), Arc::clone(&engine.health))),
        ];
        for part in [Part::Workspaces, Part::System] {
            let promised = engine.part(part).promised();
            others.push(runtime.spawn(moments::keep_promises(Arc::downgrade(&engine), part, promised)));
        }
        let inner = Arc::new_cyclic(|manager| {
            others.push(runtime.spawn(look_ups::answer(Weak::clone(manager), asked)));
            let tasks = Mutex::new(Tasks::new(stop, dispatcher, others));
            let locks = WorkspaceLocks::new(ceilings.system_leases());
            Inner { engine, catalog, locks, tasks }
        });
        Ok(Self { inner })
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

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`PoolManager::acquire`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::acquire`].
    pub async fn acquire_within(
        &self,
        workspace: &WorkspaceId,
        limit: Duration,
    ) -> Result<Lease<D>, AcquireError> {
        self.acquire_target_within(&Target::from(workspace), limit).await
    }

    /// A lease on an idle connection, if there is one; nobody waits, and nothing is opened. One that was idle for long
    /// is checked first, which takes a round trip; if it is broken, there is none.
    ///
    /// # Errors
    /// [`AcquireError`]: the workspace is being closed, the pool is closed, or the check took longer than the acquire
    /// timeout.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back.
    pub async fn try_acquire(&self, workspace: &WorkspaceId) -> Result<Option<Lease<D>>, AcquireError> {
        self.try_acquire_target(&Target::from(workspace)).await
    }

    pub(crate) async fn try_acquire_target(&self, target: &Target) -> Result<Option<Lease<D>>, AcquireError> {
        let engine = &self.inner.engine;
        let started = Engine::<D>::now();
        let idle =
            engine.share(target).with("try acquire", |registry, now| registry.try_acquire(target, now));
        let Some(Leased { conn, debt, check_first, .. }) = idle? else { return Ok(None) };
        let lease = Lease::new(Arc::clone(engine), target.clone(), conn, debt);
        if !check_first && !engine.driver.wants_check(&lease) {
            return Ok(Some(lease));
        }
        waiting::check_idle(lease, !check_first, started).await
    }

    pub(crate) async fn acquire_target(&self, target: &Target) -> Result<Lease<D>, AcquireError> {
        self.acquire_target_within(target, self.inner.engine.settings.acquire_timeout).await
    }

    pub(crate) async fn acquire_target_within(
        &self,
        target: &Target,
        limit: Duration,
    ) -> Result<Lease<D>, AcquireError> {
        let engine = &self.inner.engine;
        let started = Engine::<D>::now();
        let answer = engine.share(target).with("acquire", |registry, now| registry.acquire(target, now));
        let lease = match answer {
            Acquire::Leased(Leased { conn, debt, check_first: false, .. }) => {
                let mut lease = Lease::new(Arc::clone(engine), target.clone(), conn, debt);
                if engine.driver.wants_check(&lease)
                    && let Some((conn, debt)) = lease.take()
                {
                    let answer = Acquire::Leased(Leased { conn, debt, check_first: false, waited: None });
                    lease = waiting::wait(engine, target, answer, started, limit).await?;
                }
                lease
            }
            other => waiting::wait(engine, target, other, started, limit).await?,
        };
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
        self.inner.engine.share(target).with("counts", |registry, _| registry.target_counts(target))
    }

    /// Changes the limits while running. Where they grow, waiting callers are served at once; where they shrink, idle
    /// connections are closed now and others as they come back, and nothing opens until there is room. No lease is cut.
    /// A share grows only as far as the other one has shrunk, so the whole budget is never exceeded (law B1).
    ///
    /// # Errors
    /// [`LimitsError`] when they cannot hold, with the numbers; nothing has changed then.
    pub fn set_limits(&self, limits: Limits) -> Result<(), LimitsError> {
        let ceilings = self.inner.engine.divide(limits)?;
        self.inner.engine.set_ceilings(ceilings);
        Ok(())
    }

    /// Sets what one workspace may have: its weight where slots do not suffice, and a ceiling of its own.
    ///
    /// # Errors
    /// [`LimitsError`] for a weight of 0, or a ceiling that cannot hold; nothing has changed then.
    pub fn set_terms(&self, workspace: &WorkspaceId, terms: Terms) -> Result<(), LimitsError> {
        let (engine, target) = (&self.inner.engine, Target::from(workspace));
        if terms.weight == 0 {
            return Err(LimitsError::Weight { target });
        }
        let workspaces = engine.ceilings().workspaces();
        if let Some(ceiling) = terms.ceiling.filter(|ceiling| *ceiling == 0 || *ceiling > workspaces) {
            return Err(LimitsError::Ceiling { target, ceiling, workspaces });
        }
        engine.step(&target, "set terms", |registry, now| registry.set_terms(&target, terms, now));
        Ok(())
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
        tasks.end().await;
        if timeout(CONFIRM_LIMIT, self.driver().shutdown()).await.is_err() {
            tracing::warn!("the driver did not end its own connections in time");
        }
        tasks.outcome = Some(outcome.clone());
        outcome
    }

    /// Whether `close` has been called.
    pub fn is_closed(&self) -> bool {
        self.inner.engine.workspaces.with("is closed", |registry, _| registry.is_closed())
    }
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
