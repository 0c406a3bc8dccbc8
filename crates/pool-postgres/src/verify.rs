//! Whose answer comes next. sqlx can leave a connection one answer behind: the end of a COPY that was dropped
//! half-way is not counted, and every later statement reads what the one before it was answered. So a
//! connection about which that is not certain (raw access, a statement dropped or failed, idle for long) is believed only after it has
//! echoed a nonce made for that question. It is the last thing that
//! was sent, so when its own answer has been read, nothing else is on the wire.
//!
//! Names, types and operators are qualified: a holder's `search_path` must not choose who answers.

use std::io;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, Row};

use crate::catch_panics::catch_panics;
use crate::classify::{STANDBY, is_loss};
use crate::connection::PgConn;
use crate::plans::Look;
use crate::session::TargetRole;

/// How often a connection is asked. A late cancel may hit one question; a failed transaction, one more; a
/// rollback is followed by another.
const TRIES: usize = 5;
const FAILED_TRANSACTION: &str = "25P02";

/// The question's answer, beyond the echo: the backend's pid, and whether the transaction began with the
/// question, that is, none was open.
const STATE: &str = "pg_catalog.pg_backend_pid(), \
                     pg_catalog.now() operator(pg_catalog.=) pg_catalog.statement_timestamp()";

/// Whether the server takes no writes.
const IS_STANDBY: &str = ", pg_catalog.pg_is_in_recovery()";

/// What a holder may leave behind. In an open transaction it would be rolled back with it, which is seen, and it is
/// sent again.
const RESET: &str = "close all; set session authorization default; reset role; reset all; unlisten *; \
                     select pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences; ";

/// How many statements sqlx has prepared, and how many a holder has under a name of sqlx's: they would answer for others.
const PREPARED: &str = "pg_catalog.count(*) filter (where not from_sql), \
     pg_catalog.count(*) filter (where from_sql and pg_catalog.starts_with(name, 'sqlx_s_'))";
const FROM_PREPARED: &str = " from pg_catalog.pg_prepared_statement()";

/// Two snapshots that are the same have the same transactions behind them, so nothing was changed between them.
const SNAPSHOT: &str = "pg_catalog.hashtextextended(pg_catalog.pg_current_snapshot()::pg_catalog.text, 0)";

/// Changes with what a statement's result can look like, but not with temporary tables: the transactions that wrote the rows
/// of all columns, the names of all tables, and the youngest function.
const SCHEMA: &str = "pg_catalog.count(*), pg_catalog.concat_ws(' ', pg_catalog.count(*), \
     pg_catalog.hash_array_extended(pg_catalog.array_agg(a.xmin), 0), pg_catalog.max(c.names), \
     (select pg_catalog.max(oid) from pg_catalog.pg_proc)) \
     from (select pg_catalog.array_agg(oid) filter (where relpersistence operator(pg_catalog.=) 't') as temporary, \
     pg_catalog.sum(pg_catalog.hashtextextended(relname::pg_catalog.text, oid::pg_catalog.int8) \
     operator(pg_catalog.#) relnamespace::pg_catalog.int8) filter (where relpersistence operator(pg_catalog.<>) 't' \
     and relkind operator(pg_catalog.=) any ('{r,v,m,f,p}'::pg_catalog.\"char\"[])) as names \
     from pg_catalog.pg_class where oid operator(pg_catalog.>=) 16384) c, pg_catalog.pg_attribute a \
     where a.attrelid operator(pg_catalog.>=) 16384 and a.attnum operator(pg_catalog.>) 0 \
     and not a.attrelid operator(pg_catalog.=) any (coalesce(c.temporary, '{}'))";

/// What is done in the round trip of a question.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct With {
    /// Take back what a holder may have left.
    pub(crate) reset: bool,
    /// Close all prepared statements.
    pub(crate) close_statements: bool,
    /// Ask about prepared statements.
    pub(crate) statements: bool,
    /// Refuse a server of another role.
    pub(crate) role: TargetRole,
}

/// What was seen in that round trip.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) state: InStep,
    pub(crate) prepared: Option<Prepared>,
}

/// What the server says of a session's prepared statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    by_sqlx: i64,
    under_names_of_sqlx: i64,
    /// Stands for all transactions that have ended.
    pub(crate) snapshot: i64,
}

impl Prepared {
    /// Whether these are the statements that sqlx keeps, and no other could be taken for one of them.
    pub(crate) fn are_those_kept(self, kept: usize) -> bool {
        usize::try_from(self.by_sqlx).is_ok_and(|count| count == kept) && self.under_names_of_sqlx == 0
    }
}

impl With {
    fn question(self, nonce: &str) -> String {
        let role = if self.role == TargetRole::ReadWrite { IS_STANDBY } else { "" };
        let ask = format!("select '{nonce}', {STATE}{role}");
        if self.is_plain() {
            return ask;
        }
        let reset = if self.reset { RESET } else { "" };
        let close = if self.close_statements { "deallocate all; " } else { "" };
        let about =
            if self.statements { format!(", {PREPARED}, {SNAPSHOT}{FROM_PREPARED}") } else { String::new() };
        // The second echo shows that all between the two has been done.
        format!("{ask}; {reset}{close}select '{nonce}'{about}")
    }

