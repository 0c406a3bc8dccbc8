//! `PgPools`: the manager, the driver and the catalog, put together.

use std::borrow::Borrow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryFutureExt as _;
use pool_core::{
    AcquireError, Capacity, CatalogError, CatalogKind, CloseError, DatabaseName, DatabaseNaming, Driver as _,
    Health, Limits, LimitsError, Observer, PoolStats, PoolView, Terms, WorkspaceId, WorkspacePools,
    WorkspaceStats, Workspaces,
};
use pool_manager::{PolicyFactory, PoolManager, Settings};
use sqlx::migrate::Migrator;
use tokio::time::timeout;

use crate::catalog::{DatabaseSource, PgCatalog, Template};
use crate::config::PostgresConfig;
use crate::driver::PgDriver;
use crate::errors::BuildError;
use crate::lease::PgLease;
use crate::listener::{ListenError, PgWorkspaceListener};
use crate::templates::Migrations;
use crate::workspace_pool::PgWorkspacePool;

/// Every connection to every workspace's database of one `PostgreSQL` server, under one hard budget.
/// Cloning costs one reference count.
#[derive(Clone)]
pub struct PgPools {
    manager: PoolManager<PgDriver>,
}

type Adjustment = Box<dyn FnOnce(&mut Settings) + Send>;

/// Builds [`PgPools`]. Every duration has the default that [`Settings`] documents.
#[must_use = "nothing is built before `build` is awaited"]
pub struct PgPoolsBuilder {
    config: PostgresConfig,
    limits: Option<Limits>,
    naming: Option<Arc<dyn DatabaseNaming>>,
    source: Option<Arc<dyn DatabaseSource>>,
    migrations: Option<Migrations>,
    adjust: Vec<Adjustment>,
    listeners: u32,
}

impl PgPools {
    /// Begins to build. `limits` must be given: only the owner of the server knows what it can spare.
    pub fn builder(config: PostgresConfig) -> PgPoolsBuilder {
        PgPoolsBuilder {
            config,
            limits: None,
            naming: None,
            source: None,
            migrations: None,
            adjust: Vec::new(),
            listeners: 0,
        }
    }

    /// A lease on a connection to `workspace`'s database.
    ///
    /// # Errors
    /// [`AcquireError`]: timed out (what was waited for, and how full things were), the database cannot
    /// be opened, the workspace is being closed, or the pool is closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue. An open it started goes on, and its
    /// connection serves the next waiter.
    #[track_caller]
    pub fn acquire(
        &self,
        workspace: &WorkspaceId,
    ) -> impl Future<Output = Result<PgLease, AcquireError>> + Send {
        self.manager.acquire(workspace).map_ok(PgLease::new)
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`PgPools::acquire`].
    ///
    /// # Cancel safety
    /// As [`PgPools::acquire`].
    #[track_caller]
    pub fn acquire_within(
        &self,
        workspace: &WorkspaceId,
        limit: Duration,
    ) -> impl Future<Output = Result<PgLease, AcquireError>> + Send {
        self.manager.acquire_within(workspace, limit).map_ok(PgLease::new)
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
    ) -> impl Future<Output = Result<Option<PgLease>, AcquireError>> + Send {
        self.manager.try_acquire(workspace).map_ok(|idle| idle.map(PgLease::new))
    }

