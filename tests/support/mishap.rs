//! What goes wrong for callers in a day: each leaves its connection in another state.

use std::borrow::Cow;
use std::time::Duration;

use futures_util::TryStreamExt;
use pool_postgres::{AcquireError, DriverErrorKind, PgPools, PgWorkspacePool, WorkspaceId};
use tokio::time::timeout;

use super::Outcome;

/// What callers do wrong, or suffer, with a connection in their hands.
#[derive(Clone, Copy, Debug)]
pub enum Mishap {
    BadSyntax,
    Violation,
    BadDecode,
    FailedTransaction,
    ForgottenBegin,
    CancelledQuery,
    Panic,
    MissingDatabase,
    HalfReadResult,
    HalfSentCopy,
    LostBackend,
    Discarded,
}

/// All of them.
pub const MISHAPS: [Mishap; 12] = [
    Mishap::BadSyntax,
    Mishap::Violation,
    Mishap::BadDecode,
    Mishap::FailedTransaction,
    Mishap::ForgottenBegin,
    Mishap::CancelledQuery,
    Mishap::Panic,
    Mishap::MissingDatabase,
    Mishap::HalfReadResult,
    Mishap::HalfSentCopy,
    Mishap::LostBackend,
    Mishap::Discarded,
];

impl Mishap {
    /// Has it happen; what is seen must be this mishap and no other.
    pub async fn happen(self, pools: &PgPools, id: &WorkspaceId) -> Outcome {
        let db = pools.workspace(id);
        let seen = match self {
            Self::BadSyntax => sqlx::query("selec 1").execute(&db).await.err().as_ref().and_then(state),
            Self::Violation => {
                let again = sqlx::query("insert into mark values (1)").execute(&db).await;
                again.err().as_ref().and_then(state)
            }
            Self::BadDecode => {
                let number = sqlx::query_scalar::<_, i32>("select 'one'").fetch_one(&db).await;
                matches!(number, Err(sqlx::Error::ColumnDecode { .. })).then(|| "decode".to_owned())
            }
            Self::FailedTransaction => failed_transaction(&db).await?,
            Self::ForgottenBegin => {
                let mut lease = db.acquire().await?;
                sqlx::raw_sql("begin; insert into mark values (3)").execute(&mut **lease).await?;
                None
            }
            Self::CancelledQuery => cancelled_query(&db).await?,
            Self::Panic => panic_with_a_lease(&db).await?,
            Self::MissingDatabase => missing_database(pools, id).await?,
            Self::HalfReadResult => half_read_result(&db).await?,
            Self::HalfSentCopy => half_sent_copy(&db).await?,
            Self::LostBackend => {
                let end = sqlx::query("select pg_terminate_backend(pg_backend_pid())").execute(&db).await;
                end.err().as_ref().and_then(state)
            }
            Self::Discarded => {
                db.acquire().await?.discard();
                None
            }
        };
        assert_eq!(seen.as_deref(), self.is_seen_as(), "{self:?}");
        Ok(())
    }

    fn is_seen_as(self) -> Option<&'static str> {
        match self {
            Self::BadSyntax => Some("42601"),
            Self::Violation => Some("23505"),
            Self::BadDecode => Some("decode"),
            Self::FailedTransaction => Some("22012"),
            Self::CancelledQuery => Some("cancelled"),
            Self::Panic => Some("panic"),
            Self::MissingDatabase => Some("missing"),
            Self::HalfReadResult => Some("row"),
            Self::HalfSentCopy => Some("sent"),
            Self::LostBackend => Some("57P01"),
            Self::ForgottenBegin | Self::Discarded => None,
        }
    }
}

/// The table that mishaps happen to, with its one row.
pub async fn create_mark(db: &PgWorkspacePool) -> Outcome {
    sqlx::query("create table mark (n int primary key)").execute(db).await?;
    sqlx::query("insert into mark values (1)").execute(db).await?;
    Ok(())
}

async fn failed_transaction(db: &PgWorkspacePool) -> Outcome<Option<String>> {
    let mut tx = db.begin().await?;
    sqlx::query("insert into mark values (2)").execute(&mut tx).await?;
    Ok(sqlx::query("select 1 / 0").execute(&mut tx).await.err().as_ref().and_then(state))
}

async fn cancelled_query(db: &PgWorkspacePool) -> Outcome<Option<String>> {
    let mut lease = db.acquire().await?;
    let long = sqlx::query("select pg_sleep(60)").execute(&mut lease);
    Ok(timeout(Duration::from_millis(20), long).await.is_err().then(|| "cancelled".to_owned()))
}

async fn panic_with_a_lease(db: &PgWorkspacePool) -> Outcome<Option<String>> {
    let lease = db.acquire().await?;
    let died = tokio::spawn(async move {
        let _held = lease;
        // Without the hook, which would print it.
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    Ok(died.await.is_err_and(|error| error.is_panic()).then(|| "panic".to_owned()))
}

async fn missing_database(pools: &PgPools, id: &WorkspaceId) -> Outcome<Option<String>> {
    let missing = WorkspaceId::new(format!("missing {id}"))?;
    let refused = pools.acquire(&missing).await;
    Ok(refused.is_err_and(|error| is_missing(&error)).then(|| "missing".to_owned()))
}

async fn half_read_result(db: &PgWorkspacePool) -> Outcome<Option<String>> {
    let mut lease = db.acquire().await?;
    let mut rows = sqlx::query("select generate_series(1, 100000)").fetch(&mut lease);
    Ok(rows.try_next().await?.map(|_| "row".to_owned()))
}

async fn half_sent_copy(db: &PgWorkspacePool) -> Outcome<Option<String>> {
    let mut lease = db.acquire().await?;
    let mut copy = lease.copy_in_raw("copy mark from stdin").await?;
    Ok(copy.send(&b"4\n"[..]).await.is_ok().then(|| "sent".to_owned()))
}

/// The server's code for an error.
pub fn state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Cow::into_owned)
}

/// Whether an error tells that the session is gone.
pub fn is_lost(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_)) || state(error).is_some_and(|state| state.starts_with("57P"))
}

/// Whether an acquire failed because there is no such database.
pub fn is_missing(error: &AcquireError) -> bool {
    match error {
        AcquireError::OpenFailed { source, retryable: false, .. } => {
            source.kind == DriverErrorKind::DatabaseMissing
        }
        _ => false,
    }
}
