//! The task that holds the control connection: it takes questions, puts those of a kind together, and tells the answers. A
//! round asks a few statements at most: whom to cancel, whom to end, what the server can hold, who waits unseen, who is there.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pool_core::{Capacity, DriverError};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Error, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use super::exits::Exits;
use super::link::{Link, Unanswered};
use super::questions::{Query, Question};
use super::{Request, now, tell_all};
use crate::catch_panics::catch_panics;
use crate::connection::Session;
use crate::tag::Tag;

/// How long those who are still to be ended at the end may take.
const SETTLE_LIMIT: Duration = Duration::from_millis(1_500);
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// An address translator forgets a connection on which nothing was said for some minutes.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How many questions are taken at a time.
const TAKEN_MAX: usize = 1_024;

pub(super) struct Worker {
    link: Link,
    /// Those who are to exit, and who wants to be told, if anybody does.
    exits: Exits<Option<oneshot::Sender<()>>>,
    asked: Asked,
    /// What the server has refused to answer, which is warned of once.
    refused: HashSet<Question>,
}

/// What has been asked since the last round.
#[derive(Default)]
struct Asked {
    cancels: Vec<(Session, oneshot::Sender<bool>)>,
    who: Vec<(Tag, oneshot::Sender<Option<Session>>)>,
    departed: Vec<(Vec<Session>, oneshot::Sender<Option<Places>>)>,
    uncounted: Vec<(Tag, String, oneshot::Sender<bool>)>,
    capacity: Vec<(Vec<Session>, oneshot::Sender<Capacity>)>,
    answers: Vec<oneshot::Sender<Result<u64, DriverError>>>,
}

/// Where in a list some are.
type Places = Vec<usize>;

/// Who is there.
#[derive(Default)]
struct Seen {
    sessions: HashSet<Session>,
    by_tag: HashMap<String, Session>,
}

impl Worker {
    pub(super) fn new(link: Link) -> Self {
        Self { link, exits: Exits::new(now()), asked: Asked::default(), refused: HashSet::new() }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut new = Vec::new();
        loop {
            let due = self.due();
            tokio::select! {
                biased;
                count = requests.recv_many(&mut new, TAKEN_MAX) => if count == 0 { break },
                () = self.link.replaced() => {}
                () = sleep_until(due.into()) => {}
            }
            if !new.drain(..).all(|request| self.take(request)) {
                break;
            }
            self.round().await;
        }
        let _ = timeout(SETTLE_LIMIT, self.settle()).await;
        if let Some(conn) = self.link.into_conn() {
            let _ = timeout(FAREWELL_LIMIT, catch_panics(leave(conn))).await;
        }
    }

    /// Returns when nobody is left who is to be ended, nor on the way who would have to be.
    async fn settle(&mut self) {
        while self.link.is_connecting() {
            self.link.replaced().await;
        }
        self.round().await;
        while self.exits.look_at().is_some() {
            sleep_until(self.due().into()).await;
            self.round().await;
        }
    }

    /// Whether it is to go on.
    fn take(&mut self, request: Request) -> bool {
        match request {
            Request::Cancel(session, told) => self.asked.cancels.push((session, told)),
            Request::Who(tag, told) => self.asked.who.push((tag, told)),
            Request::Departed(sessions, told) => self.asked.departed.push((sessions, told)),
            Request::Gone { session, end_it, told } => self.exits.expect(session, end_it, Some(told), now()),
            Request::IsUncounted(tag, database, told) => self.asked.uncounted.push((tag, database, told)),
            Request::Capacity(own, told) => self.asked.capacity.push((own, told)),
            Request::Answers(told) => self.asked.answers.push(told),
            Request::Admits(told) => self.link.renew(told),
            Request::Shutdown => return false,
        }
        true
    }

    /// When the next round is due if nobody asks anything.
    fn due(&self) -> Instant {
        let asked = self.asked.wants_look().then(|| self.exits.rest_until());
        let used_at = self.link.used_at();
        let own = (self.link.has_predecessors() || self.link.wants_renewal()).then_some(used_at);
        let dues = [asked, self.exits.look_at(), own, Some(used_at + KEEPALIVE)];
        dues.into_iter().flatten().min().unwrap_or(used_at)
    }

