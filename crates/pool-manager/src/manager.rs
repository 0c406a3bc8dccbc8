//! The manager: starts and ends the shell, and is the door to everything else.

use std::cmp::Reverse;
use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, Stream, StreamExt as _};
use pool_core::{
    AcquireError, CatalogError, CatalogKind, CloseError, DatabaseName, Driver, Health, Limits, LimitsError,
    PoolStats, PoolView, Target, Terms, WorkspaceId, WorkspacePools, WorkspaceStats, Workspaces,
};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::closing::{CONFIRM_LIMIT, CloseGuard, close_all};
use crate::databases::Databases;
use crate::engine::{Engine, divide};
use crate::lease::Lease;
use crate::settings::Settings;
use crate::workspace_pool::WorkspacePool;
use crate::{acquire, crew, roster};

/// Every connection to every workspace's database of one server, under one hard budget.
///
/// Cloning costs two reference counts. When the last clone and the last lease are dropped without [`PoolManager::close`],
/// background work is abandoned and the sockets are closed.
///
/// A manager may outlive the runtime that it was started on, as one in a static does that tests share. Its connections end
/// with the runtime on which they were opened; its background tasks start again on the runtime of the next caller.
pub struct PoolManager<D: Driver> {
    engine: Arc<Engine<D>>,
    databases: Arc<Databases<D>>,
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
        catalog: CatalogKind<D::Connection>,
        settings: Settings,
    ) -> Result<Self, StartError> {
        let ceilings = divide(&driver, catalog.system().is_some(), settings.limits)?;
        if let Some(quantum) = settings.quantum.filter(|_| !settings.quantum_is_sound()) {
            return Err(StartError::Quantum { quantum, acquire_timeout: settings.acquire_timeout });
        }
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let engine = Arc::new(Engine::new(driver, settings, catalog, ceilings, crew::revive));
        crew::start(&engine, &runtime);
        let databases = Arc::new(Databases::new(Arc::clone(&engine)));
        Ok(Self { engine, databases })
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
    #[track_caller]
    pub fn acquire(
        &self,
        workspace: &WorkspaceId,
    ) -> impl Future<Output = Result<Lease<D>, AcquireError>> + Send {
        let at = Location::caller();
        async move { acquire::lease(&self.engine, &Target::from(workspace), at).await }
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`PoolManager::acquire`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::acquire`].
    #[track_caller]
    pub fn acquire_within(
        &self,
        workspace: &WorkspaceId,
        limit: Duration,
    ) -> impl Future<Output = Result<Lease<D>, AcquireError>> + Send {
        let at = Location::caller();
        async move { acquire::lease_within(&self.engine, &Target::from(workspace), limit, at).await }
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
    #[track_caller]
    pub fn try_acquire(
        &self,
        workspace: &WorkspaceId,
    ) -> impl Future<Output = Result<Option<Lease<D>>, AcquireError>> + Send {
        let at = Location::caller();
        async move { acquire::try_lease(&self.engine, &Target::from(workspace), at).await }
    }

    /// A handle on one workspace. Costs no connection.
    pub fn workspace(&self, workspace: &WorkspaceId) -> WorkspacePool<D> {
        WorkspacePool::new(Arc::clone(&self.engine), workspace.into())
    }

    /// A handle on the catalog's own sessions with the system database, for the statements of an adapter: no caller's settings reach them.
    pub fn catalog(&self) -> WorkspacePool<D> {
        WorkspacePool::new(Arc::clone(&self.engine), Target::Catalog)
    }

    /// A handle on the system database, which is served from the reserved share. Where the adapter has none, each acquire is
    /// refused with [`AcquireError::NoSystemDatabase`].
    pub fn system(&self) -> WorkspacePool<D> {
        WorkspacePool::new(Arc::clone(&self.engine), Target::System)
    }

    /// The database of `workspace`, whether there is one or not.
    pub fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        self.engine.catalog.database(workspace)
    }

    /// The driver that makes the connections.
    pub fn driver(&self) -> &D {
        &self.engine.driver
    }

    /// A consistent snapshot; its sums agree.
    pub fn stats(&self) -> PoolStats {
        self.engine.stats()
    }

    /// Whether callers can be served, as far as is known without a question to the server, which the pool asks by itself
    /// while anything is idle or fails.
    pub fn health(&self) -> Health {
        self.engine.workspaces.with("health", |registry, now| registry.health(now))
    }

    /// Who holds what since when, who waits, and what is being opened: for a look at a pool that is full. Each caller is shown with
    /// the place in the source where it asked ([`CallSite`](pool_core::CallSite)); what asks through a handle as sqlx's
    /// `Executor` is shown with the place in there.
    ///
    /// # Cost
    /// O(connections + waiters), under the locks of the pool one after the other, so the lists may be of slightly different moments.
    pub fn view(&self) -> PoolView {
        let mut view = PoolView::default();
        for share in self.engine.shares() {
            view.leases.extend(share.with("view", |registry, now| roster::leases::<D>(registry, now)));
        }
        self.engine.roster.add_to(&mut view, Engine::<D>::now());
        view.leases.sort_by_key(|lease| Reverse(lease.lasting));
        view.waiting.sort_by_key(|wait| Reverse(wait.lasting));
        view.opening.sort_by_key(|open| Reverse(open.lasting));
        view
    }

    /// What callers of each workspace were answered, and its connections, at one moment: of all that have a connection or
    /// a waiter, of at least [`ANSWERS_KEPT`](pool_core::registry::ANSWERS_KEPT)` / 2` others that had last, and the sum of
    /// the rest. The sums agree with those of [`PoolManager::stats`].
    ///
    /// # Cost
    /// O(workspaces) under the lock of the pool: some milliseconds for ten thousand. For one workspace, ask
    /// [`WorkspacePool::stats`].
    pub fn workspace_stats(&self) -> WorkspaceStats {
        self.engine.workspace_stats()
    }

    /// Creates the database of `workspace` unless it exists: once, however many callers, here or in
    /// other processes. Free when it was ensured before.
    ///
    /// # Errors
    /// [`CatalogError`] when no system connection can be had, or when the statement fails.
    ///
    /// # Cancel safety
    /// Dropping the future lets go of the system connection, on which a statement may be cancelled; the
    /// next caller starts afresh.
    pub async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError> {
        self.databases.ensure_workspace(workspace).await
    }

    /// Closes the workspace's connections and drops its database. Returns whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`] when no system connection can be had, or when the statement fails. Leases held
    /// past the close timeout are cut, and that is not an error.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the database dropped or not; the workspace takes work again.
    pub async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.databases.drop_workspace(workspace).await
    }

    /// Whether the workspace has a database, as the server says now.
    ///
    /// # Errors
    /// [`CatalogError`], as for `ensure_workspace`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.databases.workspace_exists(workspace).await
    }

    /// The workspaces that have a database, as the server says now, in no particular order.
    ///
    /// # Errors
    /// [`CatalogError`], as for `ensure_workspace`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError> {
        self.databases.list_workspaces().await
    }

    /// Does some work for each of these workspaces, so many at a time but no more than there are slots for workspaces, and gives
    /// what came of each as soon as it is done, in no particular order. Nothing is done while nobody asks for the next item.
    ///
    /// # Cancel safety
    /// Dropping the stream drops the work under way.
    pub fn each<I, F, W>(
        &self,
        workspaces: I,
        concurrency: usize,
        work: F,
    ) -> impl Stream<Item = (WorkspaceId, W::Output)> + Send + use<D, I, F, W>
    where
        I: IntoIterator<Item = WorkspaceId, IntoIter: Send>,
        F: Fn(&WorkspaceId) -> W + Send,
        W: Future<Output: Send> + Send,
    {
        let slots = usize::try_from(self.stats().workspaces.limit).unwrap_or(usize::MAX);
        let work = move |workspace: WorkspaceId| {
            let work = work(&workspace);
            async move { (workspace, work.await) }
        };
        stream::iter(workspaces).map(work).buffer_unordered(concurrency.clamp(1, slots.max(1)))
    }

    /// Changes the limits while running. Where they grow, waiting callers are served at once; where they shrink, idle
    /// connections are closed now and others as they come back, and nothing opens until there is room. No lease is cut.
    /// A share grows only as far as the other one has shrunk, so the whole budget is never exceeded (law B1).
    ///
    /// # Errors
    /// [`LimitsError`] when they cannot hold, with the numbers; nothing has changed then.
    pub fn set_limits(&self, limits: Limits) -> Result<(), LimitsError> {
        let ceilings = self.engine.divide(limits)?;
        self.engine.set_ceilings(ceilings);
        Ok(())
    }

    /// Sets what one workspace may have: its weight where slots do not suffice, and a ceiling of its own.
    ///
    /// # Errors
    /// [`LimitsError`] for a weight of 0, or a ceiling that cannot hold; nothing has changed then.
    pub fn set_terms(&self, workspace: &WorkspaceId, terms: Terms) -> Result<(), LimitsError> {
        let (engine, target) = (&self.engine, Target::from(workspace));
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
        CloseGuard::begin(&self.engine, workspace.into()).finish().await
    }

    /// Closes everything for good: refuses new work, fails waiters, waits for leases until the close
    /// timeout, then cuts. When it returns, and not with `Unconfirmed`, the server sees no connection of
    /// ours. Idempotent and safe to race: everybody who calls it is told the same when it is done.
    ///
    /// # Errors
    /// [`CloseError::Cut`] when leases had to be cut, [`CloseError::Held`] when they could not be; [`CloseError::Unconfirmed`] when the server did not
    /// say that connections are gone.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the pool closed to new work; call it again to finish.
    pub async fn close(&self) -> Result<(), CloseError> {
        self.engine.revive();
        let mut tasks = self.engine.tasks.lock().await;
        if let Some(outcome) = &tasks.outcome {
            return outcome.clone();
        }
        let outcome = close_all(&self.engine).await;
        tasks.end().await;
        if timeout(CONFIRM_LIMIT, self.driver().shutdown()).await.is_err() {
            tracing::warn!("the driver did not end its own connections in time");
        }
        tasks.outcome = Some(outcome.clone());
        outcome
    }

    /// Whether `close` has been called.
    pub fn is_closed(&self) -> bool {
        self.engine.is_closed()
    }
}

impl<D: Driver> Clone for PoolManager<D> {
    fn clone(&self) -> Self {
        Self { engine: Arc::clone(&self.engine), databases: Arc::clone(&self.databases) }
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

    // Not an async fn, so that the caller's place in the source is seen.
    #[track_caller]
    fn acquire<'a, 'w, 'f>(
        &'a self,
        workspace: &'w WorkspaceId,
    ) -> Pin<Box<dyn Future<Output = Result<Lease<D>, AcquireError>> + Send + 'f>>
    where
        'a: 'f,
        'w: 'f,
        Self: 'f,
    {
        Box::pin(Self::acquire(self, workspace))
    }

    async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError> {
        self.close_workspace(workspace).await
    }

    async fn close(&self) -> Result<(), CloseError> {
        self.close().await
    }

    fn stats(&self) -> PoolStats {
        self.stats()
    }

    fn health(&self) -> Health {
        self.health()
    }
}

#[async_trait]
impl<D: Driver> Workspaces for PoolManager<D> {
    async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError> {
        self.ensure_workspace(workspace).await
    }

    async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.drop_workspace(workspace).await
    }

    async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.workspace_exists(workspace).await
    }

    async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError> {
        self.list_workspaces().await
    }
}
