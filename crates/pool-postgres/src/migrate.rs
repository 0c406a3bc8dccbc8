//! Migrations of workspaces' databases, by sqlx's `Migrator`: one, or all of them within the budget.
//!
//! sqlx serialises migrations of a database by an advisory lock of the session, and keeps it when one fails. A session that
//! did not get to the end is therefore closed, which gives the lock up for certain, and nobody else gets it before.

use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_util::StreamExt;
use pool_core::{CatalogError, Phase, Target, WorkspaceId};
use pool_manager::Lease;
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;

use crate::catch_panics::catch_panics;
use crate::classify::driver_error;
use crate::driver::PgDriver;
use crate::errors::into_sqlx;
use crate::lease::PgLease;
use crate::pools::PgPools;
use crate::templates::{drop_others, fingerprint};
use crate::workspace_pool::PgWorkspacePool;

/// What became of the workspaces of a [`PgPools::migrate_all`].
pub type MigrationReport = pool_manager::MigrationReport<MigrateError>;

impl PgWorkspacePool {
    /// Applies the migrations that this database does not have yet, on a connection of its own.
    ///
    /// A connection whose migration fails or is dropped is closed, so that neither sqlx's advisory lock nor anything else of
    /// it reaches the next holder. Once a migration was applied, all warm connections of this database prepare their statements anew
    /// before their next use. The session is one as callers get it, with the session defaults of the configuration.
    ///
    /// # Errors
    /// sqlx's; a failed acquire is a [`MigrateError::Execute`], in the way that [`into_sqlx`] describes. The migrations before the
    /// one that failed stay applied.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection. The migration under way is rolled back, unless its commit was already sent or
    /// it is one without a transaction; those before it stay applied. The next call goes on from there.
    pub async fn migrate(&self, migrator: &Migrator) -> Result<(), MigrateError> {
        let lease = self.acquire().await.map_err(into_sqlx)?;
        let mut run = Run { lease: Some(lease), has_applied: false };
        // What `Migrator::run` does with the connection that it acquires.
        migrator.run_direct(None, &mut run, false).await?;
        run.ends_well();
        Ok(())
    }
}

impl PgPools {
    /// Applies to each of these workspaces the migrations that it does not have yet, as [`PgWorkspacePool::migrate`] does, so many
    /// at a time, and tells of each as soon as it is done, in no particular order. A failure stops none of the others.
    ///
    /// The migrations go through the pool like everybody else's work: they never exceed the budget, and no more are under
    /// way than it has slots for workspaces. Nothing is done while nobody asks for the next item.
    ///
    /// # Errors
    /// As [`PgWorkspacePool::migrate`], for each workspace; also where its connection cannot be had within the acquire timeout.
    ///
    /// # Cancel safety
    /// Dropping the stream ends the migrations under way, as dropping [`PgWorkspacePool::migrate`] does; those told of are done.
    ///
    /// ```no_run
    /// # async fn example(pools: pool_postgres::PgPools, migrator: sqlx::migrate::Migrator) -> Result<(), pool_postgres::CatalogError> {
    /// use futures_util::StreamExt;
    ///
    /// let workspaces = pools.list_workspaces().await?;
    /// let mut outcomes = std::pin::pin!(pools.migrate_each(workspaces, &migrator, 8));
    /// while let Some((workspace, outcome)) = outcomes.next().await {
    ///     println!("{workspace}: {outcome:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
    /// failures; see [`migrate_each`](Self::migrate_each), which tells of each at once, and takes any workspaces. A workspace
    /// that has them all costs a few round trips, so that this is simply called again after a failure, or when it was dropped.
    ///
    /// # Errors
    /// [`CatalogError`] when the workspaces cannot be listed. Failures of migrations are in the report, and are logged as they happen.
    ///
    /// # Cancel safety
    /// Dropping the future ends the migrations under way, as for [`PgWorkspacePool::migrate`]; workspaces that are done stay so.
    pub async fn migrate_all(
        &self,
        migrator: &Migrator,
        concurrency: usize,
    ) -> Result<MigrationReport, CatalogError> {
        let workspaces = self.list_workspaces().await?;
        Ok(self.migrate_each(workspaces, migrator, concurrency).collect().await)
    }
}

