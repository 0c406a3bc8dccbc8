//! Asks the server about a run while it runs: how many sessions its pools have, whether a case that is over
//! has left any or a database, and what is left of all at the end.
//!
//! All of it comes from the same question, asked a hundred times a second over one connection. So a case is
//! watched without a moment of waiting, while the next ones run: its tag tells what is its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};

use super::leftovers::drop_database;
use super::timeline::{Point, Timeline};
use crate::naming::{RunId, Tag, in_tag, serial_of_database};
use crate::room::budget;
use crate::server::{ServerError, TestServer};

/// How often the server is asked how many sessions the run has.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// How long sessions of processes that have just ended are given to vanish.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// A session of the run that outlived its case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftConnection {
    /// The process id of its backend.
    pub pid: i32,
    /// The suite of its test.
    pub suite: String,
    /// The case of its test; one with a long name, that was not asked about, as its tag has it.
    pub case: String,
    /// What it is doing.
    pub state: String,
    /// The last statement it ran.
    pub last_query: String,
}

/// A database of the run that outlived its case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftDatabase {
    /// Its name.
    pub name: String,
    /// The suite and the case of its test, if a session of its pool was ever seen.
    pub test: Option<(String, String)>,
}

/// What the server said about a run.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// How many connections tests may use together: what the server allows, less what is reserved.
    pub budget: u32,
    /// The most sessions of the run's pools at a time.
    pub peak: u32,
    /// The same, by suite.
    pub peak_by_suite: BTreeMap<String, u32>,
    /// The same, by suite and case, the latter as [`in_tag`] shortens it.
    pub peak_by_case: BTreeMap<(String, String), u32>,
    /// How often the server was asked.
    pub samples: u64,
    /// How many sessions each suite had over time.
    pub timeline: Timeline,
    /// Sessions left, after their case or at the end.
    pub left_connections: Vec<LeftConnection>,
    /// Databases left, after their case or at the end.
    pub left_databases: Vec<LeftDatabase>,
}

/// Asks the server about a run, from a thread and over a connection of its own, until it is finished.
pub struct Sampler {
    asks: mpsc::Sender<Ask>,
    thread: JoinHandle<Result<Sampled, ServerError>>,
}

enum Ask {
    /// The test of this path is over: what is left of it?
    Over(String),
    /// Tell when all cases that are over have been looked at.
    Settled(mpsc::Sender<()>),
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
        let (conn, budget) = runtime.block_on(async {
            let mut conn = PgConnection::connect_with(&options).await?;
            let budget = budget(&mut conn).await?;
            Ok::<_, Error>((conn, budget))
        })?;
        let (asks, asked) = mpsc::channel();
        let watch = Watch::new(conn, run.clone(), budget);
        let thread = thread::spawn(move || watch.through(&runtime, &asked));
        Ok(Self { asks, thread })
    }

    /// Says that the test of this path is over. What it has left after some moments is told at the end.
    pub fn case_is_over(&self, path: &str) {
        // A sampler that has failed says so when it is finished.
        let _ = self.asks.send(Ask::Over(path.to_owned()));
    }

    /// Waits until all cases that are over have been looked at, so that they may begin anew.
    pub fn settle(&self) {
        let (done, is_done) = mpsc::channel();
        if self.asks.send(Ask::Settled(done)).is_ok() {
            let _ = is_done.recv();
        }
    }

    /// Ends the sampling, removes what is left, and tells what was seen and what was left.
    ///
    /// # Errors
    /// When the server could not be asked.
    pub fn finish(self) -> Result<Sampled, ServerError> {
        drop(self.asks);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the sampler panicked").into()))
    }
}

/// A test that is over.
#[derive(Debug)]
struct Over {
    suite: String,
    case: String,
    in_tag: (String, String),
    until: Instant,
}

impl Over {
    fn new(path: &str, now: Instant) -> Self {
        let split = |path: &str| {
            let (suite, case) = path.split_once("::").unwrap_or(("none", path));
            (suite.to_owned(), case.to_owned())
        };
        let (suite, case) = split(path);
        Self { suite, case, in_tag: split(&in_tag(path)), until: now + SETTLE_LIMIT }
    }

    fn test(&self) -> (String, String) {
        (self.suite.clone(), self.case.clone())
    }
}

struct Watch {
    conn: PgConnection,
    run: RunId,
    began: Instant,
    /// Whose pool each was, as far as one of its sessions was ever seen.
    pools: BTreeMap<i32, (String, String)>,
    over: Vec<Over>,
    waiting: Vec<mpsc::Sender<()>>,
    sampled: Sampled,
}

impl Watch {
    fn new(conn: PgConnection, run: RunId, budget: u32) -> Self {
        let sampled = Sampled { budget, ..Sampled::default() };
        let (pools, over, waiting) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { conn, run, began: Instant::now(), pools, over, waiting, sampled }
    }

