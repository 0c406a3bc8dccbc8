//! Budgets under load, cancellation, breakage and closing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pool_postgres::{AcquireError, Limits, PgPools, Stage};
use pool_testkit::{TestError, TestPool, eventually};
use sqlx::Executor;
use tokio::task::JoinSet;

use crate::support::{SOON, one_connection};

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

#[tokio::test]
async fn l3_a_connection_that_breaks_under_a_statement_is_known_to_be_broken_when_it_comes_back() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    for _ in 0..20 {
        let mut lease = db.acquire().await.unwrap();
        let end = sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut lease).await;
        end.unwrap_err();
        drop(lease);
        assert_eq!(db.counts().in_use, 0, "it is not looked at in the background first");
    }
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

#[tokio::test]
async fn w3_a_timeout_names_what_was_waited_for_and_the_numbers() {
    let pool = TestPool::builder()
        .limits(Limits::new(7).system(5).per_workspace(1))
        .adjust(|builder| builder.acquire_timeout(Duration::from_secs(1)))
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
    assert!(matches!(through_sqlx, sqlx::Error::PoolTimedOut), "{through_sqlx}");
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
    let told = pool.cleanup().await.unwrap_err();
    assert!(matches!(told, TestError::Close { .. }), "the cleanup tells the same: {told}");
    assert_eq!(pool.databases().await.unwrap(), Vec::<String>::new());
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
    // Sockets that were only dropped are noticed by the server a moment later (decision 22).
    let let_go = || async { pool.verify_no_leaked_connections().await.is_ok() };
    eventually("the server having let go", Duration::from_secs(10), let_go).await.unwrap();
    pool.cleanup().await.unwrap();
}
