//! Many more workspaces than slots: how much better than a fresh connection for each request a pool is.

use std::sync::Arc;
use std::time::Duration;

use pool_postgres::{Limits, PgPools, PostgresConfig, WorkspaceId};
use pool_testkit::run::Goal;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::request;
use crate::Fault;
use crate::contest::{Contest, Round, Times, float};
use crate::report::Report;
use crate::sampler::Sampler;
use crate::stage::Stage;

const TASKS: usize = 64;
const WORKSPACES: usize = 1_000;
const SLOTS: u32 = 50;

/// The sums of the workspaces' shares: a number below the last one picks a workspace.
type Shares = Arc<Vec<f64>>;

/// All workspaces alike.
pub async fn uniform(stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
    run("uniform", stage, sums(|_| 1.0), 1.0, time, report).await
}

/// The nth workspace 1/n times as often as the first.
pub async fn zipf(stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
    run("zipf", stage, sums(|nth| 1.0 / float(nth)), 1.8, time, report).await
}

fn sums(share: impl Fn(u64) -> f64) -> Shares {
    let sums = (1..=WORKSPACES as u64).scan(0.0, |sum, nth| {
        *sum += share(nth);
        Some(*sum)
    });
    Arc::new(sums.collect())
}

fn pick(shares: &[f64]) -> usize {
    let at = fastrand::f64() * shares.last().copied().unwrap_or_default();
    shares.partition_point(|sum| *sum <= at).min(shares.len() - 1)
}

async fn run(
    world: &'static str,
    stage: &Stage,
    shares: Shares,
    goal: f64,
    time: Duration,
    report: &mut Report<'_>,
) -> Result<(), Fault> {
    let ids = stage.workspaces(WORKSPACES);
    let databases: Result<Vec<String>, Fault> = ids.iter().map(|id| stage.database(id)).collect();
    let (pools, watch) = stage.watched("picks", Limits::new(SLOTS + 5).system(5)).await?;
    let sampler = Sampler::start(stage.superuser().await?, "picks");
    let contest = Contest::new(world)
        .with("a fresh connection for each", fresh(stage.config(), databases?, Arc::clone(&shares)))
        .with("the pool", leases(pools.clone(), ids, shares));
    let times = Times { measured: time, lead_in: Duration::from_secs(1) };
    let rates = contest.run(times, report.progress).await?;
    let (most, _) = sampler.end().await?;
    report.spread("of fresh connections", rates.ratio(1, 0), Some(Goal::AtLeast(goal)));
    report.spread("requests a second", rates.of(1), None);
    report.spread("fresh connections a second", rates.of(0), None);
    report.value("errors", float(rates.failed[1]), Some(Goal::AtMost(0.0)));
    let most = float(u64::try_from(most).unwrap_or_default());
    report.value("most backends at a time", most, Some(Goal::AtMost(f64::from(SLOTS))));
    report.stats("pool", &pools, &watch);
    drop(contest);
    pools.close().await?;
    Ok(())
}

fn leases(
    pools: PgPools,
    ids: Arc<Vec<WorkspaceId>>,
    shares: Shares,
) -> impl Fn(&Round, &mut JoinSet<()>) + Send + 'static {
    move |round, tasks| {
        for _ in 0..TASKS {
            let (pools, round) = (pools.clone(), round.clone());
            let (ids, shares) = (Arc::clone(&ids), Arc::clone(&shares));
            tasks.spawn(async move {
                while !round.is_over() {
                    round.count(request(&pools, &ids[pick(&shares)]).await);
                }
            });
        }
    }
}

/// The same without a pool, with as many connections at a time as the pool may have.
fn fresh(
    config: PostgresConfig,
    databases: Vec<String>,
    shares: Shares,
) -> impl Fn(&Round, &mut JoinSet<()>) + Send + 'static {
    let databases = Arc::new(databases);
    move |round, tasks| {
        let slots = Arc::new(Semaphore::new(SLOTS as usize));
        for _ in 0..TASKS {
            let (config, round, slots) = (config.clone(), round.clone(), Arc::clone(&slots));
            let (databases, shares) = (Arc::clone(&databases), Arc::clone(&shares));
            tasks.spawn(async move {
                while !round.is_over() {
                    let Ok(_slot) = slots.acquire().await else { return };
                    round.count(once(&config, &databases[pick(&shares)]).await);
                }
            });
        }
    }
}

async fn once(config: &PostgresConfig, database: &str) -> Result<(), sqlx::Error> {
    let mut connection = config.connect_options(database).connect().await?;
    sqlx::query("select 1").execute(&mut connection).await?;
    connection.close().await
}
