//! Which statements can leave neither a transaction nor a changed session behind, and how a caller's query is handed on.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteStatement};
use sqlx::{Execute, SqlStr, Sqlite};

/// Verbs that can neither open nor close a transaction, nor change a session.
const PLAIN_VERBS: [&str; 7] = ["select", "insert", "update", "delete", "values", "with", "replace"];

/// Whether `sql` is one statement that begins with a plain verb. `SQLite` runs all statements of a text, so a semicolon may stand at
/// its end only.
pub(crate) fn is_plain(sql: &str) -> bool {
    let sql = sql.trim_start();
    let verb_ends = sql.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(sql.len());
    let (verb, rest) = sql.split_at(verb_ends);
    let is_plain_verb = PLAIN_VERBS.iter().any(|plain| verb.eq_ignore_ascii_case(plain));
    is_plain_verb && !rest.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).contains(';')
}

/// A caller's query, taken apart so that its text could be read, in the form that sqlx takes.
pub(crate) struct OwnedQuery {
    sql: SqlStr,
    arguments: Option<Result<Option<SqliteArguments>, BoxDynError>>,
    statement: Option<Arc<SqliteStatement>>,
    persistent: bool,
}

impl OwnedQuery {
    pub(crate) fn new<'q>(mut query: impl Execute<'q, Sqlite>) -> Self {
        let statement = query.statement().cloned().map(Arc::new);
        let arguments = Some(query.take_arguments());
        let persistent = query.persistent();
        Self { sql: query.sql(), arguments, statement, persistent }
    }

    pub(crate) fn text(&self) -> &str {
        self.sql.as_str()
    }
}

impl Execute<'_, Sqlite> for OwnedQuery {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&SqliteStatement> {
        self.statement.as_deref()
    }

    fn take_arguments(&mut self) -> Result<Option<SqliteArguments>, BoxDynError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn only_a_single_plain_statement_passes() {
        for plain in
            ["select 1", "  SELECT 1 ; ", "with x as (select 1) select * from x", "replace into t values (1)"]
        {
            assert!(is_plain(plain), "{plain}");
        }
        for other in
            ["begin", "select 1; begin", "pragma foreign_keys = off", "attach 'x' as y", "/* x */ begin", ""]
        {
            assert!(!is_plain(other), "{other}");
        }
    }
}
