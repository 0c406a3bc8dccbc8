//! The testkit's own promises: nothing is left behind, whatever happens, and a leak is found.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Duration;

use pool_postgres::{Limits, PostgresConfig, WorkspaceId};
use pool_testkit::fixtures::test_pool;
use pool_testkit::server::TestServer;
use pool_testkit::{
    Schema, TestError, TestPool, TestPools, eventually, test_database_config, wait_for_condition,
    wait_for_database_ready,
};
use rstest::rstest;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, PgConnection, SqlSafeStr};

const SOON: Duration = Duration::from_secs(20);

/// A hold on the server, so that one test does not start it anew for each of its pools.
async fn server() -> TestServer {
    test_database_config().await.unwrap().0
}

/// What a pool that is gone has left on its server.
async fn left_of(config: &PostgresConfig, tag: &str, prefix: &str) -> (i64, i64) {
    let options = config.clone().application_name("pk:test:looker").connect_options("postgres");
    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    let left = sqlx::query_as(
        "select (select count(*) from pg_stat_activity where starts_with(application_name, $1)), \
                (select count(*) from pg_database where starts_with(datname, $2))",
    );
    let left = left.bind(tag).bind(prefix).fetch_one(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    left
}

/// A pool with a workspace, an idle connection and one in use.
async fn used_pool() -> (TestPool, pool_postgres::PgLease) {
    let pool = TestPool::new().await.unwrap();
    let ids = pool.create_test_workspaces(2).await.unwrap();
    sqlx::query("select 1").execute(&pool.workspace(&ids[0])).await.unwrap();
    let lease = pool.acquire(&ids[1]).await.unwrap();
    (pool, lease)
}

#[tokio::test]
async fn a_dropped_pool_leaves_nothing() {
    let keeps_the_server = server().await;
    let (pool, lease) = used_pool().await;
    let (config, tag, prefix) = (pool.config().clone(), pool.tag(), pool.prefix());
    assert_ne!(left_of(&config, &tag, &prefix).await, (0, 0));
    drop(pool);
    assert_eq!(left_of(&config, &tag, &prefix).await, (0, 0), "sessions and databases");
    // What the pool does once a second is done in between.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(
        left_of(&config, &tag, &prefix).await,
        (0, 0),
        "nor does the rest of it come back, with a lease out"
    );
    drop(lease);
    drop(keeps_the_server);
}

#[tokio::test]
async fn a_pool_of_a_test_that_panics_leaves_nothing() {
    let keeps_the_server = server().await;
    let (tell, told) = tokio::sync::oneshot::channel();
    let test = tokio::spawn(async move {
        let (pool, _lease) = used_pool().await;
        tell.send((pool.config().clone(), pool.tag(), pool.prefix())).unwrap();
        panic!("on purpose, with a lease out");
    });
    assert!(test.await.unwrap_err().is_panic());
    let (config, tag, prefix) = told.await.unwrap();
    assert_eq!(left_of(&config, &tag, &prefix).await, (0, 0));
    drop(keeps_the_server);
}

