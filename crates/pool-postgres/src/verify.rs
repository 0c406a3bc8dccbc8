//! Whose answer comes next. sqlx can leave a connection one answer behind: the end of a COPY that was dropped
//! half-way is not counted, and every later statement reads what the one before it was answered. So the
//! adapter believes no answer but one that echoes a nonce made for that question. It is the last thing that
//! was sent, so when its own answer has been read, nothing else is on the wire.
//!
//! Names, types and operators are qualified: a holder's `search_path` must not choose who answers.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, Row};

use crate::catch_panics::catch_panics;
use crate::classify::is_loss;
use crate::connection::PgConn;

/// How often a connection is asked. A late cancel may hit one question; a failed transaction, one more; a
/// rollback is followed by another.
const TRIES: usize = 5;
const FAILED_TRANSACTION: &str = "25P02";

/// The question's answer, beyond the echo: the backend's pid, and whether the transaction began with the
/// question, that is, none was open.
const STATE: &str = "pg_catalog.pg_backend_pid(), \
                     pg_catalog.now() operator(pg_catalog.=) pg_catalog.statement_timestamp()";

/// What a holder may leave behind. In an open transaction it would be rolled back with it, which is seen, and it is
/// sent again.
const RESET: &str = "close all; set session authorization default; reset role; reset all; unlisten *; \
                     select pg_catalog.pg_advisory_unlock_all(); discard temp; discard sequences; ";

/// What is done in the round trip of a question.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct With {
    pub(crate) reset: bool,
}

impl With {
    fn question(self, nonce: &str) -> String {
        let ask = format!("select '{nonce}', {STATE}");
        // The second echo shows that all between the two has been done.
        if self.reset { format!("{ask}; {RESET} select '{nonce}'") } else { ask }
    }

    /// The rows of the answer.
    fn rows(self) -> usize {
        if self.reset { 3 } else { 1 }
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
pub(crate) async fn ask(conn: &mut PgConn, with: With) -> Result<InStep, Error> {
    let nonce = format!("{:032x}", fastrand::u128(..));
    let pid = conn.backend_pid();
    let question = AssertSqlSafe(with.question(&nonce));
    let (raw, statement) = conn.begin_statement();
    let answer = catch_panics(sqlx::raw_sql(question).fetch_all(raw)).await;
    let rows = statement.ended(answer)?;
    let echoes = rows.last().is_some_and(|row| row.try_get(0).is_ok_and(|echo: &str| echo == nonce));
    match rows.first() {
        Some(row) if rows.len() == with.rows() && echoes => read(row, &nonce, pid),
        _ => Err(out_of_step()),
    }
}

fn read(row: &PgRow, nonce: &str, pid: i32) -> Result<InStep, Error> {
    let (echo, answered_by, is_idle): (&str, i32, bool) =
        match (row.try_get(0), row.try_get(1), row.try_get(2)) {
            (Ok(echo), Ok(pid), Ok(is_idle)) => (echo, pid, is_idle),
            _ => return Err(out_of_step()),
        };
    if echo != nonce {
        return Err(out_of_step());
    }
    // Raw access can swap two connections.
    if answered_by != pid {
        return Err(Error::Protocol("the connection was swapped for another one".into()));
    }
    Ok(if is_idle { InStep::Idle } else { InStep::InTransaction })
}

fn out_of_step() -> Error {
    Error::Protocol("the answer is that of another question".into())
}

/// Whether an idle connection lives, is in step, and is in no transaction.
pub(crate) async fn check(conn: &mut PgConn) -> Result<(), Error> {
    match ask(conn, With::default()).await? {
        InStep::Idle => Ok(()),
        InStep::InTransaction => Err(Error::Protocol("a transaction is open on an idle connection".into())),
    }
}

/// Asks until the connection is in step and in no transaction; one that is open is rolled back. (A ROLLBACK
/// without need would warn in the server's log.)
pub(crate) async fn verify(conn: &mut PgConn, with: With) -> Result<(), Error> {
    for _ in 0..TRIES {
        match ask(conn, with).await {
            Ok(InStep::Idle) => return Ok(()),
            Ok(InStep::InTransaction) => roll_back(conn).await?,
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
fn may_ask_again(error: &Error) -> bool {
    matches!(error, Error::Database(_)) && !is_loss(error)
}

fn has_failed_transaction(error: &Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == FAILED_TRANSACTION)
}
