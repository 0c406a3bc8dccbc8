//! The catalog of a server in memory.

use std::sync::Arc;

use async_trait::async_trait;
use pool_core::{Catalog, DatabaseName, DatabaseNaming, DriverError, WorkspaceId};

use super::{FakeConn, FakeServer};

/// Creates, drops and finds databases of a [`FakeServer`].
pub struct FakeCatalog {
    server: FakeServer,
    naming: Arc<dyn DatabaseNaming>,
}

impl FakeCatalog {
    /// A catalog of `server` that names databases with `naming`.
    pub fn new(server: FakeServer, naming: Arc<dyn DatabaseNaming>) -> Self {
        Self { server, naming }
    }
}

impl DatabaseNaming for FakeCatalog {
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        self.naming.database(workspace)
    }
}

#[async_trait]
impl Catalog<FakeConn> for FakeCatalog {
    async fn ensure(&self, _: &mut FakeConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        // A statement is a point at which others may go on.
        tokio::task::yield_now().await;
        let database = self.naming.database(workspace);
        if self.server.state().creation_hangs(database.as_str()) {
            self.server.held().await;
        }
        Ok(self.server.state().create(database.as_str(), workspace))
    }

    async fn drop(&self, _: &mut FakeConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        tokio::task::yield_now().await;
        Ok(self.server.state().drop_database(self.naming.database(workspace).as_str()))
    }

    async fn exists(&self, _: &mut FakeConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        tokio::task::yield_now().await;
        Ok(self.server.state().look_up(self.naming.database(workspace).as_str()))
    }

    async fn which_exist(
        &self,
        _: &mut FakeConn,
        workspaces: &[WorkspaceId],
    ) -> Result<Vec<bool>, DriverError> {
        let takes = self.server.state().look_ups_take;
        tokio::time::sleep(takes).await;
        let names: Vec<_> = workspaces.iter().map(|workspace| self.naming.database(workspace)).collect();
        Ok(self.server.state().look_up_all(names.iter().map(DatabaseName::as_str)))
    }

    async fn list(&self, _: &mut FakeConn) -> Result<Vec<WorkspaceId>, DriverError> {
        let takes = self.server.state().list_takes;
        tokio::time::sleep(takes).await;
        Ok(self.server.state().workspaces())
    }
}
