//! The world of one test: a server of its own, a pool with two workspaces on it, one that a fault hits and one
//! that goes on, and the row in which the test says what it has observed.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pool_postgres::{
    AcquireError, DatabaseNaming, DriverErrorKind, Limits, PgLease, PgPools, PostgresConfig, TargetRole,
    WorkspaceId, acquire_error,
};
use pool_testkit::faults::{DedicatedServer, Proxy, Row};
use pool_testkit::server::config_of;
use pool_testkit::{eventually, execute_outside, wait_for_condition};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Far longer than anything here takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// How long an open, or a check of an idle connection, may take where none hangs.
pub const PATIENT: Duration = Duration::from_secs(10);
/// How long it may take where it is to hang.
pub const HASTY: Duration = Duration::from_secs(1);
/// Longer than a check and an open, so that callers are told what failed and not that time ran out.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

pub const ROLE: &str = "app";
pub const PASSWORD: &str = "app's own";
const TAG: &str = "faults";

pub type Failure = Box<dyn Error + Send + Sync>;
pub type Outcome = Result<(), Failure>;

/// What a test has observed so far.
pub struct Observed {
    pub fault: &'static str,
    pub law: &'static str,
    pub seen: String,
    pub recovery: Duration,
}

/// What the fault is to other workspaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// None of their business: they must not see an error.
    Spared,
    /// Their server is hit as well: they must be served again, too.
    Hit,
}

/// Dropped in this order: the pool before what it is connected to.
pub struct World {
    pub pools: PgPools,
    pub hit: WorkspaceId,
    pub other: WorkspaceId,
    proxy: Option<Proxy>,
    pub server: DedicatedServer,
}

impl World {
    /// A pool that is connected to its server, and gives an open or a check up after `connect_timeout`.
    pub async fn direct(connect_timeout: Duration) -> Result<Self, Failure> {
        Self::new(DedicatedServer::start().await?, None, Some(connect_timeout)).await
    }

    /// The same through a proxy.
    pub async fn proxied(connect_timeout: Duration) -> Result<Self, Failure> {
        let (server, proxy) = behind_a_proxy(&[]).await?;
        Self::new(server, Some(proxy), Some(connect_timeout)).await
    }

    /// A pool that wants its server to take writes, on a server that may become a standby.
    pub async fn read_write() -> Result<Self, Failure> {
        let server = DedicatedServer::start_with(&[("hot_standby", "on")]).await?;
        Self::with(server, None, Some(PATIENT), |config| config.target_role(TargetRole::ReadWrite)).await
    }

    /// The same with default time limits.
    pub async fn proxied_by_default() -> Result<Self, Failure> {
        let (server, proxy) = behind_a_proxy(&[]).await?;
        Self::new(server, Some(proxy), None).await
    }

    async fn new(
        server: DedicatedServer,
        proxy: Option<Proxy>,
        connect_timeout: Option<Duration>,
    ) -> Result<Self, Failure> {
        Self::with(server, proxy, connect_timeout, |config| config).await
    }

    async fn with(
        server: DedicatedServer,
        proxy: Option<Proxy>,
        connect_timeout: Option<Duration>,
        adjust: impl FnOnce(PostgresConfig) -> PostgresConfig,
    ) -> Result<Self, Failure> {
        let superuser = config_of(server.address());
        let role = format!("create role {ROLE} login createdb password '{}'", PASSWORD.replace('\'', "''"));
        execute_outside(&superuser, "postgres", &role).await?;
        let port = proxy.as_ref().map_or(server.address().port(), |proxy| proxy.address().port());
        let pools = PgPools::builder(adjust(
            superuser.port(port).user(ROLE).password(PASSWORD).application_name(TAG),
        ))
        .limits(Limits::new(12).system(4).per_workspace(4))
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .adjust(move |settings| {
            if let Some(limit) = connect_timeout {
                (settings.connect_timeout, settings.check_timeout) = (limit, limit);
            }
            settings.check_after = Duration::ZERO; // as if every connection had been idle for long
        })
        .build()
        .await?;
        let (hit, other) = (WorkspaceId::new("hit")?, WorkspaceId::new("other")?);
        // A hasty open may be given up on a busy machine, and is made again.
        let are_there = || async {
            let ensured =
                (pools.ensure_workspace(&hit).await.is_ok(), pools.ensure_workspace(&other).await.is_ok());
            ensured == (true, true) && served(&pools, &other).await.is_ok()
        };
        eventually("both workspaces being there", SOON, are_there).await?;
        Ok(Self { pools, hit, other, proxy, server })
    }

    /// The proxy of a world that was made with one.
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    /// How the pool's role reaches the server past the pool, under another name.
    pub fn outsider(&self) -> PostgresConfig {
        config_of(self.server.address()).user(ROLE).password(PASSWORD).application_name("outsider")
    }

