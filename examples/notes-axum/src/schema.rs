//! The application's port for its tables: migrations that are compiled in, for a workspace that is new, and for all at the start.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use pool_core::{CatalogError, WorkspaceId, Workspaces};
use pool_postgres::PgPools;
use pool_sqlite::SqlitePools;
use sqlx::migrate::{MigrateError, Migrator};

/// The tables on PostgreSQL.
pub static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

/// So many workspaces at a time. They are migrated within the pool's budget, whatever this says.
const AT_A_TIME: usize = 8;

/// What became of each workspace, as soon as it is known.
pub type Outcomes = BoxStream<'static, (WorkspaceId, Result<(), MigrateError>)>;

/// Brings workspaces' tables up to date.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait Schema: Send + Sync {
    /// Applies what this workspace's database does not have yet.
    async fn migrate(&self, workspace: &WorkspaceId) -> Result<(), MigrateError>;

    /// The same for many. A failure stops none of the others.
    fn migrate_each(&self, workspaces: Vec<WorkspaceId>) -> Outcomes;
}

#[async_trait]
impl Schema for PgPools {
    async fn migrate(&self, workspace: &WorkspaceId) -> Result<(), MigrateError> {
        self.workspace(workspace).migrate(&POSTGRES).await
    }

    fn migrate_each(&self, workspaces: Vec<WorkspaceId>) -> Outcomes {
        self.migrate_each(workspaces, &POSTGRES, AT_A_TIME).boxed()
    }
}

#[async_trait]
impl Schema for SqlitePools {
    async fn migrate(&self, workspace: &WorkspaceId) -> Result<(), MigrateError> {
        self.workspace(workspace).migrate(&SQLITE).await
    }

    fn migrate_each(&self, workspaces: Vec<WorkspaceId>) -> Outcomes {
        self.migrate_each(workspaces, &SQLITE, AT_A_TIME).boxed()
    }
}

/// Migrates all workspaces, and logs how far it has come. Returns how many could not be migrated: requests to those may fail, and the
/// others are served.
///
/// # Errors
/// [`CatalogError`] when the workspaces cannot be listed.
///
/// # Cancel safety
/// Dropping the future rolls back what is under way; called again, it goes on from there.
pub async fn migrate_all(workspaces: &dyn Workspaces, schema: &dyn Schema) -> Result<usize, CatalogError> {
    let all = workspaces.list_workspaces().await?;
    let (of, mut failed) = (all.len(), 0);
    let mut outcomes = schema.migrate_each(all).zip(futures_util::stream::iter(1..));
    while let Some(((workspace, outcome), done)) = outcomes.next().await {
        match outcome {
            Ok(()) => tracing::info!(%workspace, done, of, "migrated"),
            Err(error) => {
                failed += 1;
                tracing::error!(%workspace, done, of, %error, "not migrated");
            }
        }
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use pool_core::mock::MockWorkspaces;

    use super::*;

    fn ids() -> Vec<WorkspaceId> {
        ["a", "b", "c"].iter().map(|name| WorkspaceId::new(name).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_workspace_that_cannot_be_migrated_stops_no_other() {
        let (mut workspaces, mut schema) = (MockWorkspaces::new(), MockSchema::new());
        workspaces.expect_list_workspaces().times(1).returning(|| Ok(ids()));
        let outcome = |id: WorkspaceId| match id.as_str() {
            "b" => (id, Err(MigrateError::VersionMissing(1))),
            _ => (id, Ok(())),
        };
        schema
            .expect_migrate_each()
            .withf(|all| *all == ids())
            .times(1)
            .returning(move |all| stream::iter(all.into_iter().map(outcome)).boxed());
        assert_eq!(migrate_all(&workspaces, &schema).await.unwrap(), 1);
    }
}
