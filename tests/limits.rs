//! Limits: each ceiling as the server counts it, while the load runs, and what a caller is told at it.

mod timeouts;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pool_postgres::{AcquireError, CatalogError, Limits, PgPools, WorkspaceId};
use pool_testkit::{TestPool, eventually};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::mishap::{MISHAPS, create_mark};
use crate::support::{
    Outcome, SOON, Watch, assert_stats_are_nothing, assert_stats_are_true, backend_pid, database_of,
    error_of, figures, finish, hold, hold_system, outside, settled, wait_for_queue,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_connections_respected() -> Outcome {
    const TASKS: usize = 64;
    const ROUNDS: usize = 8;
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(30).await?;
    let watch = Watch::of(&pool);
    let served = watch
        .during(async {
            a_full_pool_lets_one_more_wait(&pool, &ids, &watch).await?;
            // A storm on twice as many workspaces as there are connections, and on the system database.
            let mut storm = JoinSet::new();
            for task in 0..TASKS {
                let (pools, ids) = (pool.pools().clone(), ids.clone());
                storm.spawn(async move {
                    for round in 0..ROUNDS {
                        let db = match (task + round) % 8 {
                            0 => pools.system(),
                            _ => pools.workspace(&ids[(7 * task + 11 * round) % ids.len()]),
                        };
                        sqlx::query("select pg_sleep(0.001)").execute(&db).await?;
                    }
                    Ok(ROUNDS)
                });
            }
            Ok(finish(storm).await?.into_iter().sum::<usize>())
        })
        .await?;

    assert_eq!(served, TASKS * ROUNDS, "everybody was served");
    let seen = watch.peaks();
    assert!((19..=20).contains(&seen.total) && (4..=5).contains(&seen.system), "never passed: {seen:?}");
    assert_eq!(seen.workspaces, 15, "reached, never passed: {seen:?}");
    assert!(seen.by_database.values().all(|peak| *peak <= 10), "{seen:?}");
    let stats = pool.stats();
    assert_eq!((stats.workspaces.peak, stats.system.peak), (15, 3), "{stats:?}");
    assert!(stats.workspaces.evicted > 0, "there was not room for all: {stats:?}");
    pool.cleanup().await?;
    Ok(())
}

/// Full to the brim, the server counts exactly the budget, less the one that is kept free for a successor of the driver's own.
async fn a_full_pool_lets_one_more_wait(pool: &TestPool, ids: &[WorkspaceId], watch: &Watch<'_>) -> Outcome {
    let leases = hold(pool, &ids[..15]).await?;
    let system = hold_system(pool).await?;
    let (pools, id) = (pool.pools().clone(), ids[15].clone());
    let one_more = tokio::spawn(async move { pools.acquire(&id).await.map(drop) });
    wait_for_queue(pool, 1).await?;
    let stats = pool.stats();
    assert_eq!((stats.limit(), stats.control_reserve), (20, 1));
    assert_eq!(pool.active_connection_count().await?, 19);
    let full = || async { watch.peaks().total >= 19 };
    eventually("the watch having seen the pool full", SOON, full).await?;
    assert!(!one_more.is_finished(), "a sixteenth connection was had out of fifteen");
    drop((leases, system));
    one_more.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_reuse() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(10).await?;
    let mut first = BTreeMap::new();
    for id in &ids {
        first.insert(id, backend_pid(&pool.workspace(id)).await?);
    }
    assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 10, "a backend serves one database for life");

    // Whatever form the use has, and in whatever order the workspaces come.
    for round in 0..20 {
        for (id, pid) in &first {
            assert_eq!(used_in_some_form(&pool, id, round).await?, *pid, "{id} in round {round}");
        }
    }
    // Also when it has been idle for so long that it is checked first.
    sleep(Duration::from_millis(600)).await;
    for (id, pid) in &first {
        assert_eq!(backend_pid(&pool.workspace(id)).await?, *pid, "{id} after a pause");
    }
    let stats = pool.stats().workspaces;
    assert_eq!((stats.opened, stats.closed, stats.acquired, stats.hits), (10, 0, 220, 210), "{stats:?}");

    fifty_tasks_share_what_a_workspace_may_have(&pool, &ids[0], first[&ids[0]]).await?;
    pool.cleanup().await?;
    Ok(())
}

