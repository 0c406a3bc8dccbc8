//! Loud workspaces beside a quiet one: the slots are busy, equals get the same, and the quiet one does not wait long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pool_postgres::{Limits, PgPools, WorkspaceId};
use pool_testkit::run::Goal;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::request;
use crate::Fault;
use crate::contest::{Contest, Round, Times, float};
use crate::report::Report;
use crate::sampler::Sampler;
use crate::stage::{Bare, Stage, close};

const LOUD: usize = 60;
const CALLERS: usize = 10;
const SLOTS: u32 = 45;
const QUERY: &str = "select pg_sleep(0.01)";
const QUIET_ASKS_EVERY: Duration = Duration::from_millis(100);
/// For less time than this, the quiet one's last percentile is a single request.
const TIME_MIN: Duration = Duration::from_secs(20);

/// What the tasks count.
#[derive(Default)]
struct Counts {
    /// Of each workspace.
    grants: Vec<AtomicU64>,
    leased_nanoseconds: AtomicU64,
}

impl Counts {
    fn new() -> Self {
        Self { grants: (0..LOUD).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    fn now(&self) -> (Vec<f64>, f64) {
        let grants = self.grants.iter().map(|grants| float(grants.load(Ordering::Relaxed))).collect();
        (grants, float(self.leased_nanoseconds.load(Ordering::Relaxed)) / 1e9)
    }
}

/// Measures the loud ones for a time, and then as many bare connections as there are slots.
pub async fn run(stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
    let time = time.max(TIME_MIN);
    let ids = stage.workspaces(LOUD + 1);
    let (pools, watch) = stage.watched("loud", Limits::new(SLOTS + 5).system(5)).await?;
    let sampler = Sampler::start(stage.superuser().await?, "loud");
    let counts = Arc::new(Counts::new());
    let round = Round::default();
    let mut tasks = JoinSet::new();
    loud(&pools, &ids, &counts, &round, &mut tasks);
    let began = Instant::now();
    sleep(Duration::from_secs(2)).await;
    let quiet = tokio::spawn(quiet(pools.clone(), ids[LOUD].clone(), round.clone()));
    let (before, measured) = (counts.now(), Instant::now());
    while measured.elapsed() < time {
        sleep(Duration::from_secs(1).min(time.saturating_sub(measured.elapsed()))).await;
        report.progress.tell(&format!("loud: {} s", began.elapsed().as_secs()));
    }
    let (after, took) = (counts.now(), measured.elapsed().as_secs_f64());
    let failed = round.end();
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let quiet = quiet.await?;
    let (most, _) = sampler.end().await?;

    let grants: Vec<f64> = after.0.iter().zip(&before.0).map(|(after, before)| after - before).collect();
    let capacity = f64::from(SLOTS) * took;
    report.value("lease time, of the slots'", (after.1 - before.1) / capacity, Some(Goal::AtLeast(0.8)));
    report.value("Jain's index of grants", jain(&grants), Some(Goal::AtLeast(0.95)));
    report.value("quiet p99, ms", percentile(&quiet, 0.99), Some(Goal::AtMost(100.0)));
    report.value("quiet p50, ms", percentile(&quiet, 0.5), None);
    report.value("quiet max, ms", percentile(&quiet, 1.0), None);
    report.value("quiet requests", float(quiet.len() as u64), None);
    report.value("errors", float(failed), Some(Goal::AtMost(0.0)));
    let most = float(u64::try_from(most).unwrap_or_default());
    report.value("most backends at a time", most, Some(Goal::AtMost(f64::from(SLOTS))));
    let rate = grants.iter().sum::<f64>() / took;
    report.value("requests a second", rate, None);
    report.stats("pool", &pools, &watch);
    pools.close().await?;

    let bare = stage.bare(SLOTS as usize).await?;
    let contest = Contest::new("loud").with("bare connections", sleepers(bare.clone()));
    let times = Times { measured: Duration::from_secs(6), lead_in: Duration::from_millis(300) };
    let bare_rate = contest.run(times, report.progress).await?.of(0).median;
    report.value("of bare connections", rate / bare_rate, None);
    drop(contest);
    close(bare).await
}

fn loud(
    pools: &PgPools,
    ids: &Arc<Vec<WorkspaceId>>,
    counts: &Arc<Counts>,
    round: &Round,
    tasks: &mut JoinSet<()>,
) {
    for nth in (0..LOUD).cycle().take(LOUD * CALLERS) {
        let (pools, ids, counts, round) = (pools.clone(), Arc::clone(ids), Arc::clone(counts), round.clone());
        tasks.spawn(async move {
            while !round.is_over() {
                round.count(long_request(&pools, &ids[nth], nth, &counts).await);
            }
        });
    }
}

async fn long_request(pools: &PgPools, id: &WorkspaceId, nth: usize, counts: &Counts) -> Result<(), Fault> {
    let mut lease = pools.acquire(id).await?;
    let began = Instant::now();
    sqlx::query(QUERY).execute(&mut lease).await?;
    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    counts.leased_nanoseconds.fetch_add(took, Ordering::Relaxed);
    counts.grants[nth].fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// What each request of the quiet one took, in ms, from the shortest to the longest.
async fn quiet(pools: PgPools, id: WorkspaceId, round: Round) -> Vec<f64> {
    let mut took = Vec::new();
    while !round.is_over() {
        let began = Instant::now();
        round.count(request(&pools, &id).await);
        took.push(began.elapsed().as_secs_f64() * 1e3);
        sleep(QUIET_ASKS_EVERY).await;
    }
    took.sort_by(f64::total_cmp);
    took
}

fn sleepers(bare: Bare) -> impl Fn(&Round, &mut JoinSet<()>) + Send + 'static {
    move |round, tasks| {
        for connection in &bare {
            let (connection, round) = (Arc::clone(connection), round.clone());
            tasks.spawn(async move {
                let mut connection = connection.lock().await;
                while !round.is_over() {
                    round.count(sqlx::query(QUERY).execute(&mut *connection).await);
                }
            });
        }
    }
}

/// 1 if all are alike, 1/n if one of n has everything.
fn jain(values: &[f64]) -> f64 {
    let (sum, squares) =
        values.iter().fold((0.0, 0.0), |(sum, squares), value| (sum + value, squares + value * value));
    sum * sum / (float(values.len() as u64) * squares)
}

/// Of values in order.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // of a small positive number
fn percentile(values: &[f64], share: f64) -> f64 {
    let nth = (float(values.len() as u64) * share).ceil() as usize;
    values.get(nth.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