    fn is_plain(self) -> bool {
        !self.reset && !self.close_statements && !self.statements
    }

    /// The rows of the answer: unlocking is a query, too.
    fn rows(self) -> usize {
        if self.is_plain() { 1 } else { 2 + usize::from(self.reset) }
    }
}

/// What a connection that is in step with the server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InStep {
    Idle,
    InTransaction,
}

/// Asks once for the echo of a fresh nonce.
///
/// # Errors
/// The server's, after which one may ask again; anything else, and also an answer to another question, means
/// that the connection must be closed.
pub(crate) async fn ask(conn: &mut PgConn, with: With) -> Result<Seen, Error> {
    let nonce = nonce();
    let pid = conn.backend_pid();
    let rows = answers(conn, with.question(&nonce)).await?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Err(out_of_step()) };
    if rows.len() != with.rows() || !echoes(first, &nonce) || !echoes(last, &nonce) {
        return Err(out_of_step());
    }
    // Raw access can swap two connections.
    if first.try_get::<i32, _>(1)? != pid {
        return Err(Error::Protocol("the connection was swapped for another one".into()));
    }
    if with.role == TargetRole::ReadWrite && first.try_get(3)? {
        return Err(is_standby());
    }
    let state = if first.try_get(2)? { InStep::Idle } else { InStep::InTransaction };
    let prepared = if with.statements { Some(prepared(last)?) } else { None };
    Ok(Seen { state, prepared })
}

/// Of a kind of its own, which `classify` knows.
fn is_standby() -> Error {
    let why = "the server is a standby, and a read-write one is wanted";
    Error::Io(io::Error::new(STANDBY, why))
}

fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

async fn answers(conn: &mut PgConn, question: String) -> Result<Vec<PgRow>, Error> {
    let (raw, statement) = conn.begin_statement();
    let answer = catch_panics(sqlx::raw_sql(AssertSqlSafe(question)).fetch_all(raw)).await;
    statement.ended(answer)
}

fn echoes(row: &PgRow, nonce: &str) -> bool {
    row.try_get(0).is_ok_and(|echo: &str| echo == nonce)
}

fn prepared(row: &PgRow) -> Result<Prepared, Error> {
    let (by_sqlx, under_names_of_sqlx) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Prepared { by_sqlx, under_names_of_sqlx, snapshot: row.try_get(3)? })
}

/// Looks at the database's schema, on a connection that is in step.
///
/// # Errors
/// The server's, after which nothing is known of the schema; after anything else the connection must be closed.
pub(crate) async fn look(conn: &mut PgConn) -> Result<Look, Error> {
    let nonce = nonce();
    let rows = answers(conn, format!("select '{nonce}', {SNAPSHOT}, {SCHEMA}")).await?;
    match rows.as_slice() {
        [row] if echoes(row, &nonce) => {
            Ok(Look { snapshot: row.try_get(1)?, columns: row.try_get(2)?, fingerprint: row.try_get(3)? })
        }
        _ => Err(out_of_step()),
    }
}

fn out_of_step() -> Error {
    Error::Protocol("the answer is that of another question".into())
}

/// Whether an idle connection lives, is in step, is in no transaction, and has the role that is wished.
pub(crate) async fn check(conn: &mut PgConn, role: TargetRole) -> Result<(), Error> {
    match ask(conn, With { role, ..With::default() }).await?.state {
        InStep::Idle => Ok(()),
        InStep::InTransaction => Err(Error::Protocol("a transaction is open on an idle connection".into())),
    }
}

/// Asks until the connection is in step and in no transaction; one that is open is rolled back. (A ROLLBACK
/// without need would warn in the server's log.)
pub(crate) async fn verify(conn: &mut PgConn, with: With) -> Result<Seen, Error> {
    for _ in 0..TRIES {
        match ask(conn, with).await {
            Ok(seen) if seen.state == InStep::Idle => return Ok(seen),
            Ok(_) => roll_back(conn).await?,
            Err(error) if !may_ask_again(&error) => return Err(error),
            Err(error) if has_failed_transaction(&error) => roll_back(conn).await?,
            Err(_) => {}
        }
    }
    Err(Error::Protocol("the connection could not be verified".into()))
}

/// The next question shows what became of it.
async fn roll_back(conn: &mut PgConn) -> Result<(), Error> {
    let outcome = catch_panics(sqlx::raw_sql("rollback").execute(conn.own())).await;
    outcome.map(drop).or_else(|error| if may_ask_again(&error) { Ok(()) } else { Err(error) })
}

/// Only an error that the server has told, and after which the session lives on.
pub(crate) fn may_ask_again(error: &Error) -> bool {
    matches!(error, Error::Database(_)) && !is_loss(error)
}

fn has_failed_transaction(error: &Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == FAILED_TRANSACTION)
}
