//! The worlds: what happens in each, and what is to be reached.

mod acquire;
mod callers;
mod loud;
mod pairs;
mod picks;
mod walk;

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use pool_postgres::{PgPools, WorkspaceId};

use crate::Fault;
use crate::report::Report;
use crate::stage::Stage;

type Run = for<'a> fn(&'a Stage, Duration, &'a mut Report<'_>) -> LocalBoxFuture<'a, Result<(), Fault>>;

/// One world.
pub struct World {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    /// How many databases it needs.
    pub databases: usize,
    run: Run,
}

impl World {
    /// Measures it; each contestant works for this long.
    pub async fn run(&self, stage: &Stage, time: Duration, report: &mut Report<'_>) -> Result<(), Fault> {
        (self.run)(stage, time, report).await
    }
}

/// All worlds, in the order in which they are run.
pub const WORLDS: &[World] = &[
    World {
        name: "round-robin",
        about: "16 tasks walk over 100 warm workspaces, `select 1`",
        databases: 100,
        run: |stage, time, report| Box::pin(walk::run(stage, time, report)),
    },
    World {
        name: "callers",
        about: "40 workspaces with one caller each on 10 slots, `select 1`",
        databases: 40,
        run: |stage, time, report| Box::pin(callers::run(stage, time, report)),
    },
    World {
        name: "loud",
        about: "60 workspaces with 10 callers each and a quiet one on 45 slots, `select pg_sleep(0.01)`",
        databases: 61,
        run: |stage, time, report| Box::pin(loud::run(stage, time, report)),
    },
    World {
        name: "uniform",
        about: "64 tasks, each request of any of 1,000 workspaces, 50 slots, `select 1`",
        databases: 1_000,
        run: |stage, time, report| Box::pin(picks::uniform(stage, time, report)),
    },
    World {
        name: "zipf",
        about: "64 tasks, each request of one of 1,000 workspaces by Zipf's law, 50 slots, `select 1`",
        databases: 1_000,
        run: |stage, time, report| Box::pin(picks::zipf(stage, time, report)),
    },
    World {
        name: "pairs",
        about: "acquire and release without a query",
        databases: 1,
        run: |stage, time, report| Box::pin(pairs::run(stage, time, report)),
    },
];

/// A lease, a query, and the lease given back.
async fn request(pools: &PgPools, id: &WorkspaceId) -> Result<(), Fault> {
    let mut lease = pools.acquire(id).await?;
    sqlx::query("select 1").execute(&mut lease).await?;
    Ok(())
}
