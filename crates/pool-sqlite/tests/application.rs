//! Code of an application that depends on the ports alone: the same handler on mocks, on the adapter in memory and on files.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use mockall::predicate::eq;
use pool_core::mock::{MockWorkspacePools, MockWorkspaces};
use pool_core::{
    AcquireError, CatalogError, DriverError, DriverErrorKind, Limits, Phase, WorkspaceId, WorkspacePools,
    Workspaces,
};
use pool_sqlite::{SqliteConfig, SqlitePools};
use pool_testkit::fakes::FakeServer;
use tempfile::TempDir;

/// What a sign-up came to.
#[derive(Debug, PartialEq, Eq)]
enum SignUp {
    Ready,
    TryAgain,
    Refused,
}

/// A handler: makes the workspace, and sees that it can be used.
async fn sign_up(workspaces: &dyn Workspaces, pools: &impl WorkspacePools, id: &WorkspaceId) -> SignUp {
    if workspaces.ensure_workspace(id).await.is_err() {
        return SignUp::TryAgain;
    }
    match pools.acquire(id).await {
        Ok(_lease) => SignUp::Ready,
        Err(AcquireError::OpenFailed { retryable: false, .. } | AcquireError::Closed) => SignUp::Refused,
        Err(_) => SignUp::TryAgain,
    }
}

fn acme() -> WorkspaceId {
    WorkspaceId::new("acme").unwrap()
}

#[tokio::test]
async fn with_mocks_it_is_seen_what_a_handler_does_about_each_failure() {
    let (mut workspaces, mut pools) = (MockWorkspaces::new(), MockWorkspacePools::<()>::new());
    workspaces.expect_ensure_workspace().with(eq(acme())).times(3).returning(|_| Ok(()));
    pools.expect_acquire().times(1).returning(|_| Ok(()));
    assert_eq!(sign_up(&workspaces, &pools, &acme()).await, SignUp::Ready);
    pools.checkpoint();
    pools.expect_acquire().times(1).returning(|_| Err(AcquireError::Closed));
    assert_eq!(sign_up(&workspaces, &pools, &acme()).await, SignUp::Refused);
    pools.checkpoint();
    pools
        .expect_acquire()
        .times(1)
        .returning(|_| Err(AcquireError::WorkspaceClosing { target: (&acme()).into() }));
    assert_eq!(sign_up(&workspaces, &pools, &acme()).await, SignUp::TryAgain);
    workspaces.checkpoint();
    let full = || DriverError::new(Phase::Catalog, DriverErrorKind::ServerFull, "somewhere");
    let failed =
        move |id: &WorkspaceId| Err(CatalogError::Driver { target: id.into(), source: Arc::new(full()) });
    workspaces.expect_ensure_workspace().times(1).returning(failed);
    assert_eq!(sign_up(&workspaces, &pools, &acme()).await, SignUp::TryAgain);
}

#[tokio::test]
async fn in_memory_and_on_files_the_same_handler_has_databases() {
    let in_memory = FakeServer::new().manager(Limits::new(8), |_| ()).unwrap();
    assert_eq!(sign_up(&in_memory, &in_memory, &acme()).await, SignUp::Ready);
    let directory = TempDir::new().unwrap();
    let on_files = SqlitePools::builder(SqliteConfig::new(directory.path()))
        .limits(Limits::new(8))
        .build()
        .await
        .unwrap();
    assert_eq!(sign_up(&on_files, &on_files, &acme()).await, SignUp::Ready);
    assert_eq!(Workspaces::list_workspaces(&on_files).await.unwrap(), [acme()]);
}