/// The backend that serves a use, which has another form from round to round.
async fn used_in_some_form(pool: &TestPool, id: &WorkspaceId, round: u32) -> Outcome<i32> {
    let db = pool.workspace(id);
    Ok(match round % 4 {
        0 => backend_pid(&db).await?,
        1 => pool.acquire(id).await?.backend_pid(),
        2 => db.clone().acquire().await?.backend_pid(),
        _ => {
            let mut tx = db.begin().await?;
            let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await?;
            tx.commit().await?;
            pid
        }
    })
}

/// None of them gets a connection of its own, and the one that is there `already` is used on.
async fn fifty_tasks_share_what_a_workspace_may_have(
    pool: &TestPool,
    id: &WorkspaceId,
    already: i32,
) -> Outcome {
    let mut tasks: JoinSet<Outcome<Vec<i32>>> = JoinSet::new();
    for _ in 0..50 {
        let db = pool.workspace(id);
        tasks.spawn(async move {
            let mut pids = Vec::new();
            for _ in 0..10 {
                pids.push(backend_pid(&db).await?);
            }
            Ok(pids)
        });
    }
    let pids: Vec<i32> = finish(tasks).await?.concat();
    let backends: BTreeSet<_> = pids.iter().copied().collect();
    assert_eq!(pids.len(), 500);
    assert!(backends.len() <= 10, "500 uses, {} backends", backends.len());
    assert!(backends.contains(&already), "the one that was there already is used on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_timeout_handling() -> Outcome {
    const PATIENCE: Duration = Duration::from_millis(400);
    let limits = Limits::new(9).system(5).per_workspace(2);
    let pool = TestPool::builder().limits(limits).adjust(|b| b.acquire_timeout(PATIENCE)).build().await?;
    let ids = pool.create_test_workspaces(4).await?;
    let [a, b, c, d] = [&ids[0], &ids[1], &ids[2], &ids[3]];
    let of_a = hold(&pool, &[a.clone(), a.clone()]).await?;
    timeouts::the_ceiling_of_a_workspace_is_told(&pool, a, PATIENCE).await?;
    let of_b = hold(&pool, &[b.clone(), b.clone()]).await?;
    timeouts::the_budget_is_told(&pool, c, d, PATIENCE).await?;
    drop(of_b);
    timeouts::an_open_that_hangs_is_told_and_goes_on(&pool, c, d).await?;

    // Time given back: all is as before.
    drop(of_a);
    drop(hold(&pool, &ids).await?);
    settled(&pool).await?;
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connection_cleanup() -> Outcome {
    const IDLE: Duration = Duration::from_millis(500);
    let pool = TestPool::builder().adjust(|b| b.idle_timeout(IDLE)).build().await?;
    let ids = pool.create_test_workspaces(6).await?;
    let [kept, used_again, others @ ..] = &ids[..] else { unreachable!("six were asked for") };
    let mut in_use = pool.acquire(kept).await?;
    let several = hold(&pool, &vec![used_again.clone(); 3]).await?;
    drop(hold(&pool, others).await?);
    assert_eq!(pool.stats().workspaces.connections.total(), 8);

    sleep(IDLE / 2).await;
    let last_use = Instant::now();
    drop(several);
    backend_pid(&pool.workspace(used_again)).await?;
    three_are_closed_but_none_too_early(&pool, used_again, last_use, IDLE).await?;

    let all_gone = || async { pool.active_connection_count().await.is_ok_and(|left| left == 2) };
    eventually("the server counting the lease and the driver's own", SOON, all_gone).await?;
    let stats = pool.stats();
    assert_eq!((stats.workspaces.connections.in_use, stats.connections().total()), (1, 1), "{stats:?}");
    assert_eq!((stats.workspaces.opened, stats.workspaces.closed), (8, 7), "{stats:?}");
    assert_eq!(stats.workspaces.evicted, 0, "closed for being idle, not to make room: {stats:?}");
    assert_eq!(stats.workspaces.targets, 1, "a workspace without connections costs nothing: {stats:?}");

    // A lease is not idle, however long it is held; and workspaces come back when they are asked for.
    let pid = in_use.backend_pid();
    let same: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut in_use).await?;
    assert_eq!(same, pid);
    drop(in_use);
    for id in &ids {
        backend_pid(&pool.workspace(id)).await?;
    }
    pool.cleanup().await?;
    Ok(())
}

/// A clock is read after the last use, before every look: whoever misses a connection too early has proof that it was closed
/// before its time.
async fn three_are_closed_but_none_too_early(
    pool: &TestPool,
    id: &WorkspaceId,
    last_use: Instant,
    idle: Duration,
) -> Outcome {
    let closed_early = || async {
        let counts = pool.workspace(id).counts();
        let waited = last_use.elapsed();
        assert!(counts.total() == 3 && counts.closing == 0 || waited >= idle, "after {waited:?}: {counts:?}");
        counts.total() == 0
    };
    eventually("idle connections being closed", SOON, closed_early).await?;
    Ok(())
}

#[tokio::test]
async fn connection_stats_accuracy() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(20).await?;
    let figures = || figures(pool.stats().workspaces);
    assert_eq!(figures(), ((0, 0, 0), (0, 0, 0), (0, 0)));
    assert_stats_are_true(&pool, &ids, "before anything").await?;

    for again in [0, 5] {
        let leases = hold(&pool, &ids[..5]).await?;
        assert_eq!(figures(), ((5, 0, 0), (5, 0, 0), (5 + again, again)));
        assert_stats_are_true(&pool, &ids, "with leases out").await?;
        drop(leases);
        assert_eq!(figures(), ((0, 5, 0), (5, 0, 0), (5 + again, again)));
    }
    // Twenty workspaces, room for fifteen: the five that were used longest ago make way.
    for id in &ids {
        backend_pid(&pool.workspace(id)).await?;
    }
    assert_eq!(figures(), ((0, 15, 0), (20, 5, 5), (30, 10)));
    assert_stats_are_true(&pool, &ids, "after evictions").await?;
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(pool.workspace(id).counts().idle, u32::from(i >= 5), "{id}");
    }

    a_failed_open_is_counted_and_costs_nothing(&pool, &ids).await?;
    callers_at_a_ceiling_are_counted_while_they_wait(&pool, &ids).await?;
    pool.close_workspace(&ids[19]).await?;
    assert_eq!(figures(), ((0, 5, 0), (29, 24, 14), (40, 11)));
    settled(&pool).await?;
    assert_stats_are_true(&pool, &ids, "at the end").await?;
    pool.cleanup().await?;
    assert_stats_are_nothing(&pool);
    Ok(())
}