    /// The database of the workspace that is hit.
    pub fn database(&self) -> Result<String, Failure> {
        Ok(self.pools.config().naming()?.database(&self.hit).as_str().to_owned())
    }

    /// Has a superuser say something to the server.
    pub async fn order(&self, sql: &str) -> Outcome {
        Ok(execute_outside(&config_of(self.server.address()), "postgres", sql).await?)
    }

    /// Says which password the pool's role has: its own, or another one.
    pub async fn change_password(&self, is_right: bool) -> Outcome {
        let password = if is_right { PASSWORD.replace('\'', "''") } else { "another".to_owned() };
        self.order(&format!("alter role {ROLE} password '{password}'")).await
    }

    /// Ends a session; returns when its backend has exited.
    pub async fn terminate(&self, pid: i32) -> Outcome {
        self.order(&format!("select pg_terminate_backend({pid}, 10000)")).await
    }

    /// A lease for the workspace that is hit, which has been used.
    pub async fn lease(&self) -> Result<PgLease, Failure> {
        self.back_after(Instant::now()).await?;
        let mut lease = self.pools.acquire(&self.hit).await?;
        sqlx::query("select 1").execute(&mut lease).await?;
        Ok(lease)
    }

    /// Waits until the one connection of the workspace that is hit is idle: it may be made clean first.
    pub async fn given_back(&self) -> Outcome {
        let db = self.pools.workspace(&self.hit);
        Ok(wait_for_condition("the connection being back", SOON, || db.counts().idle == 1).await?)
    }

    /// What a caller is told who asks for the workspace that is hit.
    pub async fn refusal(&self) -> AcquireError {
        self.pools.acquire(&self.hit).await.unwrap_err()
    }

    /// How long after `since` a query is served on the workspace that is hit, asking again and again.
    pub async fn back_after(&self, since: Instant) -> Result<Duration, Failure> {
        let is_served = || async { served(&self.pools, &self.hit).await.is_ok() };
        eventually("the workspace being served again", SOON, is_served).await?;
        Ok(since.elapsed())
    }

    /// How long after `since` a query is served, asking once: whatever happened is not to be seen.
    pub async fn back_at_once(&self, since: Instant) -> Result<Duration, Failure> {
        served(&self.pools, &self.hit).await?;
        Ok(since.elapsed())
    }