impl PgPools {
    /// Drops the templates of this prefix with other migrations than these, and says how many there were. To be called when no process
    /// runs any more that was built with others ([`migrations`](crate::PgPoolsBuilder::migrations)), such as at the end of a deployment: such a
    /// process could create no workspace until it is built again. Those that somebody is making stay; what a maker has left that was cut short
    /// goes, too. They are known by the configuration's [`prefix`](crate::PostgresConfig::prefix), so each application needs one of its own.
    ///
    /// # Errors
    /// [`CatalogError`]: no system connection, or the server refuses.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest of the templates.
    pub async fn drop_other_templates(&self, than: &Migrator) -> Result<usize, CatalogError> {
        let mut lease = Closed(Some(self.manager().catalog().acquire().await?));
        let Some(session) = lease.0.as_deref_mut() else { return Ok(0) };
        let stem = self.config().template_stem();
        let dropped = catch_panics(drop_others(session.raw_mut(), &stem, &fingerprint(than))).await;
        dropped.map_err(|error| CatalogError::Driver {
            target: Target::Catalog,
            source: Arc::new(driver_error(error, Phase::Catalog, self.config().address(&format!("{stem}*")))),
        })
    }
}

/// A session that is closed whatever becomes of the work on it, since it may hold a lock.
struct Closed(Option<Lease<PgDriver>>);

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.discard();
        }
    }
}

/// One run of a migrator on one session. Dropped before it ends well, it has the session closed.
struct Run {
    lease: Option<PgLease>,
    /// A migration was begun, which may have spoiled prepared statements.
    has_applied: bool,
}

impl Run {
    fn ends_well(mut self) {
        self.tells_of_changes();
        // Given back: what was done with it was raw access, so that it is verified and reset.
        self.lease = None;
    }

    fn tells_of_changes(&mut self) {
        if let Some(lease) = self.lease.as_mut().filter(|_| self.has_applied) {
            lease.conn().plans().all_spoiled();
        }
    }

    /// Only for as long as the run has not ended.
    fn conn(&mut self) -> Result<&mut PgConnection, MigrateError> {
        let ended = || MigrateError::Execute(sqlx::Error::Protocol("the migration has ended".into()));
        self.lease.as_mut().map(AsMut::as_mut).ok_or_else(ended)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.tells_of_changes();
        if let Some(lease) = self.lease.take() {
            lease.discard();
        }
    }
}

/// As sqlx does it, and what was applied is remembered.
impl Migrate for Run {
    fn create_schema_if_not_exists<'e>(
        &'e mut self,
        schema: &'e str,
    ) -> BoxFuture<'e, Result<(), MigrateError>> {
        Box::pin(async move { self.conn()?.create_schema_if_not_exists(schema).await })
    }

    fn ensure_migrations_table<'e>(&'e mut self, table: &'e str) -> BoxFuture<'e, Result<(), MigrateError>> {
        Box::pin(async move { self.conn()?.ensure_migrations_table(table).await })
    }

    fn dirty_version<'e>(&'e mut self, table: &'e str) -> BoxFuture<'e, Result<Option<i64>, MigrateError>> {
        Box::pin(async move { self.conn()?.dirty_version(table).await })
    }

    fn list_applied_migrations<'e>(
        &'e mut self,
        table: &'e str,
    ) -> BoxFuture<'e, Result<Vec<AppliedMigration>, MigrateError>> {
        Box::pin(async move { self.conn()?.list_applied_migrations(table).await })
    }

    fn lock(&mut self) -> BoxFuture<'_, Result<(), MigrateError>> {
        Box::pin(async move { self.conn()?.lock().await })
    }

    fn unlock(&mut self) -> BoxFuture<'_, Result<(), MigrateError>> {
        Box::pin(async move { self.conn()?.unlock().await })
    }

    fn apply<'e>(
        &'e mut self,
        table: &'e str,
        migration: &'e Migration,
    ) -> BoxFuture<'e, Result<Duration, MigrateError>> {
        self.has_applied = true;
        Box::pin(async move { self.conn()?.apply(table, migration).await })
    }

    fn revert<'e>(
        &'e mut self,
        table: &'e str,
        migration: &'e Migration,
    ) -> BoxFuture<'e, Result<Duration, MigrateError>> {
        self.has_applied = true;
        Box::pin(async move { self.conn()?.revert(table, migration).await })
    }

    fn skip<'e>(
        &'e mut self,
        table: &'e str,
        migration: &'e Migration,
    ) -> BoxFuture<'e, Result<(), MigrateError>> {
        Box::pin(async move { self.conn()?.skip(table, migration).await })
    }
}
