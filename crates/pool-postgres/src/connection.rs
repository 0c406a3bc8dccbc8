//! One session: sqlx's connection, who it is on the server, and whether it is known to be clean.

use std::fmt;
use std::sync::Arc;

use pool_core::Condition;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};

use crate::catch_panics::catch_panics;
use crate::classify::{is_loss, leads_astray};
use crate::password::Generation;
use crate::plans::{Plans, is_spoiled};
use crate::session::{Reset, SessionKind};
use crate::statement::is_plain;

/// A session as the server knows it. A pid alone is used again after a while; with the time the backend
/// started it is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    /// Microseconds since 1970, by the server's clock.
    pub(crate) started: i64,
}

const ASTRAY: &str = "an earlier statement ended in something that the server has not said: nothing more is sent, and \
                      the connection is closed";

/// What a lease and a transaction deref to: one session with a server. `&mut session` is a sqlx `Executor` that is
/// **tracked**: its statements are seen, and a session that saw only plain ones is known to be clean without asking the
/// server. The session derefs in turn to sqlx's [`PgConnection`], and access to that is **raw**: nobody sees what it does,
/// and the connection is verified in the background when it comes back.
///
/// A session has no size that the compiler knows, so `std::mem::swap` does not take two of them: each stays in its own lease,
/// and with the database that its lease is for.
///
/// ```compile_fail
/// fn swap(a: &mut pool_postgres::PgLease, b: &mut pool_postgres::PgLease) {
///     std::mem::swap(&mut **a, &mut **b);
/// }
/// ```
pub struct PgSession<Tail: ?Sized = [()]> {
    conn: PgConnection,
    session: Session,
    /// Of the password that it began with.
    generation: Generation,
    kind: SessionKind,
    history: History,
    plans: Arc<Plans>,
    /// The epoch of `plans` in which the first of its cached statements was prepared, at the earliest.
    epoch: u64,
    /// Whether sqlx keeps prepared statements. It prepares them all the same, and never closes them.
    keeps_statements: bool,
    /// Nothing, of a known size or of none.
    _tail: Tail,
}

/// A live connection of the driver; a lease shows it as a [`PgSession`].
pub type PgConn = PgSession<[(); 0]>;

/// What has gone over a connection since it was last known to be clean.
#[derive(Debug)]
struct History {
    /// Anything at all.
    used: bool,
    /// Something that may have left a transaction or a changed session behind.
    dirty: bool,
    wire: Wire,
    last: Last,
}

impl History {
    const CLEAN: Self = Self { used: false, dirty: false, wire: Wire::InStep, last: Last::Ended };

    fn may_send(&self) -> Result<(), Error> {
        if self.wire == Wire::Astray { Err(Error::Protocol(ASTRAY.into())) } else { Ok(()) }
    }
}

/// What is known of what is still on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wire {
    /// Every statement was seen to end.
    InStep,
    /// The end of a statement was not seen: an echo shows what is left.
    Unsure,
    /// A statement ended in something that is not the server's word: the two may now wait for each other.
    Astray,
}

/// What is known of the last statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// Its end was seen.
    Ended,
    /// It was sent, and its end has not been seen.
    InFlight,
    /// It failed. More may be on the wire, and the transaction around it has failed, too.
    Failed,
    /// It failed because the session is gone.
    Lost,
}

impl PgConn {
    pub(crate) fn new(
        (conn, session, generation): (PgConnection, Session, Generation),
        kind: SessionKind,
        plans: Arc<Plans>,
        keeps_statements: bool,
    ) -> Self {
        let epoch = plans.epoch();
        let history = History::CLEAN;
        Self { conn, session, generation, kind, history, plans, epoch, keeps_statements, _tail: [] }
    }

    pub(crate) fn into_parts(self) -> (PgConnection, Session) {
        (self.conn, self.session)
    }
}

