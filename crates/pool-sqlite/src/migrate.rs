//! Migrations of workspaces' databases, by sqlx's `Migrator`: one, or many within the budget.

use futures_core::Stream;
use futures_util::StreamExt as _;
use pool_core::{CatalogError, WorkspaceId};
use sqlx::SqlStr;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnection, SqliteTransactionManager};
// sqlx does not export the trait that counts transactions; see docs/decisions/0003.
use sqlx_core::transaction::TransactionManager as _;

use crate::errors::into_sqlx;
use crate::pools::SqlitePools;
use crate::workspace_pool::SqliteWorkspacePool;

/// Takes the right to write at once: who reads first and writes later may find that others have migrated meanwhile.
const BEGIN: SqlStr = SqlStr::from_static("begin immediate");

/// What became of the workspaces of a [`SqlitePools::migrate_all`].
pub type MigrationReport = pool_manager::MigrationReport<MigrateError>;

impl SqliteWorkspacePool {
    /// Applies the migrations that this database does not have yet, in one transaction. Others who migrate or write, here or in
    /// other processes, wait for it, and it for them, for at most the busy timeout.
    ///
    /// A migrator with a migration that must not be in a transaction (`-- no-transaction`) is run as sqlx runs it: each of its
    /// migrations stands for itself, and nobody may migrate the same database at the same time.
    ///
    /// Warm connections of this pool prepare their statements anew before their next use. Those of other processes do not: name the
    /// columns that you select, for a `select *` that sqlx has prepared before a column was added breaks the connection.
    ///
    /// # Errors
    /// sqlx's; a failed acquire is a [`MigrateError::Execute`], in the way that [`into_sqlx`] describes. No migration is applied
    /// then, unless the migrator is of the kind without a transaction.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back in the background; it leaves open whether a commit that was under way took place. The next
    /// call goes on from there.
    pub async fn migrate(&self, migrator: &Migrator) -> Result<(), MigrateError> {
        let mut lease = self.acquire().await.map_err(into_sqlx)?;
        // Raw access: whatever is left of it is cleaned up when the lease comes back.
        let conn: &mut SqliteConnection = &mut lease;
        let in_one_transaction = migrator.iter().all(|migration| !migration.no_tx);
        if in_one_transaction {
            SqliteTransactionManager::begin(conn, Some(BEGIN)).await?;
        }
        // What `Migrator::run` does with the connection that it acquires.
        migrator.run_direct(None, conn, false).await?;
        if in_one_transaction {
            SqliteTransactionManager::commit(conn).await?;
        }
        lease.schema_changed();
        Ok(())
    }
}

impl SqlitePools {
    /// Applies to each of these workspaces the migrations that it does not have yet, as [`SqliteWorkspacePool::migrate`] does, so
    /// many at a time, and tells of each as soon as it is done, in no particular order. A failure stops none of the others.
    ///
    /// The migrations go through the pool like everybody else's work: they never exceed the budget, and no more are under
    /// way than it has slots. Nothing is done while nobody asks for the next item.
    ///
    /// # Errors
    /// As [`SqliteWorkspacePool::migrate`], for each workspace; also where its connection cannot be had within the acquire timeout.
    ///
    /// # Cancel safety
    /// Dropping the stream ends the migrations under way, as dropping [`SqliteWorkspacePool::migrate`] does; those told of are done.
    pub fn migrate_each<'m, I>(
        &self,
        workspaces: I,
        migrator: &'m Migrator,
        concurrency: usize,
    ) -> impl Stream<Item = (WorkspaceId, Result<(), MigrateError>)> + Send + use<'m, I>
    where
        I: IntoIterator<Item = WorkspaceId, IntoIter: Send>,
    {
        let pools = self.clone();
        self.manager().each(workspaces, concurrency, move |workspace| {
            let db = pools.workspace(workspace);
            async move { db.migrate(migrator).await }
        })
    }

    /// Applies to every workspace that exists the migrations that it does not have yet, so many at a time, and goes on past
    /// failures; see [`migrate_each`](Self::migrate_each), which tells of each at once, and takes any workspaces. It is simply called
    /// again after a failure, or when it was dropped.
    ///
    /// # Errors
    /// [`CatalogError`] when the workspaces cannot be listed. Failures of migrations are in the report, and are logged as they happen.
    ///
    /// # Cancel safety
    /// Dropping the future ends the migrations under way, as for [`SqliteWorkspacePool::migrate`]; workspaces that are done stay so.
    pub async fn migrate_all(
        &self,
        migrator: &Migrator,
        concurrency: usize,
    ) -> Result<MigrationReport, CatalogError> {
        let workspaces = self.list_workspaces().await?;
        Ok(self.migrate_each(workspaces, migrator, concurrency).collect().await)
    }
}
