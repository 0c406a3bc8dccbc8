//! The soak: a thousand workspaces, a budget of 50, and 256 tasks that do to the pool what a bad week does to it.
//! Half a minute of it by default; `POOL_SOAK_SECONDS=600` or `cargo xtask soak` for longer.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pool_postgres::{AcquireError, DriverErrorKind, Limits, PgLease, Stage, WorkspaceId, acquire_error};
use pool_testkit::{TestPool, eventually, resident_memory_bytes, run};
use tokio::task::JoinSet;
use tokio::time::timeout;

const WORKSPACES: usize = 1_000;
const BUDGET: u32 = 50;
const TASKS: usize = 256;
/// Workspaces whose databases are dropped and made again all the time.
const MORTAL: usize = 25;
/// How much the process may grow between the middle of the load and its end. One connection kept for each of
/// the 50 slots with its prepared statements is some 5 MB; a leak of one lease in ten would be hundreds.
const GROWTH_MB_MAX: u64 = 48;
const SOON: Duration = Duration::from_mins(1);

fn seconds() -> u64 {
    std::env::var("POOL_SOAK_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30)
}

/// What became of every call, by name.
#[derive(Default)]
struct Ledger(Mutex<BTreeMap<&'static str, u64>>);

impl Ledger {
    fn count(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.lock().unwrap().get(what).copied().unwrap_or_default()
    }

    fn told(&self) -> String {
        let all = self.0.lock().unwrap();
        all.iter().map(|(what, n)| format!("{what} {n}")).collect::<Vec<_>>().join(", ")
    }
}

struct Soak {
    pool: TestPool,
    ids: Vec<WorkspaceId>,
    ledger: Ledger,
    over: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_s1_w4_a_soak_leaves_the_count_exact_and_the_memory_flat() {
    let tasks_before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let made = Instant::now();
    let limits = Limits::new(BUDGET).per_workspace(5).system(8);
    // All databases are asked for at once, and the last one waits for the others: over a minute on a slow disk.
    let patient = |builder: pool_postgres::PgPoolsBuilder| {
        builder
            .acquire_timeout(Duration::from_secs(20))
            .adjust(|settings| settings.change_timeout = Duration::from_mins(10))
    };
    let pool = TestPool::builder().limits(limits).adjust(patient).build().await.unwrap();
    let ids = pool.create_test_workspaces(WORKSPACES).await.unwrap();
    println!("{WORKSPACES} workspaces in {:.1?}", made.elapsed());
    let soak = Arc::new(Soak { pool, ids, ledger: Ledger::default(), over: AtomicBool::new(false) });

    let growth = load(&soak).await;
    println!("{}", soak.ledger.told());
    for what in [
        "served",
        "cancelled while waiting",
        "cancelled query",
        "transaction dropped",
        "copy dropped",
        "own answer",
        "session ended",
        "dropped",
    ] {
        assert!(soak.ledger.of(what) > 0, "nothing of this kind has happened: {what}");
    }
    let asked = soak.ledger.of("asked");
    let answered: u64 = ["served", "cancelled while waiting", "no database", "closing", "no connection"]
        .map(|what| soak.ledger.of(what))
        .iter()
        .sum();
    assert_eq!(asked, answered, "every acquire is served or fails with a reason: {}", soak.ledger.told());
    if let Some(growth) = growth {
        println!("grown by {growth} MB from the middle of the load to its end");
        assert!(growth < GROWTH_MB_MAX, "grown by {growth} MB");
    }

    let Soak { pool, ids, .. } = Arc::into_inner(soak).unwrap();
    counts_are_exact(&pool, &ids).await;
    pool.cleanup().await.unwrap();
    drop(pool);
    eventually("no task being left", SOON, || async {
        tokio::runtime::Handle::current().metrics().num_alive_tasks() == tasks_before
    })
    .await
    .unwrap();
}

/// Runs the load to its end. Returns by how many megabytes the process has grown in its second half.
async fn load(soak: &Arc<Soak>) -> Option<u64> {
    let half = Duration::from_millis(seconds() * 500);
    let mut dice = fastrand::Rng::with_seed(run::seed());
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        tasks.spawn(caller(Arc::clone(soak), dice.fork()));
    }
    tasks.spawn(assassin(Arc::clone(soak)));
    let watch = tokio::spawn(watch(Arc::clone(soak)));
    tokio::time::sleep(half).await;
    let middle = resident_memory_bytes();
    tokio::time::sleep(half).await;
    let end = resident_memory_bytes();
    soak.over.store(true, Ordering::Relaxed);
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let (peak, looks) = watch.await.unwrap();
    println!("the server counted at most {peak} of {BUDGET} connections in {looks} looks");
    assert!(peak <= BUDGET && looks > 10, "{peak} in {looks} looks");
    middle.zip(end).map(|(middle, end)| end.saturating_sub(middle) >> 20)
}

/// Counts sessions as the server does, for as long as the load lasts.
async fn watch(soak: Arc<Soak>) -> (u32, u32) {
    let (mut peak, mut looks) = (0, 0);
    let mut told = Instant::now();
    while !soak.is_over() {
        peak = soak.pool.active_connection_count().await.unwrap().max(peak);
        looks += 1;
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            println!("{}", soak.ledger.told());
        }
    }
    (peak, looks)
}

/// Ends a session at random now and then, in use or not.
async fn assassin(soak: Arc<Soak>) {
    let victim = "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity \
                  where starts_with(application_name, $1) and datname like '%\\_ws\\_%' order by random() limit 1) as one";
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    while !soak.is_over() {
        pace.tick().await;
        let ended =
            sqlx::query_scalar::<_, i64>(victim).bind(soak.pool.tag()).fetch_one(&soak.pool.system()).await;
        if ended.unwrap() > 0 {
            soak.ledger.count("session ended");
        }
    }
}

async fn caller(soak: Arc<Soak>, mut dice: fastrand::Rng) {
    while !soak.is_over() {
        // Some workspaces are asked for all the time, most now and then.
        let most = dice.usize(1..=WORKSPACES);
        let at = dice.usize(..most);
        let mortal = WORKSPACES - MORTAL + dice.usize(..MORTAL);
        match dice.u32(..1_000) {
            0..2 => soak.drop_database(&soak.ids[mortal]).await,
            2..30 => soak.visit(mortal, &mut dice).await,
            _ => soak.visit(at, &mut dice).await,
        }
    }
}

impl Soak {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Asks for a connection, perhaps not to the end, and does something with it.
    async fn visit(&self, at: usize, dice: &mut fastrand::Rng) {
        let id = &self.ids[at];
        self.ledger.count("asked");
        let asked = self.pool.acquire(id);
        let answer = if dice.u32(..10) == 0 {
            let patience = Duration::from_micros(dice.u64(..20_000));
            let Ok(answer) = timeout(patience, asked).await else {
                return self.ledger.count("cancelled while waiting");
            };
            answer
        } else {
            asked.await
        };
        match answer {
            Ok(lease) => {
                self.ledger.count("served");
                self.hold(id, lease, dice).await;
            }
            Err(error) => self.is_refused(at, &error).await,
        }
    }

    /// An acquire has failed; the reason must be one of those that this load gives.
    async fn is_refused(&self, at: usize, error: &AcquireError) {
        let is_mortal = at >= WORKSPACES - MORTAL;
        match error {
            AcquireError::OpenFailed { source, .. }
                if source.kind == DriverErrorKind::DatabaseMissing && is_mortal =>
            {
                self.ledger.count("no database");
                self.pool.ensure_workspace(&self.ids[at]).await.unwrap();
            }
            AcquireError::WorkspaceClosing { .. } if is_mortal => self.ledger.count("closing"),
            // An open whose session the assassin ended before it was handed out.
            AcquireError::OpenFailed { retryable: true, .. } => self.ledger.count("no connection"),
            // Its last session ended while the database was being dropped.
            AcquireError::OpenFailed { .. } if is_mortal => self.ledger.count("no connection"),
            AcquireError::TimedOut {
                waiting_for: Stage::Budget | Stage::Opening | Stage::WorkspaceCeiling,
                ..
            } => {
                panic!("nobody waits for 20 s: {error}; {}", self.ledger.told())
            }
            error => panic!("{error}; {:?}", self.pool.stats()),
        }
    }

    async fn hold(&self, id: &WorkspaceId, mut lease: PgLease, dice: &mut fastrand::Rng) {
        let nonce = dice.i64(..);
        let ask = sqlx::query_as::<_, (i64, String)>("select $1::bigint, current_database()::text");
        match ask.bind(nonce).fetch_one(&mut lease).await {
            Ok(answer) => assert_eq!(answer, (nonce, self.pool.database_of(id)), "L4, I2"),
            Err(error) => return self.is_lost(&error),
        }
        self.ledger.count("own answer");
        match dice.u32(..100) {
            0..5 => {
                let long = sqlx::query("select pg_sleep(60)").execute(&mut lease);
                match timeout(Duration::from_micros(dice.u64(..5_000)), long).await {
                    Err(_) => self.ledger.count("cancelled query"),
                    Ok(outcome) => self.is_lost(&outcome.unwrap_err()),
                }
            }
            5..10 => {
                match sqlx::raw_sql("begin; create temporary table t (n int)").execute(&mut **lease).await {
                    Ok(_) => self.ledger.count("transaction dropped"),
                    Err(error) => self.is_lost(&error),
                }
            }
            10..12 => {
                let end =
                    sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&mut lease).await;
                self.is_lost(&end.unwrap_err());
            }
            12..14 => lease.discard(),
            14..18 => match half_a_copy(&mut lease, dice).await {
                Ok(()) => self.ledger.count("copy dropped"),
                Err(error) => self.is_lost(&error),
            },
            18..60 => tokio::time::sleep(Duration::from_micros(dice.u64(..5_000))).await,
            _ => {}
        }
    }

    /// A statement has failed: its session was ended, by the assassin or with its database.
    fn is_lost(&self, error: &sqlx::Error) {
        let state = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let is_lost = matches!(error, sqlx::Error::Io(_)) || state.is_some_and(|state| state == "57P01");
        assert!(is_lost && acquire_error(error).is_none(), "{error}");
        self.ledger.count("statement lost");
    }

    async fn drop_database(&self, id: &WorkspaceId) {
        if self.pool.drop_workspace(id).await.unwrap() {
            self.ledger.count("dropped");
        }
    }
}