async fn a_failed_open_is_counted_and_costs_nothing(pool: &TestPool, ids: &[WorkspaceId]) -> Outcome {
    let missing = WorkspaceId::new("missing")?;
    error_of(pool.acquire(&missing).await);
    let share = pool.stats().workspaces;
    assert_eq!(share.open_failures, 1);
    // The catalog was asked before anybody made way.
    assert_eq!(figures(share), ((0, 15, 0), (20, 5, 5), (30, 10)));
    assert_stats_are_true(pool, ids, "after a failed open").await
}

/// The last of `ids` at its ceiling, and three who wait for it.
async fn callers_at_a_ceiling_are_counted_while_they_wait(pool: &TestPool, ids: &[WorkspaceId]) -> Outcome {
    let figures = || figures(pool.stats().workspaces);
    let leases = hold(pool, &vec![ids[19].clone(); 10]).await?;
    let mut waiters = JoinSet::new();
    for _ in 0..3 {
        let (pools, id) = (pool.pools().clone(), ids[19].clone());
        waiters.spawn(async move { pools.acquire(&id).await.map(drop) });
    }
    wait_for_queue(pool, 3).await?;
    assert_eq!(figures(), ((10, 5, 3), (29, 14, 14), (40, 11)));
    assert_stats_are_true(pool, ids, "with a queue").await?;
    waiters.shutdown().await;
    assert_eq!(figures(), ((10, 5, 0), (29, 14, 14), (40, 11)), "who has gone is not counted");
    drop(leases);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_open_connections_per_database() -> Outcome {
    const TASKS: usize = 40;
    let limits = Limits::new(20).system(5).per_workspace(4);
    let pool = TestPool::builder().limits(limits).build().await?;
    let ids = pool.create_test_workspaces(3).await?;
    let watch = Watch::of(&pool);
    watch
        .during(async {
            // The budget has room for eleven more; this workspace has not.
            let leases = hold(&pool, &vec![ids[0].clone(); 4]).await?;
            let mut tasks = load(&pool, &ids, TASKS);
            // The others are served to the end meanwhile, and it is its own tasks that wait.
            for _ in 0..2 * TASKS {
                tasks.join_next().await.ok_or("tasks were lost")???;
            }
            wait_for_queue(&pool, TASKS).await?;
            assert_eq!(pool.workspace(&ids[0]).counts().total(), 4);
            let database = database_of(&pool, &ids[0])?;
            let full = || async { watch.peaks().by_database.get(&database) == Some(&4) };
            eventually("the watch having seen the workspace full", SOON, full).await?;
            drop(leases);
            assert_eq!(finish(tasks).await?.len(), TASKS, "then they are served, too");
            Ok(())
        })
        .await?;
    let seen = watch.peaks();
    assert_eq!(seen.by_database.len(), 3, "{seen:?}");
    assert!(seen.by_database.values().all(|peak| *peak <= 4), "{seen:?}");
    assert_eq!(pool.stats().workspaces.evicted, 0, "nobody had to make room for anybody");
    pool.cleanup().await?;
    Ok(())
}

/// As many `tasks` for each of `ids`, with a few short queries each.
fn load(pool: &TestPool, ids: &[WorkspaceId], tasks: usize) -> JoinSet<Outcome> {
    let dbs = ids.iter().flat_map(|id| std::iter::repeat_n(pool.workspace(id), tasks));
    let queries = dbs.map(|db| async move {
        for _ in 0..5 {
            sqlx::query("select pg_sleep(0.001)").execute(&db).await?;
        }
        Ok(())
    });
    queries.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_limit_protects_system() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(20).await?;
    let watch = Watch::of(&pool);
    watch
        .during(async {
            a_flood_on_workspaces_leaves_the_system_alone(&pool, &ids).await?;
            a_flood_on_the_system_leaves_workspaces_alone(&pool, &ids, &watch).await
        })
        .await?;
    let seen = watch.peaks();
    assert!(seen.total <= 20 && seen.workspaces <= 15 && seen.system <= 5, "{seen:?}");
    settled(&pool).await?;
    pool.cleanup().await?;
    Ok(())
}

/// Every connection that workspaces may have is held, and a hundred more are asked for.
async fn a_flood_on_workspaces_leaves_the_system_alone(pool: &TestPool, ids: &[WorkspaceId]) -> Outcome {
    let leases = hold(pool, &ids[..15]).await?;
    let flood = flood(pool, |pools, i| pools.workspace(&ids[i % ids.len()]));
    wait_for_queue(pool, FLOOD).await?;
    // The system database answers, databases are managed, and others find room on the server.
    for _ in 0..20 {
        backend_pid(&pool.system()).await?;
    }
    let late = WorkspaceId::new("late")?;
    pool.ensure_workspace(&late).await?;
    assert!(pool.workspace_exists(&late).await? && pool.drop_workspace(&late).await?);
    outside(pool, "select 1").await?;
    assert_eq!(pool.stats().workspaces.waiting as usize, FLOOD, "and nobody was served out of turn");
    drop(leases);
    assert_eq!(finish(flood).await?.len(), FLOOD);
    Ok(())
}

async fn a_flood_on_the_system_leaves_workspaces_alone(
    pool: &TestPool,
    ids: &[WorkspaceId],
    watch: &Watch<'_>,
) -> Outcome {
    let leases = hold_system(pool).await?;
    let flood = flood(pool, |pools, _| pools.system());
    let queued = || async { pool.stats().system.waiting as usize == FLOOD };
    eventually("a queue for the system", SOON, queued).await?;
    for id in ids {
        backend_pid(&pool.workspace(id)).await?;
    }
    assert_eq!(pool.stats().system.waiting as usize, FLOOD);
    let full = || async { watch.peaks().system >= 4 };
    eventually("the watch having seen the system share full", SOON, full).await?;
    drop(leases);
    assert_eq!(finish(flood).await?.len(), FLOOD);
    Ok(())
}

/// Callers that come at once.
const FLOOD: usize = 100;

fn flood(
    pool: &TestPool,
    db: impl Fn(&PgPools, usize) -> pool_postgres::PgWorkspacePool,
) -> JoinSet<Outcome<i32>> {
    let dbs = (0..FLOOD).map(|i| db(pool.pools(), i));
    dbs.map(|db| async move { Ok(backend_pid(&db).await?) }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_leaks_on_error() -> Outcome {
    const TIMES: usize = 6;
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(8).await?;
    for id in &ids {
        let db = pool.workspace(id);
        create_mark(&db).await?;
    }
    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    for (i, mishap) in MISHAPS.into_iter().cycle().take(MISHAPS.len() * TIMES).enumerate() {
        let (pools, id) = (pool.pools().clone(), ids[i % ids.len()].clone());
        tasks.spawn(async move {
            mishap.happen(&pools, &id).await.map_err(|e| format!("{mishap:?}: {e}").into())
        });
    }
    finish(tasks).await?;

    settled(&pool).await?;
    pool.verify_no_leaked_connections().await?;
    for session in
        pool.sessions().await?.iter().filter(|session| session.database.starts_with(&pool.prefix()))
    {
        assert_eq!(session.state, "idle", "no transaction and no query was left open: {session}");
    }
    // Nothing of the capacity is lost, and what comes back is fit for use.
    let everything: Vec<_> = ids.iter().chain(&ids).take(15).cloned().collect();
    for mut lease in hold(&pool, &everything).await? {
        let marks: Vec<i32> = sqlx::query_scalar("select n from mark").fetch_all(&mut lease).await?;
        assert_eq!(marks, [1], "what was not committed is not there");
    }
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_releases_all_resources() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(20).await?;
    for id in &ids {
        backend_pid(&pool.workspace(id)).await?;
    }
    // In use, in a transaction, idle, waited for, and the system share.
    let mut leases = hold(&pool, &vec![ids[0].clone(); 9]).await?;
    let mut tx = pool.workspace(&ids[0]).begin().await?;
    sqlx::query("create table half_done ()").execute(&mut tx).await?;
    let system = pool.system().acquire().await?;
    let (pools, id) = (pool.pools().clone(), ids[0].clone());
    let waiter = tokio::spawn(async move { pools.acquire(&id).await.map(drop) });
    wait_for_queue(&pool, 1).await?;
    assert_eq!(pool.workspace(&ids[0]).counts().in_use, 10);
    assert_eq!(pool.databases().await?.len(), 20);

    let (cleaned, ()) = tokio::join!(pool.cleanup(), async {
        // Who waits is told at once; who holds a lease is waited for.
        assert!(matches!(waiter.await, Ok(Err(AcquireError::Closed))));
        let one: i32 = sqlx::query_scalar("select 1").fetch_one(&mut leases[0]).await.unwrap();
        assert_eq!(one, 1, "a lease is not cut while the close is graceful");
        assert!(!pool.databases().await.unwrap().is_empty(), "nor is its database dropped");
        drop((leases, tx, system));
    });
    cleaned?;

    assert_eq!(pool.sessions().await?, [], "as the server counts");
    assert_eq!(pool.databases().await?, Vec::<String>::new());
    pool.verify_no_leaked_connections().await?;
    assert_stats_are_nothing(&pool);
    let metrics = pool.metrics().await?;
    assert_eq!((metrics.current, metrics.leaked, metrics.opened), (0, 0, metrics.closed), "{metrics:?}");

    assert!(matches!(pool.acquire(&ids[0]).await, Err(AcquireError::Closed)));
    assert!(matches!(pool.system().acquire().await, Err(AcquireError::Closed)));
    let refused = pool.ensure_workspace(&WorkspaceId::new("late")?).await;
    assert!(matches!(refused, Err(CatalogError::Acquire(AcquireError::Closed))), "{refused:?}");
    Ok(())
}
