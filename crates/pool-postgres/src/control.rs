//! The adapter's own connection to the server, counted in the system share: it cancels queries, ends
//! sessions, and tells when a backend has exited, which is when the server has a free slot again. One
//! owned task holds it; questions that come close together share a round trip.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{DriverError, DriverErrorKind, Phase};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Error, Row};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::classify::driver_error;
use crate::connect::Dialer;
use crate::connection::Session;
use crate::contain::contained;

/// The pause between two looks at backends that are to exit, doubled each time up to the second.
const LOOK_FIRST: Duration = Duration::from_micros(300);
const LOOK_MAX: Duration = Duration::from_millis(50);
/// A backend that has not exited by then is told to.
const INSIST_AFTER: Duration = Duration::from_secs(1);
/// Without a control connection for this long, backends are believed to have exited.
const BELIEVE_AFTER: Duration = Duration::from_secs(30);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(4);
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// How long the server may take to answer before the control connection counts as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What is asked about a set of sessions; all have the same form and two arguments.
#[derive(Clone, Copy)]
enum About {
    Cancel,
    Terminate,
    StillThere,
}

impl About {
    fn sql(self) -> &'static str {
        match self {
            Self::Cancel => {
                "select pg_cancel_backend(s.pid) from unnest($1::int[], $2::text[]) as s(pid, started) \
                 cross join lateral pg_stat_get_activity(s.pid) as a where a.backend_start::text = s.started"
            }
            Self::Terminate => {
                "select pg_terminate_backend(s.pid) from unnest($1::int[], $2::text[]) as s(pid, started) \
                 cross join lateral pg_stat_get_activity(s.pid) as a where a.backend_start::text = s.started"
            }
            Self::StillThere => {
                "select s.pid, s.started from unnest($1::int[], $2::text[]) as s(pid, started) \
                 cross join lateral pg_stat_get_activity(s.pid) as a where a.backend_start::text = s.started"
            }
        }
    }
}

pub(crate) enum Ask {
    /// Cancel what the session is doing.
    Cancel(Session, oneshot::Sender<()>),
    /// Tell when the session's backend has exited; end it first, if so wished.
    Gone { session: Session, end_it: bool, told: oneshot::Sender<()> },
    /// End the task.
    Shutdown,
}

/// The handle on the task.
pub(crate) struct Control {
    asks: mpsc::UnboundedSender<Ask>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Control {
    /// Connects, and starts the task.
    pub(crate) async fn start(
        dialer: Arc<Dialer>,
        database: String,
        limit: Duration,
    ) -> Result<Self, DriverError> {
        let conn = connect(&dialer, &database, limit).await?;
        let (asks, questions) = mpsc::unbounded_channel();
        let worker = Worker { dialer, database, conn: Some(conn), watched: Vec::new(), lost_at: None };
        let task = tokio::spawn(worker.run(questions));
        Ok(Self { asks, task: Mutex::new(Some(task)) })
    }

    /// Cancels what `session` is doing, if it can.
    pub(crate) async fn cancel(&self, session: Session) {
        let (done, told) = oneshot::channel();
        if self.asks.send(Ask::Cancel(session, done)).is_ok() {
            // An answer that never comes means that the task has ended, and the session with it.
            let _ = told.await;
        }
    }

    /// Returns when the server no longer counts `session`, which is ended first if so wished.
    pub(crate) async fn gone(&self, session: Session, end_it: bool) {
        let (told, answer) = oneshot::channel();
        if self.asks.send(Ask::Gone { session, end_it, told }).is_ok() {
            let _ = answer.await;
        }
    }

    /// Ends the task and its connection; returns when the server no longer counts that either.
    pub(crate) async fn shutdown(&self) {
        let mut task = self.task.lock().await;
        let _ = self.asks.send(Ask::Shutdown);
        if let Some(running) = task.as_mut() {
            match timeout(SHUTDOWN_LIMIT, &mut *running).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the control task panicked"),
                // It waits for a server that does not answer, which will not see it leave either.
                Err(_) => running.abort(),
            }
            *task = None;
        }
    }
}

async fn connect(dialer: &Dialer, database: &str, limit: Duration) -> Result<PgConnection, DriverError> {
    let place = || dialer.config().place(database);
    match timeout(limit, dialer.connect(database, async |conn| Ok(conn))).await {
        Ok(outcome) => outcome.map_err(|error| driver_error(error, Phase::Connect, place())),
        Err(_) => Err(DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, place())
            .caused_by(format!("gave up after {limit:?}"))),
    }
}

struct Watched {
    session: Session,
    since: Instant,
    end_it: bool,
    told: oneshot::Sender<()>,
}

struct Worker {
    dialer: Arc<Dialer>,
    database: String,
    conn: Option<PgConnection>,
    watched: Vec<Watched>,
    lost_at: Option<Instant>,
}

