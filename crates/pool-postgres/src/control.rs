//! The adapter's own connection to the server, counted in the system share: it cancels queries, ends
//! sessions, and tells when a backend has exited, which is when the server has a free slot again. One
//! owned task holds it; questions that come close together share a round trip.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pool_core::{DriverError, DriverErrorKind, Phase};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Error, Row};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::catch_panics::catch_panics;
use crate::classify::driver_error;
use crate::connect::Connector;
use crate::connection::Session;
use crate::session::SessionKind;

/// The pause between two looks at backends that are to exit, doubled each time up to the second.
const POLL_FIRST: Duration = Duration::from_micros(300);
const POLL_MAX: Duration = Duration::from_millis(50);
/// A backend that has not exited by then is told to.
const TERMINATE_AFTER: Duration = Duration::from_secs(1);
/// Without a control connection for this long, backends that should have exited since are believed to have done so.
const ASSUME_EXITED_AFTER: Duration = Duration::from_secs(30);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(4);
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// How long the server may take to answer before the control connection counts as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A question about sessions, given as two arrays; a time is written as `session_of` has it.
macro_rules! about_sessions {
    ($what:literal) => {
        concat!(
            "select ",
            $what,
            " from rows from (pg_catalog.unnest($1::pg_catalog.int4[]), pg_catalog.unnest($2::pg_catalog.text[])) \
             as s(pid, started) cross join lateral pg_catalog.pg_stat_get_activity(s.pid) as a \
             where (pg_catalog.date_part('epoch', a.backend_start) operator(pg_catalog.*) 1000000)::pg_catalog.int8::pg_catalog.text \
             operator(pg_catalog.=) s.started"
        )
    };
}

/// What is asked about a set of sessions; all have the same form and two arguments.
#[derive(Clone, Copy)]
enum Query {
    Cancel,
    Terminate,
    StillThere,
}

impl Query {
    fn sql(self) -> &'static str {
        match self {
            Self::Cancel => about_sessions!("pg_catalog.pg_cancel_backend(s.pid)"),
            Self::Terminate => about_sessions!("pg_catalog.pg_terminate_backend(s.pid)"),
            Self::StillThere => about_sessions!("s.pid, s.started"),
        }
    }

    /// How often it is asked. A cancel that was not answered may still be on its way, so that a second one
    /// would prove nothing; the others may be repeated.
    fn tries(self) -> usize {
        match self {
            Self::Cancel => 1,
            Self::Terminate | Self::StillThere => 2,
        }
    }
}

pub(crate) enum Request {
    /// Cancel what the session is doing; tell whether the server has confirmed it.
    Cancel(Session, oneshot::Sender<bool>),
    /// Tell when the session's backend has exited; end it first, if so wished.
    Gone { session: Session, end_it: bool, told: oneshot::Sender<()> },
    /// Tell which of the sessions are not there any more, by their places; nothing if the server does not answer.
    Departed(Vec<Session>, oneshot::Sender<Option<Vec<usize>>>),
    /// End the task.
    Shutdown,
}

