//! A pool for one test: its own namespace, its own tag, its own ceiling, and nothing left behind.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pool_core::{DatabaseName, DatabaseNaming};
use pool_postgres::{
    CloseError, DatabaseSource, Limits, PgPools, PgPoolsBuilder, PostgresConfig, Template, WorkspaceId,
};
use tokio::sync::Mutex;

use crate::error::{Session, TestError};
use crate::helpers::eventually;
use crate::janitor::{Janitor, Ready};
use crate::naming::{PoolName, RunId};
use crate::run::Record;
use crate::template_stock::TemplateStock;
use crate::templates::Schema;

/// The ceiling of a test pool unless another is wished.
pub const LIMITS_DEFAULT: Limits = Limits::new(20).system(5).per_workspace(10);
/// Connections that a test may make beside its pool, and the janitor's own.
pub(crate) const BESIDE_THE_POOL: u32 = 2;

/// A pool on a real server for one test. It derefs to its [`PgPools`].
///
/// Dropping it, also in a panic, ends its sessions, drops its databases and blocks until that is done.
/// [`TestPool::cleanup`] does the same gracefully and tells about leaks.
#[derive(Debug)]
pub struct TestPool {
    pools: PgPools,
    janitor: Janitor,
    /// Keeps the room for this pool and others, if its own janitor does not.
    _room: Option<Arc<Janitor>>,
    name: PoolName,
    began: Instant,
    /// What the cleanup found, once it is done.
    outcome: Mutex<Option<Outcome>>,
    leaked: AtomicU32,
}

#[derive(Clone, Debug)]
enum Outcome {
    Clean,
    NotGraceful(CloseError),
    Leaked(Vec<Session>),
}

/// What a test pool has used, for assertions and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolMetrics {
    /// Sessions on the server when the pool was new: the driver's own.
    pub initial: u32,
    /// Sessions on the server now; after the cleanup, the final count.
    pub current: u32,
    /// The most connections at a time, the driver's own included.
    pub peak: u32,
    /// Connections opened so far.
    pub opened: u64,
    /// Connections closed so far.
    pub closed: u64,
    /// Sessions that outlived the pool; none before its cleanup.
    pub leaked: u32,
    /// Since its creation.
    pub duration: Duration,
}

/// Builds a [`TestPool`] with other settings than the default.
#[must_use = "nothing is built before `build` is awaited"]
pub struct TestPoolBuilder {
    limits: Limits,
    room: Option<Arc<Janitor>>,
    schema: Option<Schema>,
    adjust: Vec<Adjustment>,
}

type Adjustment = Box<dyn FnOnce(PgPoolsBuilder) -> PgPoolsBuilder + Send>;

impl TestPoolBuilder {
    /// Another ceiling than [`LIMITS_DEFAULT`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Has every workspace begin with `schema`, from databases that are made ahead.
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Uses room that somebody keeps already.
    pub(crate) fn in_room(mut self, room: Arc<Janitor>) -> Self {
        self.room = Some(room);
        self
    }

    /// Any other setting of the pool.
    pub fn adjust(mut self, adjust: impl FnOnce(PgPoolsBuilder) -> PgPoolsBuilder + Send + 'static) -> Self {
        self.adjust.push(Box::new(adjust));
        self
    }

    /// Waits for room on the server, and builds the pool.
    ///
    /// # Errors
    /// [`TestError`]: no server, no room for a pool of this size, or the pool could not be built.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn build(self) -> Result<TestPool, TestError> {
        let began = Instant::now();
        let name = PoolName::fresh(RunId::of_process());
        let ceilings = self.limits.ceilings(1).map_err(|error| {
            TestError::Build(pool_postgres::BuildError::Start(pool_postgres::StartError::Limits(error)))
        })?;
        let connections = if self.room.is_some() { 0 } else { ceilings.total() + BESIDE_THE_POOL };
        let (janitor, ready) = Janitor::start(name.clone(), connections).await?;
        let Ready { config, system_database } = ready;
        let config =
            config.application_name(&name.tag()).prefix(&name.prefix()).system_database(&system_database);
        let source = source(&janitor, &config, self.schema).await?;
        let mut builder = PgPools::builder(config).limits(self.limits).databases_from(source);
        for adjust in self.adjust {
            builder = adjust(builder);
        }
        let pools = builder.build().await?;
        let outcome = Mutex::new(None);
        let leaked = AtomicU32::new(0);
        Ok(TestPool { pools, janitor, _room: self.room, name, began, outcome, leaked })
    }
}

impl TestPool {
    /// A pool with the default ceiling, on the server that the environment names or on the shared
    /// ephemeral one. A test that needs several asks [`TestPools`](crate::TestPools) for them.
    ///
    /// # Errors
    /// As [`TestPoolBuilder::build`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind.
    pub async fn new() -> Result<Self, TestError> {
        // Tests put it on their stack; what it takes to build it need not be there.
        Box::pin(Self::builder().build()).await
    }

