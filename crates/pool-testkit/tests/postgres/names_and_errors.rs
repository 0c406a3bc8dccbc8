//! Hostile input, bad configurations, and databases that come and go.

use std::sync::Arc;

use pool_postgres::{AcquireError, DriverErrorKind, Limits, PgPools, PostgresConfig, Target};
use pool_testkit::TestPool;
use rstest::rstest;
use tokio::task::JoinSet;

use crate::support::id;

#[rstest]
#[case::unreachable("127.0.0.1", 1, "pool_test", "hunter2", "postgres", DriverErrorKind::Unreachable)]
// A user that does not exist is refused also by a server that trusts whoever connects.
#[case::wrong_user_and_password("", 0, "no_such_user", "hunter2", "postgres", DriverErrorKind::Refused)]
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
        config = PostgresConfig::new(host).port(port).system_database(database);
    }
    if !user.is_empty() {
        config = config.user(user);
    }
    if !password.is_empty() {
        config = config.password(password);
    }
    let place = config.address(database);
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