    fn through(
        mut self,
        runtime: &tokio::runtime::Runtime,
        asked: &mpsc::Receiver<Ask>,
    ) -> Result<Sampled, ServerError> {
        let mut next = Instant::now() + SAMPLE_EVERY;
        loop {
            match asked.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Ask::Over(path)) => self.over.push(Over::new(&path, Instant::now())),
                Ok(Ask::Settled(tell)) => self.waiting.push(tell),
                Err(RecvTimeoutError::Timeout) => {
                    runtime.block_on(self.look())?;
                    next = Instant::now() + SAMPLE_EVERY;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        runtime.block_on(self.end())?;
        Ok(self.sampled)
    }

    /// One sample, which is also a look at the cases that are over.
    async fn look(&mut self) -> Result<(), Error> {
        let sessions = self.sessions().await?;
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.sampled.note(at_ms, &sessions);
        if !self.over.is_empty() {
            let databases = self.databases().await?;
            self.sampled.judge(&mut self.over, &sessions, &databases, Instant::now());
        }
        if self.over.is_empty() {
            for tell in self.waiting.drain(..) {
                let _ = tell.send(()); // an asker who is gone needs no answer
            }
        }
        Ok(())
    }

    /// Looks until nothing is left or the time is up, and then removes what is left.
    async fn end(&mut self) -> Result<(), Error> {
        let until = Instant::now() + SETTLE_LIMIT;
        loop {
            let (sessions, databases) = (self.sessions().await?, self.databases().await?);
            self.sampled.judge(&mut self.over, &sessions, &databases, Instant::now());
            let is_clean = sessions.is_empty() && databases.is_empty();
            if is_clean || Instant::now() > until {
                self.over.iter_mut().for_each(|over| over.until = until);
                self.sampled.judge(&mut self.over, &sessions, &databases, Instant::now());
                self.sampled.add_left(sessions, databases);
                break;
            }
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
        self.waiting.clear();
        self.remove().await
    }

    /// Nobody else would: the run is over, and everything with its tag has been told about.
    async fn remove(&mut self) -> Result<(), Error> {
        for left in self.sessions().await? {
            let ended = sqlx::query("select pg_terminate_backend($1)").bind(left.pid);
            ended.execute(&mut self.conn).await?;
        }
        for left in self.databases().await? {
            drop_database(&mut self.conn, &left.name).await?;
        }
        Ok(())
    }

    /// The sessions of the run's pools now. Those of their janitors are only looked at to learn whose a pool is.
    async fn sessions(&mut self) -> Result<Vec<LeftConnection>, Error> {
        let rows = sqlx::query(
            "select pid, application_name, coalesce(state, ''), coalesce(query, '') from pg_stat_activity \
             where starts_with(application_name, $1) or starts_with(application_name, $2)",
        )
        .bind(self.run.sessions())
        .bind(format!("pk:{}:", self.run))
        .fetch_all(&mut self.conn)
        .await?;
        let mut sessions = Vec::new();
        for row in rows {
            let Some(tag) = Tag::parse(row.try_get(1)?) else { continue };
            let Tag { is_janitor, serial, suite, case, .. } = tag;
            self.pools.entry(serial).or_insert_with(|| (suite.clone(), case.clone()));
            if !is_janitor {
                let (pid, state, last_query) = (row.try_get(0)?, row.try_get(2)?, row.try_get(3)?);
                sessions.push(LeftConnection { pid, suite, case, state, last_query });
            }
        }
        Ok(sessions)
    }

    async fn databases(&mut self) -> Result<Vec<LeftDatabase>, Error> {
        let names: Vec<String> = sqlx::query_scalar(
            "select datname::text from pg_database where starts_with(datname, $1) order by 1",
        )
        .bind(self.run.databases())
        .fetch_all(&mut self.conn)
        .await?;
        let test =
            |name: &String| serial_of_database(name).and_then(|serial| self.pools.get(&serial).cloned());
        Ok(names.into_iter().map(|name| LeftDatabase { test: test(&name), name }).collect())
    }
}

impl Sampled {
    fn note(&mut self, at_ms: u64, sessions: &[LeftConnection]) {
        let mut by_suite: BTreeMap<String, u32> = BTreeMap::new();
        let mut by_case: BTreeMap<(String, String), u32> = BTreeMap::new();
        for session in sessions {
            *by_suite.entry(session.suite.clone()).or_default() += 1;
            *by_case.entry((session.suite.clone(), session.case.clone())).or_default() += 1;
        }
        self.samples += 1;
        self.peak = self.peak.max(by_suite.values().sum());
        for (suite, count) in &by_suite {
            let peak = self.peak_by_suite.entry(suite.clone()).or_default();
            *peak = (*count).max(*peak);
        }
        for (case, count) in by_case {
            let peak = self.peak_by_case.entry(case).or_default();
            *peak = count.max(*peak);
        }
        self.timeline.push(Point { at_ms, by_suite });
    }

    /// Lets go of the cases that have left nothing, and keeps what others have left when their time is up.
    fn judge(
        &mut self,
        pending: &mut Vec<Over>,
        sessions: &[LeftConnection],
        databases: &[LeftDatabase],
        now: Instant,
    ) {
        let known: BTreeSet<i32> = self.left_connections.iter().map(|left| left.pid).collect();
        for over in std::mem::take(pending) {
            let is_its = |suite: &String, case: &String| (suite, case) == (&over.in_tag.0, &over.in_tag.1);
            let left: Vec<&LeftConnection> =
                sessions.iter().filter(|s| is_its(&s.suite, &s.case) && !known.contains(&s.pid)).collect();
            let its_databases: Vec<&LeftDatabase> = databases
                .iter()
                .filter(|d| d.test.as_ref().is_some_and(|(suite, case)| is_its(suite, case)))
                .filter(|d| !self.left_databases.iter().any(|known| known.name == d.name))
                .collect();
            if left.is_empty() && its_databases.is_empty() {
                continue;
            }
            if now < over.until {
                pending.push(over);
                continue;
            }
            let (suite, case) = over.test();
            self.left_connections.extend(left.into_iter().map(|s| LeftConnection {
                suite: suite.clone(),
                case: case.clone(),
                ..s.clone()
            }));
            self.left_databases.extend(
                its_databases
                    .into_iter()
                    .map(|d| LeftDatabase { name: d.name.clone(), test: Some(over.test()) }),
            );
        }
    }

    /// Takes in what is left at the end and was not told about before.
    fn add_left(&mut self, sessions: Vec<LeftConnection>, databases: Vec<LeftDatabase>) {
        for session in sessions {
            if !self.left_connections.iter().any(|known| known.pid == session.pid) {
                self.left_connections.push(session);
            }
        }
        for database in databases {
            if !self.left_databases.iter().any(|known| known.name == database.name) {
                self.left_databases.push(database);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(pid: i32, path: &str) -> LeftConnection {
        let tagged = in_tag(path);
        let (suite, case) = tagged.split_once("::").unwrap();
        let (suite, case) = (suite.to_owned(), case.to_owned());
        LeftConnection { pid, suite, case, state: "active".into(), last_query: "select 1".into() }
    }

    fn database(name: &str, path: &str) -> LeftDatabase {
        let session = session(0, path);
        LeftDatabase { name: name.into(), test: Some((session.suite, session.case)) }
    }

    #[test]
    fn a_case_is_let_go_as_soon_as_it_has_left_nothing() {
        let (mut sampled, now) = (Sampled::default(), Instant::now());
        let mut over = vec![Over::new("limits::a", now)];
        sampled.judge(&mut over, &[session(1, "limits::a")], &[], now);
        assert_eq!((over.len(), sampled.left_connections.len()), (1, 0), "it may still be on its way out");
        sampled.judge(&mut over, &[session(2, "limits::b")], &[database("d", "limits::b")], now);
        assert!(over.is_empty() && sampled.left_connections.is_empty() && sampled.left_databases.is_empty());
    }

    #[test]
    fn what_is_left_in_the_end_is_its_cases_and_nobody_elses() {
        let long = format!("limits::{}", "long_".repeat(12));
        let (mut sampled, now) = (Sampled::default(), Instant::now());
        let mut over = vec![Over::new(&long, now)];
        let sessions = [session(1, &long), session(2, "limits::b")];
        let databases = [database("its", &long), LeftDatabase { name: "nobodys".into(), test: None }];
        let late = now + SETTLE_LIMIT;
        sampled.judge(&mut over, &sessions, &databases, late);
        assert!(over.is_empty());
        let [left] = sampled.left_connections.as_slice() else { panic!("{sampled:?}") };
        assert_eq!(
            (left.pid, format!("{}::{}", left.suite, left.case)),
            (1, long.clone()),
            "by its full name"
        );
        let names: Vec<&str> = sampled.left_databases.iter().map(|left| left.name.as_str()).collect();
        assert_eq!(names, ["its"]);
        // The next round of the same case does not answer for it again; the end tells only what is new.
        over.push(Over::new(&long, late));
        sampled.judge(&mut over, &sessions[..1], &databases[..1], late);
        assert!(over.is_empty());
        sampled.add_left(sessions.to_vec(), databases.to_vec());
        assert_eq!((sampled.left_connections.len(), sampled.left_databases.len()), (2, 2));
    }

    #[test]
    fn peaks_are_counted_by_suite_and_case() {
        let mut sampled = Sampled::default();
        sampled.note(0, &[session(1, "limits::a"), session(2, "limits::a"), session(3, "failure::b")]);
        sampled.note(10, &[session(3, "failure::b"), session(4, "failure::c")]);
        assert_eq!((sampled.peak, sampled.samples), (3, 2));
        assert_eq!(sampled.peak_by_suite, BTreeMap::from([("limits".into(), 2), ("failure".into(), 2)]));
        assert_eq!(sampled.peak_by_case[&("failure".into(), "b".into())], 1);
        assert_eq!(sampled.timeline.points().len(), 2);
    }
}