    /// Begins to build a pool with other settings.
    pub fn builder() -> TestPoolBuilder {
        TestPoolBuilder { limits: LIMITS_DEFAULT, room: None, schema: None, adjust: Vec::new() }
    }

    /// The pool itself.
    pub fn pools(&self) -> &PgPools {
        &self.pools
    }

    /// How the server is reached, with this pool's tag.
    pub fn config(&self) -> &PostgresConfig {
        self.pools.config()
    }

    /// What the names of this pool's sessions begin with in `pg_stat_activity`; each ends in a mark of its own
    /// ([`without_tag`](pool_postgres::without_tag)).
    pub fn tag(&self) -> String {
        self.name.tag()
    }

    /// What the databases of this pool begin with.
    pub fn prefix(&self) -> String {
        self.name.prefix()
    }

    /// Creates `count` workspaces with databases, `ws_0000` and so on.
    ///
    /// # Errors
    /// [`TestError::Catalog`] with the first failure.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of them created.
    pub async fn create_test_workspaces(&self, count: usize) -> Result<Vec<WorkspaceId>, TestError> {
        let ids: Vec<WorkspaceId> =
            (0..count).filter_map(|i| WorkspaceId::new(format!("ws_{i:04}")).ok()).collect();
        let ensured = ids.iter().map(|id| self.pools.ensure_workspace(id));
        futures_util::future::try_join_all(ensured).await?;
        Ok(ids)
    }

