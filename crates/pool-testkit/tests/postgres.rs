//! The adapter's promises on a real server, one law a test.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use pool_core::{Condition, Driver, DriverError, Endpoint, PrefixNaming};
use pool_manager::{PoolManager, Settings};
use pool_postgres::{
    AcquireError, DatabaseName, DriverErrorKind, Limits, PgCatalog, PgConn, PgDriver, PgHandle, PgLease,
    PgPools, PostgresConfig, Stage, Target, WorkspaceId, acquire_error,
};
use pool_testkit::{TestPool, eventually};
use rstest::rstest;
use sqlx::{Connection, Executor, Row};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(10);

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

/// A pool whose workspace `a` has exactly one connection, so that the next holder gets what the last
/// one left.
async fn one_connection() -> (TestPool, WorkspaceId) {
    let pool = TestPool::builder().limits(Limits::new(6).system(5).per_workspace(1)).build().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    (pool, a)
}

/// How often each task asks; `POOL_PROOF_QUERIES=2000` runs the proof at its full size (some minutes).
fn proof_queries() -> usize {
    std::env::var("POOL_PROOF_QUERIES").ok().and_then(|n| n.parse().ok()).unwrap_or(40)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_i2_a_budget_of_20_serves_200_workspaces_to_64_tasks() {
    const BUDGET: u32 = 20;
    let pool = Arc::new(TestPool::builder().limits(Limits::new(BUDGET).system(5)).build().await.unwrap());
    let ids = Arc::new(pool.create_test_workspaces(200).await.unwrap());

    let stop = Arc::new(AtomicBool::new(false));
    let sampler = tokio::spawn({
        let (pool, stop) = (Arc::clone(&pool), Arc::clone(&stop));
        async move {
            let (mut peak, mut looks) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                peak = pool.active_connection_count().await.unwrap().max(peak);
                looks += 1;
            }
            (peak, looks)
        }
    });
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let (pool, ids) = (Arc::clone(&pool), Arc::clone(&ids));
        tasks.spawn(async move {
            for _ in 0..proof_queries() {
                let id = &ids[fastrand::usize(..ids.len())];
                let db = pool.workspace(id);
                let name: String =
                    sqlx::query_scalar("select current_database()::text").fetch_one(&db).await.unwrap();
                assert!(name.ends_with(&format!("_ws_{}", id.as_str())), "{id} was served by {name}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (peak, looks) = sampler.await.unwrap();
    let stats = pool.stats().workspaces;
    let queries = 64 * proof_queries();
    println!(
        "{queries} queries in {took:.1?}, at most {peak} connections in {looks} looks; \
         opened {}, hits {}, evicted {}",
        stats.opened, stats.hits, stats.evicted
    );
    assert!(peak <= BUDGET, "the server counted {peak} of {BUDGET}");
    assert!(looks > 10 && peak > BUDGET / 2, "the sampling saw the load: {peak} in {looks} looks");
    pool.cleanup().await.unwrap();
}

/// In the simple protocol, a statement outside of a transaction begins with its transaction.
async fn is_in_a_transaction(lease: &mut PgLease) -> bool {
    let row = lease.fetch_one(sqlx::raw_sql("select now() <> statement_timestamp()")).await.unwrap();
    row.get(0)
}

#[derive(Clone, Copy, Debug)]
enum Leaves {
    RawBegin,
    FailedTransaction,
    HalfReadResult,
    RunningQuery,
    SqlxTransaction,
}

async fn leave_behind(lease: PgLease, what: Leaves) {
    let mut lease = lease;
    match what {
        Leaves::RawBegin => {
            lease.execute("begin").await.unwrap();
            lease.execute("insert into note values (1)").await.unwrap();
        }
        Leaves::FailedTransaction => {
            (*lease).execute("begin").await.unwrap();
            (*lease).execute("select 1/0").await.unwrap_err();
        }
        Leaves::HalfReadResult => {
            let mut rows = (&mut lease).fetch("select generate_series(1, 1000000)");
            rows.try_next().await.unwrap().unwrap();
        }
        Leaves::RunningQuery => {
            let sleep = lease.execute("select pg_sleep(60)");
            tokio::time::timeout(Duration::from_millis(50), sleep).await.unwrap_err();
        }
        Leaves::SqlxTransaction => {
            let mut tx = sqlx::Acquire::begin(&mut lease).await.unwrap();
            tx.execute("insert into note values (1)").await.unwrap();
        }
    }
}

#[rstest]
#[case::in_a_raw_begin(Leaves::RawBegin)]
#[case::after_an_error_in_a_raw_begin(Leaves::FailedTransaction)]
#[case::with_a_half_read_result(Leaves::HalfReadResult)]
#[case::in_mid_query(Leaves::RunningQuery)]
#[case::in_a_sqlx_transaction(Leaves::SqlxTransaction)]
#[tokio::test]
async fn l1_the_next_holder_gets_a_clean_connection(#[case] what: Leaves) {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();

    let began = Instant::now();
    leave_behind(pool.acquire(&a).await.unwrap(), what).await;
    let mut next = pool.acquire(&a).await.unwrap();
    assert!(began.elapsed() < SOON, "the next holder waited {:?}", began.elapsed());
    assert!(!is_in_a_transaction(&mut next).await);
    let notes: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&mut next).await.unwrap();
    assert_eq!(notes, 0, "what was not committed is gone");
    drop(next);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_lease_dropped_in_a_panic_comes_back_clean() {
    let (pool, a) = one_connection().await;
    let mut lease = pool.acquire(&a).await.unwrap();
    let panicked = tokio::spawn(async move {
        (*lease).execute("begin").await.unwrap();
        panic!("on purpose, with a transaction open");
    });
    assert!(panicked.await.unwrap_err().is_panic());

    let mut next = pool.acquire(&a).await.unwrap();
    assert!(!is_in_a_transaction(&mut next).await);
    drop(next);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_plain_statements_leave_a_connection_known_clean() {
    let (pool, a) = one_connection().await;
    let mut lease = pool.acquire(&a).await.unwrap();
    let one: i32 = sqlx::query_scalar("select $1").bind(1).fetch_one(&mut lease).await.unwrap();
    assert_eq!(one, 1);
    drop(lease);
    // Nothing was awaited since: were it being verified, it would still be in use.
    assert_eq!(pool.workspace(&a).counts().idle, 1);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_transaction_commits_rolls_back_and_is_rolled_back_when_dropped() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    for (id, end) in ["commit", "rollback", "drop"].into_iter().enumerate() {
        let mut tx = db.begin().await.unwrap();
        let id = i32::try_from(id).unwrap();
        sqlx::query("insert into note values ($1)").bind(id).execute(&mut tx).await.unwrap();
        match end {
            "commit" => tx.commit().await.unwrap(),
            "rollback" => tx.rollback().await.unwrap(),
            _ => drop(tx),
        }
    }
    let notes: Vec<i32> = sqlx::query_scalar("select id from note").fetch_all(&db).await.unwrap();
    assert_eq!(notes, [0], "only what was committed");
    assert_eq!(pool.stats().workspaces.opened, 1, "on one connection, all of it");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_nested_transaction_is_a_savepoint() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let mut inner = (*tx).begin().await.unwrap();
    inner.execute("insert into note values (1)").await.unwrap();
    inner.rollback().await.unwrap();
    tx.execute("insert into note values (2)").await.unwrap();
    tx.commit().await.unwrap();
    let notes: Vec<i32> = sqlx::query_scalar("select id from note").fetch_all(&db).await.unwrap();
    assert_eq!(notes, [2]);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l3_a_connection_that_was_ended_while_idle_is_replaced_unseen() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("select 1").execute(&db).await.unwrap();
    pool.terminate_all_connections().await.unwrap();
    eventually("the idle connection being due for a check", SOON, || async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        true
    })
    .await
    .unwrap();
    sqlx::query("select 1").execute(&db).await.unwrap();
    assert_eq!(pool.stats().workspaces.opened, 2);
    pool.cleanup().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w4_a_thousand_acquires_dropped_at_random_leave_the_pool_at_full_capacity() {
    let pool = Arc::new(
        TestPool::builder().limits(Limits::new(10).system(5).per_workspace(5)).build().await.unwrap(),
    );
    let ids = Arc::new(pool.create_test_workspaces(10).await.unwrap());
    let mut tasks = JoinSet::new();
    for _ in 0..1_000 {
        let (pool, ids) = (Arc::clone(&pool), Arc::clone(&ids));
        tasks.spawn(async move {
            let id = &ids[fastrand::usize(..ids.len())];
            let patience = Duration::from_micros(fastrand::u64(..20_000));
            let lease = tokio::time::timeout(patience, pool.acquire(id)).await;
            drop(lease);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    eventually("quiet", SOON, || async {
        let stats = pool.stats().workspaces;
        let busy = stats.connections;
        busy.in_use + busy.opening + busy.closing + stats.waiting == 0
    })
    .await
    .unwrap();

    let mut leases = Vec::new();
    for _ in 0..5 {
        leases.push(pool.acquire(&ids[0]).await.unwrap());
    }
    assert_eq!(pool.stats().workspaces.connections.in_use, 5, "all of the budget can be had");
    drop(leases);
    pool.verify_no_leaked_connections().await.unwrap();
    pool.cleanup().await.unwrap();
}

/// A driver that sends one workspace to a listener that accepts and says nothing.
struct Detour {
    real: PgDriver,
    hangs: DatabaseName,
    silence: PostgresConfig,
}

impl Driver for Detour {
    type Connection = PgConn;
    type Handle = PgHandle;

    async fn connect(&self, endpoint: &Endpoint) -> Result<PgConn, DriverError> {
        if endpoint.database != self.hangs {
            return self.real.connect(endpoint).await;
        }
        let options = self.silence.connect_options(endpoint.database.as_str());
        let never = sqlx::PgConnection::connect_with(&options).await;
        panic!("the silent listener answered: {never:?}")
    }
    async fn check(&self, conn: &mut PgConn) -> Result<(), DriverError> {
        self.real.check(conn).await
    }
    fn inspect(&self, conn: &mut PgConn) -> Condition {
        self.real.inspect(conn)
    }
    async fn recycle(&self, conn: &mut PgConn) -> Result<(), DriverError> {
        self.real.recycle(conn).await
    }
    async fn close(&self, conn: PgConn) {
        self.real.close(conn).await;
    }
    fn place(&self, endpoint: &Endpoint) -> String {
        self.real.place(endpoint)
    }
    fn handle(&self, conn: &PgConn) -> PgHandle {
        self.real.handle(conn)
    }
    async fn terminate(&self, handles: Vec<PgHandle>) -> Result<(), DriverError> {
        self.real.terminate(handles).await
    }
    fn control_connections(&self) -> u32 {
        self.real.control_connections()
    }
    async fn shutdown(&self) {
        self.real.shutdown().await;
    }
}

/// The median time of 50 rounds over all of `ids`, each on a warm connection.
async fn median_latency(manager: &PoolManager<Detour>, ids: &[WorkspaceId]) -> Duration {
    let mut times = Vec::new();
    for round in 0..50 {
        let began = Instant::now();
        let lease = manager.acquire(&ids[round % ids.len()]).await.unwrap();
        drop(lease);
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_workspace_whose_connect_hangs_delays_no_other() {
    let pool = TestPool::builder().limits(Limits::new(6).system(5)).build().await.unwrap();
    let ids = pool.create_test_workspaces(3).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silence = PostgresConfig::new("127.0.0.1").port(listener.local_addr().unwrap().port());
    let accepted = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await.unwrap());
        }
    });

    let naming = Arc::new(PrefixNaming::new(pool.prefix()).unwrap());
    let config = pool.config().clone();
    let system = config.get_system_database().unwrap();
    let real = PgDriver::start(config.clone(), system.as_str()).await.unwrap();
    let hung = id("hung");
    let hangs = pool_core::DatabaseNaming::database(naming.as_ref(), &hung);
    let mut settings = Settings::new(Limits::new(7).system(3).per_workspace(4), system, naming.clone());
    settings.acquire_timeout = Duration::from_secs(3);
    settings.connect_timeout = Duration::from_secs(2);
    let catalog = Arc::new(PgCatalog::new(config, naming, None));
    let manager = PoolManager::start(Detour { real, hangs, silence }, catalog, settings).unwrap();

    median_latency(&manager, &ids).await;
    let before = median_latency(&manager, &ids).await;
    let waiting = tokio::spawn({
        let (manager, hung) = (manager.clone(), hung.clone());
        async move { manager.acquire(&hung).await.map(drop) }
    });
    eventually("the hung open being under way", SOON, || async {
        manager.stats().workspaces.connections.opening == 1
    })
    .await
    .unwrap();
    let meanwhile = median_latency(&manager, &ids).await;
    println!("median acquire and release: {before:?} before, {meanwhile:?} while one workspace hangs");
    assert!(meanwhile < before * 10 + Duration::from_millis(1), "{before:?} became {meanwhile:?}");
    assert!(!waiting.is_finished(), "the hung one is still waiting");

    let error = waiting.await.unwrap().unwrap_err();
    let AcquireError::OpenFailed { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind, DriverErrorKind::TimedOut, "{error}");
    accepted.abort();
    manager.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn w3_a_timeout_names_what_was_waited_for_and_the_numbers() {
    let pool = TestPool::builder()
        .limits(Limits::new(7).system(5).per_workspace(1))
        .adjust(|builder| builder.acquire_timeout(Duration::from_millis(100)))
        .build()
        .await
        .unwrap();
    let ids = pool.create_test_workspaces(3).await.unwrap();
    let held = [pool.acquire(&ids[0]).await.unwrap(), pool.acquire(&ids[1]).await.unwrap()];

    let error = pool.acquire(&ids[2]).await.unwrap_err();
    assert!(matches!(error, AcquireError::TimedOut { waiting_for: Stage::Budget, .. }), "{error}");
    assert!(error.to_string().contains("2 of 2 in use"), "{error}");
    let error = pool.acquire(&ids[0]).await.unwrap_err();
    assert!(matches!(error, AcquireError::TimedOut { waiting_for: Stage::WorkspaceCeiling, .. }), "{error}");
    let through_sqlx = sqlx::query("select 1").execute(&pool.workspace(&ids[2])).await.unwrap_err();
    assert!(acquire_error(&through_sqlx).is_some(), "{through_sqlx}");
    drop(held);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn c1_a_lease_held_past_the_deadline_is_cut() {
    let pool = TestPool::builder()
        .adjust(|builder| builder.close_timeout(Duration::from_millis(100)))
        .build()
        .await
        .unwrap();
    let ids = pool.create_test_workspaces(1).await.unwrap();
    let mut held = pool.acquire(&ids[0]).await.unwrap();

    let error = pool.close().await.unwrap_err();
    assert!(error.to_string().contains("1 leases"), "{error}");
    assert_eq!(pool.active_connection_count().await.unwrap(), 0, "the server sees none of ours");
    sqlx::query("select 1").execute(&mut held).await.unwrap_err();
    drop(held);
    assert_eq!(pool.stats().connections().total(), 0);
    pool.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn c2_after_a_close_the_server_sees_no_connection_of_ours() {
    let pool = TestPool::new().await.unwrap();
    for id in pool.create_test_workspaces(10).await.unwrap() {
        sqlx::query("select 1").execute(&pool.workspace(&id)).await.unwrap();
    }
    // Asked at once: not eventually, but when `close` returns.
    pool.close().await.unwrap();
    assert_eq!(pool.active_connection_count().await.unwrap(), 0);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_lease_dropped_after_its_runtime_settles_the_count() {
    let pool = TestPool::new().await.unwrap();
    let ids = pool.create_test_workspaces(1).await.unwrap();
    let config = pool.config().clone();
    let (pools, lease) = std::thread::spawn({
        let id = ids[0].clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let pools = PgPools::builder(config).limits(Limits::new(6)).build().await.unwrap();
                let mut lease = pools.acquire(&id).await.unwrap();
                lease.execute("begin").await.unwrap();
                (pools, lease)
            })
        }
    })
    .join()
    .unwrap();
    drop(lease);
    assert_eq!(pools.stats().connections().total(), 0);
    drop(pools);
    pool.cleanup().await.unwrap();
}

#[rstest]
#[case::unreachable("127.0.0.1", 1, "pool_test", "hunter2", "postgres", DriverErrorKind::Unreachable)]
#[case::wrong_password("", 0, "", "hunter2", "postgres", DriverErrorKind::Refused)]
#[case::missing_database("", 0, "", "", "no_such_database", DriverErrorKind::DatabaseMissing)]
#[tokio::test]
async fn i3_a_server_that_cannot_be_used_is_named_without_the_password(
    #[case] host: &str,
    #[case] port: u16,
    #[case] user: &str,
    #[case] password: &str,
    #[case] database: &str,
    #[case] kind: DriverErrorKind,
) {
    let pool = TestPool::new().await.unwrap();
    let mut config = pool.config().clone().system_database(database);
    if !host.is_empty() {
        config = PostgresConfig::new(host).port(port).user(user).system_database(database);
    }
    if !password.is_empty() {
        config = config.password(password);
    }
    let place = config.place(database);
    let error = PgPools::builder(config).limits(Limits::new(10)).build().await.unwrap_err();
    let pool_postgres::BuildError::Connect(source) = &error else { panic!("{error}") };
    let told = error.to_string();
    assert_eq!(source.kind, kind, "{told}");
    assert!(told.contains("connecting") && told.contains(&place), "{told}");
    assert!(!format!("{told} {error:?}").contains("hunter2"), "{told}");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn limits_that_cannot_hold_are_refused_before_anything_is_opened() {
    let pool = TestPool::new().await.unwrap();
    for limits in [Limits::new(0), Limits::new(5), Limits::new(20).per_workspace(19)] {
        let built = PgPools::builder(pool.config().clone()).limits(limits).build().await;
        assert!(matches!(built, Err(pool_postgres::BuildError::Start(_))), "{limits:?}");
    }
    assert_eq!(pool.active_connection_count().await.unwrap(), 1, "the pool's own control connection");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn i1_i3_hostile_ids_get_databases_of_their_own() {
    let pool = TestPool::new().await.unwrap();
    let long = "x".repeat(63);
    let hostile = [
        "a-b",
        "a_b",
        "A_b",
        "\"; drop database postgres; --",
        "it's",
        "back\\slash",
        "new\nline",
        "\u{202e}rtl",
        "caf\u{e9} \u{1f642}",
        &format!("{long}a"),
        &format!("{long}b"),
    ];
    for name in hostile {
        let id = id(name);
        pool.ensure_workspace(&id).await.unwrap();
        let db = pool.workspace(&id);
        sqlx::query("create table owner (id text)").execute(&db).await.unwrap();
        sqlx::query("insert into owner values ($1)").bind(name).execute(&db).await.unwrap();
    }
    for name in hostile {
        let owners: Vec<String> =
            sqlx::query_scalar("select id from owner").fetch_all(&pool.workspace(&id(name))).await.unwrap();
        assert_eq!(owners, [name]);
    }
    let mut listed = pool.list_workspaces().await.unwrap();
    listed.retain(|id| hostile.contains(&id.as_str()));
    assert_eq!(listed.len(), hostile.len(), "every id is listed as it was given: {listed:?}");
    assert!(matches!(pool.workspace(&listed[0]).target(), Target::Workspace(_)));
    pool.cleanup().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o4_many_callers_create_a_database_once() {
    let pool = Arc::new(TestPool::new().await.unwrap());
    let a = id("a");
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let (pool, a) = (Arc::clone(&pool), a.clone());
        tasks.spawn(async move { pool.ensure_workspace(&a).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(pool.stats().system.acquired, 1, "one look-up, one creation, for all of them");
    assert_eq!(pool.databases().await.unwrap().len(), 1);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn o4_a_database_dropped_by_others_is_created_again() {
    let pool = TestPool::new().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let database = pool.databases().await.unwrap().remove(0);
    let drop_it = format!("drop database \"{database}\" with (force)");
    pool_testkit::execute_outside(pool.config(), "postgres", &drop_it).await.unwrap();

    let error = pool.acquire(&a).await.unwrap_err();
    let AcquireError::OpenFailed { source, retryable, .. } = &error else { panic!("{error}") };
    assert_eq!((source.kind, *retryable), (DriverErrorKind::DatabaseMissing, false));
    // The fact that it existed has been forgotten, and with the creation the back-off is.
    pool.ensure_workspace(&a).await.unwrap();
    sqlx::query("select 1").execute(&pool.workspace(&a)).await.unwrap();
    pool.cleanup().await.unwrap();
}
