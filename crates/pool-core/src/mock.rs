//! mockall mocks of the ports, for tests of interactions: did the caller make the call it should? For
//! behaviour use the fakes of `pool-testkit`. Feature `mock`.
//!
//! ```
//! use pool_core::mock::MockWorkspacePools;
//! use pool_core::{PoolStats, WorkspacePools};
//!
//! let mut pools = MockWorkspacePools::<()>::new();
//! pools.expect_stats().times(1).returning(PoolStats::default);
//! assert_eq!(pools.stats().limit(), 0);
//! ```
#![allow(missing_docs)]

use async_trait::async_trait;
use mockall::mock;

use crate::error::{AcquireError, CatalogError, CloseError, DriverError};
use crate::events::Event;
use crate::health::Health;
use crate::ids::{ConnectionId, Target, WorkspaceId};
use crate::naming::{DatabaseName, DatabaseNaming};
use crate::policy::EvictionPolicy;
use crate::ports::{Catalog, Observer, WorkspacePools, Workspaces};
use crate::stats::PoolStats;

mock! {
    /// A mock of what an application depends on. `L` is the lease it hands out.
    pub WorkspacePools<L: Send + Sync + 'static> {}

    #[async_trait]
    impl<L: Send + Sync + 'static> WorkspacePools for WorkspacePools<L> {
        type Lease = L;
        async fn acquire(&self, workspace: &WorkspaceId) -> Result<L, AcquireError>;
        async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError>;
        async fn close(&self) -> Result<(), CloseError>;
        fn stats(&self) -> PoolStats;
        fn health(&self) -> Health;
    }
}

mock! {
    /// A mock of what an application depends on that makes and removes workspaces.
    pub Workspaces {}

    #[async_trait]
    impl Workspaces for Workspaces {
        async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError>;
        async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError>;
        async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError>;
        async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError>;
    }
}

mock! {
    /// A mock of a catalog over connections `C`.
    pub Catalog<C: Send + Sync + 'static> {}

    #[async_trait]
    impl<C: Send + Sync + 'static> Catalog<C> for Catalog<C> {
        async fn ensure(&self, system: &mut C, workspace: &WorkspaceId) -> Result<bool, DriverError>;
        async fn drop(&self, system: &mut C, workspace: &WorkspaceId) -> Result<bool, DriverError>;
        async fn exists(&self, system: &mut C, workspace: &WorkspaceId) -> Result<bool, DriverError>;
        async fn list(&self, system: &mut C) -> Result<Vec<WorkspaceId>, DriverError>;
    }

    impl<C: Send + Sync + 'static> DatabaseNaming for Catalog<C> {
        fn database(&self, workspace: &WorkspaceId) -> DatabaseName;
    }
}

mock! {
    /// A mock of an observer.
    pub Observer {}

    impl Observer for Observer {
        fn on<'a>(&self, event: &Event<'a>);
    }
}

mock! {
    /// A mock of an eviction policy.
    pub EvictionPolicy {}

    impl EvictionPolicy for EvictionPolicy {
        fn touched(&mut self, connection: ConnectionId, target: &Target);
        fn removed(&mut self, connection: ConnectionId);
        fn victim(&mut self, may: &dyn Fn(ConnectionId) -> bool) -> Option<ConnectionId>;
    }
}

mock! {
    /// A mock of a naming scheme.
    pub DatabaseNaming {}

    impl DatabaseNaming for DatabaseNaming {
        fn database(&self, workspace: &WorkspaceId) -> DatabaseName;
    }
}