    pub(crate) fn manager(&self) -> &PoolManager<PgDriver> {
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
    pub fn workspace(&self, workspace: &WorkspaceId) -> PgWorkspacePool {
        PgWorkspacePool::new(self.manager.workspace(workspace))
    }

    /// A handle on the system database, with its reserved share.
    pub fn system(&self) -> PgWorkspacePool {
        PgWorkspacePool::new(self.manager.system())
    }

    /// Creates the workspace's database unless it exists: once, however many callers.
    ///
    /// # Errors
    /// As [`PoolManager::ensure_workspace`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::ensure_workspace`].
    pub async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError> {
        self.manager.ensure_workspace(workspace).await
    }

    /// Closes the workspace's connections and drops its database; says whether there was one.
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

    /// Closes the workspace's connections; afterwards it takes work again.
    ///
    /// # Errors
    /// As [`PoolManager::close_workspace`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::close_workspace`].
    pub async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError> {
        self.manager.close_workspace(workspace).await
    }

    /// Closes everything for good; afterwards the server sees no connection of ours. Idempotent.
    ///
    /// # Errors
    /// As [`PoolManager::close`].
    ///
    /// # Cancel safety
    /// As [`PoolManager::close`].
    pub async fn close(&self) -> Result<(), CloseError> {
        self.manager.close().await
    }

    /// Gives the pool up where nothing can be awaited, such as in `Drop`: no session begins any more, not even one of the pool's own, and
    /// whoever asks for one is told so. Sessions that are open end with the leases and the runtime, and the server learns of it from their sockets.
    /// Elsewhere [`close`](Self::close), which waits and confirms.
    pub fn give_up(&self) {
        self.manager.driver().give_up();
    }

    /// Whether `close` has been called.
    pub fn is_closed(&self) -> bool {
        self.manager.is_closed()
    }

    /// Listens to notifications of one workspace, in a place that was kept with [`PgPoolsBuilder::listeners`].
    ///
    /// # Errors
    /// [`ListenError`]: no place is left, or no session can be had.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place back. Whoever takes it next waits until the server has let go of the session that was asked for.
    pub async fn listener(&self, workspace: &WorkspaceId) -> Result<PgWorkspaceListener, ListenError> {
        PgWorkspaceListener::begin(self.manager.clone(), workspace).await
    }

    /// The database of `workspace`, whether there is one or not.
    pub fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        self.manager.database(workspace)
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

    /// How the server is reached.
    pub fn config(&self) -> &PostgresConfig {
        self.manager.driver().config()
    }
}

impl fmt::Debug for PgPools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        f.debug_struct("PgPools")
            .field("config", self.config())
            .field("stats", &stats)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl WorkspacePools for PgPools {
    type Lease = PgLease;

    // Not an async fn, so that the caller's place in the source is seen.
    #[track_caller]
    fn acquire<'a, 'w, 'f>(
        &'a self,
        workspace: &'w WorkspaceId,
    ) -> Pin<Box<dyn Future<Output = Result<PgLease, AcquireError>> + Send + 'f>>
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
impl Workspaces for PgPools {
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

impl PgPoolsBuilder {
    /// How many [listeners](PgPools::listener) there may be at a time, default none. Each has a connection of its own, which comes out of
    /// the system share and counts with [`PoolStats::control`] from the beginning, used or not.
    pub fn listeners(mut self, listeners: u32) -> Self {
        self.listeners = listeners;
        self
    }

    /// The hard ceilings, in connections.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// How long a caller waits for a lease.
    pub fn acquire_timeout(self, timeout: Duration) -> Self {
        self.adjust(move |settings| settings.acquire_timeout = timeout)
    }

    /// How long one open may take.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.adjust(move |settings| settings.connect_timeout = timeout)
    }

    /// How long a connection serves its workspace before it is closed for another one that waits; by default what six
    /// switches cost, measured.
    pub fn quantum(self, quantum: Duration) -> Self {
        self.adjust(move |settings| settings.quantum = Some(quantum))
    }

    /// How long a connection may be idle; `None` for ever.
    pub fn idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = timeout.into();
        self.adjust(move |settings| settings.idle_timeout = timeout)
    }

    /// How long a connection may live; `None` for ever.
    pub fn max_lifetime(self, lifetime: impl Into<Option<Duration>>) -> Self {
        let lifetime = lifetime.into();
        self.adjust(move |settings| settings.max_lifetime = lifetime)
    }

    /// How long closes wait for leases before they cut.
    pub fn close_timeout(self, timeout: Duration) -> Self {
        self.adjust(move |settings| settings.close_timeout = timeout)
    }

    /// Who is told of events.
    pub fn observer(self, observer: Arc<dyn Observer>) -> Self {
        self.adjust(move |settings| settings.observer = Some(observer))
    }

    /// Whom to evict.
    pub fn eviction(self, policy: PolicyFactory) -> Self {
        self.adjust(move |settings| settings.eviction = policy)
    }

    /// Which database a workspace lives in; by default the configuration's prefix decides.
    pub fn naming(mut self, naming: Arc<dyn DatabaseNaming>) -> Self {
        self.naming = Some(naming);
        self
    }

    /// The database that new workspaces are copied from; by default the server's `template1`. Nobody may
    /// be connected to it.
    pub fn template(self, template: DatabaseName) -> Self {
        self.databases_from(Arc::new(Template(Some(template))))
    }

    /// Where new workspaces' databases come from, if not from a template.
    pub fn databases_from(mut self, source: Arc<dyn DatabaseSource>) -> Self {
        self.source = Some(source);
        self
    }

