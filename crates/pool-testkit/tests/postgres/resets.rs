//! What a holder leaves in a session is taken back; what every session is to have is given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pool_postgres::{
    AcquireError, BuildError, ConfigError, Limits, PgLease, PgPools, Phase, PostgresConfig, Reset,
    WorkspaceId,
};
use pool_testkit::TestPool;
use pool_testkit::faults::DedicatedServer;
use pool_testkit::server::config_of;
use rstest::rstest;
use sqlx::{Connection, Executor, Row};

use crate::support::{SOON, id};

/// A pool with one connection to workspace `a`, and other settings of sessions.
async fn with(
    configure: impl FnOnce(PostgresConfig) -> PostgresConfig + Send + 'static,
) -> (TestPool, WorkspaceId) {
    let limits = Limits::new(6).system(5).per_workspace(1);
    let pool = TestPool::builder().limits(limits).adjust(|pools| pools.configure(configure));
    let pool = pool.build().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    (pool, a)
}

/// Everything that a session can be left with, but for its prepared statements.
const LITTER: &[&str] = &[
    "create sequence if not exists numbers",
    "select nextval('numbers')",
    "create temp table litter (id int)",
    "declare held cursor with hold for select 1",
    "listen news",
    "select pg_advisory_lock(7)",
    "set search_path = pg_temp",
    "set statement_timeout = '77s'",
    "set default_transaction_read_only = on",
    "set session authorization pg_monitor",
    "set role pg_monitor",
];

const STATE: &str = "
    select session_user = current_user and session_user <> 'pg_monitor' as is_nobody_else,
        current_setting('role') as role,
        current_setting('statement_timeout') as timeout,
        current_setting('search_path') as path,
        current_setting('default_transaction_read_only') as read_only,
        (select count(*) from pg_listening_channels()) as channels,
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as locks,
        (select count(*) from pg_cursors where name = 'held') as cursors,
        (select count(*) from pg_class where relname = 'litter') as tables";

async fn litter(lease: &mut PgLease) {
    for sql in LITTER {
        (***lease).execute(*sql).await.unwrap();
    }
}

async fn state(lease: &mut PgLease) -> Vec<String> {
    let row = lease.fetch_one(STATE).await.unwrap();
    let mut state: Vec<String> = vec![format!("{}", row.get::<bool, _>(0))];
    state.extend((1..=4).map(|at| row.get::<String, _>(at)));
    state.extend((5..=8).map(|at| row.get::<i64, _>(at).to_string()));
    state
}

#[derive(Clone, Copy, Debug)]
enum Within {
    Nothing,
    Transaction,
    FailedTransaction,
}

#[rstest]
#[case::outside_of_a_transaction(Within::Nothing)]
#[case::in_a_transaction(Within::Transaction)]
#[case::in_a_failed_transaction(Within::FailedTransaction)]
#[tokio::test]
async fn l1_what_a_holder_leaves_in_a_session_is_reset(#[case] within: Within) {
    let (pool, a) = with(|config| config).await;
    // The first look at the schema, after which statements are kept until it changes.
    let mut lease = pool.acquire(&a).await.unwrap();
    sqlx::query("select $1").bind(1).execute(&mut lease).await.unwrap();
    litter(&mut lease).await;
    drop(lease);
    let mut lease = pool.acquire(&a).await.unwrap();
    let (pid, before) = (lease.backend_pid(), state(&mut lease).await);
    sqlx::query("select $1").bind(1).execute(&mut lease).await.unwrap();
    litter(&mut lease).await;
    assert_ne!(state(&mut lease).await, before, "it was left otherwise");
    match within {
        Within::Nothing => {}
        Within::Transaction => drop((**lease).execute("begin").await.unwrap()),
        Within::FailedTransaction => drop((**lease).execute("begin; select 1/0").await.unwrap_err()),
    }
    drop(lease);

    let mut next = pool.acquire(&a).await.unwrap();
    assert_eq!(next.backend_pid(), pid, "it was reset and not closed");
    assert_eq!(state(&mut next).await, before);
    let error = next.execute("select lastval()").await.unwrap_err();
    assert!(error.to_string().contains("lastval is not yet defined"), "{error}");
    assert!((**next).cached_statements_size() > 0, "prepared statements are kept");
    drop(next);
    pool.cleanup().await.unwrap();
}

