//! Limits: each ceiling as the server counts it, while the load runs, and what a caller is told at it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pool_postgres::{AcquireError, CatalogError, Limits, PgPools, Stage, WorkspaceId};
use pool_testkit::{TestPool, eventually};
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::mishap::MISHAPS;
use crate::support::{
    Outcome, SOON, Watch, assert_stats_are_nothing, assert_stats_are_true, backend_pid, database_of, finish,
    hold, hold_system, outside, settled, wait_for_queue,
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
            // Full to the brim: one more has to wait, and the server counts exactly the budget, less the one that is kept
            // free for a successor of the driver's own.
            let leases = hold(&pool, &ids[..15]).await?;
            let system = hold_system(&pool).await?;
            let (pools, id) = (pool.pools().clone(), ids[15].clone());
            let one_more = tokio::spawn(async move { pools.acquire(&id).await.map(drop) });
            wait_for_queue(&pool, 1).await?;
            let stats = pool.stats();
            assert_eq!((stats.limit(), stats.control_reserve), (20, 1));
            assert_eq!(pool.active_connection_count().await?, 19);
            let full = || async { watch.peaks().total >= 19 };
            eventually("the watch having seen the pool full", SOON, full).await?;
            assert!(!one_more.is_finished(), "a sixteenth connection was had out of fifteen");
            drop((leases, system));
            one_more.await??;

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
            let db = pool.workspace(id);
            let again = match round % 4 {
                0 => backend_pid(&db).await?,
                1 => pool.acquire(id).await?.backend_pid(),
                2 => db.clone().acquire().await?.backend_pid(),
                _ => {
                    let mut tx = db.begin().await?;
                    let pid = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await?;
                    tx.commit().await?;
                    pid
                }
            };
            assert_eq!(again, *pid, "{id} in round {round}");
        }
    }
    // Also when it has been idle for so long that it is checked first.
    sleep(Duration::from_millis(600)).await;
    for (id, pid) in &first {
        assert_eq!(backend_pid(&pool.workspace(id)).await?, *pid, "{id} after a pause");
    }
    let stats = pool.stats().workspaces;
    assert_eq!((stats.opened, stats.closed, stats.acquired, stats.hits), (10, 0, 220, 210), "{stats:?}");

    // Fifty tasks at one workspace share what it may have; none gets a connection of its own.
    let mut tasks: JoinSet<Outcome<Vec<i32>>> = JoinSet::new();
    for _ in 0..50 {
        let db = pool.workspace(&ids[0]);
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
    assert!(backends.contains(&first[&ids[0]]), "the one that was there already is used on");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_timeout_handling() -> Outcome {
    const PATIENCE: Duration = Duration::from_millis(400);
    let limits = Limits::new(9).system(5).per_workspace(2);
    let pool = TestPool::builder().limits(limits).adjust(|b| b.acquire_timeout(PATIENCE)).build().await?;
    let ids = pool.create_test_workspaces(4).await?;
    let ([a, b, c, d], began) = ([&ids[0], &ids[1], &ids[2], &ids[3]], Instant::now());

    // The ceiling of a workspace.
    let of_a = hold(&pool, &[a.clone(), a.clone()]).await?;
    let error = pool.acquire(a).await.unwrap_err();
    let AcquireError::TimedOut { waiting_for, after, pressure, .. } = &error else { panic!("{error}") };
    assert_eq!(*waiting_for, Stage::WorkspaceCeiling);
    assert!(*after >= PATIENCE && began.elapsed() >= PATIENCE && *after < SOON, "{error}");
    assert_eq!((pressure.target_counted, pressure.target_limit, pressure.waiting), (2, 2, 1), "{error}");
    assert_eq!((pressure.in_use, pressure.counted, pressure.limit), (2, 2, 4), "{error}");
    let said = error.to_string();
    for part in ["workspace \"ws_0000\"", "at its ceiling", "2 of 4 in use", "here 2 of 2", "1 waiting"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }

    // The budget, met by three callers, one of them through an executor; the system share is not touched.
    let of_b = hold(&pool, &[b.clone(), b.clone()]).await?;
    let (db, system) = (pool.workspace(c), pool.system());
    let (first, second, third, one) = tokio::join!(
        pool.acquire(c),
        pool.acquire(d),
        sqlx::query("select 1").execute(&db),
        sqlx::query_scalar::<_, i32>("select 1").fetch_one(&system),
    );
    assert_eq!(one?, 1);
    let through_executor = third.unwrap_err();
    assert!(matches!(through_executor, sqlx::Error::PoolTimedOut), "{through_executor}");
    let mut queue = BTreeSet::new();
    for error in [&first.unwrap_err(), &second.unwrap_err()] {
        let AcquireError::TimedOut { waiting_for: Stage::Budget, pressure, after, .. } = error else {
            panic!("{error}")
        };
        assert!(*after >= PATIENCE, "{error}");
        assert_eq!((pressure.in_use, pressure.counted, pressure.limit), (4, 4, 4), "{error}");
        assert_eq!(pressure.target_counted, 0, "{error}");
        queue.insert(pressure.waiting);
    }
    let of_three = BTreeSet::from([1, 2, 3]);
    assert!(
        queue.len() == 2 && queue.is_subset(&of_three),
        "each tells how many waited, itself included: {queue:?}"
    );
    assert_eq!(pool.stats().workspaces.waiting, 0, "who gave up leaves no trace");
    drop(of_b);

    // An open that hangs: the server holds a login back while somebody renames the database.
    let name = database_of(&pool, d)?;
    let mut renaming = pool.system().begin().await?;
    let rename = format!("alter database {name} rename to {name}_not");
    sqlx::query(AssertSqlSafe(rename)).execute(&mut renaming).await?;
    let (hung, fine) = tokio::join!(pool.acquire(d), backend_pid(&db));
    fine?;
    let error = hung.unwrap_err();
    let AcquireError::TimedOut { waiting_for: Stage::Opening, pressure, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((pressure.target_counted, pressure.target_limit), (1, 2), "{error}");
    renaming.rollback().await?;
    let arrived = || async { pool.workspace(d).counts().idle == 1 };
    eventually("the open going on without its caller", SOON, arrived).await?;
    let opened = pool.stats().workspaces.opened;
    backend_pid(&pool.workspace(d)).await?;
    assert_eq!(pool.stats().workspaces.opened, opened, "its connection serves the next caller");

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

    // A clock is read after the last use, before every look: whoever misses a connection too early has
    // proof that it was closed before its time.
    sleep(IDLE / 2).await;
    let last_use = Instant::now();
    drop(several);
    backend_pid(&pool.workspace(used_again)).await?;
    let closed_early = || async {
        let counts = pool.workspace(used_again).counts();
        let waited = last_use.elapsed();
        assert!(counts.total() == 3 && counts.closing == 0 || waited >= IDLE, "after {waited:?}: {counts:?}");
        counts.total() == 0
    };
    eventually("idle connections being closed", SOON, closed_early).await?;

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

#[tokio::test]
async fn connection_stats_accuracy() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(20).await?;
    // What the figures are to be: in use, idle, waiting; opened, closed, evicted; acquired, hits.
    let figures = || {
        let share = pool.stats().workspaces;
        let now = (share.connections.in_use, share.connections.idle, share.waiting);
        (now, (share.opened, share.closed, share.evicted), (share.acquired, share.hits))
    };
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

    // A failed open is counted, and costs nothing afterwards.
    let missing = WorkspaceId::new("missing")?;
    pool.acquire(&missing).await.unwrap_err();
    assert_eq!(pool.stats().workspaces.open_failures, 1);
    // The catalog was asked before anybody made way.
    assert_eq!(figures(), ((0, 15, 0), (20, 5, 5), (30, 10)));
    assert_stats_are_true(&pool, &ids, "after a failed open").await?;

    // One workspace at its ceiling, and three who wait for it.
    let leases = hold(&pool, &vec![ids[19].clone(); 10]).await?;
    let mut waiters = JoinSet::new();
    for _ in 0..3 {
        let (pools, id) = (pool.pools().clone(), ids[19].clone());
        waiters.spawn(async move { pools.acquire(&id).await.map(drop) });
    }
    wait_for_queue(&pool, 3).await?;
    assert_eq!(figures(), ((10, 5, 3), (29, 14, 14), (40, 11)));
    assert_stats_are_true(&pool, &ids, "with a queue").await?;
    waiters.shutdown().await;
    assert_eq!(figures(), ((10, 5, 0), (29, 14, 14), (40, 11)), "who has gone is not counted");
    drop(leases);

    pool.close_workspace(&ids[19]).await?;
    assert_eq!(figures(), ((0, 5, 0), (29, 24, 14), (40, 11)));
    settled(&pool).await?;
    assert_stats_are_true(&pool, &ids, "at the end").await?;
    pool.cleanup().await?;
    assert_stats_are_nothing(&pool);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn max_open_connections_per_database() -> Outcome {
    const TASKS: usize = 40;
    const ROUNDS: usize = 5;
    let limits = Limits::new(20).system(5).per_workspace(4);
    let pool = TestPool::builder().limits(limits).build().await?;
    let ids = pool.create_test_workspaces(3).await?;
    let watch = Watch::of(&pool);
    watch
        .during(async {
            // The budget has room for eleven more; this workspace has not.
            let leases = hold(&pool, &vec![ids[0].clone(); 4]).await?;
            let mut tasks = JoinSet::new();
            for id in &ids {
                for _ in 0..TASKS {
                    let db = pool.workspace(id);
                    tasks.spawn(async move {
                        for _ in 0..ROUNDS {
                            sqlx::query("select pg_sleep(0.001)").execute(&db).await?;
                        }
                        Ok(ROUNDS)
                    });
                }
            }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_limit_protects_system() -> Outcome {
    const FLOOD: usize = 100;
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(20).await?;
    let watch = Watch::of(&pool);
    watch
        .during(async {
            // Every connection that workspaces may have is held, and a hundred more are asked for.
            let leases = hold(&pool, &ids[..15]).await?;
            let flood = flood(&pool, FLOOD, |pools, i| pools.workspace(&ids[i % ids.len()]));
            wait_for_queue(&pool, FLOOD).await?;
            // The system database answers, databases are managed, and others find room on the server.
            for _ in 0..20 {
                backend_pid(&pool.system()).await?;
            }
            let late = WorkspaceId::new("late")?;
            pool.ensure_workspace(&late).await?;
            assert!(pool.workspace_exists(&late).await? && pool.drop_workspace(&late).await?);
            outside(&pool, "select 1").await?;
            assert_eq!(pool.stats().workspaces.waiting as usize, FLOOD, "and nobody was served out of turn");
            drop(leases);
            assert_eq!(finish(flood).await?.len(), FLOOD);

            // The other way round: a flood on the system database leaves the workspaces alone.
            let leases = hold_system(&pool).await?;
            let flood = self::flood(&pool, FLOOD, |pools, _| pools.system());
            let queued = || async { pool.stats().system.waiting as usize == FLOOD };
            eventually("a queue for the system", SOON, queued).await?;
            for id in &ids {
                backend_pid(&pool.workspace(id)).await?;
            }
            assert_eq!(pool.stats().system.waiting as usize, FLOOD);
            let full = || async { watch.peaks().system >= 4 };
            eventually("the watch having seen the system share full", SOON, full).await?;
            drop(leases);
            assert_eq!(finish(flood).await?.len(), FLOOD);
            Ok(())
        })
        .await?;
    let seen = watch.peaks();
    assert!(seen.total <= 20 && seen.workspaces <= 15 && seen.system <= 5, "{seen:?}");
    settled(&pool).await?;
    pool.cleanup().await?;
    Ok(())
}

fn flood(
    pool: &TestPool,
    tasks: usize,
    db: impl Fn(&PgPools, usize) -> pool_postgres::PgWorkspacePool,
) -> JoinSet<Outcome<i32>> {
    let dbs = (0..tasks).map(|i| db(pool.pools(), i));
    dbs.map(|db| async move { Ok(backend_pid(&db).await?) }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_leaks_on_error() -> Outcome {
    const TIMES: usize = 6;
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(8).await?;
    for id in &ids {
        let db = pool.workspace(id);
        sqlx::query("create table mark (n int primary key)").execute(&db).await?;
        sqlx::query("insert into mark values (1)").execute(&db).await?;
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
