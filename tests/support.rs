//! What several suites need: a result that says why, questions asked through a pool, and the server watched
//! while a load runs.

pub mod ids;
pub mod mishap;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use pool_postgres::{DatabaseNaming, PgLease, PgWorkspacePool, PostgresConfig, ShareStats, WorkspaceId};
use pool_testkit::{TestPool, eventually, execute_outside};
use tokio::task::JoinSet;
use tokio::time::sleep;

pub type Failed = Box<dyn Error + Send + Sync>;

/// A case fails with whatever went wrong.
pub type Outcome<T = ()> = Result<T, Failed>;

/// Long enough for whatever is bound to happen, on a machine that others use, too.
pub const SOON: Duration = Duration::from_secs(20);
/// The pause between two looks of a [`Watch`], so that the looking does not take the load's place.
const PACE: Duration = Duration::from_millis(2);

/// Runs a case on a runtime with as many threads as `POOL_TEST_THREADS` says, or four; one means the
/// single-threaded one, which knows other races.
pub fn on_runtime(case: impl Future<Output = Outcome>) -> Outcome {
    let threads = std::env::var("POOL_TEST_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()?.block_on(case)
}

/// The database that a query through `db` really runs in; the answer is that of this question.
pub async fn current_database(db: &PgWorkspacePool) -> sqlx::Result<String> {
    let nonce = fastrand::i64(..);
    let ask = sqlx::query_as("select current_database()::text, $1::bigint").bind(nonce);
    let (name, echo): (String, i64) = ask.fetch_one(db).await?;
    assert_eq!(echo, nonce, "the answer to another question: {name}");
    Ok(name)
}

/// The backend that serves a query through `db`; the answer is that of this question.
pub async fn backend_pid(db: &PgWorkspacePool) -> sqlx::Result<i32> {
    let nonce = fastrand::i64(..);
    let ask = sqlx::query_as("select pg_backend_pid(), $1::bigint").bind(nonce);
    let (pid, echo): (i32, i64) = ask.fetch_one(db).await?;
    assert_eq!(echo, nonce, "the answer to another question: {pid}");
    Ok(pid)
}

/// The database that `id` has, or would have.
pub fn database_of(pool: &TestPool, id: &WorkspaceId) -> Outcome<String> {
    Ok(pool.config().naming()?.database(id).as_str().to_owned())
}

/// The same server for somebody who is not this pool, and is not counted as such.
fn outsider(pool: &TestPool) -> PostgresConfig {
    pool.config().clone().application_name("pk:outsider")
}

/// Runs a statement behind the pool's back, in the system database.
pub async fn outside(pool: &TestPool, sql: &str) -> Outcome {
    let config = outsider(pool);
    execute_outside(&config, config.get_system_database()?.as_str(), sql).await?;
    Ok(())
}

/// Ends backends behind the pool's back; returns when the server no longer counts them.
pub async fn terminate(pool: &TestPool, pids: &[i32]) -> Outcome {
    outside(pool, &format!("select pg_terminate_backend(pid) from unnest(array{pids:?}) as pid")).await?;
    let gone = || async {
        let sessions = pool.sessions().await;
        sessions.is_ok_and(|sessions| !sessions.iter().any(|session| pids.contains(&session.pid)))
    };
    eventually("backends being gone", SOON, gone).await?;
    Ok(())
}

/// The sessions over which the driver itself asks the server, by what they were asked last.
pub async fn controls(pool: &TestPool) -> Outcome<Vec<i32>> {
    let sessions = pool.sessions().await?.into_iter();
    let own = sessions.filter(|session| session.last_query.contains("pg_stat_get_activity"));
    Ok(own.map(|session| session.pid).collect())
}

/// Has `lease` begin a query that does not end by itself, and gives that up once the server is at work on it.
pub async fn give_up_at_work(pool: &TestPool, lease: &mut PgLease) -> Outcome {
    let pid = lease.backend_pid();
    // Unprepared, it is one message: a server that is at work on it runs it, and does not wait for the next one.
    let mut endless = pin!(sqlx::raw_sql("select pg_sleep(600)").execute(lease));
    let is_at_work = || async {
        let sessions = pool.sessions().await.unwrap_or_default();
        sessions.iter().any(|session| session.pid == pid && session.state == "active")
    };
    tokio::select! {
        biased;
        ended = &mut endless => Err(format!("an endless query has ended: {ended:?}").into()),
        begun = eventually("the query being at work", SOON, is_at_work) => Ok(begun?),
    }
}

/// Returns when nothing is in use, on its way or waited for, and the server counts what the pool counts.
pub async fn settled(pool: &TestPool) -> Outcome {
    let quiet = || async {
        let stats = pool.stats();
        let busy = stats.connections();
        let waiting = stats.workspaces.waiting + stats.system.waiting;
        busy.in_use + busy.opening + busy.closing + waiting == 0
    };
    eventually("quiet", SOON, quiet).await?;
    let agreed = || async {
        let stats = pool.stats();
        let ours = stats.connections().total() + stats.control;
        pool.active_connection_count().await.is_ok_and(|counted| counted == ours)
    };
    eventually("the server counting what the pool counts", SOON, agreed).await?;
    Ok(())
}

/// One lease for each of `ids`, all held at once.
pub async fn hold(pool: &TestPool, ids: &[WorkspaceId]) -> Outcome<Vec<PgLease>> {
    Ok(try_join_all(ids.iter().map(|id| pool.acquire(id))).await?)
}

/// The pids of `leases`.
pub fn pids(leases: &[PgLease]) -> Vec<i32> {
    leases.iter().map(PgLease::backend_pid).collect()
}

/// The error of what had to fail.
#[track_caller]
pub fn error_of<T: std::fmt::Debug, E>(result: Result<T, E>) -> E {
    match result {
        Err(error) => error,
        Ok(done) => panic!("what had to fail did not: {done:?}"),
    }
}

/// All that the system share can give, held at once.
pub async fn hold_system(pool: &TestPool) -> Outcome<Vec<PgLease>> {
    let system = pool.system();
    Ok(try_join_all((0..pool.stats().system.limit).map(|_| system.acquire())).await?)
}

/// Waits until as many callers as that stand in the queues of the workspaces.
pub async fn wait_for_queue(pool: &TestPool, callers: usize) -> Outcome {
    let queued = || async { pool.stats().workspaces.waiting as usize == callers };
    eventually(&format!("a queue of {callers}"), SOON, queued).await?;
    Ok(())
}

/// What all `tasks` gave, once they are done; the first failure ends the others.
pub async fn finish<R: 'static>(mut tasks: JoinSet<Outcome<R>>) -> Outcome<Vec<R>> {
    let mut results = Vec::new();
    while let Some(done) = tasks.join_next().await {
        results.push(done??);
    }
    Ok(results)
}

