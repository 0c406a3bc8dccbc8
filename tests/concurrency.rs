//! Concurrency: many tasks at once, on many workspaces and on one, at the documented sizes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pool_postgres::{AcquireError, DriverErrorKind, Limits, PgWorkspacePool, WorkspaceId, acquire_error};
use pool_testkit::{TestPool, wait_for_condition};
use sqlx::Executor;
use tokio::sync::{Barrier, Mutex};
use tokio::task::JoinSet;

use crate::support::{Outcome, current_database, on_runtime};

const CREATING_TASKS: usize = 50;
const SHARING_TASKS: usize = 100;
/// Far longer than a verification takes on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Runs `task` as many times at once as there are `tasks`, all begun together, and returns what each gave.
async fn all_at_once<R, F>(tasks: usize, task: impl Fn(usize) -> F) -> Result<Vec<R>, tokio::task::JoinError>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let start = Arc::new(Barrier::new(tasks));
    let mut running = JoinSet::new();
    for i in 0..tasks {
        let (start, work) = (Arc::clone(&start), task(i));
        running.spawn(async move {
            start.wait().await;
            work.await
        });
    }
    let mut results = Vec::new();
    while let Some(result) = running.join_next().await {
        results.push(result?);
    }
    Ok(results)
}

#[test]
fn concurrent_workspace_creation() -> Outcome {
    on_runtime(async {
        let pool = Arc::new(TestPool::new().await?);
        let created = all_at_once(CREATING_TASKS, |i| {
            let pool = Arc::clone(&pool);
            async move {
                let id = WorkspaceId::new(format!("made_{i}"))?;
                pool.ensure_workspace(&id).await?;
                let db = pool.workspace(&id);
                sqlx::query("create table mark (task int)").execute(&db).await?;
                sqlx::query("insert into mark values ($1)").bind(i32::try_from(i)?).execute(&db).await?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((i, id))
            }
        })
        .await?;

        let mut databases = BTreeSet::new();
        for created in created {
            let (i, id) = created?;
            let db = pool.workspace(&id);
            let marks: Vec<i32> = sqlx::query_scalar("select task from mark").fetch_all(&db).await?;
            assert_eq!(marks, [i32::try_from(i)?], "{id} holds what its own task wrote, and nothing else");
            databases.insert(current_database(&db).await?);
        }
        assert_eq!(databases.len(), CREATING_TASKS);
        assert_eq!(pool.databases().await?.len(), CREATING_TASKS);
        let stats = pool.stats();
        assert!(stats.workspaces.peak <= stats.workspaces.limit && stats.system.peak <= stats.system.limit);
        pool.verify_no_leaked_connections().await?;
        pool.cleanup().await?;
        Ok(())
    })
}

#[test]
fn concurrent_same_workspace_access() -> Outcome {
    on_runtime(async {
        let pool = Arc::new(TestPool::new().await?);
        let id = WorkspaceId::new("shared")?;
        pool.ensure_workspace(&id).await?;
        sqlx::query("create table visit (task int primary key)").execute(&pool.workspace(&id)).await?;

        let visits = all_at_once(SHARING_TASKS, |i| {
            let db = pool.workspace(&id);
            let i = i32::try_from(i).unwrap_or(i32::MAX);
            async move { sqlx::query("insert into visit values ($1)").bind(i).execute(&db).await }
        })
        .await?;
        for visit in visits {
            assert_eq!(visit?.rows_affected(), 1);
        }

        let rows: i64 =
            sqlx::query_scalar("select count(*) from visit").fetch_one(&pool.workspace(&id)).await?;
        assert_eq!(rows, i64::try_from(SHARING_TASKS)?, "every task was served, once");
        let opened = pool.stats().workspaces.opened;
        assert!(opened <= 10, "one workspace stays below its ceiling: {opened}");
        // The table is new, so what has met it may be verified in the background before it is idle.
        wait_for_condition("every connection being back", SOON, || {
            let stats = pool.stats().workspaces;
            (stats.connections.in_use, stats.waiting) == (0, 0)
        })
        .await?;
        pool.cleanup().await?;
        Ok(())
    })
}

