//! The adapter's own connection to the server, counted in the system share: it cancels queries, ends sessions, says who a
//! new session is, and tells when a backend has exited, which is when the server has a free slot again. One owned task
//! holds it; questions that come close together share a round trip.

mod exits;
mod link;
mod questions;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pool_core::{Capacity, DriverError, DriverErrorKind, Phase};
use sqlx::postgres::PgConnection;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::catch_panics::catch_panics;
use crate::classify::driver_error;
use crate::connect::Connector;
use crate::connection::{Session, session_of};
use crate::password::Generation;
use crate::session::SessionKind;
use crate::tag::Tag;
use link::{Link, Served};
use worker::Worker;

const SHUTDOWN_LIMIT: Duration = Duration::from_secs(4);

/// How long the server may take to answer before the control connection counts as lost. With a knock after it, that is less
/// than the pool waits for an answer whether the server is there.
const ANSWER_LIMIT: Duration = Duration::from_millis(1_500);

/// In seconds.
const AUTHENTICATION_DEFAULT: u64 = 60;

enum Request {
    /// Cancel what the session is doing; tell whether the server has confirmed it.
    Cancel(Session, oneshot::Sender<bool>),
    /// Tell when the session's backend has exited; end it first, if so wished.
    Gone { session: Session, end_it: bool, told: oneshot::Sender<()> },
    /// Tell who has this tag; nothing if nobody is seen to have it.
    Who(Tag, oneshot::Sender<Option<Session>>),
    /// Tell which of the sessions are not there any more, by their places; nothing if the server does not answer.
    Departed(Vec<Session>, oneshot::Sender<Option<Vec<usize>>>),
    /// Tell whether the server counts no session with this tag in this database, and has none there that it does not show.
    IsUncounted(Tag, String, oneshot::Sender<bool>),
    /// Tell how many connections the server can hold, and how many others have, beside these.
    Capacity(Vec<Session>, oneshot::Sender<Capacity>),
    /// Tell whether the server answers, and why not.
    Answers(oneshot::Sender<Result<u64, DriverError>>),
    /// Tell whether the server lets a new session in, and why not.
    Admits(oneshot::Sender<Result<(), DriverError>>),
    /// End the task.
    Shutdown,
}

/// The handle on the task.
pub(crate) struct Control {
    connector: Arc<Connector>,
    database: String,
    authentication: Duration,
    running: Mutex<Running>,
}

struct Running {
    requests: mpsc::UnboundedSender<Request>,
    task: Option<JoinHandle<()>>,
    is_shut_down: bool,
}

impl Running {
    fn start(link: Link) -> Self {
        let (requests, questions) = mpsc::unbounded_channel();
        let task = tokio::spawn(Worker::new(link).run(questions));
        Self { requests, task: Some(task), is_shut_down: false }
    }
}

impl Control {
    /// Connects, and starts the task.
    pub(crate) async fn start(
        connector: Arc<Connector>,
        database: String,
        limit: Duration,
    ) -> Result<Self, DriverError> {
        let (mut conn, generation) = connect(&connector, &database, limit).await?;
        let (authentication, own) = introduced(&mut conn).await;
        let served = Served { conn, generation, own };
        let link = Link::new(Arc::clone(&connector), database.clone(), authentication, Some(served));
        let running = Mutex::new(Running::start(link));
        Ok(Self { connector, database, authentication, running })
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request to the task, and returns the way to it. A task that has ended with its runtime, and its connection with it,
    /// is started again on that of the asker.
    fn send(&self, request: Request) -> mpsc::UnboundedSender<Request> {
        let mut running = self.running();
        if let Err(mpsc::error::SendError(request)) = running.requests.send(request)
            && !running.is_shut_down
            && Handle::try_current().is_ok()
        {
            let (connector, database) = (Arc::clone(&self.connector), self.database.clone());
            *running = Running::start(Link::new(connector, database, self.authentication, None));
            let _ = running.requests.send(request);
        }
        running.requests.clone()
    }

    /// How long the server lets a session authenticate, as it said when the control connection was first opened.
    pub(crate) fn authentication_limit(&self) -> Duration {
        self.authentication
    }

    /// The task's answer to a request, which it is given again if it has ended with its runtime meanwhile; none if it gave
    /// none.
    async fn ask<T>(&self, request: impl Fn(oneshot::Sender<T>) -> Request) -> Option<T> {
        loop {
            let (told, answer) = oneshot::channel();
            let task = self.send(request(told));
            let answer = answer.await.ok();
            // The task that was asked, and not the present one: another asker may have started that meanwhile.
            let may_ask_again =
                task.is_closed() && !self.running().is_shut_down && Handle::try_current().is_ok();
            if answer.is_some() || !may_ask_again {
                return answer;
            }
        }
    }

    /// Cancels what `session` is doing. True when the server has confirmed it: the signal has been sent. When
    /// it has not, a cancel may still be on its way, and the session must not be used for anything else.
    pub(crate) async fn cancel(&self, session: Session) -> bool {
        let (told, answer) = oneshot::channel();
        self.send(Request::Cancel(session, told));
        answer.await.unwrap_or(false)
    }

    /// Returns when the server no longer counts `session`, which is ended first if so wished.
    pub(crate) async fn wait_for_exit(&self, session: Session, end_it: bool) {
        self.ask(|told| Request::Gone { session, end_it, told }).await;
    }

    /// The session with this tag, if the server shows it.
    pub(crate) async fn who(&self, tag: Tag) -> Option<Session> {
        self.ask(|told| Request::Who(tag.clone(), told)).await?
    }

    /// Which of `sessions` the server no longer has, by their places; none if it could not be asked.
    pub(crate) async fn departed(&self, sessions: Vec<Session>) -> Option<Vec<usize>> {
        self.ask(|told| Request::Departed(sessions.clone(), told)).await?
    }

    /// Whether the server counts no session with `tag` in `database`, as far as it shows its sessions: one that
    /// authenticates is not shown before `PostgreSQL` 18. None if it could not be asked.
    pub(crate) async fn is_uncounted(&self, tag: Tag, database: String) -> Option<bool> {
        self.ask(|told| Request::IsUncounted(tag.clone(), database.clone(), told)).await
    }

    /// How many connections the server can hold, and how many others have, beside `own`; none if it did not say.
    pub(crate) async fn capacity(&self, own: Vec<Session>) -> Option<Capacity> {
        self.ask(|told| Request::Capacity(own.clone(), told)).await
    }

    /// Whether the server, which is at `address`, answers, and how often the control connection has been made anew.
    pub(crate) async fn answers(&self, address: String) -> Result<u64, DriverError> {
        let ended = || DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, address);
        self.ask(Request::Answers).await.unwrap_or_else(|| Err(ended()))
    }