/// What is counted of a share: in use, idle, waiting; opened, closed, evicted; acquired, hits.
pub type Figures = ((u32, u32, u32), (u64, u64, u64), (u64, u64));

pub fn figures(share: ShareStats) -> Figures {
    let now = (share.connections.in_use, share.connections.idle, share.waiting);
    (now, (share.opened, share.closed, share.evicted), (share.acquired, share.hits))
}

/// The server's own count, for each workspace, for the system database and in all, is what the pool says.
pub async fn assert_stats_are_true(pool: &TestPool, ids: &[WorkspaceId], when: &str) -> Outcome {
    let mut counted: BTreeMap<String, u32> = BTreeMap::new();
    for session in pool.sessions().await? {
        *counted.entry(session.database).or_default() += 1;
    }
    let stats = pool.stats();
    for id in ids {
        let (said, seen) = (pool.workspace(id).counts(), counted.remove(&database_of(pool, id)?));
        assert_eq!(said.total(), seen.unwrap_or(0), "{id} {when}: {said:?}");
    }
    let elsewhere: u32 = counted.values().sum();
    assert_eq!(stats.system.connections.total() + stats.control, elsewhere, "system, {when}: {counted:?}");
    for share in [stats.workspaces, stats.system] {
        let live = u64::from(share.connections.total() - share.connections.opening);
        assert_eq!(share.opened, share.closed + live, "nothing vanishes, {when}: {share:?}");
        assert!(share.connections.total() <= share.peak && share.peak <= share.limit, "{when}: {share:?}");
    }
    Ok(())
}