    /// Has somebody use the other workspace all the time.
    pub fn watch(&self) -> Bystander {
        let (pools, other, stop) = (self.pools.clone(), self.other.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut watched = Watched::default();
            while !stopped.load(Ordering::Relaxed) {
                // As services do, it does not wait for ever for what may be lost for good.
                match timeout(PATIENT, served(&pools, &other)).await {
                    Ok(Ok(())) => watched.queries += 1,
                    Ok(Err(error)) => watched.errors.push(error.to_string()),
                    Err(_) => watched.errors.push("no answer".to_owned()),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            watched
        });
        Bystander { stop, task }
    }

    /// Ends the test: compares the pool's count with the server's, closes the pool, and leaves the row.
    pub async fn finish(self, bystander: Bystander, others: Others, observed: Observed) -> Outcome {
        let others = self.others(bystander, others).await?;
        let leaked = self.leaked().await?;
        let Observed { fault, law, seen, recovery } = observed;
        let (fault, law) = (fault.to_owned(), law.to_owned());
        let row = Row { test: test_name()?, fault, law, seen, others, recovery, leaked };
        println!("{row}");
        assert_eq!(row.leaked, 0, "the server's count less the pool's");
        self.pools.close().await?;
        assert_eq!(self.sessions().await?, 0, "sessions after the close");
        Ok(row.leave()?)
    }

    async fn others(&self, bystander: Bystander, others: Others) -> Result<String, Failure> {
        if others == Others::Hit {
            let is_served = || async { served(&self.pools, &self.other).await.is_ok() };
            eventually("the other workspace being served again", SOON, is_served).await?;
        }
        let watched = bystander.ended().await?;
        println!("others: {} queries served, {} errors", watched.queries, watched.errors.len());
        assert!(watched.queries > 0, "the other workspace was used meanwhile");
        Ok(match others {
            Others::Spared => {
                assert_eq!(watched.errors, Vec::<String>::new(), "others were to notice nothing");
                "nothing".to_owned()
            }
            Others::Hit => "the same, as it is their server, too; served again".to_owned(),
        })
    }

    /// What the server counts beyond what the pool counts, once nothing is under way and every connection that
    /// the pool believes in has been used: one that broke while idle is believed in until then.
    async fn leaked(&self) -> Result<i64, Failure> {
        for db in [self.pools.workspace(&self.hit), self.pools.workspace(&self.other), self.pools.system()] {
            let leases = (0..db.counts().idle).map(|_| db.acquire());
            drop(futures_util::future::try_join_all(leases).await?);
        }
        wait_for_condition("the pool being quiet", SOON, || {
            let stats = self.pools.stats();
            let busy = stats.connections();
            busy.in_use + busy.opening + busy.closing + stats.workspaces.waiting + stats.system.waiting == 0
        })
        .await?;
        // What is idle and has died is found without being asked for (S1), but not at this very moment.
        let agrees = || async { self.difference().await.is_ok_and(|difference| difference == 0) };
        if let Err(disagreement) = eventually("the server counting what the pool counts", SOON, agrees).await
        {
            println!("{disagreement}: {:#?}\n{:#?}", self.pools.stats(), self.shown().await?);
        }
        self.difference().await
    }

    /// The sessions of the pool as the server shows them.
    async fn shown(&self) -> Result<Vec<String>, Failure> {
        let mut conn =
            PgConnection::connect_with(&config_of(self.server.address()).connect_options("postgres")).await?;
        let sessions = "select concat_ws(' ', pid, backend_start, application_name, datname, state, query) \
                        from pg_stat_activity where starts_with(application_name, $1)";
        Ok(sqlx::query_scalar(sessions).bind(TAG).fetch_all(&mut conn).await?)
    }

    /// The server's count less the pool's.
    async fn difference(&self) -> Result<i64, Failure> {
        let stats = self.pools.stats();
        Ok(self.sessions().await? - i64::from(stats.connections().total() + stats.control))
    }

    /// How many sessions of the pool the server counts.
    async fn sessions(&self) -> Result<i64, Failure> {
        sessions_of(&self.server, TAG).await
    }
}

/// How many sessions whose name begins with `name` the server counts.
pub async fn sessions_of(server: &DedicatedServer, name: &str) -> Result<i64, Failure> {
    let mut conn =
        PgConnection::connect_with(&config_of(server.address()).connect_options("postgres")).await?;
    let count = "select count(*) from pg_stat_activity where starts_with(application_name, $1)";
    let sessions = sqlx::query_scalar(count).bind(name).fetch_one(&mut conn).await?;
    conn.close().await?;
    Ok(sessions)
}

/// A server with such settings, and a proxy in front of it.
pub async fn behind_a_proxy(settings: &[(&str, &str)]) -> Result<(DedicatedServer, Proxy), Failure> {
    let server = DedicatedServer::start_with(settings).await?;
    let proxy = Proxy::start(([127, 0, 0, 1], server.address().port()).into()).await?;
    Ok((server, proxy))
}

/// Somebody who uses the other workspace.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Watched>,
}

#[derive(Default)]
struct Watched {
    queries: u32,
    errors: Vec<String>,
}

impl Bystander {
    async fn ended(mut self) -> Result<Watched, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        Ok((&mut self.task).await?)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn served(pools: &PgPools, id: &WorkspaceId) -> Result<(), sqlx::Error> {
    let one: i32 = sqlx::query_scalar("select 1").fetch_one(&pools.workspace(id)).await?;
    assert_eq!(one, 1);
    Ok(())
}

/// libtest names the thread of a test after it; nextest says so in the environment.
pub fn test_name() -> Result<String, Failure> {
    let thread = std::thread::current();
    let path = std::env::var("NEXTEST_TEST_NAME").ok().or(thread.name().map(ToOwned::to_owned));
    let path = path.ok_or("this thread has no name")?;
    Ok(path.rsplit("::").next().unwrap_or_default().to_owned())
}

/// The kind of a failed open, and the server's code for it.
pub fn open_failure(error: &AcquireError) -> (DriverErrorKind, Option<String>) {
    let AcquireError::OpenFailed { source, .. } = error else { panic!("another error: {error}") };
    let cause = source.source.as_ref().and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    (source.kind, cause.and_then(state_of))
}

/// The server's code in an error of a statement.
pub fn state_of(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Whether an error of a statement says that the session is gone: the server's word, or the end of the wire.
pub fn is_loss(error: &sqlx::Error) -> bool {
    let state = state_of(error);
    matches!(state.as_deref(), Some("57P01" | "57P02")) || matches!(error, sqlx::Error::Io(_))
}

/// An error of an acquire, in the words of the table.
pub fn told(error: &AcquireError) -> String {
    let AcquireError::OpenFailed { source, retryable, .. } = error else { return error.to_string() };
    let state = open_failure(error).1.map_or_else(String::new, |state| format!(" ({state})"));
    let retry = if *retryable { "retryable" } else { "not retryable" };
    format!("acquire: {}{state}, {retry}", source.kind)
}

/// An error of a statement, in the words of the table.
pub fn told_by_statement(error: &sqlx::Error) -> String {
    if let Some(error) = acquire_error(error) {
        return told(error);
    }
    match state_of(error) {
        Some(state) => format!("statement: {state}"),
        None => format!("statement: {error}"),
    }
}