impl<Tail: ?Sized> PgSession<Tail> {
    pub(crate) fn session(&self) -> Session {
        self.session
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn kind(&self) -> SessionKind {
        self.kind
    }

    /// The process id of the backend that serves this session.
    pub fn backend_pid(&self) -> i32 {
        self.session.pid
    }

    /// Asks the server for a sign of life: one round trip, tracked.
    ///
    /// # Errors
    /// What sqlx says; the connection is then closed when it comes back.
    ///
    /// # Cancel safety
    /// Dropping the future has the connection verified when it comes back.
    pub async fn ping(&mut self) -> Result<(), Error> {
        let (conn, statement) = self.begin_statement();
        statement.may_start()?;
        statement.ended(conn.ping().await)
    }

    pub(crate) fn raw(&self) -> &PgConnection {
        &self.conn
    }

    /// Access that nobody watches: the connection is verified when it comes back.
    pub(crate) fn raw_mut(&mut self) -> &mut PgConnection {
        self.is_dirty_now();
        &mut self.conn
    }

    /// The connection for one statement, which marks it unless the statement is plain, and what is to be
    /// told of the statement's end.
    pub(crate) fn track(
        &mut self,
        sql: &str,
        has_arguments: bool,
    ) -> (&mut PgConnection, StatementGuard<'_>) {
        self.history.dirty |= !is_plain(sql, has_arguments);
        self.begin_statement()
    }

    /// The same for what opens no transaction whatever it says, such as preparing a statement.
    pub(crate) fn begin_statement(&mut self) -> (&mut PgConnection, StatementGuard<'_>) {
        let history = &mut self.history;
        history.used = true;
        if history.last == Last::InFlight {
            history.wire = history.wire.max(Wire::Unsure);
        }
        history.last = Last::InFlight;
        (&mut self.conn, StatementGuard { history, plans: &self.plans, epoch: self.epoch })
    }

    /// The same for a statement that is prepared by name. One that sqlx does not keep is to be closed.
    pub(crate) fn begin_prepare(&mut self) -> (&mut PgConnection, StatementGuard<'_>) {
        self.history.dirty |= !self.keeps_statements;
        self.begin_statement()
    }

    pub(crate) fn keeps_statements(&self) -> bool {
        self.keeps_statements
    }

    pub(crate) fn plans(&self) -> &Plans {
        &self.plans
    }

    /// Whether the connection may hold prepared statements that a change of the schema has spoiled.
    pub(crate) fn has_spoiled_plans(&self) -> bool {
        self.epoch != self.plans.epoch()
    }

    /// Has the server close all prepared statements, also those that sqlx does not know.
    pub(crate) async fn deallocate_statements(&mut self) -> Result<(), Error> {
        let (conn, statement) = self.begin_statement();
        statement.ended(catch_panics(sqlx::raw_sql("deallocate all").execute(conn)).await).map(drop)
    }

    /// Throws all prepared statements away.
    pub(crate) async fn forget_statements(&mut self) -> Result<(), Error> {
        let epoch = self.plans.epoch();
        let (conn, statement) = self.begin_statement();
        statement.ended(catch_panics(conn.clear_cached_statements()).await)?;
        self.epoch = epoch;
        Ok(())
    }

    /// Access for the adapter itself, which knows what it does.
    pub(crate) fn own(&mut self) -> &mut PgConnection {
        &mut self.conn
    }

    /// Says what is known of the wire, and returns what was.
    pub(crate) fn set_wire(&mut self, wire: Wire) -> Wire {
        self.history.used = true;
        std::mem::replace(&mut self.history.wire, wire)
    }

    /// Whether a transaction around the statements so far may have failed, or may not be the one that the
    /// next answer is about.
    pub(crate) fn may_have_failed(&self) -> bool {
        let History { dirty, wire, last, .. } = self.history;
        dirty || wire != Wire::InStep || last != Last::Ended
    }

    /// Refuses what would be sent while sqlx and the server may wait for each other.
    pub(crate) fn may_send(&self) -> Result<(), Error> {
        self.history.may_send()
    }

    /// Whether anything went over the connection since it was last known to be clean.
    pub(crate) fn was_used(&self) -> bool {
        self.history.used
    }

    /// Whether something went over a lent connection of which the adapter has not seen everything.
    pub(crate) fn was_dirtied(&self) -> bool {
        self.kind == SessionKind::Lent && self.history.dirty
    }

    /// Whether a connection that comes back is to be reset.
    pub(crate) fn wants_reset(&self, reset: Reset) -> bool {
        match (self.kind, reset) {
            // A source of databases is somebody else's code, too.
            (SessionKind::Own, _) | (SessionKind::Lent, Reset::WhenDirty) => self.history.dirty,
            (SessionKind::Lent, Reset::Never) => false,
            (SessionKind::Lent, Reset::Always) => self.history.used,
        }
    }

    /// To be called before something is sent that may change more than is seen of it.
    pub(crate) fn is_dirty_now(&mut self) {
        (self.history.used, self.history.dirty) = (true, true);
    }

    /// To be called when the connection has been made clean.
    pub(crate) fn is_clean_now(&mut self) {
        self.history = History::CLEAN;
    }

    /// What is known without a round trip, and without touching the socket: reading what is left there
    /// could take as long as the server goes on sending.
    pub(crate) fn condition(&self) -> Condition {
        if !self.history.used {
            return Condition::Clean;
        }
        if self.history.wire == Wire::Astray || self.history.last == Last::Lost {
            return Condition::Broken;
        }
        let suspect = self.may_have_failed() || self.conn.is_in_transaction() || self.conn.should_flush();
        if suspect { Condition::Suspect } else { Condition::Clean }
    }
}

impl<Tail: ?Sized> fmt::Debug for PgSession<Tail> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgSession").field("session", &self.session).finish_non_exhaustive()
    }
}