    async fn round(&mut self) {
        // An asker who has gone would only keep the others waiting.
        self.asked.forget_the_gone();
        self.link.begin_renewal();
        for predecessor in self.link.take_predecessors() {
            self.exits.expect(predecessor, true, None, now());
        }
        self.exits.forget(|told| told.as_ref().is_some_and(oneshot::Sender::is_closed));
        self.cancel().await;
        let leaving = self.exits.end_due(now());
        if !leaving.is_empty() {
            // Who is still there will be told again.
            let _ = self.ask_about(Question::End, leaving).await;
        }
        self.tell_capacity().await;
        if self.due() <= now() {
            self.look().await;
        }
        for (session, age) in self.exits.late(now()) {
            tracing::warn!(pid = session.pid, ?age, "a session that is to end is still there");
        }
    }

    async fn cancel(&mut self) {
        if self.asked.cancels.is_empty() {
            return;
        }
        let (sessions, told): (Vec<_>, Vec<_>) = std::mem::take(&mut self.asked.cancels).into_iter().unzip();
        let is_sent = self.ask_about(Question::Cancel, sessions).await.is_ok();
        for told in told {
            let _ = told.send(is_sent);
        }
    }

    async fn tell_capacity(&mut self) {
        for (own, told) in std::mem::take(&mut self.asked.capacity) {
            // Those that are on their way out are nobody else's either.
            let all_own = own.into_iter().chain(self.exits.sessions());
            let pids: Vec<i32> = all_own.map(|session| session.pid).collect();
            let Ok(rows) = self.ask(Question::Capacity, |query| query.bind(&pids)).await else { return };
            let number =
                |at: usize| rows.first().and_then(|row| u32::try_from(row.try_get::<i32, _>(at).ok()?).ok());
            if let (Some(connections), Some(others)) = (number(0), number(1)) {
                let _ = told.send(Capacity { connections, others });
            }
        }
    }

    /// Asks who is there, and tells all who want to know.
    async fn look(&mut self) {
        let Asked { who, departed, uncounted, .. } = &self.asked;
        let wanted = departed.iter().flat_map(|(sessions, _)| sessions.iter().copied());
        let pids: Vec<i32> = self.exits.sessions().chain(wanted).map(|session| session.pid).collect();
        let asked_for = who.iter().map(|(tag, _)| tag).chain(uncounted.iter().map(|(tag, ..)| tag));
        let tags: Vec<String> = asked_for.map(|tag| tag.as_str().to_owned()).collect();
        // In this order: who was hidden may have come to be shown.
        let hidden = self.hidden().await;
        let began = now();
        let made = self.link.made();
        let seen = self.seen(&pids, &tags).await;
        let gone = match &seen {
            Ok(seen) => self.exits.looked(&seen.sessions, now().saturating_duration_since(began), now()),
            Err(_) => self.believe_gone(),
        };
        let own = gone.iter().filter(|told| told.is_none()).count();
        self.link.have_left(own);
        for told in gone.into_iter().flatten() {
            let _ = told.send(());
        }
        if let (Some(hidden), Ok(seen)) = (hidden, &seen) {
            self.tell_uncounted(&hidden, seen);
        }
        // A server that has let in a session meanwhile, or opens to a knock, is there, whatever hangs in it.
        let is_there = match &seen {
            Err(Unanswered::Lost(_)) if !self.asked.answers.is_empty() => {
                self.link.made() > made || self.link.is_there().await
            }
            _ => true,
        };
        self.asked.tell(seen, is_there, self.link.made());
    }

    /// In which databases somebody waits unseen, of those that somebody asks about.
    async fn hidden(&mut self) -> Option<HashSet<String>> {
        if self.asked.uncounted.is_empty() {
            return None;
        }
        let asked = &self.asked.uncounted;
        let databases: Vec<String> = asked.iter().map(|(_, database, _)| database.clone()).collect();
        let rows = self.ask(Question::Hidden, |query| query.bind(&databases)).await.ok()?;
        Some(names(&rows))
    }

    /// Tells of which sessions nothing is to be seen. Who is told nothing asks again.
    fn tell_uncounted(&mut self, hidden: &HashSet<String>, seen: &Seen) {
        for (tag, database, told) in self.asked.uncounted.drain(..) {
            let is_seen = seen.by_tag.contains_key(tag.as_str()) || hidden.contains(&database);
            let _ = told.send(!is_seen);
        }
    }

