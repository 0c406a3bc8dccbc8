//! Later holders: each asks questions of several shapes, and every row must bear the echo of its question.

use std::fmt;

use pool_postgres::PgWorkspacePool;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, Executor, Row};

use super::access::Access;

/// The forms of a question. Names are qualified, as a `search_path` might have been left.
#[derive(Clone, Copy, Debug)]
enum Shape {
    OneSimple,
    OneBound,
    ManySimple,
    ManyBound,
    Batch,
    Affected,
    NoTransaction,
    Notification,
}

const SHAPES: [Shape; 8] = [
    Shape::OneSimple,
    Shape::OneBound,
    Shape::ManySimple,
    Shape::ManyBound,
    Shape::Batch,
    Shape::Affected,
    Shape::NoTransaction,
    Shape::Notification,
];

/// Why a question has no right answer.
pub enum Wrong {
    Answer(String),
    Error(Error),
    NeverAnswered,
}

impl Wrong {
    /// Whether the session was gone.
    pub fn is_loss(&self) -> bool {
        let Self::Error(error) = self else { return false };
        let state = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        matches!(error, Error::Io(_)) || state.as_deref() == Some("57P01")
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(what) => f.write_str(what),
            Self::Error(error) => write!(f, "failed: {error}"),
            Self::NeverAnswered => f.write_str("never answered"),
        }
    }
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Asks a question of every shape, in an order of its own: over one lease, and one more over the handle. Returns
/// how many answers were checked.
pub async fn reader(db: &PgWorkspacePool, mut dice: fastrand::Rng) -> Result<u64, (String, Wrong)> {
    let named = |shape: Shape| move |wrong| (format!("{shape:?}"), wrong);
    let mut shapes = SHAPES;
    dice.shuffle(&mut shapes);
    let one = dice.choice(SHAPES).unwrap_or(Shape::OneBound);
    let through_handle = one.ask(Access::Handle(db), &mut dice).await.map_err(named(one))?;
    let mut answers = through_handle;
    let mut lease = match db.acquire().await {
        Ok(lease) => lease,
        Err(error) => return Err(("acquire".to_owned(), Wrong::Answer(format!("no connection: {error}")))),
    };
    for shape in shapes {
        answers += shape.ask(Access::Lease(&mut lease), &mut dice).await.map_err(named(shape))?;
    }
    Ok(answers)
}

impl Shape {
    /// Asks once. Returns how many answers it checked.
    async fn ask(self, on: Access<'_>, dice: &mut fastrand::Rng) -> Result<u64, Wrong> {
        let nonce = dice.i64(1..1 << 40);
        let rows = dice.i64(2..40);
        let series = format!("pg_catalog.generate_series(1, {rows}) as n");
        match self {
            Self::OneSimple => check(&simple(on, format!("select {nonce}::bigint")).await?, nonce, 1),
            Self::OneBound => check(&bound(on, "select $1::bigint", nonce).await?, nonce, 1),
            Self::ManySimple => {
                check(&simple(on, format!("select {nonce}::bigint, n from {series}")).await?, nonce, rows)
            }
            Self::ManyBound => {
                check(&bound(on, &format!("select $1::bigint, n from {series}"), nonce).await?, nonce, rows)
            }
            Self::Batch => {
                let both = simple(on, format!("select {nonce}::bigint; select {nonce}::bigint, 2")).await?;
                check(&both, nonce, 2)
            }
            Self::Affected => {
                let done =
                    on.execute(sqlx::raw_sql(AssertSqlSafe(format!("select n from {series}")))).await?;
                is_own("rows affected", i64::try_from(done.rows_affected()).ok(), rows)
            }
            Self::NoTransaction => {
                // In the simple protocol, a statement outside of a transaction begins with its transaction.
                let is_new =
                    "pg_catalog.now() operator(pg_catalog.=) pg_catalog.statement_timestamp()".to_owned();
                let rows = simple(on, format!("select {nonce}::bigint, {is_new}")).await?;
                check(&rows, nonce, 1)?;
                let is_new = rows[0].try_get::<bool, _>(1).ok();
                if is_new == Some(true) {
                    Ok(1)
                } else {
                    Err(Wrong::Answer("stands in a transaction".into()))
                }
            }
            Self::Notification => {
                let notify = "select $1::bigint, pg_catalog.pg_notify('l4', 'from a reader')";
                check(&bound(on, notify, nonce).await?, nonce, 1)
            }
        }
    }
}

async fn simple(on: Access<'_>, sql: String) -> Result<Vec<PgRow>, Wrong> {
    Ok(on.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?)
}

async fn bound(on: Access<'_>, sql: &str, nonce: i64) -> Result<Vec<PgRow>, Wrong> {
    Ok(on.fetch_all(sqlx::query(AssertSqlSafe(sql.to_owned())).bind(nonce)).await?)
}

/// Every row bears the nonce, and there are as many as were asked for.
fn check(answer: &[PgRow], nonce: i64, rows: i64) -> Result<u64, Wrong> {
    for row in answer {
        is_own("the nonce", row.try_get::<i64, _>(0).ok(), nonce)?;
    }
    is_own("the number of rows", i64::try_from(answer.len()).ok(), rows)
}

fn is_own(what: &str, seen: Option<i64>, meant: i64) -> Result<u64, Wrong> {
    if seen == Some(meant) { Ok(1) } else { Err(Wrong::Answer(format!("{what} is {seen:?}, not {meant}"))) }
}