/// A statement on its way; dropped without a word, it has not been seen to end.
pub(crate) struct StatementGuard<'c> {
    history: &'c mut History,
    plans: &'c Plans,
    epoch: u64,
}

impl StatementGuard<'_> {
    /// Refuses a statement that would wait for ever.
    pub(crate) fn may_start(&self) -> Result<(), Error> {
        self.history.may_send()
    }

    /// The statement has come to this end.
    pub(crate) fn ended<T>(self, outcome: Result<T, Error>) -> Result<T, Error> {
        self.history.last = match &outcome {
            Ok(_) => Last::Ended,
            Err(error) if is_loss(error) => Last::Lost,
            Err(_) => Last::Failed,
        };
        if outcome.as_ref().is_err_and(is_spoiled) {
            self.plans.spoiled_in(self.epoch);
        }
        let wire = match &outcome {
            Ok(_) | Err(Error::Database(_)) => Wire::InStep,
            Err(error) if leads_astray(error) => Wire::Astray,
            // It may have left some of the answer unread.
            Err(_) => Wire::Unsure,
        };
        self.history.wire = self.history.wire.max(wire);
        outcome
    }
}

impl Drop for StatementGuard<'_> {
    fn drop(&mut self) {
        // A decoder that panics has left the answer in the middle.
        if std::thread::panicking() {
            self.history.wire = Wire::Astray;
        }
    }
}

/// The pid and the start of the backend behind `conn`, by its own word. What a session needs to read for that costs the
/// server as much as a tenth of the session's start, so that it is asked only when the control connection does not know.
pub(crate) async fn session_of(conn: &mut PgConnection) -> Result<Session, Error> {
    // The simple protocol: one round trip, and nothing is prepared for it. A role that is a default of the
    // session may not see when the backend started.
    let whoami = "set role none; select pid, \
                  (pg_catalog.date_part('epoch', backend_start) operator(pg_catalog.*) 1000000)::pg_catalog.int8 \
                  as started from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()); reset role";
    let row = sqlx::raw_sql(whoami).fetch_one(conn).await?;
    Ok(Session { pid: row.try_get("pid")?, started: row.try_get("started")? })
}