impl Worker {
    async fn run(mut self, mut asks: mpsc::UnboundedReceiver<Ask>) {
        let mut pause = LOOK_FIRST;
        let mut look_at = Instant::now();
        loop {
            let idle = self.watched.is_empty();
            let ask = tokio::select! {
                biased;
                ask = asks.recv() => ask,
                () = sleep_until(look_at), if !idle => {
                    let found_some_gone = self.look().await;
                    pause = if found_some_gone { LOOK_FIRST } else { (pause * 2).min(LOOK_MAX) };
                    look_at = Instant::now() + pause;
                    continue;
                }
            };
            match ask {
                Some(Ask::Cancel(session, done)) => {
                    self.ask(About::Cancel, vec![session]).await;
                    let _ = done.send(());
                }
                Some(Ask::Gone { session, end_it, told }) => {
                    let since = Instant::now();
                    self.watched.push(Watched { session, since, end_it, told });
                    pause = LOOK_FIRST;
                    look_at = look_at.min(since + pause);
                    if idle {
                        look_at = since + pause;
                    }
                }
                Some(Ask::Shutdown) | None => break,
            }
        }
        if let Some(conn) = self.conn {
            let _ = timeout(FAREWELL_LIMIT, contained(leave(conn))).await;
        }
    }

    /// Asks the server about all watched sessions at once, and tells those who wait. Returns whether
    /// anything was found gone.
    async fn look(&mut self) -> bool {
        self.insist().await;
        let watched: Vec<Session> = self.watched.iter().map(|watched| watched.session.clone()).collect();
        let Some(rows) = self.ask(About::StillThere, watched).await else { return self.give_up_hope() };
        let there: Vec<Session> = rows
            .iter()
            .filter_map(|row| Some(Session { pid: row.try_get(0).ok()?, started: row.try_get(1).ok()? }))
            .collect();
        let before = self.watched.len();
        let gone = self.watched.extract_if(.., |watched| !there.contains(&watched.session));
        for watched in gone {
            let _ = watched.told.send(());
        }
        self.watched.len() < before
    }

    /// Ends the sessions that were to be ended, and those that take too long to leave by themselves.
    async fn insist(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for watched in &self.watched {
            if watched.end_it || now.duration_since(watched.since) > INSIST_AFTER {
                due.push(watched.session.clone());
            }
        }
        if due.is_empty() || self.ask(About::Terminate, due.clone()).await.is_none() {
            return;
        }
        for watched in self.watched.iter_mut().filter(|watched| due.contains(&watched.session)) {
            watched.end_it = false;
            watched.since = now;
        }
    }

    /// The server's answer about `sessions`, or none if it gives none. A connection that has failed may
    /// have been dead for long, so one more is tried.
    async fn ask(&mut self, about: About, sessions: Vec<Session>) -> Option<Vec<PgRow>> {
        let (pids, started): (Vec<i32>, Vec<String>) =
            sessions.into_iter().map(|Session { pid, started }| (pid, started)).unzip();
        for _ in 0..2 {
            let conn = self.conn().await?;
            let query = sqlx::query(about.sql()).bind(&pids).bind(&started).fetch_all(conn);
            let why = match timeout(ANSWER_LIMIT, contained(query)).await {
                Ok(Ok(rows)) => return Some(rows),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {ANSWER_LIMIT:?}"),
            };
            tracing::debug!(why, "the control connection failed");
            self.conn = None;
            self.lost_at.get_or_insert_with(Instant::now);
        }
        None
    }

    /// The connection, made again if it was lost.
    async fn conn(&mut self) -> Option<&mut PgConnection> {
        if self.conn.is_none() {
            match connect(&self.dialer, &self.database, ANSWER_LIMIT).await {
                Ok(conn) => {
                    self.conn = Some(conn);
                    self.lost_at = None;
                }
                Err(error) => {
                    tracing::debug!(%error, "no control connection");
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            }
        }
        self.conn.as_mut()
    }

    fn give_up_hope(&mut self) -> bool {
        let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
        if lost_at.elapsed() < BELIEVE_AFTER {
            return false;
        }
        tracing::warn!(
            sessions = self.watched.len(),
            "the server cannot be asked; sessions are believed to be gone"
        );
        for watched in self.watched.drain(..) {
            let _ = watched.told.send(());
        }
        true
    }
}

/// Ends the last session and returns when its backend has exited: nobody is left to ask about it, so it
/// is read to its end. A backend that is told to terminate says so and exits, and the kernel closes its
/// socket when it is dead. A superuser keeps that out of the server's log; others leave one line there.
async fn leave(mut conn: PgConnection) -> Result<(), Error> {
    let row = sqlx::raw_sql("select current_setting('is_superuser') = 'on'").fetch_one(&mut conn).await?;
    if row.try_get::<bool, _>(0)? {
        sqlx::raw_sql("set log_min_messages = panic").execute(&mut conn).await?;
    }
    let farewell = sqlx::raw_sql("select pg_terminate_backend(pg_backend_pid())").execute(&mut conn).await;
    if farewell.is_err_and(|error| matches!(error, Error::Database(_))) {
        // The rest of the wire: nothing, then its end.
        while let Err(Error::Database(_)) = conn.flush().await {}
    }
    Ok(())
}