/// Through the tracked path, with plain verbs as well.
#[rstest]
#[case::set("set statement_timeout = '77s'")]
#[case::set_config("select set_config('statement_timeout', '77s', false)")]
#[case::advisory_lock("select pg_advisory_lock(7)")]
#[case::select_into("select 1 as id into temp litter")]
#[tokio::test]
async fn l1_a_tracked_statement_that_changes_the_session_has_it_reset(#[case] sql: &'static str) {
    let (pool, a) = with(|config| config).await;
    let mut lease = pool.acquire(&a).await.unwrap();
    let before = state(&mut lease).await;
    lease.execute(sql).await.unwrap();
    assert_ne!(state(&mut lease).await, before, "it was left otherwise");
    drop(lease);
    assert_eq!(state(&mut pool.acquire(&a).await.unwrap()).await, before);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_a_reset_is_made_after_every_lease_or_after_none_if_so_wished() {
    for (reset, after_raw, after_a_function) in
        [(Reset::Always, "0", "0"), (Reset::Never, "77s", "77s"), (Reset::WhenDirty, "0", "77s")]
    {
        let (pool, a) = with(move |config| config.reset(reset)).await;
        let db = pool.workspace(&a);
        let hidden = "create function hidden() returns text language sql as \
                      $$select set_config('statement_timeout', '77s', false)$$";
        sqlx::query(hidden).execute(&db).await.unwrap();
        let timeout = sqlx::query_scalar::<_, String>("select current_setting('statement_timeout')");

        sqlx::query("select hidden()").execute(&db).await.unwrap();
        assert_eq!(timeout.fetch_one(&db).await.unwrap(), after_a_function, "{reset:?}");
        (**pool.acquire(&a).await.unwrap()).execute("set statement_timeout = '77s'").await.unwrap();
        let timeout = sqlx::query_scalar::<_, String>("select current_setting('statement_timeout')");
        assert_eq!(timeout.fetch_one(&db).await.unwrap(), after_raw, "{reset:?}");
        pool.cleanup().await.unwrap();
    }
}

#[tokio::test]
async fn l1_session_defaults_hold_in_every_session_and_after_every_reset() {
    let (pool, a) = with(|config| {
        config
            .session_default("role", "pg_monitor")
            .session_default("search_path", "app, \"two words\", public")
            .session_default("default_transaction_read_only", "on")
            .session_default("app.tenant", "a\\b")
    })
    .await;
    let given = "select concat_ws('|', current_user, current_setting('search_path'), \
                 current_setting('default_transaction_read_only'), current_setting('app.tenant'))";
    let expected = "pg_monitor|app, \"two words\", public|on|a\\b";
    for round in 0..3 {
        let mut lease = pool.acquire(&a).await.unwrap();
        let told: String = sqlx::query_scalar(given).fetch_one(&mut lease).await.unwrap();
        assert_eq!(told, expected, "round {round}");
        let other =
            "reset role; set search_path = x; set default_transaction_read_only = off; set app.tenant = ''";
        (**lease).execute(other).await.unwrap();
        let told: String = sqlx::query_scalar(given).fetch_one(&mut lease).await.unwrap();
        assert_ne!(told, expected);
    }
    assert_eq!(pool.stats().workspaces.opened, 1, "in one session, all of it");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_session_default_that_cannot_be_one_is_refused_when_the_pool_is_built() {
    let config = PostgresConfig::new("127.0.0.1").session_default("x -c role", "postgres");
    let error = PgPools::builder(config).limits(Limits::new(10)).build().await.unwrap_err();
    assert!(matches!(error, BuildError::Config(ConfigError::SessionDefault { .. })), "{error}");
}

#[tokio::test]
async fn l1_what_is_done_after_a_connect_is_done_again_after_a_reset() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let (pool, a) = with(move |config| {
        config.after_connect(move |conn| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { conn.execute("set time zone 'Europe/Berlin'").await.map(drop) })
        })
    })
    .await;
    let zone = || sqlx::query_scalar::<_, String>("select current_setting('TimeZone')");
    let mut lease = pool.acquire(&a).await.unwrap();
    let before = runs.load(Ordering::Relaxed);
    assert_eq!(zone().fetch_one(&mut lease).await.unwrap(), "Europe/Berlin");
    drop(lease);
    assert_eq!(runs.load(Ordering::Relaxed), before, "a plain statement resets nothing");
    let mut lease = pool.acquire(&a).await.unwrap();
    (**lease).execute("set time zone 'Asia/Tokyo'").await.unwrap();
    drop(lease);
    let mut lease = pool.acquire(&a).await.unwrap();
    assert_eq!(zone().fetch_one(&mut lease).await.unwrap(), "Europe/Berlin");
    assert_eq!(runs.load(Ordering::Relaxed), before + 1);
    drop(lease);
    pool.cleanup().await.unwrap();
}

