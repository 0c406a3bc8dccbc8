//! A pool in a static outlives the runtime that it was built on: each test of a binary has its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pool_postgres::{AcquireError, Limits, PgPools, PostgresConfig, WorkspaceId};
use pool_testkit::faults::DedicatedServer;
use pool_testkit::server::config_of;
use sqlx::{Connection, PgConnection};
use tokio::runtime::{Builder, Runtime};

use crate::support::id;

const RUNTIMES: usize = 10;

/// As `#[tokio::test]` makes one.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn server() -> DedicatedServer {
    runtime().block_on(DedicatedServer::start()).unwrap()
}

async fn pool_on(config: PostgresConfig) -> PgPools {
    let pools = PgPools::builder(config.application_name("static"))
        .limits(Limits::new(12).system(5).per_workspace(4))
        .build()
        .await
        .unwrap();
    pools.ensure_workspace(&id("a")).await.unwrap();
    pools
}

async fn one(pools: &PgPools, id: &WorkspaceId) {
    let db = pools.workspace(id);
    let two: i32 = sqlx::query_scalar("select 1 + 1").fetch_one(&db).await.unwrap();
    assert_eq!(two, 2);
}

/// What a test does: some callers at a time, a transaction, and a database of its own.
async fn a_test(pools: &PgPools, number: usize) {
    let a = id("a");
    let callers = (0..6).map(|_| async {
        one(pools, &a).await;
        Ok::<_, sqlx::Error>(())
    });
    try_join_all(callers).await.unwrap();
    let mut tx = pools.workspace(&a).begin().await.unwrap();
    sqlx::query("create table if not exists note (id int)").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let own = id(&format!("own{number}"));
    pools.ensure_workspace(&own).await.unwrap();
    one(pools, &own).await;
    assert!(pools.drop_workspace(&own).await.unwrap());
}

async fn sessions(config: &PostgresConfig) -> i64 {
    let mut outside = PgConnection::connect_with(&config.connect_options("postgres")).await.unwrap();
    let count = "select count(*) from pg_stat_activity where starts_with(application_name, 'static')";
    sqlx::query_scalar(count).fetch_one(&mut outside).await.unwrap()
}

#[test]
fn l2_a_pool_that_outlives_its_runtime_serves_callers_on_the_next() {
    let server = server();
    let pools = runtime().block_on(pool_on(config_of(server.address())));
    for number in 0..RUNTIMES {
        runtime().block_on(a_test(&pools, number));
    }
    runtime().block_on(async {
        let began = Instant::now();
        pools.close().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(sessions(&config_of(server.address())).await, 0);
    });
}

/// Two at a time, so that one runtime ends while callers on the other are being served. A statement may be lost, with the
/// connection that was opened there; whoever asks for another one gets it.
#[test]
fn l2_runtimes_that_end_beside_each_other_cost_nobody_a_lease() {
    let server = server();
    let pools = runtime().block_on(pool_on(config_of(server.address())));
    let answered = AtomicUsize::new(0);
    let some_tests = || {
        for _ in 0..10 * RUNTIMES {
            runtime().block_on(async {
                let callers = (0..3).map(|_| async {
                    let mut lease = pools.acquire(&id("a")).await?;
                    let answer = sqlx::query_scalar("select 1 + 1").fetch_one(&mut lease).await;
                    match answer {
                        Ok(2) => answered.fetch_add(1, Ordering::Relaxed),
                        Ok::<i32, _>(other) => panic!("{other} is somebody else's answer"),
                        Err(sqlx::Error::Io(_)) => 0,
                        Err(error) => panic!("{error}"),
                    };
                    Ok::<_, AcquireError>(())
                });
                let told = try_join_all(callers).await;
                assert!(told.is_ok(), "{told:?}: {:?}", pools.workspace(&id("a")).counts());
            });
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(some_tests);
        scope.spawn(some_tests);
    });
    let (answered, asked) = (answered.into_inner(), 2 * 10 * RUNTIMES * 3);
    println!("{answered} of {asked} answered");
    assert!(answered * 2 >= asked, "{answered} of {asked} answered");
    runtime().block_on(async {
        let peak = pools.stats().workspaces.peak;
        assert!(peak <= 7, "{peak}");
        pools.close().await.unwrap();
        assert_eq!(sessions(&config_of(server.address())).await, 0);
    });
}

#[test]
fn l2_an_idle_connection_of_a_runtime_that_has_ended_is_not_handed_out_unchecked() {
    let server = server();
    let pools = runtime().block_on(pool_on(config_of(server.address())));
    runtime().block_on(one(&pools, &id("a")));
    runtime().block_on(async {
        let mut lease = pools.acquire(&id("a")).await.unwrap();
        sqlx::query("select 1").execute(&mut lease).await.unwrap();
        drop(lease);
        pools.close().await.unwrap();
    });
}

/// What was opened on it is of no use meanwhile, and is ended from outside.
#[test]
fn l2_a_runtime_that_is_not_driven_does_not_keep_a_close_waiting() {
    let server = server();
    let home = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let pools = home.block_on(pool_on(config_of(server.address())));
    let resting = runtime();
    resting.block_on(one(&pools, &id("a")));
    home.block_on(async {
        let began = Instant::now();
        pools.close().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(sessions(&config_of(server.address())).await, 0);
    });
    drop(resting);
}

/// A waiter of another workspace is told when the runtime of the background tasks ends, and asks again on its own.
#[test]
fn l2_who_waits_for_a_slot_when_the_tasks_end_is_served_on_its_own_runtime() {
    let server = server();
    let home = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let pools = home.block_on(pool_on(config_of(server.address())));
    runtime().block_on(async {
        let (a, b) = (id("a"), id("b"));
        pools.ensure_workspace(&b).await.unwrap();
        let of_a = try_join_all((0..4).map(|_| pools.acquire(&a))).await.unwrap();
        let of_b = try_join_all((0..3).map(|_| pools.acquire(&b))).await.unwrap();
        let mut waits = Box::pin(pools.acquire(&b));
        assert!(futures_util::poll!(&mut waits).is_pending(), "every slot is in use");
        home.shutdown_background();
        drop((of_a, of_b));
        let mut lease = tokio::time::timeout(Duration::from_secs(10), waits).await.unwrap().unwrap();
        let two: i32 = sqlx::query_scalar("select 1 + 1").fetch_one(&mut lease).await.unwrap();
        assert_eq!(two, 2);
        drop(lease);
        pools.close().await.unwrap();
        assert_eq!(sessions(&config_of(server.address())).await, 0);
    });
}
