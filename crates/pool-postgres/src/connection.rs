//! One session: sqlx's connection, who it is on the server, and whether it is known to be clean.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use pool_core::Condition;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};

use crate::classify::{is_fatal, is_loss};
use crate::statement::is_plain;

/// A session as the server knows it. A pid alone is used again after a while; with the time the backend
/// started it is unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    pub(crate) started: String,
}

/// A live connection of the driver. Statements that go through a lease as an executor are seen, so that a
/// connection that saw only plain ones is known to be clean without asking the server.
#[derive(Debug)]
pub struct PgConn {
    conn: PgConnection,
    session: Session,
    /// Something went over the connection that may have left a transaction or a session state behind.
    marked: bool,
    /// A statement failed because the session is gone.
    lost: bool,
}

impl PgConn {
    /// Asks the server who we are there.
    pub(crate) async fn identify(mut conn: PgConnection) -> Result<Self, Error> {
        let session = session_of(&mut conn).await?;
        Ok(Self { conn, session, marked: false, lost: false })
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The process id of the backend that serves this session.
    pub fn backend_pid(&self) -> i32 {
        self.session.pid
    }

    pub(crate) fn raw(&self) -> &PgConnection {
        &self.conn
    }

    /// Access that nobody watches: the connection is verified when it comes back.
    pub(crate) fn raw_mut(&mut self) -> &mut PgConnection {
        self.marked = true;
        &mut self.conn
    }

    /// Access for one statement, which marks the connection unless the statement is plain. Its errors are
    /// to be noted, so that a connection that broke is known to be broken when it comes back: what follows
    /// the server's last word, the end of the wire, may not have arrived yet.
    pub(crate) fn tracked(&mut self, sql: &str, has_arguments: bool) -> (&mut PgConnection, Losses<'_>) {
        self.marked |= !is_plain(sql, has_arguments);
        (&mut self.conn, Losses { lost: &mut self.lost })
    }

    /// Access for the adapter itself, which knows what it does.
    pub(crate) fn own(&mut self) -> &mut PgConnection {
        &mut self.conn
    }

    pub(crate) fn is_marked(&self) -> bool {
        self.marked
    }

    pub(crate) fn set_marked(&mut self, marked: bool) {
        self.marked = marked;
    }

    /// What is known without a round trip. sqlx's `flush`, polled once, says whether an answer is still
    /// on the wire.
    pub(crate) fn condition(&mut self) -> Condition {
        if self.lost {
            return Condition::Broken;
        }
        if self.marked || self.conn.is_in_transaction() || self.conn.should_flush() {
            return Condition::Suspect;
        }
        let mut context = Context::from_waker(Waker::noop());
        match pin!(self.conn.flush()).poll(&mut context) {
            Poll::Ready(Ok(())) => Condition::Clean,
            Poll::Ready(Err(error)) if is_fatal(&error) => Condition::Broken,
            Poll::Ready(Err(_)) | Poll::Pending => Condition::Suspect,
        }
    }

    pub(crate) fn into_parts(self) -> (PgConnection, Session) {
        (self.conn, self.session)
    }
}

/// Takes note of errors that tell that the session is gone.
pub(crate) struct Losses<'a> {
    lost: &'a mut bool,
}

impl Losses<'_> {
    pub(crate) fn note(&mut self, error: &Error) {
        *self.lost |= is_loss(error);
    }
}

/// The pid and the start of the backend behind `conn`.
pub(crate) async fn session_of(conn: &mut PgConnection) -> Result<Session, Error> {
    // The simple protocol: one round trip, and nothing is prepared for it.
    let whoami = "select pid, backend_start::text as started from pg_stat_get_activity(pg_backend_pid())";
    let row = sqlx::raw_sql(whoami).fetch_one(conn).await?;
    Ok(Session { pid: row.try_get("pid")?, started: row.try_get("started")? })
}
