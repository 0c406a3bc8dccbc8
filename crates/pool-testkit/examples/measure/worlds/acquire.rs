//! Acquire and release without a query: what the pool itself costs.
//!
//! On public names alone and in a file of its own, so that it can be built against another version of the pool, too.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_postgres::{PgPools, WorkspaceId};
use tokio::task::JoinSet;

/// Pairs in a batch; 16 tasks share them.
const PAIRS: u32 = 16_000;
/// Tasks that compete for 10 connections.
const TASKS: u32 = 16;

/// Nanoseconds of one pair in the fastest batch, for one task.
pub async fn alone(
    pools: &PgPools,
    id: &WorkspaceId,
    time: Duration,
) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let (began, mut best) = (Instant::now(), Duration::MAX);
    while began.elapsed() < time {
        let batch = Instant::now();
        for _ in 0..PAIRS {
            drop(pools.acquire(id).await?);
        }
        best = best.min(batch.elapsed());
        drop(tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await); // lets other tasks run
    }
    Ok(nanoseconds_each(best))
}

/// Nanoseconds of one pair in the fastest batch, for 16 tasks on as many connections as the workspace may have. Each
/// holder lets the others run once, so that six of them always wait.
pub async fn competing(
    pools: &PgPools,
    id: &WorkspaceId,
    time: Duration,
) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let pools = Arc::new((pools.clone(), id.clone()));
    let (began, mut best) = (Instant::now(), Duration::MAX);
    while began.elapsed() < time {
        let batch = Instant::now();
        let mut tasks: JoinSet<Result<(), Box<dyn Error + Send + Sync>>> = JoinSet::new();
        for _ in 0..TASKS {
            let pools = Arc::clone(&pools);
            tasks.spawn(async move {
                for _ in 0..PAIRS / TASKS {
                    let lease = pools.0.acquire(&pools.1).await?;
                    tokio::task::yield_now().await;
                    drop(lease);
                }
                Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        best = best.min(batch.elapsed());
    }
    Ok(nanoseconds_each(best))
}

fn nanoseconds_each(batch: Duration) -> f64 {
    batch.as_secs_f64() * 1e9 / f64::from(PAIRS)
}
