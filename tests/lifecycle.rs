//! Lifecycle: pools and workspaces begin, are used again, and end, with nothing left on the server.

use std::collections::BTreeSet;

use pool_postgres::{AcquireError, WorkspaceId, acquire_error};
use pool_testkit::{TestPool, TestPools};

use crate::support::{Outcome, backend_pid, current_database};

#[tokio::test]
async fn pool_initialization() -> Outcome {
    let pool = TestPool::new().await?;

    let stats = pool.stats();
    assert_eq!(stats.limit(), 20);
    assert_eq!(stats.connections().total(), 0, "nothing is opened before it is needed");
    assert_eq!(pool.active_connection_count().await?, stats.control, "only the driver's own");

    let one: i32 = sqlx::query_scalar("select 1").fetch_one(&pool.system()).await?;
    assert_eq!(one, 1);
    assert_eq!(pool.stats().system.opened, 1);
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn workspace_pool_creation() -> Outcome {
    let pool = TestPool::new().await?;
    let acme = WorkspaceId::new("acme")?;
    assert!(!pool.workspace_exists(&acme).await?);

    pool.ensure_workspace(&acme).await?;
    pool.ensure_workspace(&acme).await?;
    assert!(pool.workspace_exists(&acme).await?);
    assert_eq!(pool.list_workspaces().await?.iter().filter(|id| **id == acme).count(), 1);

    let db = pool.workspace(&acme);
    let name = current_database(&db).await?;
    assert_eq!(pool.databases().await?, [name]);
    sqlx::query("create table note (id int primary key)").execute(&db).await?;
    sqlx::query("insert into note values ($1)").bind(7).execute(&db).await?;
    let id: i32 = sqlx::query_scalar("select id from note").fetch_one(&db).await?;
    assert_eq!(id, 7);
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn workspace_pool_reuse() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(1).await?;
    let db = pool.workspace(&ids[0]);

    let first = backend_pid(&db).await?;
    for _ in 0..50 {
        assert_eq!(backend_pid(&db).await?, first, "the same backend serves one query after another");
    }
    let lease = pool.acquire(&ids[0]).await?;
    assert_eq!(lease.backend_pid(), first);
    drop(lease);
    assert_eq!(pool.stats().workspaces.opened, 1);
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn workspace_pool_cleanup() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(2).await?;
    for id in &ids {
        current_database(&pool.workspace(id)).await?;
    }
    let before = pool.active_connection_count().await?;

    pool.close_workspace(&ids[0]).await?;
    assert_eq!(pool.active_connection_count().await?, before - 1, "one workspace, one session less");
    assert_eq!(pool.workspace(&ids[0]).counts().total(), 0);
    assert_eq!(pool.workspace(&ids[1]).counts().idle, 1, "the other one is as it was");
    current_database(&pool.workspace(&ids[0])).await?;

    assert!(pool.drop_workspace(&ids[0]).await?);
    assert!(!pool.drop_workspace(&ids[0]).await?, "there was nothing left to drop");
    assert!(!pool.workspace_exists(&ids[0]).await?);
    let gone = current_database(&pool.workspace(&ids[0])).await.unwrap_err();
    let Some(AcquireError::OpenFailed { retryable: false, source, .. }) = acquire_error(&gone) else {
        panic!("a dropped database was opened: {gone}");
    };
    assert!(source.to_string().contains("does not exist"), "{source}");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn full_cleanup() -> Outcome {
    let pool = TestPool::new().await?;
    for id in pool.create_test_workspaces(5).await? {
        current_database(&pool.workspace(&id)).await?;
    }
    assert_eq!(pool.databases().await?.len(), 5);
    assert!(pool.active_connection_count().await? >= 5);

    pool.cleanup().await?;
    assert_eq!(pool.active_connection_count().await?, 0);
    assert_eq!(pool.databases().await?, Vec::<String>::new());
    pool.verify_no_leaked_connections().await?;
    let stats = pool.stats();
    assert_eq!(stats.connections().total(), 0);
    assert_eq!(stats.workspaces.opened, stats.workspaces.closed);
    Ok(())
}

#[tokio::test]
async fn cleanup_idempotency() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(2).await?;
    current_database(&pool.workspace(&ids[0])).await?;

    for _ in 0..3 {
        pool.cleanup().await?;
        pool.close().await?;
    }
    let (first, second) = tokio::join!(pool.cleanup(), pool.cleanup());
    first.and(second)?;
    assert!(matches!(pool.acquire(&ids[0]).await, Err(AcquireError::Closed)));
    pool.verify_no_leaked_connections().await?;
    Ok(())
}

#[tokio::test]
async fn multiple_pools_isolated() -> Outcome {
    let pools = TestPools::with_room_for(2);
    let (one, two) = (pools.get_or_create("one").await?, pools.get_or_create("two").await?);
    let shared = WorkspaceId::new("shared")?;
    one.ensure_workspace(&shared).await?;
    two.ensure_workspace(&shared).await?;

    let names =
        [current_database(&one.workspace(&shared)).await?, current_database(&two.workspace(&shared)).await?];
    assert_ne!(names[0], names[1], "the same id, a database for each pool");
    sqlx::query("create table only_here ()").execute(&one.workspace(&shared)).await?;
    let elsewhere: i64 = sqlx::query_scalar("select count(*) from pg_class where relname = 'only_here'")
        .fetch_one(&two.workspace(&shared))
        .await?;
    assert_eq!(elsewhere, 0);

    let others = two.active_connection_count().await?;
    one.cleanup().await?;
    assert_eq!(two.active_connection_count().await?, others, "the other pool did not notice");
    assert_eq!(current_database(&two.workspace(&shared)).await?, names[1]);
    two.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn pool_manager_isolation() -> Outcome {
    let manager = TestPools::new();
    let one = manager.get_or_create("one").await?;
    let two = manager.get_or_create("two").await?;
    let again = manager.get_or_create("one").await?;
    assert_eq!(one.tag(), again.tag(), "a name is one pool");
    assert_ne!(one.tag(), two.tag());
    assert_eq!(manager.count().await, 2);

    let mut databases = BTreeSet::new();
    for pool in [&one, &two] {
        for id in pool.create_test_workspaces(2).await? {
            databases.insert(current_database(&pool.workspace(&id)).await?);
        }
    }
    assert_eq!(databases.len(), 4);

    manager.cleanup_all().await?;
    assert_eq!(manager.count().await, 0);
    for pool in [&one, &two] {
        pool.verify_no_leaked_connections().await?;
        assert_eq!(pool.active_connection_count().await?, 0);
    }
    manager.cleanup_all().await?;
    Ok(())
}

#[tokio::test]
async fn metrics_tracking() -> Outcome {
    let pool = TestPool::new().await?;
    let initial = pool.metrics().await?;
    assert_eq!((initial.current, initial.opened, initial.leaked), (1, 0, 0));

    let ids = pool.create_test_workspaces(3).await?;
    let leases = [pool.acquire(&ids[0]).await?, pool.acquire(&ids[1]).await?, pool.acquire(&ids[2]).await?];
    let busy = pool.metrics().await?;
    assert_eq!(pool.stats().workspaces.connections.in_use, 3);
    assert_eq!(busy.current, pool.stats().connections().total() + 1, "the server counts what we count");
    assert!(busy.peak >= 4 && busy.opened >= 3 && busy.closed == 0, "{busy:?}");
    drop(leases);

    pool.cleanup().await?;
    let last = pool.metrics().await?;
    assert_eq!((last.current, last.leaked), (0, 0));
    assert_eq!(last.opened, last.closed, "whatever was opened has been closed");
    assert!(last.peak >= busy.peak && last.duration >= busy.duration);
    Ok(())
}
