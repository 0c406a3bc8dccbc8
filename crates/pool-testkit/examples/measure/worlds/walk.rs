//! Round robin: two tasks that meet at a workspace must not cost a third workspace its only connection.

use std::sync::Arc;
use std::time::Duration;

use pool_postgres::{Limits, PgPools, WorkspaceId};
use pool_testkit::run::Goal;
use tokio::task::JoinSet;

use super::request;
use crate::Fault;
use crate::contest::{Contest, Round, Times};
use crate::report::Report;
use crate::stage::{Bare, Stage, close};

const TASKS: usize = 16;
const WORKSPACES: usize = 100;
const SYSTEM: u32 = 5;
/// Connections for workspaces, and how much of the same pool with one connection a workspace is to be reached.
const POOLS: [(u32, f64); 4] = [(105, 0.97), (60, 0.95), (80, 0.95), (150, 0.95)];

/// Measures each size of the pool beside its peer and bare connections.
pub async fn run(stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
    for (connections, goal) in POOLS {
        let ids = stage.workspaces(WORKSPACES);
        let limits = Limits::new(connections + SYSTEM).system(SYSTEM);
        let (pools, watch) = stage.watched("pool", limits).await?;
        let (peer, peer_watch) = stage.watched("peer", limits.per_workspace(1)).await?;
        for pools in [&pools, &peer] {
            for id in ids.iter() {
                request(pools, id).await?;
            }
        }
        let bare = stage.bare(TASKS).await?;
        let contest = Contest::new("round-robin")
            .with("bare connections", queries(bare.clone()))
            .with(&format!("{connections} connections"), walk(pools.clone(), Arc::clone(&ids)))
            .with(&format!("{connections} connections, one a workspace"), walk(peer.clone(), ids));
        let times = Times { measured: time, lead_in: Duration::from_millis(300) };
        let rates = contest.run(times, report.progress).await?;
        report.spread(
            &format!("{connections}: of one connection a workspace"),
            rates.ratio(1, 2),
            Some(Goal::AtLeast(goal)),
        );
        report.spread(&format!("{connections}: of bare connections"), rates.ratio(1, 0), None);
        report.spread(&format!("{connections}: requests a second"), rates.of(1), None);
        report.spread(&format!("{connections}: bare, requests a second"), rates.of(0), None);
        report.stats(&connections.to_string(), &pools, &watch);
        report.stats(&format!("{connections}, one a workspace"), &peer, &peer_watch);
        drop(contest);
        close(bare).await?;
        pools.close().await?;
        peer.close().await?;
    }
    Ok(())
}

/// Each task on a connection of its own.
pub fn queries(bare: Bare) -> impl Fn(&Round, &mut JoinSet<()>) + Send + 'static {
    move |round, tasks| {
        for connection in &bare {
            let (connection, round) = (Arc::clone(connection), round.clone());
            tasks.spawn(async move {
                let mut connection = connection.lock().await;
                while !round.is_over() {
                    round.count(sqlx::query("select 1").execute(&mut *connection).await);
                }
            });
        }
    }
}

/// Each task goes from workspace to workspace, all of them equally far apart at the start.
fn walk(pools: PgPools, ids: Arc<Vec<WorkspaceId>>) -> impl Fn(&Round, &mut JoinSet<()>) + Send + 'static {
    move |round, tasks| {
        for task in 0..TASKS {
            let (pools, ids, round) = (pools.clone(), Arc::clone(&ids), round.clone());
            tasks.spawn(async move {
                for id in ids.iter().cycle().skip(task * WORKSPACES / TASKS) {
                    if round.is_over() {
                        break;
                    }
                    round.count(request(&pools, id).await);
                }
            });
        }
    }
}
