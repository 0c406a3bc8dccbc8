//! A transaction that owns its lease. sqlx's own can only borrow a connection or own one of sqlx's pool.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::sqlite::{SqliteRow, SqliteStatement, SqliteTransactionManager, SqliteTypeInfo};
use sqlx::{Describe, Error, Execute, Executor, SqlStr, Sqlite};
// sqlx does not export the trait that counts transactions; see docs/decisions/0003.
use sqlx_core::transaction::TransactionManager as _;

use crate::connection::{SqliteSession, Step};
use crate::lease::{SqliteLease, executor_through};

/// A transaction on a connection of its own; `&mut tx` and `&mut *tx` are executors whose statements are seen. Commit or roll back;
/// dropped, it is rolled back in the background before anybody else gets the connection.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct SqliteTransaction {
    /// Suspect from the begin on: what is open when it comes back is rolled back.
    lease: SqliteLease,
}

impl SqliteTransaction {
    pub(crate) async fn begin(mut lease: SqliteLease) -> Result<Self, Error> {
        lease.is_suspect();
        SqliteTransactionManager::begin(lease.own(), None).await?;
        Ok(Self { lease })
    }

    /// Commits.
    ///
    /// # Errors
    /// What `SQLite` says; the transaction is then rolled back in the background.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the commit took place.
    pub async fn commit(mut self) -> Result<(), Error> {
        SqliteTransactionManager::commit(self.lease.own()).await
    }

    /// Rolls back, and waits for it.
    ///
    /// # Errors
    /// What `SQLite` says.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back in the background.
    pub async fn rollback(mut self) -> Result<(), Error> {
        SqliteTransactionManager::rollback(self.lease.own()).await
    }
}

impl Deref for SqliteTransaction {
    type Target = SqliteSession;

    fn deref(&self) -> &SqliteSession {
        &self.lease
    }
}

impl DerefMut for SqliteTransaction {
    fn deref_mut(&mut self) -> &mut SqliteSession {
        &mut self.lease
    }
}

impl fmt::Debug for SqliteTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransaction").field("lease", &self.lease).finish_non_exhaustive()
    }
}

executor_through!(SqliteTransaction, lease);
