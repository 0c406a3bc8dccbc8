//! The control connection itself, and the one that takes its place: begun as soon as an answer is late, one at a time, after
//! a knock that begins no session. Whoever served the connection before is ended by its successor, so the server counts two
//! sessions at most, for which the system share has the slots.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use pool_core::{DriverError, DriverErrorKind, Phase};
use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgRow};
use tokio::sync::oneshot;
use tokio::time::{interval, sleep, timeout};

use super::questions::{Query, Question};
use super::{ANSWER_LIMIT, connect, now, tell_all, without_cause};
use crate::catch_panics::catch_panics;
use crate::classify::{driver_error, is_fatal};
use crate::connect::Connector;
use crate::connection::{Session, session_of};
use crate::knock::knock;
use crate::password::Generation;

/// An answer that takes longer, and four times as long as usual, is late.
const LATE: Duration = Duration::from_millis(500);
const LATE_USUAL: u32 = 4;
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that works is not replaced after its successor has failed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);
const KNOCK_EVERY: Duration = Duration::from_millis(500);
/// How long a server may take to open to a knock, when everything else hangs.
const KNOCK_LIMIT: Duration = Duration::from_millis(400);
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// By then the server has let go of a session that did not authenticate in time.
const AUTHENTICATION_MARGIN: Duration = Duration::from_secs(1);

/// Why there is no answer.
pub(super) enum Unanswered {
    /// The server has refused the question.
    Refused(sqlx::Error),
    /// The connection is gone, or silent, and no other could be made in time.
    Lost(DriverError),
}

pub(super) struct Link {
    connector: Arc<Connector>,
    database: String,
    authentication: Duration,
    conn: Option<PgConnection>,
    /// Of the password that it began with.
    generation: Generation,
    /// Who serves the connection, or has served it last.
    own: Option<Session>,
    /// Those who served it before, and are still to be ended.
    predecessors: Vec<Session>,
    /// How many of them have not been seen to be gone.
    leaving: usize,
    successor: Option<Successor>,
    /// Who wants to be told whether a successor is let in.
    renewals: Vec<oneshot::Sender<Result<(), DriverError>>>,
    /// Before, none is begun for the sake of a password that has changed: the last one has failed.
    renewed_from: Instant,
    /// Whether the server did not open to a knock while a successor was connecting, so that this may be lost.
    is_doubted: bool,
    /// How often the connection has been made anew.
    made: u64,
    /// How long an answer takes: a decayed mean.
    usual: Duration,
    used_at: Instant,
}

/// A connection, with which password it began, and who serves it, as far as that is known.
pub(super) struct Served {
    pub(super) conn: PgConnection,
    pub(super) generation: Generation,
    pub(super) own: Option<Session>,
}

/// A connection on its way to take the place of the present one, or of one that is lost.
struct Successor {
    began: Instant,
    stage: Stage,
}

enum Stage {
    /// Until somebody opens, and what is done then: what a refused knock has to say, the connect says better.
    Knocking(BoxFuture<'static, ()>, Connecting),
    Connecting(Connecting),
}

type Connecting = BoxFuture<'static, Result<Served, DriverError>>;

impl Link {
    pub(super) fn new(
        connector: Arc<Connector>,
        database: String,
        authentication: Duration,
        served: Option<Served>,
    ) -> Self {
        let (own, generation) =
            served.as_ref().map_or_else(Default::default, |served| (served.own, served.generation));
        Self {
            connector,
            database,
            authentication,
            conn: served.map(|served| served.conn),
            generation,
            own,
            predecessors: Vec::new(),
            leaving: 0,
            successor: None,
            renewals: Vec::new(),
            renewed_from: now(),
            is_doubted: false,
            made: 0,
            usual: Duration::ZERO,
            used_at: now(),
        }
    }

    /// How often the connection has been made anew.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// When it was used last.
    pub(super) fn used_at(&self) -> Instant {
        self.used_at
    }

