//! Acquire and release without a query, beside the least that a pool could do: a semaphore and a stack.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pool_postgres::Limits;
use tokio::sync::Semaphore;

use super::acquire::{alone, competing};
use crate::Fault;
use crate::contest::Spread;
use crate::report::Report;
use crate::stage::Stage;

const ROUNDS: u32 = 5;
const CONNECTIONS: u32 = 10;
const PAIRS: u32 = 100_000;

/// Measures one task, and 16 on 10 connections.
pub async fn run(stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
    let pools = stage.pools("pairs", Limits::new(CONNECTIONS + 5).system(5)).await?;
    let id = stage.workspaces(1)[0].clone();
    let each = time / (2 * ROUNDS);
    let (mut of_one, mut of_many, mut of_stack) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        report.progress.tell(&format!("pairs: round {} of {ROUNDS}", round + 1));
        let (pools, id) = (pools.clone(), id.clone());
        // In a task of its own: the runtime's first thread is slower to be woken.
        let (one, many, stack) = tokio::spawn(async move {
            let one = alone(&pools, &id, each).await?;
            let many = competing(&pools, &id, each).await?;
            Ok::<_, Fault>((one, many, semaphore_and_stack().await?))
        })
        .await??;
        of_one.push(one);
        of_many.push(many);
        of_stack.push(stack);
    }
    report.spread("one task, ns", Spread::of(of_one), None);
    report.spread("16 tasks on 10 connections, ns", Spread::of(of_many), None);
    report.spread("a semaphore and a stack, ns", Spread::of(of_stack), None);
    pools.close().await?;
    Ok(())
}

/// Nanoseconds of one pair in the fastest of ten batches.
async fn semaphore_and_stack() -> Result<f64, Fault> {
    let (semaphore, stack) =
        (Semaphore::new(CONNECTIONS as usize), Mutex::new((0..CONNECTIONS).collect::<Vec<_>>()));
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let batch = Instant::now();
        for _ in 0..PAIRS {
            let _permit = semaphore.acquire().await?;
            let taken = stack.lock().unwrap_or_else(PoisonError::into_inner).pop();
            stack.lock().unwrap_or_else(PoisonError::into_inner).extend(std::hint::black_box(taken));
        }
        best = best.min(batch.elapsed());
    }
    Ok(best.as_secs_f64() * 1e9 / f64::from(PAIRS))
}