#[tokio::test]
async fn a_leaked_session_is_found_and_named() {
    let (pool, lease) = used_pool().await;
    pool.verify_no_leaked_connections().await.unwrap();
    let mut leak = PgConnection::connect_with(&pool.config().connect_options("postgres")).await.unwrap();
    sqlx::query("select 'leaked on purpose'").execute(&mut leak).await.unwrap();

    let error = pool.verify_no_leaked_connections().await.unwrap_err();
    assert!(matches!(error, TestError::Leaked { .. }), "{error}");
    drop(lease);
    let told = pool.cleanup().await.unwrap_err().to_string();
    assert!(told.contains("leaked 1 sessions") && told.contains("leaked on purpose"), "{told}");
    assert_eq!(pool.metrics().await.unwrap().leaked, 1);
    // The cleanup took it away all the same.
    sqlx::query("select 1").execute(&mut leak).await.unwrap_err();
    assert_eq!(pool.active_connection_count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_pool_sees_only_its_own_sessions() {
    let pools = TestPools::with_room_for(2);
    let (one, two) = (pools.get_or_create("one").await.unwrap(), pools.get_or_create("two").await.unwrap());
    let id = WorkspaceId::new("a").unwrap();
    two.ensure_workspace(&id).await.unwrap();
    let leases = [two.acquire(&id).await.unwrap(), two.acquire(&id).await.unwrap()];
    assert_eq!(one.active_connection_count().await.unwrap(), 1, "its control connection");
    drop(leases);
    let third = pools.get_or_create("three").await;
    assert!(matches!(third, Err(TestError::NotReserved { room: 2 })));
    pools.cleanup_all().await.unwrap();
}

#[tokio::test]
async fn a_pool_that_never_fits_is_refused_with_the_numbers() {
    let error = TestPool::builder().limits(Limits::new(1_000)).build().await.unwrap_err();
    assert!(matches!(error, TestError::TooLarge { wanted: 1_002, .. }), "{error}");
}

#[tokio::test]
async fn waiting_for_a_database_that_never_comes_ends_with_its_name() {
    let pool = TestPool::new().await.unwrap();
    wait_for_database_ready(pool.config(), "postgres", SOON).await.unwrap();
    let never = wait_for_database_ready(pool.config(), "no_such_database", Duration::from_millis(50)).await;
    assert!(never.unwrap_err().to_string().contains("no_such_database"));
    pool.cleanup().await.unwrap();
}

#[tokio::test]
#[ignore = "not a test: the process that another test kills"]
async fn a_process_to_be_killed() {
    let (pool, _lease) = used_pool().await;
    println!("\nready {}", pool.prefix());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_killed_process_left_is_removed_by_the_next() {
    use std::io::{BufRead, BufReader};
    let keeps_the_server = server().await;
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_to_be_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let said = BufReader::new(victim.stdout.take().unwrap());
    let prefix =
        said.lines().find_map(|line| Some(line.unwrap().strip_prefix("ready ")?.to_owned())).unwrap();
    let config = &keeps_the_server.config().clone();
    assert_eq!(left_of(config, "", &prefix).await.1, 2, "two databases are there");
    victim.kill().unwrap();
    victim.wait().unwrap();
    // The server notices the death of the process; the next pool then finds its databases ownerless.
    eventually("the databases being removed", SOON, || async {
        TestPool::new().await.unwrap().cleanup().await.unwrap();
        left_of(config, "", &prefix).await.1 == 0
    })
    .await
    .unwrap();
    drop(keeps_the_server);
}

/// The stocked copies of a schema, by the number that a database keeps when it is renamed.
async fn stocked(config: &PostgresConfig, schema: &Schema) -> Vec<i64> {
    let mut conn = PgConnection::connect_with(&config.connect_options("postgres")).await.unwrap();
    let oids = sqlx::query_scalar("select oid::bigint from pg_database where starts_with(datname, $1)")
        .bind(format!("tk_{:016x}_s", schema.hash()))
        .fetch_all(&mut conn)
        .await
        .unwrap();
    conn.close().await.unwrap();
    oids
}

#[tokio::test]
async fn a_workspace_with_migrations_begins_where_they_end() {
    let migrator = || {
        let sql = |number: i64, sql: &'static str| {
            Migration::new(number, "a test".into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        let steps = [sql(1, "create table note (id int)"), sql(2, "insert into note values (7)")];
        Migrator::with_migrations(steps.into())
    };
    let pool = TestPool::builder().schema(Schema::migrated(migrator())).build().await.unwrap();
    for id in pool.create_test_workspaces(2).await.unwrap() {
        let db = pool.workspace(&id);
        db.migrate(&migrator()).await.unwrap();
        let notes: Vec<i32> = sqlx::query_scalar("select id from note").fetch_all(&db).await.unwrap();
        assert_eq!(notes, [7], "each migration has run once");
    }
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_workspace_with_a_schema_is_a_stocked_copy_that_was_renamed() {
    let keeps_the_server = server().await;
    let schema = Schema::new(format!("create table note (id int); -- {}", fastrand::u64(..)));
    let pool = TestPool::builder().schema(schema.clone()).build().await.unwrap();
    eventually("copies being stocked", SOON, || async { stocked(pool.config(), &schema).await.len() >= 4 })
        .await
        .unwrap();
    let ahead = stocked(pool.config(), &schema).await;

    let id = pool.create_test_workspaces(1).await.unwrap().remove(0);
    let db = pool.workspace(&id);
    sqlx::query("insert into note values (1)").execute(&db).await.unwrap();
    let mine: i64 =
        sqlx::query_scalar("select oid::bigint from pg_database where datname = current_database()")
            .fetch_one(&db)
            .await
            .unwrap();
    assert!(ahead.contains(&mine), "it was there before it was asked for");
    eventually("the stock being made up", SOON, || async {
        stocked(pool.config(), &schema).await.len() >= 4
    })
    .await
    .unwrap();
    // More at once than there are in stock: the rest are copied.
    let many = pool.create_test_workspaces(10).await.unwrap();
    for id in &many[1..] {
        let notes: i64 =
            sqlx::query_scalar("select count(*) from note").fetch_one(&pool.workspace(id)).await.unwrap();
        assert_eq!(notes, 0, "a copy of the template, and of nothing else");
    }
    pool.cleanup().await.unwrap();
    drop(keeps_the_server);
}

#[tokio::test]
async fn a_schema_that_does_not_run_is_an_error_and_leaves_no_template() {
    let schema = Schema::new(format!("create table broken (; -- {}", fastrand::u64(..)));
    let error = TestPool::builder().schema(schema).build().await.unwrap_err();
    assert!(error.to_string().contains("syntax error"), "{error}");
}

#[rstest]
#[tokio::test]
async fn helpers_see_sessions_by_database_and_wait_for_their_end(#[future(awt)] test_pool: TestPool) {
    let pool = test_pool;
    let ids = pool.create_test_workspaces(2).await.unwrap();
    let lease = pool.acquire(&ids[0]).await.unwrap();
    let stats = pool.database_connection_stats().await.unwrap();
    assert_eq!(stats[&pool.database_of(&ids[0])].values().sum::<u32>(), 1, "{stats:?}");
    assert!(!stats.contains_key(&pool.database_of(&ids[1])), "{stats:?}");

    let soon = Duration::from_millis(50);
    let never = pool.wait_for_connection_close(&ids[0], soon).await.unwrap_err();
    assert!(never.to_string().contains(&pool.database_of(&ids[0])), "{never}");
    drop(lease);
    pool.close_workspace(&ids[0]).await.unwrap();
    pool.wait_for_connection_close(&ids[0], SOON).await.unwrap();
    wait_for_condition("the stats agreeing", SOON, || pool.workspace(&ids[0]).counts().total() == 0)
        .await
        .unwrap();

    pool.cleanup_test_workspaces(&ids).await.unwrap();
    assert_eq!(pool.databases().await.unwrap(), Vec::<String>::new());
    pool.cleanup().await.unwrap();
}