/// Nothing is left of what was opened, and nobody waits.
pub fn assert_stats_are_nothing(pool: &TestPool) {
    let stats = pool.stats();
    for share in [stats.workspaces, stats.system] {
        assert_eq!((share.connections.total(), share.waiting, share.targets), (0, 0, 0), "{share:?}");
        assert_eq!(share.opened, share.closed, "whatever was opened has been closed: {share:?}");
    }
}

/// Nothing can be had from a workspace whose database is gone; the reason is told.
pub async fn assert_is_missing(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    let database = database_of(pool, id)?;
    let error = pool.acquire(id).await.err().ok_or("a database that is gone was opened")?;
    let said = error.to_string();
    assert!(mishap::is_missing(&error), "{said}");
    assert!(said.contains(&database) && said.contains("does not exist"), "{said}");
    assert!(!pool.workspace_exists(id).await?);
    Ok(())
}

/// The workspace serves at its full capacity.
pub async fn assert_works(pool: &TestPool, id: &WorkspaceId, after: &str) -> Outcome {
    for mut lease in hold(pool, &vec![id.clone(); 10]).await? {
        let nonce = fastrand::i64(..);
        let echo = sqlx::query_scalar::<_, i64>("select $1::bigint").bind(nonce).fetch_one(&mut lease).await;
        assert!(matches!(echo, Ok(echo) if echo == nonce), "after {after}: {nonce} was answered by {echo:?}");
    }
    settled(pool).await?;
    let database = database_of(pool, id)?;
    for session in pool.sessions().await?.into_iter().filter(|session| session.database == database) {
        assert_eq!(session.state, "idle", "after {after}: a query or transaction goes on: {session:?}");
    }
    assert_stats_are_true(pool, std::slice::from_ref(id), after).await
}

/// The most sessions of a pool that the server was ever seen to count.
#[derive(Clone, Debug, Default)]
pub struct Peaks {
    /// In all, the driver's own included, and those that are only starting and in no database yet.
    pub total: u32,
    /// In databases of workspaces.
    pub workspaces: u32,
    /// In the system database, the driver's own included.
    pub system: u32,
    /// In each workspace's database.
    pub by_database: BTreeMap<String, u32>,
}

/// Asks the server for a pool's sessions again and again while a load runs.
pub struct Watch<'a> {
    pool: &'a TestPool,
    peaks: Mutex<Peaks>,
}

impl<'a> Watch<'a> {
    pub fn of(pool: &'a TestPool) -> Self {
        Self { pool, peaks: Mutex::default() }
    }

    /// What has been seen so far.
    pub fn peaks(&self) -> Peaks {
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `load` to its end, and looks meanwhile.
    pub async fn during<R>(&self, load: impl Future<Output = Outcome<R>>) -> Outcome<R> {
        let mut load = pin!(load);
        tokio::select! {
            done = &mut load => done,
            failed = self.look_on() => failed.map(|never| match never {}),
        }
    }

    async fn look_on(&self) -> Outcome<Infallible> {
        let prefix = self.pool.prefix();
        loop {
            let mut now = Peaks::default();
            for session in self.pool.sessions().await? {
                now.total += 1;
                if session.database.starts_with(&prefix) {
                    now.workspaces += 1;
                    *now.by_database.entry(session.database).or_default() += 1;
                } else if !session.database.is_empty() {
                    now.system += 1;
                }
            }
            self.keep(now);
            sleep(PACE).await;
        }
    }

    fn keep(&self, now: Peaks) {
        let mut peaks = self.peaks.lock().unwrap_or_else(PoisonError::into_inner);
        peaks.total = peaks.total.max(now.total);
        peaks.workspaces = peaks.workspaces.max(now.workspaces);
        peaks.system = peaks.system.max(now.system);
        for (database, seen) in now.by_database {
            let peak = peaks.by_database.entry(database).or_default();
            *peak = seen.max(*peak);
        }
    }
}
