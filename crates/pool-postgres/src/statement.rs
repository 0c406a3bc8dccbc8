//! Which statements cannot leave a transaction open, and how a caller's query is handed on.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{Execute, Postgres, SqlStr};

/// Verbs that can neither open nor close a transaction.
const PLAIN_VERBS: [&str; 6] = ["select", "insert", "update", "delete", "values", "with"];

/// Whether `sql` cannot leave a transaction behind: it begins with a plain verb and is one statement. The
/// server itself takes only one statement when there are arguments; otherwise a semicolon may start
/// another, wherever it stands, so only trailing ones pass.
pub(crate) fn is_plain(sql: &str, has_arguments: bool) -> bool {
    let sql = sql.trim_start();
    let verb_ends = sql.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(sql.len());
    let (verb, rest) = sql.split_at(verb_ends);
    let is_plain_verb = PLAIN_VERBS.iter().any(|plain| verb.eq_ignore_ascii_case(plain));
    let is_one = || !rest.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).contains(';');
    is_plain_verb && (has_arguments || is_one())
}

/// A caller's query, taken apart so that its text could be read, in the form that sqlx takes.
pub(crate) struct OwnedQuery {
    sql: SqlStr,
    arguments: Option<Result<Option<PgArguments>, BoxDynError>>,
    statement: Option<Arc<PgStatement>>,
    persistent: bool,
}

impl OwnedQuery {
    pub(crate) fn new<'q>(mut query: impl Execute<'q, Postgres>) -> Self {
        let statement = query.statement().cloned().map(Arc::new);
        let arguments = Some(query.take_arguments());
        let persistent = query.persistent();
        Self { sql: query.sql(), arguments, statement, persistent }
    }

    pub(crate) fn text(&self) -> &str {
        self.sql.as_str()
    }

    pub(crate) fn has_arguments(&self) -> bool {
        matches!(self.arguments, Some(Ok(Some(_))))
    }
}

impl Execute<'_, Postgres> for OwnedQuery {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.as_deref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.arguments.take().unwrap_or(Ok(None))
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::select("select 1", false, true)]
    #[case::upper("  SELECT 1 ; ", false, true)]
    #[case::with("with x as (select 1) select * from x", false, true)]
    #[case::values("values(1)", false, true)]
    #[case::arguments("insert into t values ($1, ';')", true, true)]
    #[case::semicolon_in_a_string("insert into t values (';')", false, false)]
    #[case::two_statements("select 1; begin", false, false)]
    #[case::begin("begin", false, false)]
    #[case::begin_with_arguments("begin", true, false)]
    #[case::comment_first("/* x */ begin", false, false)]
    #[case::longer_word("selection", false, false)]
    #[case::call("call p()", true, false)]
    #[case::set("set search_path = x", false, false)]
    #[case::empty("", false, false)]
    fn only_a_single_plain_statement_passes(
        #[case] sql: &str,
        #[case] has_arguments: bool,
        #[case] plain: bool,
    ) {
        assert_eq!(is_plain(sql, has_arguments), plain);
    }
}