    /// Drops these workspaces, all at once.
    ///
    /// # Errors
    /// [`TestError::Catalog`] with the first failure; the others are dropped all the same.
    ///
    /// # Cancel safety
    /// Dropping the future leaves some of them to the cleanup.
    pub async fn cleanup_test_workspaces(&self, ids: &[WorkspaceId]) -> Result<(), TestError> {
        let dropped = ids.iter().map(|id| self.pools.drop_workspace(id));
        let outcomes = futures_util::future::join_all(dropped).await;
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))?;
        Ok(())
    }

    /// Waits until the server counts no session of this pool with the database of `workspace`.
    ///
    /// # Errors
    /// [`TestError::Never`] when it does not come to that within the limit.
    ///
    /// # Cancel safety
    /// Dropping the future ends the asking.
    pub async fn wait_for_connection_close(
        &self,
        workspace: &WorkspaceId,
        within: Duration,
    ) -> Result<(), TestError> {
        let database = self.database_of(workspace);
        let what = format!("no session being left with {database}");
        let is_gone = || async {
            let stats = self.database_connection_stats().await;
            stats.is_ok_and(|stats| !stats.contains_key(&database))
        };
        eventually(&what, within, is_gone).await
    }

    /// The database that `workspace` lives in.
    pub fn database_of(&self, workspace: &WorkspaceId) -> String {
        let naming = self.config().naming();
        naming.map_or_else(|_| String::new(), |naming| naming.database(workspace).as_str().to_owned())
    }

    /// This pool's sessions on the server by database, and by state within each.
    ///
    /// # Errors
    /// [`TestError::Janitor`] when the server cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn database_connection_stats(
        &self,
    ) -> Result<BTreeMap<String, BTreeMap<String, u32>>, TestError> {
        let mut stats: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for session in self.sessions().await? {
            *stats.entry(session.database).or_default().entry(session.state).or_default() += 1;
        }
        Ok(stats)
    }

    /// This pool's sessions on the server, the driver's own included.
    ///
    /// # Errors
    /// [`TestError::Janitor`] when the server cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn sessions(&self) -> Result<Vec<Session>, TestError> {
        self.janitor.run("counting sessions", |admin| Box::pin(admin.sessions())).await
    }

    /// How many sessions of this pool the server counts.
    ///
    /// # Errors
    /// As [`TestPool::sessions`].
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn active_connection_count(&self) -> Result<u32, TestError> {
        Ok(count(&self.sessions().await?))
    }

    /// Asks the server whether it counts more sessions of this pool than the pool knows of: none after
    /// the cleanup. Sessions of others are never counted.
    ///
    /// # Errors
    /// [`TestError::Leaked`] with the sessions.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn verify_no_leaked_connections(&self) -> Result<(), TestError> {
        // A session that ends between the two looks was known before, if not after.
        let before = self.pools.stats().connections().total();
        let sessions = self.sessions().await?;
        let stats = self.pools.stats();
        let control = if self.outcome.lock().await.is_some() { 0 } else { stats.control };
        if count(&sessions) > before.max(stats.connections().total()) + control {
            return Err(TestError::Leaked { pool: self.name.to_string(), sessions });
        }
        Ok(())
    }

    /// The databases of this pool on the server.
    ///
    /// # Errors
    /// [`TestError::Janitor`] when the server cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn databases(&self) -> Result<Vec<String>, TestError> {
        self.janitor.run("listing databases", |admin| Box::pin(admin.databases())).await
    }

    /// Ends all sessions of this pool behind its back. Returns how many there were.
    ///
    /// # Errors
    /// [`TestError::Janitor`] when the server cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether it took place.
    pub async fn terminate_all_connections(&self) -> Result<u32, TestError> {
        self.janitor.run("ending sessions", |admin| Box::pin(admin.terminate())).await
    }

    /// What the pool has used so far.
    ///
    /// # Errors
    /// [`TestError::Janitor`] when the server cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn metrics(&self) -> Result<PoolMetrics, TestError> {
        let current = self.active_connection_count().await?;
        let Record { opened, closed, peak, leaked, .. } = self.record();
        let initial = self.pools.stats().control;
        Ok(PoolMetrics { initial, current, peak, opened, closed, leaked, duration: self.began.elapsed() })
    }

    /// Closes the pool gracefully, checks with the server that no session of it is left, and drops its
    /// databases. Idempotent: a second call tells what the first one found.
    ///
    /// # Errors
    /// [`TestError::Leaked`] when sessions were left; [`TestError::Close`] when leases had to be cut. The
    /// databases are dropped all the same.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it to be called again, or to `Drop`.
    pub async fn cleanup(&self) -> Result<(), TestError> {
        let mut outcome = self.outcome.lock().await;
        if let Some(known) = &*outcome {
            return self.told(known.clone());
        }
        let closed = self.pools.close().await;
        let left = self.sessions().await?;
        self.leaked.store(count(&left), Ordering::Relaxed);
        self.janitor
            .run("dropping databases", |admin| {
                Box::pin(async {
                    admin.terminate().await?;
                    admin.drop_databases().await
                })
            })
            .await?;
        let found = match (left.is_empty(), closed) {
            (false, _) => Outcome::Leaked(left),
            (true, Err(error)) => Outcome::NotGraceful(error),
            (true, Ok(())) => Outcome::Clean,
        };
        *outcome = Some(found.clone());
        self.told(found)
    }

    fn told(&self, outcome: Outcome) -> Result<(), TestError> {
        match outcome {
            Outcome::Clean => Ok(()),
            Outcome::NotGraceful(source) => Err(TestError::Close { pool: self.name.to_string(), source }),
            Outcome::Leaked(sessions) => Err(TestError::Leaked { pool: self.name.to_string(), sessions }),
        }
    }

    fn record(&self) -> Record {
        let stats = self.pools.stats();
        let shares = [stats.workspaces, stats.system];
        Record {
            suite: self.name.suite.clone(),
            case: self.name.case.clone(),
            opened: shares.iter().map(|share| share.opened).sum(),
            closed: shares.iter().map(|share| share.closed).sum(),
            peak: shares.iter().map(|share| share.peak).sum::<u32>() + stats.control,
            leaked: self.leaked.load(Ordering::Relaxed),
            duration_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Deref for TestPool {
    type Target = PgPools;

    fn deref(&self) -> &PgPools {
        &self.pools
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        let is_clean = self.outcome.get_mut().is_some();
        if !is_clean {
            // Else the pool would begin another session behind us as soon as it asks the server something, while a lease is out.
            self.pools.give_up();
            let ended = self.janitor.run_blocking(|admin| {
                Box::pin(async {
                    admin.terminate().await?;
                    admin.drop_databases().await
                })
            });
            if let Some(Err(error)) = ended {
                tracing::error!(%error, "a test pool could not be cleaned up");
            }
        }
        self.record().leave();
    }
}

/// Where the workspaces of a pool come from: the stock of its schema, or copies of `template0`, to which
/// nobody is ever connected, so that copies never wait for each other.
async fn source(
    janitor: &Janitor,
    config: &PostgresConfig,
    schema: Option<Schema>,
) -> Result<Arc<dyn DatabaseSource>, TestError> {
    let Some(schema) = schema else {
        return Ok(Arc::new(Template(DatabaseName::new("template0").ok())));
    };
    let (config, to_build) = (config.clone(), schema.clone());
    janitor
        .run("building a template", move |admin| {
            Box::pin(async move { admin.build(&config, &to_build).await })
        })
        .await?;
    let stock = TemplateStock { schema, janitor: janitor.handle() };
    stock.restock();
    Ok(Arc::new(stock))
}

fn count(sessions: &[Session]) -> u32 {
    u32::try_from(sessions.len()).unwrap_or(u32::MAX)
}