    /// Whether somebody who is to be ended has served it before.
    pub(super) fn has_predecessors(&self) -> bool {
        !self.predecessors.is_empty()
    }

    pub(super) fn take_predecessors(&mut self) -> Vec<Session> {
        std::mem::take(&mut self.predecessors)
    }

    /// The connection, if there is one, at the end of all questions.
    pub(super) fn into_conn(self) -> Option<PgConnection> {
        self.conn
    }

    /// Predecessors have been seen to be gone.
    pub(super) fn have_left(&mut self, count: usize) {
        self.leaving = self.leaving.saturating_sub(count);
    }

    /// Whether a server that does not answer, and hangs when a successor connects, opens to a knock: then it is there, and what
    /// hangs is the database. A successor that connects while it opens to nobody, and then does, has been lost.
    pub(super) async fn is_there(&mut self) -> bool {
        if !self.is_connecting() {
            return false;
        }
        let options = self.connector.config().connect_options(&self.database);
        let opened = timeout(KNOCK_LIMIT, first_of(KNOCK_EVERY, || knock(&options))).await;
        let is_there = matches!(opened, Ok(Ok(())));
        if is_there && std::mem::take(&mut self.is_doubted) {
            self.successor = None;
        }
        self.is_doubted |= !is_there;
        is_there
    }

    /// Has `told` told whether a new session is let in to take the place of the connection.
    pub(super) fn renew(&mut self, told: oneshot::Sender<Result<(), DriverError>>) {
        self.renewals.push(told);
    }

    /// Whether a successor is wished, and none is on its way.
    pub(super) fn wants_renewal(&self) -> bool {
        self.wishes_a_successor() && self.successor.is_none() && self.leaving == 0
    }

    /// Whether somebody waits for a successor, or the connection began with a password that has been changed since.
    fn wishes_a_successor(&self) -> bool {
        let is_outdated = self.conn.is_some() && self.connector.is_outdated(self.generation);
        !self.renewals.is_empty() || is_outdated && self.renewed_from <= now()
    }

    /// Begins the successor that is wished.
    pub(super) fn begin_renewal(&mut self) {
        self.renewals.retain(|told| !told.is_closed());
        if self.wants_renewal() {
            self.successor = Some(Successor::begin(&self.connector, &self.database, self.authentication));
        }
    }

    /// Whether a session has been asked for that is not there yet.
    pub(super) fn is_connecting(&self) -> bool {
        self.successor.as_ref().is_some_and(Successor::is_connecting)
    }

    /// Puts the question, and returns the answer. A connection that has failed may have been dead for long, and one whose
    /// answer is late may be lost: its successor is asked, if the question may be repeated.
    pub(super) async fn ask<'q>(
        &mut self,
        question: Question,
        arguments: impl Fn(Query<'q>) -> Query<'q>,
    ) -> Result<Vec<PgRow>, Unanswered> {
        let mut why = self.error(DriverErrorKind::ConnectionLost);
        for time in 0..question.tries() {
            if let Err(error) = self.connected().await {
                return Err(Unanswered::Lost(error));
            }
            // One successor for a question: a server that is slow to answer is not made quicker by another.
            match self.ask_once(arguments(sqlx::query(question.sql())), time == 0).await {
                Err(Unanswered::Lost(error)) => why = error,
                heard => return heard,
            }
            tracing::debug!(%why, "the control connection failed");
            if self.is_connecting() {
                break;
            }
        }
        Err(Unanswered::Lost(why))
    }

