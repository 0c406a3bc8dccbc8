//! A lease as sqlx users know a connection. Orphan rules want the type here, around the generic one.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use pool_core::Target;
use pool_manager::Lease;
use sqlx::sqlite::{SqliteConnection, SqliteRow, SqliteStatement, SqliteTypeInfo};
use sqlx::{Acquire, Describe, Error, Execute, Executor, SqlStr, Sqlite, Transaction};

use crate::connection::{SqliteSession, Step};
use crate::driver::SqliteDriver;

/// A connection to one workspace's database, given back when dropped, anywhere.
///
/// `&mut lease` and `&mut *lease` are sqlx `Executor`s whose statements are seen: after plain ones (`SELECT`, `INSERT`, `UPDATE`,
/// `DELETE`, `REPLACE`, `VALUES`, `WITH`) the connection is known to be clean. `&mut **lease` is the raw [`SqliteConnection`]; it is
/// made clean in the background when it comes back.
#[must_use = "a lease that is dropped at once was not needed"]
pub struct SqliteLease {
    lease: Lease<SqliteDriver>,
}

impl SqliteLease {
    pub(crate) fn new(lease: Lease<SqliteDriver>) -> Self {
        Self { lease }
    }

    /// Whose database this is connected to.
    pub fn target(&self) -> &Target {
        self.lease.target()
    }

    /// Has the connection closed instead of used again, on purpose: other connections are not doubted for it.
    pub fn discard(self) {
        self.lease.discard();
    }

    /// The same connection, on which every statement that would write fails until it comes back. Readers do not wait for the
    /// writer, nor the writer for them.
    ///
    /// # Errors
    /// What `SQLite` says.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection back.
    pub(crate) async fn read_only(mut self) -> Result<Self, Error> {
        sqlx::query("pragma query_only = on").execute(&mut self).await?;
        Ok(self)
    }
}

impl From<Lease<SqliteDriver>> for SqliteLease {
    fn from(lease: Lease<SqliteDriver>) -> Self {
        Self::new(lease)
    }
}

impl Deref for SqliteLease {
    type Target = SqliteSession;

    fn deref(&self) -> &SqliteSession {
        &*self.lease
    }
}

impl DerefMut for SqliteLease {
    fn deref_mut(&mut self) -> &mut SqliteSession {
        &mut *self.lease
    }
}

impl AsMut<SqliteConnection> for SqliteLease {
    fn as_mut(&mut self) -> &mut SqliteConnection {
        self
    }
}

impl fmt::Debug for SqliteLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteLease")
            .field("target", self.target())
            .field("file", &self.file())
            .finish_non_exhaustive()
    }
}

/// Hands an executor's verbs on to what the type has inside.
macro_rules! executor_through {
    ($type:ty, $inside:ident) => {
        impl<'c> Executor<'c> for &'c mut $type {
            type Database = Sqlite;

            fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
            where
                'c: 'e,
                E: Execute<'q, Sqlite>,
                'q: 'e,
                E: 'q,
            {
                let session: &mut SqliteSession = &mut *self.$inside;
                session.fetch_many(query)
            }

            fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<SqliteRow>, Error>>
            where
                'c: 'e,
                E: Execute<'q, Sqlite>,
                'q: 'e,
                E: 'q,
            {
                let session: &mut SqliteSession = &mut *self.$inside;
                session.fetch_optional(query)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [SqliteTypeInfo],
            ) -> BoxFuture<'e, Result<SqliteStatement, Error>>
            where
                'c: 'e,
            {
                let session: &mut SqliteSession = &mut *self.$inside;
                session.prepare_with(sql, parameters)
            }

            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Sqlite>, Error>>
            where
                'c: 'e,
            {
                let session: &mut SqliteSession = &mut *self.$inside;
                session.describe(sql)
            }
        }
    };
}
pub(crate) use executor_through;

executor_through!(SqliteLease, lease);

impl<'c> Acquire<'c> for &'c mut SqliteLease {
    type Database = Sqlite;
    type Connection = &'c mut SqliteConnection;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        Box::pin(std::future::ready(Ok(&mut ***self)))
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Sqlite>, Error>> {
        Transaction::begin(&mut ***self, None)
    }
}
