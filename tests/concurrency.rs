//! Concurrency: many tasks at once, on many workspaces and on one, at the documented sizes.

use std::collections::BTreeSet;
use std::sync::Arc;

use pool_postgres::WorkspaceId;
use pool_testkit::TestPool;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::{Outcome, current_database};

const CREATING_TASKS: usize = 50;
const SHARING_TASKS: usize = 100;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_workspace_creation() -> Outcome {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_same_workspace_access() -> Outcome {
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

    let rows: i64 = sqlx::query_scalar("select count(*) from visit").fetch_one(&pool.workspace(&id)).await?;
    assert_eq!(rows, i64::try_from(SHARING_TASKS)?, "every task was served, once");
    let stats = pool.stats().workspaces;
    assert!(stats.opened <= 10, "one workspace stays below its ceiling: {stats:?}");
    assert_eq!((stats.connections.in_use, stats.waiting), (0, 0), "{stats:?}");
    pool.cleanup().await?;
    Ok(())
}