    async fn ask_once(&mut self, query: Query<'_>, is_first: bool) -> Result<Vec<PgRow>, Unanswered> {
        let Self { connector, database, authentication, conn: Some(conn), successor, usual, leaving, .. } =
            self
        else {
            return Err(Unanswered::Lost(self.error(DriverErrorKind::ConnectionLost)));
        };
        let (asked, late) = (now(), (*usual * LATE_USUAL).clamp(LATE, ANSWER_LIMIT));
        // Two sessions are all that there is place for.
        let may_begin = is_first && *leaving == 0;
        let begin = || may_begin.then(|| Successor::begin(connector, database, *authentication));
        let heard = hear(catch_panics(query.fetch_all(conn)), late, successor, begin).await;
        self.used_at = now();
        let why = match heard {
            Heard::Answer(Err(error)) if is_fatal(&error) => {
                driver_error(error, Phase::Check, self.address())
            }
            Heard::Answer(answer) => {
                self.usual = (self.usual * 7 + self.used_at.saturating_duration_since(asked)) / 8;
                let is_wished = self.wishes_a_successor();
                self.successor.take_if(|successor| !successor.is_connecting() && !is_wished);
                return answer.map_err(Unanswered::Refused);
            }
            Heard::Successor(served) => {
                self.succeed(served);
                return Err(Unanswered::Lost(self.error(DriverErrorKind::TimedOut)));
            }
            Heard::Silence(Some(refusal)) => {
                self.was_refused(&refusal);
                refusal
            }
            Heard::Silence(None) => self.error(DriverErrorKind::TimedOut),
        };
        self.conn = None;
        Err(Unanswered::Lost(why))
    }

    /// Returns when there is a connection. One that was lost is made again; nobody waits long for one that hangs.
    async fn connected(&mut self) -> Result<(), DriverError> {
        if self.conn.is_some() {
            return Ok(());
        }
        let Self { connector, database, authentication, successor, .. } = self;
        let successor =
            successor.get_or_insert_with(|| Successor::begin(connector, database, *authentication));
        let limit = (successor.began + ANSWER_LIMIT).saturating_duration_since(now());
        let error = match timeout(limit, outcome_of(&mut self.successor)).await {
            Ok(Ok(served)) => {
                self.succeed(served);
                return Ok(());
            }
            Ok(Err(error)) => {
                self.was_refused(&error);
                sleep(RECONNECT_PAUSE).await;
                error
            }
            Err(_) => {
                self.successor.take_if(|successor| !successor.is_connecting());
                self.error(DriverErrorKind::TimedOut)
            }
        };
        tracing::debug!(%error, "no control connection");
        self.used_at = now();
        Err(error)
    }

    /// Returns when a successor that nobody waits for has taken its place, or has failed.
    pub(super) async fn replaced(&mut self) {
        match outcome_of(&mut self.successor).await {
            Ok(served) => {
                if let Some(old) = self.conn.take() {
                    let _ = timeout(GOODBYE_LIMIT, catch_panics(old.close())).await;
                }
                self.succeed(served);
            }
            Err(error) => {
                tracing::debug!(%error, "no successor of the control connection");
                self.was_refused(&error);
            }
        }
    }

    /// Tells who waits for a successor why there is none. A refusal that may be one database's is none of the server's.
    fn was_refused(&mut self, error: &DriverError) {
        self.renewed_from = now() + RENEWAL_PAUSE;
        let is_everybodys = error.kind.may_concern_all() || is_of_the_password(error);
        let told = if is_everybodys { Err(without_cause(error)) } else { Ok(()) };
        tell_all(self.renewals.drain(..), told);
    }

    /// Whoever served the connection before may not have noticed its end, and would be counted on. It is ended like any other,
    /// in the next round: a question that is under way is not about it.
    fn succeed(&mut self, Served { conn, generation, own }: Served) {
        self.made += 1;
        self.used_at = now();
        (self.conn, self.generation) = (Some(conn), generation);
        self.is_doubted = false;
        let before = std::mem::replace(&mut self.own, own);
        self.leaving += usize::from(before.is_some());
        self.predecessors.extend(before);
        tell_all(self.renewals.drain(..), Ok(()));
    }

    fn error(&self, kind: DriverErrorKind) -> DriverError {
        DriverError::new(Phase::Check, kind, self.address())
    }