#[test]
fn concurrent_read_write_operations() -> Outcome {
    on_runtime(async {
        const WRITERS: i32 = 20;
        const READERS: usize = 20;
        const EACH: i32 = 25;
        let pool = TestPool::new().await?;
        let id = pool.create_test_workspaces(1).await?.remove(0);
        let db = pool.workspace(&id);
        sqlx::query("create table entry (writer int, number int, primary key (writer, number))")
            .execute(&db)
            .await?;

        let mut tasks: JoinSet<Result<(), sqlx::Error>> = JoinSet::new();
        for writer in 0..WRITERS {
            tasks.spawn(write_entries(db.clone(), writer, EACH));
        }
        for _ in 0..READERS {
            tasks.spawn(read_entries(db.clone(), EACH));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let rows: i64 = sqlx::query_scalar("select count(*) from entry").fetch_one(&db).await?;
        assert_eq!(rows, i64::from(WRITERS * EACH / 5 * 4), "exactly what was committed");
        pool.cleanup().await?;
        Ok(())
    })
}

async fn write_entries(db: PgWorkspacePool, writer: i32, entries: i32) -> Result<(), sqlx::Error> {
    for number in 0..entries {
        let mut tx = db.begin().await?;
        let insert = sqlx::query("insert into entry values ($1, $2)").bind(writer).bind(number);
        insert.execute(&mut tx).await?;
        // Every fifth is taken back: readers must never see it.
        if number % 5 == 4 { tx.rollback().await? } else { tx.commit().await? }
    }
    Ok(())
}

/// Each look shows what the one before it did, and nothing that was taken back.
async fn read_entries(db: PgWorkspacePool, looks: i32) -> Result<(), sqlx::Error> {
    let mut before = 0_i64;
    for _ in 0..looks {
        let (seen, undone): (i64, i64) =
            sqlx::query_as("select count(*), count(*) filter (where number % 5 = 4) from entry")
                .fetch_one(&db)
                .await?;
        assert_eq!(undone, 0, "a reader saw what was rolled back");
        assert!(seen >= before, "what was committed is never lost: {before}, then {seen}");
        before = seen;
    }
    Ok(())
}

#[test]
fn concurrent_cleanup() -> Outcome {
    on_runtime(async {
        const WORKSPACES: usize = 20;
        let pool = Arc::new(TestPool::new().await?);
        let ids = pool.create_test_workspaces(WORKSPACES).await?;
        for id in &ids {
            current_database(&pool.workspace(id)).await?;
        }

        let dropped = all_at_once(WORKSPACES, |i| {
            let (pool, id) = (Arc::clone(&pool), ids[i].clone());
            async move {
                // Half of them are only closed; the others go for good.
                if i % 2 == 0 {
                    pool.close_workspace(&id).await.map(|()| false).map_err(Into::into)
                } else {
                    pool.drop_workspace(&id).await.map_err(Box::<dyn std::error::Error + Send + Sync>::from)
                }
            }
        })
        .await?;
        let gone =
            dropped.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().filter(|gone| *gone).count();
        assert_eq!(gone, WORKSPACES / 2);
        assert_eq!(pool.databases().await?.len(), WORKSPACES / 2);
        assert_eq!(pool.stats().workspaces.connections.total(), 0);
        current_database(&pool.workspace(&ids[0])).await?;

        let cleaned = all_at_once(8, |_| {
            let pool = Arc::clone(&pool);
            async move { pool.cleanup().await }
        })
        .await?;
        cleaned.into_iter().collect::<Result<(), _>>()?;
        assert_eq!(pool.databases().await?, Vec::<String>::new());
        pool.verify_no_leaked_connections().await?;
        Ok(())
    })
}

/// Whatever users do at once, in an order that the seed decides.
#[test]
fn race_detector_stress_test() -> Outcome {
    on_runtime(async {
        const TASKS: usize = 32;
        const STEPS: usize = 30;
        let seed = pool_testkit::run::seed();
        let pool = Arc::new(TestPool::new().await?);
        let ids = Arc::new(pool.create_test_workspaces(8).await?);
        let mut dice = fastrand::Rng::with_seed(seed);
        let forks: Vec<_> = (0..TASKS).map(|_| dice.fork()).collect();
        let outcomes = all_at_once(TASKS, |i| {
            let (pool, ids, dice) = (Arc::clone(&pool), Arc::clone(&ids), forks[i].clone());
            stress(pool, ids, dice, STEPS)
        })
        .await?;
        outcomes.into_iter().collect::<Result<(), _>>()?;

        pool_testkit::eventually("quiet", Duration::from_secs(10), || async {
            let stats = pool.stats().workspaces;
            let busy = stats.connections;
            busy.in_use + busy.opening + busy.closing + stats.waiting == 0
        })
        .await?;
        let stats = pool.stats();
        let counted = stats.connections().total() + stats.control;
        assert_eq!(
            pool.active_connection_count().await?,
            counted,
            "the server counts what we count: {stats:?}"
        );
        assert!(stats.workspaces.peak <= stats.workspaces.limit, "{stats:?}");
        pool.cleanup().await?;
        Ok(())
    })
}

async fn stress(
    pool: Arc<TestPool>,
    ids: Arc<Vec<WorkspaceId>>,
    mut dice: fastrand::Rng,
    steps: usize,
) -> Outcome {
    for _ in 0..steps {
        let id = &ids[dice.usize(..ids.len())];
        let db = pool.workspace(id);
        let outcome = match dice.u32(..10) {
            0 => {
                let patience = Duration::from_micros(dice.u64(..5_000));
                drop(tokio::time::timeout(patience, db.acquire()).await);
                Ok(())
            }
            1 => {
                let patience = Duration::from_micros(dice.u64(..5_000));
                let sleep = sqlx::query("select pg_sleep(1)").execute(&db);
                drop(tokio::time::timeout(patience, sleep).await);
                Ok(())
            }
            2 => async { db.begin().await.map(drop) }.await,
            3 => {
                let patience = Duration::from_micros(dice.u64(..5_000));
                drop(tokio::time::timeout(patience, pool.close_workspace(id)).await);
                Ok(())
            }
            4 => copy_half(&db).await,
            _ => current_database(&db).await.map(|name| {
                assert!(name.ends_with(&format!("_ws_{}", id.as_str())), "{id} was served by {name}");
            }),
        };
        match outcome {
            Err(error) if matches!(acquire_error(&error), Some(AcquireError::WorkspaceClosing { .. })) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A COPY that is given up half-way, which leaves an answer on the wire.
async fn copy_half(db: &PgWorkspacePool) -> sqlx::Result<()> {
    let mut lease = match db.acquire().await {
        Ok(lease) => lease,
        // It is being closed, as others are told, too.
        Err(AcquireError::WorkspaceClosing { .. }) => return Ok(()),
        Err(error) => return Err(sqlx::Error::Configuration(error.into())),
    };
    lease.execute("create temporary table if not exists half (n int)").await?;
    lease.copy_in_raw("copy half from stdin").await?.send(&b"1\n"[..]).await?;
    Ok(())
}

/// On one thread, where tasks ask in the order in which they were spawned.
#[tokio::test]
async fn high_contention() -> Outcome {
    const CONTENDERS: usize = 200;
    let pool =
        Arc::new(TestPool::builder().limits(Limits::new(10).system(5).per_workspace(5)).build().await?);
    let id = pool.create_test_workspaces(1).await?.remove(0);
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    for i in 0..CONTENDERS {
        let (db, served) = (pool.workspace(&id), Arc::clone(&served));
        tasks.spawn(async move {
            let mut lease = db.acquire().await?;
            served.lock().await.push(i);
            sqlx::query("select pg_sleep(0.001)").execute(&mut lease).await?;
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let order = served.lock().await;
    assert_eq!(*order, (0..CONTENDERS).collect::<Vec<_>>(), "every one served, first come first served");
    let stats = pool.stats().workspaces;
    assert!(stats.opened <= 5 && stats.peak <= 5, "{stats:?}");
    pool.cleanup().await?;
    Ok(())
}

#[test]
fn rapid_create_destroy() -> Outcome {
    on_runtime(async {
        const TASKS: usize = 8;
        const ROUNDS: usize = 5;
        let pool = Arc::new(TestPool::new().await?);
        let id = WorkspaceId::new("phoenix")?;
        let outcomes = all_at_once(TASKS, |i| {
            let (pool, id) = (Arc::clone(&pool), id.clone());
            async move {
                let mut served = 0;
                for round in 0..ROUNDS {
                    pool.ensure_workspace(&id).await?;
                    served += usize::from(is_served_unless_gone(&pool.workspace(&id)).await);
                    if (i + round) % 2 == 0 {
                        pool.drop_workspace(&id).await?;
                    }
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(served)
            }
        })
        .await?;
        let served: usize = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().sum();
        assert!(served > 0, "somebody was served between its creation and its end");

        pool.ensure_workspace(&id).await?;
        current_database(&pool.workspace(&id)).await?;
        assert_eq!(pool.databases().await?.len(), 1);
        assert!(pool.drop_workspace(&id).await?);
        assert_eq!(pool.databases().await?, Vec::<String>::new());
        pool.cleanup().await?;
        Ok(())
    })
}

/// Whether a query was served; that its database was dropped meanwhile is the only excuse.
async fn is_served_unless_gone(db: &PgWorkspacePool) -> bool {
    match current_database(db).await {
        Ok(name) => {
            assert!(name.ends_with("_ws_phoenix"), "{name}");
            true
        }
        Err(error) => {
            assert!(is_gone(&error), "only because it was dropped meanwhile: {error}");
            false
        }
    }
}

/// Whether a query failed because its database was being closed, was gone, or went away under it.
fn is_gone(error: &sqlx::Error) -> bool {
    match acquire_error(error) {
        Some(AcquireError::WorkspaceClosing { .. }) => true,
        Some(AcquireError::OpenFailed { source, .. }) => source.kind == DriverErrorKind::DatabaseMissing,
        _ => false,
    }
}
