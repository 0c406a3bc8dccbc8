//! `SqlitePools`: the manager, the driver and the catalog, put together.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryFutureExt as _;
use pool_core::{
    AcquireError, CatalogError, CatalogKind, CloseError, DatabaseNaming, Health, Limits, LimitsError,
    Observer, PoolStats, PoolView, PrefixNaming, Terms, WorkspaceId, WorkspacePools, WorkspaceStats,
    Workspaces,
};
use pool_manager::{PolicyFactory, PoolManager, Settings};

use crate::catalog::SqliteCatalog;
use crate::config::SqliteConfig;
use crate::driver::SqliteDriver;
use crate::errors::BuildError;
use crate::lease::SqliteLease;
use crate::workspace_pool::SqliteWorkspacePool;

/// Every connection to every workspace's database in one directory, under one hard budget. A connection is a thread and some file
/// descriptors of this process. Cloning costs one reference count.
#[derive(Clone)]
pub struct SqlitePools {
    manager: PoolManager<SqliteDriver>,
}

type Adjustment = Box<dyn FnOnce(&mut Settings) + Send>;

/// Builds [`SqlitePools`]. Every duration has the default that [`Settings`] documents.
#[must_use = "nothing is built before `build` is awaited"]
pub struct SqlitePoolsBuilder {
    config: SqliteConfig,
    limits: Option<Limits>,
    naming: Option<Arc<dyn DatabaseNaming>>,
    adjust: Vec<Adjustment>,
}

impl SqlitePools {
    /// Begins to build. `limits` must be given: only the owner of the process knows what it can spare. There is no system share.
    pub fn builder(config: SqliteConfig) -> SqlitePoolsBuilder {
        SqlitePoolsBuilder { config, limits: None, naming: None, adjust: Vec::new() }
    }

    /// A lease on a connection to `workspace`'s database.
    ///
    /// # Errors
    /// [`AcquireError`]: timed out (what was waited for, and how full things were), the database cannot be opened, the workspace is
    /// being closed, or the pool is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue. An open it started goes on, and its connection serves the next waiter.
    #[track_caller]
    pub fn acquire(
        &self,
        workspace: &WorkspaceId,
    ) -> impl Future<Output = Result<SqliteLease, AcquireError>> + Send {
        self.manager.acquire(workspace).map_ok(SqliteLease::new)
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`SqlitePools::acquire`].
    ///
    /// # Cancel safety
    /// As [`SqlitePools::acquire`].
    #[track_caller]
    pub fn acquire_within(
        &self,
        workspace: &WorkspaceId,
        limit: Duration,
    ) -> impl Future<Output = Result<SqliteLease, AcquireError>> + Send {
        self.manager.acquire_within(workspace, limit).map_ok(SqliteLease::new)
    }

    /// A lease on an idle connection, if there is one: nobody waits, and nothing is opened.
    ///
    /// # Errors
    /// As [`PoolManager::try_acquire`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back.
    #[track_caller]
    pub fn try_acquire(
        &self,
        workspace: &WorkspaceId,
    ) -> impl Future<Output = Result<Option<SqliteLease>, AcquireError>> + Send {
        self.manager.try_acquire(workspace).map_ok(|idle| idle.map(SqliteLease::new))
    }

    pub(crate) fn manager(&self) -> &PoolManager<SqliteDriver> {
        &self.manager
    }

    /// Changes the limits while running; no lease is cut.
    ///
    /// # Errors
    /// As [`PoolManager::set_limits`].
    pub fn set_limits(&self, limits: Limits) -> Result<(), LimitsError> {
        self.manager.set_limits(limits)
    }

    /// Sets the weight of one workspace where slots do not suffice, and a ceiling of its own.
    ///
    /// # Errors
    /// As [`PoolManager::set_terms`].
    pub fn set_terms(&self, workspace: &WorkspaceId, terms: Terms) -> Result<(), LimitsError> {
        self.manager.set_terms(workspace, terms)
    }

    /// A handle on one workspace: cheap, `Clone`, and `&db` is a sqlx `Executor`.
    pub fn workspace(&self, workspace: &WorkspaceId) -> SqliteWorkspacePool {
        SqliteWorkspacePool::new(self.manager.workspace(workspace))
    }

    /// Makes the workspace's database unless it exists: once, however many callers, here or in other processes.
    ///
    /// # Errors
    /// As [`PoolManager::ensure_workspace`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::ensure_workspace`].
    pub async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError> {
        self.manager.ensure_workspace(workspace).await
    }

