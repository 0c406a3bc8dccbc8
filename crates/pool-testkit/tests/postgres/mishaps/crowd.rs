//! Many holders at once: some have mishaps, the others read, on the same few connections of several workspaces.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pool_postgres::{Limits, PgWorkspacePool};
use pool_testkit::TestPool;
use tokio::task::JoinSet;

use super::access::{End, Route, had_no_connection};
use super::kinds::{KINDS, Kind};
use super::readers::reader;
use super::ways::{FAILING, Fault, Pace, Way, drop_at};
use super::world::{Cell, SCHEMA, Tally};

const WORKSPACES: usize = 4;
const PER_WORKSPACE: u32 = 3;
const UNLUCKY: usize = 8;
const READERS: usize = 8;
/// Most mishaps come to their end within as many polls.
const POLLS_MAX: usize = 40;

const ROUTES: [Route; 8] = [
    Route::Lease,
    Route::Handle,
    Route::Transaction(End::Commit),
    Route::Transaction(End::Drop),
    Route::Raw,
    Route::RawInTransaction,
    Route::SqlxTransaction(End::Commit),
    Route::SqlxTransaction(End::Drop),
];

/// Any mishap, but for those that take a second.
pub fn any(dice: &mut fastrand::Rng) -> Cell {
    loop {
        let (kind, route) = (KINDS[dice.usize(..KINDS.len())], ROUTES[dice.usize(..ROUTES.len())]);
        if kind.goes_over(route) && !kind.is_tedious() {
            return Cell { kind, fault: fault(kind, dice), way: way(dice), route };
        }
    }
}

/// A query that is dropped while the server works for it, so that it has to be cancelled.
pub fn cancelled(dice: &mut fastrand::Rng) -> Cell {
    let kind = [Kind::Stream, Kind::FetchOptionalSimple, Kind::Prepare, Kind::Batch][dice.usize(..4)];
    let route = ROUTES[dice.usize(..ROUTES.len())];
    Cell { kind, fault: Fault::Slow, way: Way::Dropped(dice.usize(3..12)), route }
}

/// A COPY that is dropped somewhere.
pub fn copies(dice: &mut fastrand::Rng) -> Cell {
    let kind = [Kind::CopyInLeft, Kind::CopyInFinish, Kind::CopyInAbort][dice.usize(..3)];
    let route = if dice.bool() { Route::Raw } else { Route::Lease };
    let way = if kind == Kind::CopyInLeft { Way::Left } else { way(dice) };
    Cell { kind, fault: Fault::Nothing, way, route }
}

fn fault(kind: Kind, dice: &mut fastrand::Rng) -> Fault {
    let failing = FAILING[dice.usize(..FAILING.len())];
    match dice.u32(..4) {
        0 if kind.takes_faults() => failing,
        1 if kind.takes_faults() => Fault::Slow,
        _ => Fault::Nothing,
    }
}

fn way(dice: &mut fastrand::Rng) -> Way {
    let polls = dice.usize(1..POLLS_MAX);
    [Way::Left, Way::Dropped(polls), Way::DroppedWhenWoken(polls)][dice.usize(..3)]
}

/// What all of them share.
struct Crowd {
    workspaces: Vec<PgWorkspacePool>,
    choose: fn(&mut fastrand::Rng) -> Cell,
    mishaps_left: AtomicU64,
    is_over: AtomicBool,
    answers: AtomicU64,
    wrong: Mutex<Vec<(String, String)>>,
}

/// Has so many mishaps happen, chosen like this, while readers read.
pub async fn crowd(mishaps: u64, choose: fn(&mut fastrand::Rng) -> Cell, seed: u64) -> Tally {
    let limits = Limits::new(PER_WORKSPACE * 4 + 5).system(5).per_workspace(PER_WORKSPACE);
    let pool = TestPool::builder().limits(limits).build().await.unwrap();
    let ids = pool.create_test_workspaces(WORKSPACES).await.unwrap();
    let workspaces: Vec<_> = ids.iter().map(|id| pool.workspace(id)).collect();
    for db in &workspaces {
        sqlx::raw_sql(SCHEMA).execute(db).await.unwrap();
    }
    let crowd = Arc::new(Crowd {
        workspaces,
        choose,
        mishaps_left: AtomicU64::new(mishaps),
        is_over: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        wrong: Mutex::default(),
    });
    let mut dice = fastrand::Rng::with_seed(seed);
    let (mut unlucky, mut readers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..UNLUCKY {
        unlucky.spawn(Arc::clone(&crowd).have_mishaps(dice.fork()));
    }
    for _ in 0..READERS {
        readers.spawn(Arc::clone(&crowd).read(dice.fork()));
    }
    let unlucky = unlucky.join_all().await;
    crowd.is_over.store(true, Ordering::Relaxed);
    readers.join_all().await;
    pool.cleanup().await.unwrap();
    Tally {
        mishaps: unlucky.into_iter().sum(),
        answers: crowd.answers.load(Ordering::Relaxed),
        lost: 0,
        wrong: std::mem::take(&mut *crowd.wrong.lock().unwrap()),
    }
}

impl Crowd {
    /// Has mishaps until there were enough of them. Returns how many.
    async fn have_mishaps(self: Arc<Self>, mut dice: fastrand::Rng) -> u64 {
        let mut had = 0;
        let one_less = |left: u64| left.checked_sub(1);
        while self.mishaps_left.try_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            let cell = (self.choose)(&mut dice);
            let db = &self.workspaces[dice.usize(..self.workspaces.len())];
            let pace = Pace::of(None, cell.way);
            let mishap = cell.route.walk(db, cell.kind, cell.fault, &pace);
            let outcome = match cell.way {
                Way::Dropped(polls) => drop_at(polls, false, mishap).await,
                Way::DroppedWhenWoken(polls) => drop_at(polls, true, mishap).await,
                _ => Some(mishap.await),
            };
            let (_, wrong) = pace.end();
            let refused = outcome.and_then(Result::err).filter(had_no_connection);
            let refused = refused.map(|error| format!("no connection for the mishap: {error}"));
            self.wrong
                .lock()
                .unwrap()
                .extend(wrong.into_iter().chain(refused).map(|what| (format!("{cell:?}"), what)));
            had += 1;
        }
        had
    }

    /// Reads until the mishaps are over.
    async fn read(self: Arc<Self>, mut dice: fastrand::Rng) {
        while !self.is_over.load(Ordering::Relaxed) {
            let db = &self.workspaces[dice.usize(..self.workspaces.len())];
            match reader(db, dice.fork()).await {
                Ok(answers) => drop(self.answers.fetch_add(answers, Ordering::Relaxed)),
                Err((shape, wrong)) => {
                    self.wrong.lock().unwrap().push(("a reader".to_owned(), format!("{shape}: {wrong}")));
                }
            }
        }
    }
}