/// A COPY of which some rows are sent, and no end.
async fn half_a_copy(lease: &mut PgLease, dice: &mut fastrand::Rng) -> Result<(), sqlx::Error> {
    let table = "create temporary table if not exists half (n int)";
    sqlx::raw_sql(table).execute(&mut *lease).await?;
    let mut copy = lease.copy_in_raw("copy half from stdin").await?;
    for _ in 0..dice.u32(..4) {
        copy.send(&b"1\n"[..]).await?;
    }
    Ok(())
}

/// After the load: nothing is in use or under way, and what is idle is what the server counts. A session that was
/// ended while idle is found when it is used, so each is used once.
async fn counts_are_exact(pool: &TestPool, ids: &[WorkspaceId]) {
    let is_quiet = || {
        let stats = pool.stats();
        [stats.workspaces, stats.system].iter().all(|share| {
            let now = share.connections;
            now.in_use + now.opening + now.closing + share.waiting == 0
        })
    };
    eventually("nothing being in use or under way", SOON, || async { is_quiet() }).await.unwrap();
    for id in ids {
        let idle = pool.workspace(id).counts().idle;
        let leases = try_join_all((0..idle).map(|_| pool.acquire(id))).await.unwrap();
        for mut lease in leases {
            gets_its_own_answer(&mut lease).await;
        }
    }
    let system = pool.stats().system.connections.idle;
    let leases = try_join_all((0..system).map(|_| async { pool.system().acquire().await })).await.unwrap();
    for mut lease in leases {
        gets_its_own_answer(&mut lease).await;
    }
    eventually("nothing being in use or under way again", SOON, || async { is_quiet() }).await.unwrap();
    let stats = pool.stats();
    let (idle, counted) =
        (stats.workspaces.connections.idle + stats.system.connections.idle, stats.connections().total());
    assert_eq!(idle, counted, "{stats:?}");
    let sessions = pool.sessions().await.unwrap();
    assert_eq!(sessions.len(), (counted + stats.control) as usize, "{stats:?}: {sessions:?}");
    assert!(sessions.iter().all(|session| session.state == "idle"), "{sessions:?}");
    println!("{idle} connections are idle, and the server counts as many");
}

async fn gets_its_own_answer(lease: &mut PgLease) {
    let nonce = fastrand::i64(..);
    let echo: i64 = sqlx::query_scalar("select $1::bigint").bind(nonce).fetch_one(lease).await.unwrap();
    assert_eq!(echo, nonce, "L4");
}
