//! A handle on one workspace's database, usable wherever sqlx takes a pool by reference.

use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{TryFutureExt as _, TryStreamExt};
use pool_core::{AcquireError, Counts, Target, TargetStats};
use pool_manager::WorkspacePool;
use sqlx::postgres::{PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Error, Execute, Executor, Postgres, SqlSafeStr, SqlStr};

use crate::driver::PgDriver;
use crate::errors::into_sqlx;
use crate::lease::PgLease;
use crate::statement::OwnedQuery;
use crate::tracked::Step;
use crate::transaction::PgTransaction;

/// A cheap handle on one workspace, or on the system database. `&db` is a sqlx `Executor`: each query
/// leases a connection for as long as it runs. It is also a [`sqlx::Acquire`], for code that is generic over that; see there.
///
/// An acquire that fails inside of them comes out as a `sqlx::Error`, in the way that [`into_sqlx`] describes;
/// `db.acquire().await.map_err(into_sqlx)?` is the same for a function that returns a `sqlx::Result`.
#[derive(Clone, Debug)]
pub struct PgWorkspacePool {
    pool: WorkspacePool<PgDriver>,
}

impl PgWorkspacePool {
    pub(crate) fn new(pool: WorkspacePool<PgDriver>) -> Self {
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
    pub fn acquire(&self) -> impl Future<Output = Result<PgLease, AcquireError>> + Send {
        self.pool.acquire().map_ok(PgLease::new)
    }

    /// The same, with a time limit of its own in place of the acquire timeout.
    ///
    /// # Errors
    /// As [`PgWorkspacePool::acquire`].
    ///
    /// # Cancel safety
    /// As [`PgWorkspacePool::acquire`].
    #[track_caller]
    pub fn acquire_within(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<PgLease, AcquireError>> + Send {
        self.pool.acquire_within(limit).map_ok(PgLease::new)
    }

    /// A lease on an idle connection, if there is one: nobody waits, and nothing is opened. One that was idle for long is
    /// checked first, which takes a round trip; if it is broken, there is none.
    ///
    /// # Errors
    /// [`AcquireError`]: the workspace is being closed, the pool is closed, or the check took longer than the acquire
    /// timeout.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back.
    #[track_caller]
    pub fn try_acquire(&self) -> impl Future<Output = Result<Option<PgLease>, AcquireError>> + Send {
        self.pool.try_acquire().map_ok(|idle| idle.map(PgLease::new))
    }

    /// Begins a transaction that owns its lease: rolled back when dropped.
    ///
    /// # Errors
    /// A `sqlx::Error` from the acquire (see [`into_sqlx`]) or from BEGIN.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back, to be verified and rolled back.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<PgTransaction, Error>> + Send {
        self.acquire().map_err(into_sqlx).and_then(|lease| PgTransaction::begin(lease, None))
    }

    /// The same with a BEGIN of the caller's, for an isolation level, a transaction that only reads, or one that may be deferred:
    /// `db.begin_with("begin isolation level serializable read only")`.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), and `BeginFailed` where the statement began no transaction.
    ///
    /// # Cancel safety
    /// As [`begin`](Self::begin).
    #[track_caller]
    pub fn begin_with(
        &self,
        statement: impl SqlSafeStr,
    ) -> impl Future<Output = Result<PgTransaction, Error>> + Send {
        let statement = statement.into_sql_str();
        let acquired = self.acquire().map_err(into_sqlx);
        acquired.and_then(|lease| PgTransaction::begin(lease, Some(statement)))
    }

    /// Whose pool this is.
    pub fn target(&self) -> &Target {
        self.pool.target()
    }

    /// This target's connections at the moment, by state.
    pub fn counts(&self) -> Counts {
        self.pool.counts()
    }

    /// This target's connections and waiters at the moment, and what its callers were answered since the start. Cost: O(1).
    pub fn stats(&self) -> TargetStats {
        self.pool.stats()
    }
}

impl<'p> Executor<'p> for &'p PgWorkspacePool {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'p: 'e,
        E: Execute<'q, Postgres>,
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

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: Execute<'q, Postgres>,
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
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut lease = self.acquire().await.map_err(into_sqlx)?;
            lease.prepare_with(sql, parameters).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut lease = self.acquire().await.map_err(into_sqlx)?;
            lease.describe(sql).await
        })
    }
}