    fn believe_gone(&mut self) -> Vec<Option<oneshot::Sender<()>>> {
        let gone = self.exits.unanswered(now());
        if !gone.is_empty() {
            let sessions = gone.len();
            tracing::warn!(sessions, "the server cannot be asked; sessions are believed to be gone");
        }
        gone
    }

    async fn seen(&mut self, pids: &[i32], tags: &[String]) -> Result<Seen, Unanswered> {
        let length = i32::try_from(Tag::BYTES).unwrap_or(i32::MAX);
        let rows = self.ask(Question::Look, |query| query.bind(pids).bind(tags).bind(length)).await?;
        Seen::read(&rows).map_err(|error| {
            self.was_refused(Question::Look, &error);
            Unanswered::Refused(error)
        })
    }

    async fn ask_about(
        &mut self,
        question: Question,
        sessions: Vec<Session>,
    ) -> Result<Vec<PgRow>, Unanswered> {
        let (pids, started): (Vec<i32>, Vec<i64>) =
            sessions.into_iter().map(|Session { pid, started }| (pid, started)).unzip();
        self.ask(question, |query| query.bind(&pids).bind(&started)).await
    }

    /// The server's answer. What it refuses to answer is warned of once.
    async fn ask<'q>(
        &mut self,
        question: Question,
        arguments: impl Fn(Query<'q>) -> Query<'q>,
    ) -> Result<Vec<PgRow>, Unanswered> {
        let answer = self.link.ask(question, arguments).await;
        if let Err(Unanswered::Refused(error)) = &answer {
            self.was_refused(question, error);
        }
        answer
    }

    fn was_refused(&mut self, question: Question, error: &Error) {
        if self.refused.insert(question) {
            tracing::warn!(%error, ?question, "the server refuses what the control connection asks");
        }
    }
}

impl Asked {
    fn forget_the_gone(&mut self) {
        self.cancels.retain(|(_, told)| !told.is_closed());
        self.who.retain(|(_, told)| !told.is_closed());
        self.departed.retain(|(_, told)| !told.is_closed());
        self.uncounted.retain(|(_, _, told)| !told.is_closed());
        self.capacity.retain(|(_, told)| !told.is_closed());
        self.answers.retain(|told| !told.is_closed());
    }

    fn wants_look(&self) -> bool {
        let Self { who, departed, uncounted, answers, .. } = self;
        !(who.is_empty() && departed.is_empty() && uncounted.is_empty() && answers.is_empty())
    }

    /// Tells all who wanted a look what was seen, if anything was.
    fn tell(&mut self, seen: Result<Seen, Unanswered>, is_there: bool, made: u64) {
        let (seen, lost) = match seen {
            Ok(seen) => (Some(seen), None),
            Err(Unanswered::Refused(_)) => (None, None),
            Err(Unanswered::Lost(error)) => (None, Some(error).filter(|_| !is_there)),
        };
        self.uncounted.clear();
        tell_all(self.answers.drain(..), lost.map_or(Ok(made), Err));
        let seen = seen.as_ref();
        for (tag, told) in self.who.drain(..) {
            let _ = told.send(seen.and_then(|seen| seen.by_tag.get(tag.as_str()).copied()));
        }
        for (sessions, told) in self.departed.drain(..) {
            let _ = told.send(seen.map(|seen| seen.missing(&sessions)));
        }
    }
}

impl Seen {
    fn read(rows: &[PgRow]) -> Result<Self, Error> {
        let mut seen = Self::default();
        for row in rows {
            // That of another role's session is not shown to everybody; it is none of ours.
            let Some(started) = row.try_get(1)? else { continue };
            let session = Session { pid: row.try_get(0)?, started };
            seen.sessions.insert(session);
            if let Some(tag) = row.try_get(2)? {
                seen.by_tag.insert(tag, session);
            }
        }
        Ok(seen)
    }

    /// The places of those that are not there.
    fn missing(&self, sessions: &[Session]) -> Vec<usize> {
        let places = sessions.iter().enumerate();
        places.filter_map(|(place, session)| (!self.sessions.contains(session)).then_some(place)).collect()
    }
}

fn names(rows: &[PgRow]) -> HashSet<String> {
    rows.iter().filter_map(|row| row.try_get(0).ok()).collect()
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
