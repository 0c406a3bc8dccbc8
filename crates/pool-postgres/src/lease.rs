//! A lease as sqlx users know a connection. Orphan rules want the type here, around the generic one.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::TryStreamExt;
use pool_core::Target;
use pool_manager::Lease;
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Acquire, Describe, Either, Error, Execute, Executor, Postgres, SqlStr, Transaction};

use crate::connection::{PgConn, StatementGuard};
use crate::driver::PgDriver;
use crate::statement::OwnedQuery;

/// A connection to one workspace's database, given back when dropped, anywhere.
///
/// `&mut lease` is a sqlx `Executor`: statements are seen, and after plain ones (`SELECT`, `INSERT`,
/// `UPDATE`, `DELETE`, `VALUES`, `WITH`) the connection is known to be clean without a round trip.
/// `&mut *lease` is the raw [`PgConnection`], for whatever else sqlx can do; the connection is then
/// verified in the background when it comes back, an open transaction is rolled back, and the session
/// is [reset](crate::Reset). Prepared statements are kept.
#[must_use = "a lease that is dropped at once was not needed"]
pub struct PgLease {
    lease: Lease<PgDriver>,
}

impl PgLease {
    pub(crate) fn new(lease: Lease<PgDriver>) -> Self {
        Self { lease }
    }

    /// Whose database this is connected to.
    pub fn target(&self) -> &Target {
        self.lease.target()
    }

    /// The process id of the backend that serves it.
    pub fn backend_pid(&self) -> i32 {
        self.lease.backend_pid()
    }

    /// Has the connection closed instead of used again, on purpose: other connections are not doubted for it.
    pub fn discard(self) {
        self.lease.discard();
    }

    pub(crate) fn conn(&mut self) -> &mut PgConn {
        &mut self.lease
    }

    fn track(&mut self, query: &mut OwnedQuery) -> (&mut PgConnection, StatementGuard<'_>) {
        if !self.lease.keeps_statements() {
            query.without_a_name();
        }
        self.lease.track(query.text(), query.has_arguments())
    }
}

impl From<Lease<PgDriver>> for PgLease {
    fn from(lease: Lease<PgDriver>) -> Self {
        Self::new(lease)
    }
}

impl Deref for PgLease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.lease.raw()
    }
}

impl DerefMut for PgLease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.lease.raw_mut()
    }
}

impl fmt::Debug for PgLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgLease")
            .field("target", self.target())
            .field("backend_pid", &self.backend_pid())
            .finish_non_exhaustive()
    }
}

/// What a query that ends with rows or counts gives, step by step.
pub(crate) type Step = Either<PgQueryResult, PgRow>;

impl<'c> Executor<'c> for &'c mut PgLease {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        let mut query = OwnedQuery::new(query);
        let (conn, statement) = self.track(&mut query);
        Box::pin(async_stream::try_stream! {
            statement.may_start()?;
            let mut steps = conn.fetch_many(query);
            loop {
                match steps.try_next().await {
                    Ok(Some(step)) => yield step,
                    last => {
                        statement.ended(last)?;
                        break;
                    }
                }
            }
        })
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        let mut query = OwnedQuery::new(query);
        let (conn, statement) = self.track(&mut query);
        Box::pin(async move {
            statement.may_start()?;
            statement.ended(conn.fetch_optional(query).await)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        let (conn, statement) = self.conn().begin_prepare();
        Box::pin(async move {
            statement.may_start()?;
            statement.ended(conn.prepare_with(sql, parameters).await)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        let (conn, statement) = self.conn().begin_prepare();
        Box::pin(async move {
            statement.may_start()?;
            statement.ended(conn.describe(sql).await)
        })
    }
}

impl<'c> Acquire<'c> for &'c mut PgLease {
    type Database = Postgres;
    type Connection = &'c mut PgConnection;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        Box::pin(std::future::ready(Ok(&mut **self)))
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Postgres>, Error>> {
        Transaction::begin(&mut **self, None)
    }
}