    /// Closes the workspace's connections and removes its database, with WAL and shared memory; says whether there was one.
    ///
    /// # Errors
    /// As [`PoolManager::drop_workspace`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::drop_workspace`].
    pub async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.manager.drop_workspace(workspace).await
    }

    /// Whether the workspace has a database.
    ///
    /// # Errors
    /// As [`PoolManager::workspace_exists`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError> {
        self.manager.workspace_exists(workspace).await
    }

    /// The workspaces that have a database.
    ///
    /// # Errors
    /// As [`PoolManager::list_workspaces`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError> {
        self.manager.list_workspaces().await
    }

    /// Closes the workspace's connections; afterwards it takes work again. Leases that are held past the close timeout cannot be
    /// cut: they count until they come back.
    ///
    /// # Errors
    /// As [`PoolManager::close_workspace`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::close_workspace`].
    pub async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError> {
        self.manager.close_workspace(workspace).await
    }

    /// Closes everything for good. Idempotent.
    ///
    /// # Errors
    /// As [`PoolManager::close`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::close`].
    pub async fn close(&self) -> Result<(), CloseError> {
        self.manager.close().await
    }

    /// Who holds what since when, who waits, and what is being opened; see [`PoolManager::view`].
    pub fn view(&self) -> PoolView {
        self.manager.view()
    }

    /// Whether callers can be served, as far as is known; see [`PoolManager::health`].
    pub fn health(&self) -> Health {
        self.manager.health()
    }

    /// A consistent snapshot; its sums agree.
    pub fn stats(&self) -> PoolStats {
        self.manager.stats()
    }

    /// What callers of each workspace were answered, and its connections; see [`PoolManager::workspace_stats`].
    pub fn workspace_stats(&self) -> WorkspaceStats {
        self.manager.workspace_stats()
    }

    /// Where the databases are, and how they are opened.
    pub fn config(&self) -> &SqliteConfig {
        self.manager.driver().config()
    }
}

impl fmt::Debug for SqlitePools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlitePools")
            .field("config", self.config())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl WorkspacePools for SqlitePools {
    type Lease = SqliteLease;

    // Not an async fn, so that the caller's place in the source is seen.
    #[track_caller]
    fn acquire<'a, 'w, 'f>(
        &'a self,
        workspace: &'w WorkspaceId,
    ) -> Pin<Box<dyn Future<Output = Result<SqliteLease, AcquireError>> + Send + 'f>>
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

    fn health(&self) -> Health {
        self.health()
    }

    fn stats(&self) -> PoolStats {
        self.stats()
    }
}

#[async_trait]
impl Workspaces for SqlitePools {
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

impl SqlitePoolsBuilder {
    /// The hard ceilings, in connections.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// How long a caller waits for a lease.
    pub fn acquire_timeout(self, timeout: Duration) -> Self {
        self.adjust(move |settings| settings.acquire_timeout = timeout)
    }

    /// How long closes wait for leases.
    pub fn close_timeout(self, timeout: Duration) -> Self {
        self.adjust(move |settings| settings.close_timeout = timeout)
    }

    /// How long a connection may be idle; `None` for ever.
    pub fn idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.adjust(move |settings| settings.idle_timeout = timeout)
    }

    /// Who is told of events.
    pub fn observer(self, observer: Arc<dyn Observer>) -> Self {
        self.adjust(move |settings| settings.observer = Some(observer))
    }

    /// Whom to evict.
    pub fn eviction(self, policy: PolicyFactory) -> Self {
        self.adjust(move |settings| settings.eviction = policy)
    }

    /// Which file a workspace lives in; by default the configuration's prefix decides.
    pub fn naming(mut self, naming: Arc<dyn DatabaseNaming>) -> Self {
        self.naming = Some(naming);
        self
    }

    /// Any other setting.
    pub fn adjust(mut self, adjust: impl FnOnce(&mut Settings) + Send + 'static) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    /// Checks the limits, makes the directory unless it exists, and starts the manager. Opens no database.
    ///
    /// # Errors
    /// [`BuildError`]: the prefix, the limits or the directory cannot be used.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the directory.
    pub async fn build(self) -> Result<SqlitePools, BuildError> {
        let Self { config, limits, naming, adjust } = self;
        let naming = match naming {
            Some(naming) => naming,
            None => Arc::new(PrefixNaming::new(config.get_prefix())?),
        };
        let mut settings = Settings::new(limits.ok_or(BuildError::NoLimits)?);
        for change in adjust {
            change(&mut settings);
        }
        let directory = config.directory();
        let made = tokio::fs::create_dir_all(directory.path()).await;
        made.map_err(|source| BuildError::Directory { directory: directory.path().to_owned(), source })?;
        let catalog = CatalogKind::Alone(Arc::new(SqliteCatalog::new(config.clone(), naming)));
        Ok(SqlitePools { manager: PoolManager::start(SqliteDriver::new(config), catalog, settings)? })
    }
}