    /// New workspaces begin with these migrations: they are copies of a template, `<prefix>_template_<fingerprint>`, that
    /// [`build`](Self::build) makes if there is none, once however many processes start. So a new workspace has all migrations for the price
    /// of a copy, and [`migrate`](PgWorkspacePool::migrate) with the same ones finds nothing to do.
    ///
    /// The template is made from what [`template`](Self::template) or [`databases_from`](Self::databases_from) gives, which is asked for the
    /// template alone and not for each workspace. Other migrations have another template, so that two versions of a program do not disturb
    /// each other; see [`drop_other_templates`](PgPools::drop_other_templates). The fingerprint is that of the migrations: after a change of
    /// anything else that the template was made with, drop it. Workspaces that exist are migrated by [`migrate_all`](PgPools::migrate_all).
    ///
    /// A copy has what is *in* a database. What `PostgreSQL` keeps beside it is not copied: `alter database … set`, `grant` and `revoke … on
    /// database`, and comments. Migrations with such statements are for [`migrate`](PgWorkspacePool::migrate), after the workspace is made;
    /// settings are for [`session_default`](PostgresConfig::session_default).
    ///
    /// Takes a `&'static Migrator`, as `sqlx::migrate!` makes them, a `Migrator`, or an `Arc` of one.
    pub fn migrations(mut self, migrator: impl Borrow<Migrator> + Send + Sync + 'static) -> Self {
        self.migrations = Some(Migrations(Box::new(migrator)));
        self
    }

    /// Changes how the server is reached, what sessions begin with, and when they are reset.
    pub fn configure(mut self, change: impl FnOnce(PostgresConfig) -> PostgresConfig) -> Self {
        self.config = change(self.config);
        self
    }

    /// Any other setting.
    pub fn adjust(mut self, adjust: impl FnOnce(&mut Settings) + Send + 'static) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    /// Checks the limits, reaches the server, and starts the manager.
    ///
    /// # Errors
    /// [`BuildError`]: the limits are missing, they or the configuration cannot be used, or the server cannot be reached;
    /// that one names host, port, database and phase. Or a migration for new workspaces fails.
    ///
    /// # Cancel safety
    /// Dropping the future closes what it has opened. A statement that was sent goes on at the server; half a template
    /// ([`migrations`](Self::migrations)) is removed by whoever makes it next.
    pub async fn build(self) -> Result<PgPools, BuildError> {
        let Self { config, limits, naming, source, migrations, adjust, listeners } = self;
        config.check()?;
        let system_database = config.get_system_database()?;
        let naming = match naming {
            Some(naming) => naming,
            None => Arc::new(config.naming()?),
        };
        let none = Limits::new(0);
        let mut settings = Settings::new(limits.unwrap_or(none));
        for change in adjust {
            change(&mut settings);
        }
        if limits.is_none() && settings.limits == none {
            return Err(BuildError::NoLimits);
        }
        if !settings.limits.is_of_server() {
            settings.limits.ceilings(1 + listeners).map_err(pool_manager::StartError::from)?;
        }
        let limit = settings.connect_timeout;
        let driver =
            PgDriver::start(config.clone(), system_database.as_str(), limit).await.map_err(Arc::new)?;
        let driver = driver.with_listeners(listeners);
        settings.limits = budget_on(&driver, settings.limits, limit).await;
        let mut source = source.unwrap_or_else(|| Arc::new(Template::default()));
        if let Some(migrations) = migrations {
            let template = migrations.template(&driver, &*source).await?;
            source = Arc::new(Template(Some(template)));
        }
        let catalog = Arc::new(PgCatalog::new(config, naming, source));
        let catalog = CatalogKind::OverSystem { system: system_database, catalog };
        Ok(PgPools { manager: PoolManager::start(driver, catalog, settings)? })
    }
}

/// The limits with the budget that the server has, if that is what is wished; one that it cannot hold is warned of.
async fn budget_on(driver: &PgDriver, limits: Limits, limit: Duration) -> Limits {
    let Ok(Ok(Some(capacity))) = timeout(limit, driver.capacity(Vec::new())).await else {
        tracing::warn!("the server did not say how many connections it has");
        return limits;
    };
    let Capacity { connections, others } = capacity;
    let limits = limits.on(capacity);
    let budget = limits.total();
    if limits.is_of_server() {
        tracing::info!(connections, others, budget, "the budget is what the server has");
    } else if budget > connections.saturating_sub(others) {
        tracing::warn!(
            connections,
            others,
            budget,
            "the server cannot hold the budget: raise its max_connections, or lower the budget"
        );
    }
    limits
}