    /// Whether the server, which is at `address`, lets a new session in, whatever its database.
    pub(crate) async fn admits(&self, address: String) -> Result<(), DriverError> {
        let ended = || DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, address);
        self.ask(Request::Admits).await.unwrap_or_else(|| Err(ended()))
    }

    /// Has the task end, which is not started again.
    pub(crate) fn stop(&self) {
        let mut running = self.running();
        running.is_shut_down = true;
        let _ = running.requests.send(Request::Shutdown);
    }

    /// Ends the task and its connection; returns when the server no longer counts that either.
    pub(crate) async fn shutdown(&self) {
        self.stop();
        let task = self.running().task.take();
        let Some(mut task) = task else { return };
        match timeout(SHUTDOWN_LIMIT, &mut task).await {
            Ok(Err(error)) if error.is_panic() => tracing::error!(%error, "the control task panicked"),
            Ok(_) => {}
            // It waits for a server that does not answer, which will not see it leave either.
            Err(_) => task.abort(),
        }
    }
}

/// How long the server lets a session authenticate, and who serves this one; a server that does not say has the default,
/// and nobody.
async fn introduced(conn: &mut PgConnection) -> (Duration, Option<Session>) {
    let asked = async { (authentication_limit(conn).await, catch_panics(session_of(conn)).await.ok()) };
    let default = (Duration::from_secs(AUTHENTICATION_DEFAULT), None);
    timeout(ANSWER_LIMIT, asked).await.unwrap_or(default)
}

/// `authentication_timeout`, or what it is by default where the server does not say.
async fn authentication_limit(conn: &mut PgConnection) -> Duration {
    let setting = "select pg_catalog.date_part('epoch', \
                   pg_catalog.current_setting('authentication_timeout')::pg_catalog.interval)::pg_catalog.int8";
    let seconds = catch_panics(sqlx::query_scalar::<_, i64>(setting).fetch_one(conn)).await;
    let seconds = seconds.ok().and_then(|seconds| u64::try_from(seconds).ok());
    Duration::from_secs(seconds.unwrap_or(AUTHENTICATION_DEFAULT))
}

async fn connect(
    connector: &Connector,
    database: &str,
    limit: Duration,
) -> Result<(PgConnection, Generation), DriverError> {
    let address = || connector.config().address(database);
    match timeout(limit, connector.connect(database, SessionKind::Own, &Tag::fresh())).await {
        Ok(Ok(new)) => Ok(new.open()),
        Ok(Err(error)) => Err(driver_error(error, Phase::Connect, address())),
        Err(_) => Err(DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, address())
            .caused_by(format!("gave up after {limit:?}"))),
    }
}

/// Tests pause this clock.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Tells all of them; the cause of an error goes to the first.
fn tell_all<T: Copy>(
    all: impl Iterator<Item = oneshot::Sender<Result<T, DriverError>>>,
    mut outcome: Result<T, DriverError>,
) {
    for told in all {
        let next = match &outcome {
            Ok(answer) => Ok(*answer),
            Err(error) => Err(without_cause(error)),
        };
        let _ = told.send(std::mem::replace(&mut outcome, next));
    }
}

/// The same error, whose cause goes elsewhere.
fn without_cause(error: &DriverError) -> DriverError {
    DriverError::new(error.phase, error.kind, error.address.as_str())
}