#[rstest]
#[case::an_error("select 1/0")]
#[case::a_transaction("begin")]
#[tokio::test]
async fn o3_what_fails_after_a_connect_is_a_failed_open_with_a_phase_of_its_own(#[case] sql: &'static str) {
    let (pool, a) = with(move |config| {
        config.after_connect(move |conn| Box::pin(async move { conn.execute(sql).await.map(drop) }))
    })
    .await;
    let error = pool.acquire(&a).await.unwrap_err();
    let AcquireError::OpenFailed { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.phase, Phase::Prepare, "{error}");
    assert!(error.to_string().contains("preparing a connection"), "{error}");
    let stats = pool.stats();
    assert_eq!(stats.workspaces.connections.total(), 0, "its slot is free, and");
    let database = pool.database_of(&a);
    let sessions = pool.sessions().await.unwrap();
    assert!(sessions.iter().all(|session| session.database != database), "its session is gone: {sessions:?}");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_a_reset_leaves_no_word_in_the_servers_log() {
    let server = DedicatedServer::start().await.unwrap();
    let config = config_of(server.address());
    let pools = PgPools::builder(config).limits(Limits::new(6).system(5)).build().await.unwrap();
    let a = id("a");
    pools.ensure_workspace(&a).await.unwrap();
    for within in [None, Some("begin"), None] {
        let mut lease = pools.acquire(&a).await.unwrap();
        litter(&mut lease).await;
        if let Some(sql) = within {
            (**lease).execute(sql).await.unwrap();
        }
    }
    tokio::time::timeout(SOON, pools.acquire(&a)).await.unwrap().unwrap().discard();
    tokio::time::timeout(Duration::from_secs(20), pools.close()).await.unwrap().unwrap();
    let log = std::fs::read_to_string(server.directory().join("log")).unwrap();
    assert!(log.contains("ready to accept connections"), "the log was found: {log}");
    assert!(!log.contains("WARNING") && !log.contains("ERROR"), "{log}");
}

/// Everything that made the pool's own statements fail when they ran on a system lease's session. The time limit comes last, since
/// whatever is said after it may take longer.
const SABOTAGE: [(&str, &str); 4] = [
    ("role", "pg_monitor"),
    ("default_transaction_read_only", "on"),
    ("search_path", "nowhere"),
    ("statement_timeout", "1"),
];

async fn catalog_works(pool: &TestPool) {
    let b = id("b");
    pool.ensure_workspace(&b).await.unwrap();
    assert!(pool.workspace_exists(&b).await.unwrap());
    assert!(pool.list_workspaces().await.unwrap().contains(&b));
    assert!(pool.drop_workspace(&b).await.unwrap());
    let system = pool.stats().system;
    assert!(system.peak <= system.limit, "{} of {}", system.peak, system.limit);
}

#[tokio::test]
async fn l1_b3_no_callers_session_reaches_the_catalogs_statements() {
    // One system lease at a time: the catalog's session and the lease's take turns in the share.
    let limits = Limits::new(4).system(2).per_workspace(1);
    let pool = TestPool::builder().limits(limits).adjust(|pools| pools.configure(|c| c.reset(Reset::Never)));
    let pool = pool.build().await.unwrap();
    let mut lease = pool.system().acquire().await.unwrap();
    (**lease).execute("listen news").await.unwrap();
    for (name, value) in SABOTAGE {
        let set = format!("select set_config('{name}', '{value}', false)");
        (**lease).execute(sqlx::AssertSqlSafe(set)).await.unwrap();
    }
    drop(lease);
    catalog_works(&pool).await;
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_no_session_default_reaches_the_catalogs_statements() {
    let (pool, _) = with(|config| {
        let failing =
            config.after_connect(|conn| Box::pin(async move { conn.execute("select 1/0").await.map(drop) }));
        SABOTAGE.into_iter().fold(failing, |config, (name, value)| config.session_default(name, value))
    })
    .await;
    catalog_works(&pool).await;
    pool.cleanup().await.unwrap();
}
