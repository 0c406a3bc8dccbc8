//! A workspace of one connection: a mishap happens to it, and readers ask whoever comes next.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use pool_postgres::{PgWorkspacePool, WorkspaceId};
use pool_testkit::TestPool;
use sqlx::Error;
use tokio::time::timeout;

use super::access::{Route, had_no_connection};
use super::kinds::Kind;
use super::readers::{Wrong, reader};
use super::ways::{Disturbance, Fault, Outsider, Pace, Way, drop_at};
use crate::support::{SOON, one_connection};

/// Readers at once after each mishap: more than there are connections.
const READERS: usize = 3;
/// Every question is answered by then, or never.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How many wrong answers are told in full.
const TOLD_MAX: usize = 40;

/// What every workspace needs for the mishaps: tables, and schemas that take the place of `pg_catalog`.
pub const SCHEMA: &str = "
    create table public.mark (n int primary key);
    insert into public.mark values (0);
    create table public.sink (n int, t text);
    create type public.mood as enum ('glad', 'sad');
    create schema captured_functions;
    create function captured_functions.now() returns timestamptz language sql
        as 'select pg_catalog.statement_timestamp()';
    create function captured_functions.transaction_timestamp() returns timestamptz language sql
        as 'select pg_catalog.statement_timestamp()';
    create function captured_functions.pg_current_xact_id_if_assigned() returns xid8 language sql
        as 'select null::pg_catalog.xid8';
    create schema captured_operators;
    create function captured_operators.always(timestamptz, timestamptz) returns boolean language sql
        as 'select true';
    create operator captured_operators.= (
        leftarg = timestamptz, rightarg = timestamptz, function = captured_operators.always
    );
    create function captured_operators.always(bigint, bigint) returns boolean language sql as 'select true';
    create operator captured_operators.= (
        leftarg = bigint, rightarg = bigint, function = captured_operators.always
    )";

/// One field of the table.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub kind: Kind,
    pub fault: Fault,
    pub way: Way,
    pub route: Route,
}

/// How far a mishap came.
#[derive(Debug)]
pub struct Happened {
    /// None if it was dropped.
    pub outcome: Option<Result<(), Error>>,
    pub steps: usize,
    pub wrong: Vec<String>,
}

/// How much was done, and what was wrong.
#[derive(Debug, Default)]
pub struct Tally {
    pub mishaps: u64,
    pub answers: u64,
    /// Questions to sessions that somebody had ended.
    pub lost: u64,
    /// Where, and what.
    pub wrong: Vec<(String, String)>,
}

impl Tally {
    /// Fails if anything was wrong: how often by kind, and the first cases.
    pub fn assert_right(&self, seed: u64) {
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for (place, _) in &self.wrong {
            *kinds.entry(place.split(',').next().unwrap_or_default()).or_default() += 1;
        }
        let told: Vec<_> =
            self.wrong.iter().take(TOLD_MAX).map(|(place, what)| format!("{place}: {what}")).collect();
        assert!(
            told.is_empty(),
            "seed {seed}: {} wrong answers after {} mishaps: {kinds:?}\n{}",
            self.wrong.len(),
            self.mishaps,
            told.join("\n")
        );
    }
}

pub struct World {
    pub pool: TestPool,
    pub id: WorkspaceId,
    db: PgWorkspacePool,
    outsider: Outsider,
    dice: fastrand::Rng,
    pub tally: Tally,
}

impl World {
    pub async fn new(seed: u64) -> Self {
        let (pool, id) = one_connection().await;
        let db = pool.workspace(&id);
        sqlx::raw_sql(SCHEMA).execute(&db).await.unwrap();
        let outsider = Outsider::of(&pool, &pool.database_of(&id)).await;
        Self { pool, id, db, outsider, dice: fastrand::Rng::with_seed(seed), tally: Tally::default() }
    }

    /// Has one mishap happen, and readers ask afterwards.
    pub async fn visit(&mut self, cell: Cell) -> Happened {
        let happened = self.have(cell).await;
        let is_own_fault = matches!(&happened.outcome, Some(Err(error)) if had_no_connection(error));
        let mut wrong = happened.wrong.clone();
        if is_own_fault {
            wrong.push(format!("no connection for the mishap: {:?}", happened.outcome));
        }
        self.tally.mishaps += 1;
        wrong.extend(self.read(is_ended_unseen(cell.way)).await);
        let is_spoilt = !wrong.is_empty();
        self.tally.wrong.extend(wrong.into_iter().map(|what| (format!("{cell:?}"), what)));
        if is_spoilt {
            // The next mishap is not to be blamed for this one.
            self.pool.close_workspace(&self.id).await.unwrap();
        }
        happened
    }

    async fn have(&self, cell: Cell) -> Happened {
        let Cell { kind, fault, way, route } = cell;
        let pace = Pace::of(Some(&self.outsider), way);
        let mishap = route.walk(&self.db, kind, fault, &pace);
        let outcome = match way {
            Way::Left | Way::Disturbed(..) => Some(mishap.await),
            Way::Dropped(polls) => drop_at(polls, false, mishap).await,
            Way::DroppedWhenWoken(polls) => drop_at(polls, true, mishap).await,
            Way::DisturbedAtWork(what) => {
                let mut mishap = std::pin::pin!(mishap);
                let disturbed = async {
                    self.outsider.sees_it_at_work().await;
                    self.outsider.disturb(what).await;
                };
                tokio::select! {
                    outcome = &mut mishap => Some(outcome),
                    () = disturbed => Some(mishap.await),
                }
            }
        };
        let (steps, wrong) = pace.end();
        Happened { outcome, steps, wrong }
    }

    /// Several readers at once; what was wrong.
    async fn read(&mut self, may_be_lost: bool) -> Vec<String> {
        let dice: Vec<fastrand::Rng> = (0..READERS).map(|_| self.dice.fork()).collect();
        let readers = dice.into_iter().map(|dice| timeout(ANSWER_LIMIT, reader(&self.db, dice)));
        let mut wrong = Vec::new();
        for outcome in join_all(readers).await {
            match outcome.unwrap_or_else(|_| Err((String::new(), Wrong::NeverAnswered))) {
                Ok(answers) => self.tally.answers += answers,
                Err((_, why)) if may_be_lost && why.is_loss() => self.tally.lost += 1,
                Err((shape, why)) => wrong.push(format!("{shape}: {why}")),
            }
        }
        wrong
    }

    pub async fn end(self) -> Tally {
        let Self { pool, outsider, tally, .. } = self;
        outsider.leave().await;
        pool_testkit::eventually("nothing being in use", SOON, || async {
            pool.stats().workspaces.connections.in_use == 0
        })
        .await
        .unwrap();
        pool.cleanup().await.unwrap();
        tally
    }
}

/// Whether somebody else ended the session: if its holder did not notice, the next one does (L3).
fn is_ended_unseen(way: Way) -> bool {
    let end = Disturbance::Terminate;
    way == Way::DisturbedAtWork(end) || matches!(way, Way::Disturbed(what, _) if what == end)
}
