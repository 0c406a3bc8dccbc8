//! Which statements can leave neither a transaction nor a changed session behind, and how a caller's query is handed on.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{Execute, Postgres, SqlStr};

/// Verbs that can neither open nor close a transaction.
const PLAIN_VERBS: [&str; 6] = ["select", "insert", "update", "delete", "values", "with"];

/// Whether `sql` cannot leave a transaction or a changed session behind: it begins with a plain verb, is one statement, and
/// names nothing that changes the session. The server itself takes only one statement when there are
/// arguments; otherwise a semicolon may start another, wherever it stands, so only trailing ones pass.
pub(crate) fn is_plain(sql: &str, has_arguments: bool) -> bool {
    let sql = sql.trim_start();
    let verb_ends = sql.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(sql.len());
    let (verb, rest) = sql.split_at(verb_ends);
    let is_plain_verb = PLAIN_VERBS.iter().any(|plain| verb.eq_ignore_ascii_case(plain));
    is_plain_verb && (has_arguments || is_one(rest)) && !names_session_state(sql)
}

/// Whether `sql` begins a transaction, with whatever modes, and does nothing else.
pub(crate) fn begins_only(sql: &str) -> bool {
    let mut words = sql.split(|c: char| c == ';' || c.is_whitespace()).filter(|word| !word.is_empty());
    let mut next_is = |expected: &str| words.next().is_some_and(|word| word.eq_ignore_ascii_case(expected));
    let is_start = sql.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("start"));
    let begins = if is_start { next_is("start") && next_is("transaction") } else { next_is("begin") };
    begins && is_one(sql)
}

/// Whether no second statement can follow in the simple protocol: only trailing semicolons pass.
fn is_one(sql: &str) -> bool {
    !sql.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).contains(';')
}

/// Whether a plain verb may change the session. A word counts wherever it stands, in a string as well: a connection
/// that is reset without need costs a round trip in the background.
fn names_session_state(sql: &str) -> bool {
    let separates = |c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_';
    let mut before = "";
    let mut words = sql.split(separates).filter(|word| !word.is_empty());
    words.any(|word| {
        let target = ["insert", "merge"].iter().any(|verb| before.eq_ignore_ascii_case(verb));
        before = word;
        match word.len() {
            4 => word.eq_ignore_ascii_case("into") && !target,
            10 => word.eq_ignore_ascii_case("set_config"),
            // An identifier with escapes (U&"…") could be any.
            1 => word.eq_ignore_ascii_case("u") && sql.contains("&\""),
            _ => is_session_lock(word),
        }
    })
}

/// `pg_advisory_…` and `pg_try_advisory_…`, but for the locks that end with the transaction.
fn is_session_lock(word: &str) -> bool {
    let of = |prefix: &str| {
        let has = word.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        has.then(|| &word[prefix.len()..])
    };
    let how = of("pg_advisory_").or_else(|| of("pg_try_advisory_"));
    how.is_some_and(|how| how.get(..5).is_none_or(|start| !start.eq_ignore_ascii_case("xact_")))
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

    /// Has the statement sent without a name: a named one that is not kept would never be closed.
    pub(crate) fn without_a_name(&mut self) {
        self.persistent = false;
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
    #[case::begin("begin", true)]
    #[case::trailing_semicolon(" BEGIN; ", true)]
    #[case::modes("begin isolation level serializable, read only, deferrable", true)]
    #[case::start("START TRANSACTION READ ONLY", true)]
    #[case::start_of_nothing("start", false)]
    #[case::another_statement("begin; set role x", false)]
    #[case::comment("/* x */ begin", false)]
    #[case::longer_word("beginning", false)]
    #[case::nothing("", false)]
    fn only_a_begin_begins_only(#[case] sql: &str, #[case] begins: bool) {
        assert_eq!(begins_only(sql), begins);
    }

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
    #[case::set_config("select set_config('role', 'x', false)", false, false)]
    #[case::set_config_qualified("SELECT pg_catalog.SET_CONFIG($1, $2, false)", true, false)]
    #[case::set_config_quoted("select \"set_config\"($1, $2, false)", true, false)]
    #[case::escaped_name("select U&\"\\0073et_config\"($1, $2, false)", true, false)]
    #[case::advisory_lock("select pg_advisory_lock($1)", true, false)]
    #[case::try_advisory_lock("select 1 where pg_try_advisory_lock_shared(7)", false, false)]
    #[case::lock_of_the_transaction("select pg_advisory_xact_lock($1)", true, true)]
    #[case::try_lock_of_the_transaction("select pg_try_advisory_xact_lock($1)", true, true)]
    #[case::select_into("select 1 as n into temp t", false, false)]
    #[case::with_into("with x as (select 1) select * INTO t from x", false, false)]
    #[case::insert_into("insert into note values (1)", false, true)]
    #[case::with_insert_into(
        "with x as (insert\n  into note values (1) returning id) select * from x",
        false,
        true
    )]
    #[case::with_merge_into("with x as (select 1) merge into note using x on true", false, true)]
    #[case::column_with_such_a_name("select into_account, set_configuration, u from note", false, true)]
    fn only_a_single_plain_statement_passes(
        #[case] sql: &str,
        #[case] has_arguments: bool,
        #[case] plain: bool,
    ) {
        assert_eq!(is_plain(sql, has_arguments), plain);
    }
}