/// The handle on the task.
pub(crate) struct Control {
    requests: mpsc::UnboundedSender<Request>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Control {
    /// Connects, and starts the task.
    pub(crate) async fn start(
        connector: Arc<Connector>,
        database: String,
        limit: Duration,
    ) -> Result<Self, DriverError> {
        let conn = connect(&connector, &database, limit).await?;
        let (requests, questions) = mpsc::unbounded_channel();
        let worker = Worker { connector, database, conn: Some(conn), pending: Vec::new(), lost_at: None };
        let task = tokio::spawn(worker.run(questions));
        Ok(Self { requests, task: Mutex::new(Some(task)) })
    }

    /// Cancels what `session` is doing. True when the server has confirmed it: the signal has been sent. When
    /// it has not, a cancel may still be on its way, and the session must not be used for anything else.
    pub(crate) async fn cancel(&self, session: Session) -> bool {
        let (done, told) = oneshot::channel();
        // An answer that never comes means that the task has ended.
        self.requests.send(Request::Cancel(session, done)).is_ok() && told.await.unwrap_or(false)
    }

    /// Returns when the server no longer counts `session`, which is ended first if so wished.
    pub(crate) async fn wait_for_exit(&self, session: Session, end_it: bool) {
        let (told, answer) = oneshot::channel();
        if self.requests.send(Request::Gone { session, end_it, told }).is_ok() {
            let _ = answer.await;
        }
    }

    /// Which of `sessions` the server no longer has, by their places; none if it could not be asked.
    pub(crate) async fn departed(&self, sessions: Vec<Session>) -> Option<Vec<usize>> {
        let (told, answer) = oneshot::channel();
        self.requests.send(Request::Departed(sessions, told)).ok()?;
        answer.await.ok()?
    }

    /// Ends the task and its connection; returns when the server no longer counts that either.
    pub(crate) async fn shutdown(&self) {
        let mut task = self.task.lock().await;
        let _ = self.requests.send(Request::Shutdown);
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

async fn connect(
    connector: &Connector,
    database: &str,
    limit: Duration,
) -> Result<PgConnection, DriverError> {
    let address = || connector.config().address(database);
    match timeout(limit, connector.connect(database, SessionKind::Own, async |conn| Ok(conn))).await {
        Ok(outcome) => outcome.map_err(|error| driver_error(error, Phase::Connect, address())),
        Err(_) => Err(DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, address())
            .caused_by(format!("gave up after {limit:?}"))),
    }
}

struct PendingExit {
    session: Session,
    since: Instant,
    end_it: bool,
    told: oneshot::Sender<()>,
}

struct Worker {
    connector: Arc<Connector>,
    database: String,
    conn: Option<PgConnection>,
    pending: Vec<PendingExit>,
    lost_at: Option<Instant>,
}

impl Worker {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut pause = POLL_FIRST;
        let mut poll_at = Instant::now();
        loop {
            let idle = self.pending.is_empty();
            let request = tokio::select! {
                biased;
                request = requests.recv() => request,
                () = sleep_until(poll_at), if !idle => {
                    let found_some_gone = self.poll_exits().await;
                    pause = if found_some_gone { POLL_FIRST } else { (pause * 2).min(POLL_MAX) };
                    poll_at = Instant::now() + pause;
                    continue;
                }
            };
            match request {
                // Nobody waits for it any more: the connection is being closed.
                Some(Request::Cancel(_, done)) if done.is_closed() => {}
                Some(Request::Cancel(session, done)) => {
                    let answer = self.ask(Query::Cancel, vec![session]).await;
                    let _ = done.send(answer.is_some());
                }
                Some(Request::Gone { session, end_it, told }) => {
                    let since = Instant::now();
                    self.pending.push(PendingExit { session, since, end_it, told });
                    pause = POLL_FIRST;
                    poll_at = poll_at.min(since + pause);
                    if idle {
                        poll_at = since + pause;
                    }
                }
                // An asker who has gone would only keep the others waiting.
                Some(Request::Departed(_, told)) if told.is_closed() => {}
                Some(Request::Departed(sessions, told)) => {
                    let _ = told.send(self.departed(sessions).await);
                }
                Some(Request::Shutdown) | None => break,
            }
        }
        if let Some(conn) = self.conn {
            let _ = timeout(FAREWELL_LIMIT, catch_panics(leave(conn))).await;
        }
    }

    /// Asks the server about all watched sessions at once, and tells those who wait. Returns whether
    /// anything was found gone.
    async fn poll_exits(&mut self) -> bool {
        self.terminate_overdue().await;
        let sessions: Vec<Session> = self.pending.iter().map(|exit| exit.session.clone()).collect();
        let Some(there) = self.still_there(sessions).await else { return self.assume_exited() };
        let before = self.pending.len();
        let gone = self.pending.extract_if(.., |exit| !there.contains(&exit.session));
        for exit in gone {
            let _ = exit.told.send(());
        }
        self.pending.len() < before
    }

    async fn departed(&mut self, sessions: Vec<Session>) -> Option<Vec<usize>> {
        let there = self.still_there(sessions.clone()).await?;
        let is_gone = |(place, session)| (!there.contains(&session)).then_some(place);
        Some(sessions.into_iter().enumerate().filter_map(is_gone).collect())
    }

    /// Those of `sessions` that the server has; none if it gives no answer.
    async fn still_there(&mut self, sessions: Vec<Session>) -> Option<HashSet<Session>> {
        let rows = self.ask(Query::StillThere, sessions).await?;
        let session = |row: &PgRow| Ok(Session { pid: row.try_get(0)?, started: row.try_get(1)? });
        rows.iter().map(session).collect::<Result<_, Error>>().ok()
    }

    /// Ends the sessions that were to be ended, and those that take too long to leave by themselves.
    async fn terminate_overdue(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        for exit in &self.pending {
            if exit.end_it || now.duration_since(exit.since) > TERMINATE_AFTER {
                due.push(exit.session.clone());
            }
        }
        if due.is_empty() || self.ask(Query::Terminate, due.clone()).await.is_none() {
            return;
        }
        for exit in self.pending.iter_mut().filter(|exit| due.contains(&exit.session)) {
            exit.end_it = false;
            exit.since = now;
        }
    }

    /// The server's answer about `sessions`, or none if it gives none. A connection that has failed may
    /// have been dead for long, so one more is tried if the question may be repeated.
    async fn ask(&mut self, about: Query, sessions: Vec<Session>) -> Option<Vec<PgRow>> {
        let (pids, started): (Vec<i32>, Vec<String>) =
            sessions.into_iter().map(|Session { pid, started }| (pid, started)).unzip();
        for _ in 0..about.tries() {
            let conn = self.conn().await?;
            let query = sqlx::query(about.sql()).bind(&pids).bind(&started).fetch_all(conn);
            let why = match timeout(ANSWER_LIMIT, catch_panics(query)).await {
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
            match connect(&self.connector, &self.database, ANSWER_LIMIT).await {
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

    fn assume_exited(&mut self) -> bool {
        let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
        if lost_at.elapsed() < ASSUME_EXITED_AFTER {
            return false;
        }
        let before = self.pending.len();
        for exit in self.pending.extract_if(.., |exit| exit.since.elapsed() >= ASSUME_EXITED_AFTER) {
            let _ = exit.told.send(());
        }
        let sessions = before - self.pending.len();
        if sessions > 0 {
            tracing::warn!(sessions, "the server cannot be asked; sessions are believed to be gone");
        }
        sessions > 0
    }
}

/// Ends the last session and returns when its backend has exited: nobody is left to ask about it, so it
/// is read to its end. A backend that is told to terminate says so and exits, and the kernel closes its
/// socket when it is dead. A superuser keeps that out of the server's log; others leave one line there.
async fn leave(mut conn: PgConnection) -> Result<(), Error> {
    let is_superuser = "select pg_catalog.current_setting('is_superuser') operator(pg_catalog.=) 'on'";
    let row = sqlx::raw_sql(is_superuser).fetch_one(&mut conn).await?;
    if row.try_get::<bool, _>(0)? {
        sqlx::raw_sql("set log_min_messages = panic").execute(&mut conn).await?;
    }
    let end = "select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";
    let farewell = sqlx::raw_sql(end).execute(&mut conn).await;
    if farewell.is_err_and(|error| matches!(error, Error::Database(_))) {
        // The rest of the wire: nothing, then its end.
        while let Err(Error::Database(_)) = conn.flush().await {}
    }
    Ok(())
}