    fn address(&self) -> String {
        self.connector.config().address(&self.database)
    }
}

/// Whether a login was refused for its password, which is the role's and not a database's.
fn is_of_the_password(error: &DriverError) -> bool {
    let cause = error.source.as_deref().and_then(|cause| cause.downcast_ref::<sqlx::Error>());
    cause
        .and_then(sqlx::Error::as_database_error)
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == "28P01")
}

/// What comes of a question.
enum Heard<T> {
    Answer(T),
    Successor(Served),
    /// Nothing in time, and why there is no successor, if it has failed.
    Silence(Option<DriverError>),
}

/// Waits for an answer; begins a successor beside it when it is late.
async fn hear<T>(
    answer: impl Future<Output = T>,
    late: Duration,
    successor: &mut Option<Successor>,
    begin: impl FnOnce() -> Option<Successor>,
) -> Heard<T> {
    let mut answer = pin!(answer);
    if let Ok(answer) = timeout(late, &mut answer).await {
        return Heard::Answer(answer);
    }
    if successor.is_none() {
        *successor = begin();
    }
    let mut refusal = None;
    let heard = async {
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Heard::Answer(answer),
                outcome = outcome_of(successor) => match outcome {
                    Ok(served) => return Heard::Successor(served),
                    Err(error) => refusal = Some(error),
                }
            }
        }
    };
    let heard = timeout(ANSWER_LIMIT.saturating_sub(late), heard).await.ok();
    heard.unwrap_or(Heard::Silence(refusal))
}

/// The end of a successor, which then is none any more. Dropping the future loses nothing of it.
async fn outcome_of(successor: &mut Option<Successor>) -> Result<Served, DriverError> {
    let Some(under_way) = successor else { return std::future::pending().await };
    let outcome = under_way.outcome().await;
    *successor = None;
    outcome
}

impl Successor {
    fn begin(connector: &Arc<Connector>, database: &str, authentication: Duration) -> Self {
        let options = connector.config().connect_options(database);
        let knocking = async move {
            let _ = first_of(KNOCK_EVERY, || knock(&options)).await;
        };
        let (connector, database) = (Arc::clone(connector), database.to_owned());
        let limit = authentication + AUTHENTICATION_MARGIN;
        let connecting = async move {
            let (mut conn, generation) = connect(&connector, &database, limit).await?;
            // One that cannot be named could not be ended by its successor.
            let own = timeout(ANSWER_LIMIT, catch_panics(session_of(&mut conn))).await;
            let address = || connector.config().address(&database);
            match own {
                Ok(Ok(own)) => Ok(Served { conn, generation, own: Some(own) }),
                Ok(Err(error)) => Err(driver_error(error, Phase::Connect, address())),
                Err(_) => Err(DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, address())),
            }
        };
        Self { began: now(), stage: Stage::Knocking(knocking.boxed(), connecting.boxed()) }
    }

    fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting(_))
    }

    async fn outcome(&mut self) -> Result<Served, DriverError> {
        loop {
            match &mut self.stage {
                Stage::Knocking(knocking, connecting) => {
                    knocking.await;
                    let nothing = std::future::pending().boxed();
                    let connecting = std::mem::replace(connecting, nothing);
                    self.stage = Stage::Connecting(connecting);
                }
                Stage::Connecting(connecting) => return connecting.await,
            }
        }
    }
}

/// The outcome of the first attempt to end. Another one is begun now and then beside those that have begun: what a server
/// has been asked while it could not be reached may be lost for good.
async fn first_of<T, F: Future<Output = T>>(every: Duration, attempt: impl Fn() -> F) -> T {
    let mut attempts = FuturesUnordered::new();
    let mut next = interval(every);
    loop {
        tokio::select! {
            biased;
            Some(outcome) = attempts.next() => return outcome,
            _ = next.tick() => attempts.push(attempt()),
        }
    }
}
