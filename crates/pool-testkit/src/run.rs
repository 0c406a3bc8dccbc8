//! A run of the suites as a whole: what its processes are told, what they leave for the report, and what
//! the server says about it while it runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};

use crate::naming::case_of_tag;
use crate::server::{ServerError, TestServer};

pub use crate::naming::RunId;

/// Names the run to the test processes: six characters of a-z and 0-9.
pub const RUN_ENV: &str = "POOL_TEST_RUN";
/// Names the directory in which each test pool leaves a [`Record`].
pub const RECORDS_ENV: &str = "POOL_TEST_RECORDS";

/// Gives the tests their seed, as a decimal number.
pub const SEED_ENV: &str = "POOL_TEST_SEED";

/// The seed of this run, or a random one. Printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let given = std::env::var(SEED_ENV).ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    seed
}

/// How often the server is asked how many sessions the run has.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// How long sessions of processes that have just ended are given to vanish.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// What a test pool tells about itself when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The suite of its test.
    pub suite: String,
    /// The case of its test.
    pub case: String,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// The most connections at a time, as the pool counted them.
    pub peak: u32,
    /// Sessions that the server still saw after the pool was closed.
    pub leaked: u32,
    /// From its creation to its end.
    pub duration_ms: u64,
}

impl Record {
    /// Leaves the record for the report, if there is to be one.
    pub(crate) fn leave(&self) {
        let Some(dir) = std::env::var_os(RECORDS_ENV) else { return };
        let name = format!("{}-{:016x}.json", std::process::id(), fastrand::u64(..));
        let written = serde_json::to_vec(self).map_err(io::Error::from);
        if let Err(error) = written.and_then(|json| fs::write(Path::new(&dir).join(name), json)) {
            tracing::error!(%error, "the record of a test pool could not be written");
        }
    }
}

/// The records in a directory.
///
/// # Errors
/// When the directory or one of the records cannot be read.
pub fn read_records(dir: &Path) -> io::Result<Vec<Record>> {
    let read = |entry: io::Result<fs::DirEntry>| Ok(serde_json::from_slice(&fs::read(entry?.path())?)?);
    fs::read_dir(dir)?.map(read).collect()
}

/// A session of the run that outlived it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftConnection {
    /// The process id of its backend.
    pub pid: i32,
    /// The suite of its test.
    pub suite: String,
    /// The case of its test.
    pub case: String,
    /// What it is doing.
    pub state: String,
    /// The last statement it ran.
    pub last_query: String,
}

/// What the server said about a run.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// The most sessions of the run's pools at a time.
    pub peak: u32,
    /// The same, by suite.
    pub peak_by_suite: BTreeMap<String, u32>,
    /// How often the server was asked.
    pub samples: u64,
    /// Sessions left at the end.
    pub left_connections: Vec<LeftConnection>,
    /// Databases left at the end.
    pub left_databases: Vec<String>,
}

/// Asks the server about a run, from a thread and over a connection of its own, until it is finished.
pub struct Sampler {
    finish: mpsc::Sender<()>,
    thread: JoinHandle<Result<Sampled, ServerError>>,
}

impl Sampler {
    /// Begins to sample.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn start(server: &TestServer, run: &RunId) -> Result<Self, ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = server.config().clone().application_name(&format!("pk:{run}:sampler"));
        let options = config.connect_options(server.system_database());
        let conn = runtime.block_on(PgConnection::connect_with(&options))?;
        let (finish, finished) = mpsc::channel();
        let run = run.clone();
        let thread = thread::spawn(move || sample(&runtime, conn, &run, &finished));
        Ok(Self { finish, thread })
    }

    /// Ends the sampling, and tells what was seen and what is left.
    ///
    /// # Errors
    /// When the server could not be asked.
    pub fn finish(self) -> Result<Sampled, ServerError> {
        drop(self.finish);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the sampler panicked").into()))
    }
}

fn sample(
    runtime: &tokio::runtime::Runtime,
    mut conn: PgConnection,
    run: &RunId,
    finished: &mpsc::Receiver<()>,
) -> Result<Sampled, ServerError> {
    let mut sampled = Sampled::default();
    while let Err(RecvTimeoutError::Timeout) = finished.recv_timeout(SAMPLE_EVERY) {
        let sessions = runtime.block_on(sessions(&mut conn, run))?;
        sampled.note(&sessions);
    }
    runtime.block_on(async {
        let began = Instant::now();
        loop {
            sampled.left_connections = sessions(&mut conn, run).await?;
            sampled.left_databases = databases(&mut conn, run).await?;
            let clean = sampled.left_connections.is_empty() && sampled.left_databases.is_empty();
            if clean || began.elapsed() > SETTLE_LIMIT {
                break;
            }
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
        conn.close().await?;
        Ok(sampled)
    })
}

impl Sampled {
    fn note(&mut self, sessions: &[LeftConnection]) {
        let mut by_suite: BTreeMap<&str, u32> = BTreeMap::new();
        for session in sessions {
            *by_suite.entry(&session.suite).or_default() += 1;
        }
        self.samples += 1;
        self.peak = self.peak.max(by_suite.values().sum());
        for (suite, count) in by_suite {
            let peak = self.peak_by_suite.entry(suite.to_owned()).or_default();
            *peak = count.max(*peak);
        }
    }
}

async fn sessions(conn: &mut PgConnection, run: &RunId) -> Result<Vec<LeftConnection>, Error> {
    let rows = sqlx::query(
        "select pid, application_name, coalesce(state, ''), coalesce(query, '') \
         from pg_stat_activity where starts_with(application_name, $1)",
    )
    .bind(run.sessions())
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let (suite, case) = case_of_tag(row.try_get(1)?);
            let (pid, state, last_query) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
            Ok(LeftConnection { pid, suite, case, state, last_query })
        })
        .collect()
}

async fn databases(conn: &mut PgConnection, run: &RunId) -> Result<Vec<String>, Error> {
    sqlx::query_scalar("select datname::text from pg_database where starts_with(datname, $1)")
        .bind(run.databases())
        .fetch_all(conn)
        .await
}

/// Prints a figure on a line of its own.
pub fn figure(name: &str, value: f64, unit: &str) {
    println!("{name}: {value:.3} {unit}");
}

/// Prints a series of figures.
pub fn figure_series(name: &str, x_unit: &str, y_unit: &str, points: &[(f64, f64)]) {
    println!("{name} ({x_unit}, {y_unit}): {points:.1?}");
}
