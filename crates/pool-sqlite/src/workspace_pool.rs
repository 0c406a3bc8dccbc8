//! A handle on one workspace's database, usable wherever sqlx takes a pool by reference.

use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{TryFutureExt as _, TryStreamExt};
use pool_core::{AcquireError, Counts, Target, TargetStats};
use pool_manager::WorkspacePool;
use sqlx::sqlite::{SqliteRow, SqliteStatement, SqliteTypeInfo};
use sqlx::{Describe, Error, Execute, Executor, SqlStr, Sqlite};

use crate::connection::Step;
use crate::driver::SqliteDriver;
use crate::errors::into_sqlx;
use crate::lease::SqliteLease;
use crate::statement::OwnedQuery;
use crate::transaction::SqliteTransaction;

/// A cheap handle on one workspace. `&db` is a sqlx `Executor`: each query leases a connection for as long as it runs.
///
/// An acquire that fails inside an executor comes out as a `sqlx::Error`; [`acquire_error`](crate::acquire_error) finds the
/// [`AcquireError`] in it.
#[derive(Clone, Debug)]
pub struct SqliteWorkspacePool {
    pool: WorkspacePool<SqliteDriver>,
}

impl SqliteWorkspacePool {
    pub(crate) fn new(pool: WorkspacePool<SqliteDriver>) -> Self {
        Self { pool }
    }

    /// A lease on a connection to this database.
    ///
    /// # Errors
    /// [`AcquireError`]: timed out, cannot be opened, being closed, or closed.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue; an open it started goes on.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<SqliteLease, AcquireError>> + Send {
        self.pool.acquire().map_ok(SqliteLease::new)
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`SqliteWorkspacePool::acquire`].
    ///
    /// # Cancel safety
    /// As [`SqliteWorkspacePool::acquire`].
    #[track_caller]
    pub fn acquire_within(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<SqliteLease, AcquireError>> + Send {
        self.pool.acquire_within(limit).map_ok(SqliteLease::new)
    }

    /// A lease on which every statement that would write fails. With WAL, readers wait for no writer, and no writer for them.
    ///
    /// # Errors
    /// A `sqlx::Error` from the acquire (see [`acquire_error`](crate::acquire_error)), or what `SQLite` says.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back.
    pub async fn acquire_read_only(&self) -> Result<SqliteLease, Error> {
        self.acquire().await.map_err(into_sqlx)?.read_only().await
    }

    /// Begins a transaction that owns its lease: rolled back when dropped.
    ///
    /// # Errors
    /// A `sqlx::Error` from the acquire (see [`acquire_error`](crate::acquire_error)) or from BEGIN.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back, to be rolled back.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<SqliteTransaction, Error>> + Send {
        self.acquire().map_err(into_sqlx).and_then(SqliteTransaction::begin)
    }

    /// Whose pool this is.
    pub fn target(&self) -> &Target {
        self.pool.target()
    }

    /// This workspace's connections at the moment, by state.
    pub fn counts(&self) -> Counts {
        self.pool.counts()
    }

    /// Its connections and waiters at the moment, and what its callers were answered since the start. Cost: O(1).
    pub fn stats(&self) -> TargetStats {
        self.pool.stats()
    }
}

impl<'p> Executor<'p> for &'p SqliteWorkspacePool {
    type Database = Sqlite;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'p: 'e,
        E: Execute<'q, Sqlite>,
        'q: 'e,
        E: 'q,
    {
        let query = OwnedQuery::new(query);
        Box::pin(async_stream::try_stream! {
            let mut lease = self.acquire().await.map_err(into_sqlx)?;
            let mut steps = (&mut lease).fetch_many(query);
            while let Some(step) = steps.try_next().await? {
                yield step;
            }
        })
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<SqliteRow>, Error>>
    where
        'p: 'e,
        E: Execute<'q, Sqlite>,
        'q: 'e,
        E: 'q,
    {
        let query = OwnedQuery::new(query);
        Box::pin(async move {
            let mut lease = self.acquire().await.map_err(into_sqlx)?;
            lease.fetch_optional(query).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, Result<SqliteStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut lease = self.acquire().await.map_err(into_sqlx)?;
            lease.prepare_with(sql, parameters).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Sqlite>, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut lease = self.acquire().await.map_err(into_sqlx)?;
            lease.describe(sql).await
        })
    }
}
