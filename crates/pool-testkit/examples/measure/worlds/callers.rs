//! Single callers: each asks again when it was served, so its workspace wants nothing for a moment after each query.

use std::sync::Arc;
use std::time::Duration;

use pool_postgres::Limits;

use super::{request, walk};
use crate::Fault;
use crate::contest::{Contest, Times};
use crate::report::Report;
use crate::stage::{Stage, close};

const WORKSPACES: usize = 40;
const SLOTS: u32 = 10;

/// Measures the callers beside as many bare connections as there are slots.
pub async fn run(stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
    let (pools, watch) = stage.watched("pool", Limits::new(SLOTS + 5).system(5)).await?;
    let (ids, ours) = (stage.workspaces(WORKSPACES), pools.clone());
    let bare = stage.bare(SLOTS as usize).await?;
    let contest = Contest::new("callers").with("bare connections", walk::queries(bare.clone())).with(
        "the pool",
        move |round, tasks| {
            for nth in 0..WORKSPACES {
                let (pools, ids, round) = (ours.clone(), Arc::clone(&ids), round.clone());
                tasks.spawn(async move {
                    while !round.is_over() {
                        round.count(request(&pools, &ids[nth]).await);
                    }
                });
            }
        },
    );
    let times = Times { measured: time, lead_in: Duration::from_millis(300) };
    let rates = contest.run(times, report.progress).await?;
    report.spread("of bare connections", rates.ratio(1, 0), None);
    report.spread("requests a second", rates.of(1), None);
    report.spread("bare, requests a second", rates.of(0), None);
    report.stats("pool", &pools, &watch);
    drop(contest);
    close(bare).await?;
    pools.close().await?;
    Ok(())
}
