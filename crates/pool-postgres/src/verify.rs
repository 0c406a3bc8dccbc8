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

/// How many statements the session has prepared.
const PREPARED: &str = "(select pg_catalog.count(*) from pg_catalog.pg_prepared_statement())";

/// Changes with every column that comes, goes or changes, of tables, views and composite types, but not of temporary ones: the
/// transactions that wrote the columns' rows.
const COLUMNS: &str = "(select pg_catalog.sum(pg_catalog.hashint8(xmin::pg_catalog.text::pg_catalog.int8))::pg_catalog.text \
     from pg_catalog.pg_attribute where attrelid operator(pg_catalog.>=) 16384 and attnum operator(pg_catalog.>) 0 \
     and not attrelid operator(pg_catalog.=) any (array(select oid from pg_catalog.pg_class \
     where relpersistence operator(pg_catalog.=) 't')))";

/// What is done in the round trip of a question.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct With {
    /// Take back what a holder may have left.
    pub(crate) reset: bool,
    /// Close all prepared statements.
    pub(crate) close_statements: bool,
    pub(crate) about: About,
}

/// What is asked about prepared statements, beside the echo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum About {
    #[default]
    Nothing,
    /// How many the server has.
    Prepared,
    /// That, and the fingerprint of the database's columns.
    PreparedAndColumns,
}

/// What was seen in that round trip.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) state: InStep,
    pub(crate) prepared: Option<i64>,
    pub(crate) columns: Option<String>,
}

impl With {
    fn question(self, nonce: &str) -> String {
        let ask = format!("select '{nonce}', {STATE}");
        if self.is_plain() {
            return ask;
        }
        let reset = if self.reset { RESET } else { "" };
        let close = if self.close_statements { "deallocate all; " } else { "" };
        let (prepared, columns) = match self.about {
            About::Nothing => ("null::pg_catalog.int8", "null"),
            About::Prepared => (PREPARED, "null"),
            About::PreparedAndColumns => (PREPARED, COLUMNS),
        };
        // The second echo shows that all between the two has been done.
        format!("{ask}; {reset}{close}select '{nonce}', {prepared}, {columns}")
    }

    fn is_plain(self) -> bool {
        !self.reset && !self.close_statements && self.about == About::Nothing
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
    let nonce = format!("{:032x}", fastrand::u128(..));
    let pid = conn.backend_pid();
    let question = AssertSqlSafe(with.question(&nonce));
    let (raw, statement) = conn.begin_statement();
    let answer = catch_panics(sqlx::raw_sql(question).fetch_all(raw)).await;
    let rows = statement.ended(answer)?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Err(out_of_step()) };
    let echoes = |row: &PgRow| row.try_get(0).is_ok_and(|echo: &str| echo == nonce);
    if rows.len() != with.rows() || !echoes(first) || !echoes(last) {
        return Err(out_of_step());
    }
    // Raw access can swap two connections.
    if first.try_get::<i32, _>(1)? != pid {
        return Err(Error::Protocol("the connection was swapped for another one".into()));
    }
    let state = if first.try_get(2)? { InStep::Idle } else { InStep::InTransaction };
    let (prepared, columns) =
        if with.is_plain() { (None, None) } else { (last.try_get(1)?, last.try_get(2)?) };
    Ok(Seen { state, prepared, columns })
}

fn out_of_step() -> Error {
    Error::Protocol("the answer is that of another question".into())
}

/// Whether an idle connection lives, is in step, and is in no transaction.
pub(crate) async fn check(conn: &mut PgConn) -> Result<(), Error> {
    match ask(conn, With::default()).await?.state {
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
fn may_ask_again(error: &Error) -> bool {
    matches!(error, Error::Database(_)) && !is_loss(error)
}

fn has_failed_transaction(error: &Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == FAILED_TRANSACTION)
}
