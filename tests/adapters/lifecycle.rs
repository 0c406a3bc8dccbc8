//! Lifecycle: pools and workspaces begin, are used again, and end, with nothing left.

use pool_core::{AcquireError, CatalogError, WorkspaceId};
use pool_testkit::eventually;

use super::rig::{Outcome, Rig, SOON, Suite, all_at_once};

pub async fn pool_initialization<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let stats = rig.pools.stats();
    assert_eq!(stats.connections().total(), 0, "nothing is opened before it is needed");
    rig.witness_counts(stats.control).await?;
    assert!(rig.pools.health().is_serving());

    let ids = rig.workspaces(1).await?;
    rig.serves(&ids[0]).await?;
    assert_eq!(rig.pools.stats().workspaces.opened, 1);
    rig.end().await
}

pub async fn workspace_pool_creation<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let acme = WorkspaceId::new("acme")?;
    assert!(!rig.pools.workspace_exists(&acme).await?);

    rig.pools.ensure_workspace(&acme).await?;
    rig.pools.ensure_workspace(&acme).await?;
    assert!(rig.pools.workspace_exists(&acme).await?);
    assert_eq!(rig.pools.list_workspaces().await?, std::slice::from_ref(&acme));
    assert_eq!(rig.read(&acme).await?, None, "it begins empty");
    rig.write(&acme, 7).await?;
    assert_eq!(rig.read(&acme).await?, Some(7));
    rig.end().await
}

pub async fn workspace_pool_reuse<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(1).await?;
    for _ in 0..50 {
        rig.serves(&ids[0]).await?;
    }
    let stats = rig.pools.stats().workspaces;
    assert_eq!(
        (stats.opened, stats.acquired, stats.hits),
        (1, 50, 49),
        "one connection serves all: {stats:?}"
    );
    rig.end().await
}

pub async fn workspace_pool_cleanup<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(2).await?;
    for id in &ids {
        rig.serves(id).await?;
    }
    rig.settled().await?;
    let before = rig.pools.stats();
    let counted = before.connections().total() + before.control;

    rig.pools.close_workspace(&ids[0]).await?;
    rig.witness_counts(counted - 1).await?;
    assert_eq!(rig.pools.workspace(&ids[0]).counts().total(), 0);
    assert_eq!(rig.pools.workspace(&ids[1]).counts().idle, 1, "the other one is as it was");
    rig.serves(&ids[0]).await?;

    assert!(rig.pools.drop_workspace(&ids[0]).await?);
    assert!(!rig.pools.drop_workspace(&ids[0]).await?, "there was nothing left to drop");
    assert_eq!(rig.pools.list_workspaces().await?, [ids[1].clone()]);
    rig.serves(&ids[1]).await?;
    rig.end().await
}

pub async fn full_cleanup<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(10).await?;
    for id in &ids {
        rig.serves(id).await?;
    }
    assert_eq!(rig.pools.stats().workspaces.connections.total(), 10);
    rig.close().await?;
    rig.witness_counts(0).await?;
    assert!(matches!(rig.pools.acquire(&ids[0]).await, Err(AcquireError::Closed)));
    let late = rig.pools.ensure_workspace(&WorkspaceId::new("late")?).await;
    assert!(matches!(late, Err(CatalogError::Acquire(AcquireError::Closed))), "{late:?}");
    rig.end().await
}

pub async fn cleanup_idempotency<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(3).await?;
    drop(rig.hold(&ids).await?);
    for _ in 0..3 {
        rig.pools.close_workspace(&ids[0]).await?;
    }
    all_at_once(8, |_| {
        let rig = rig.clone();
        async move { rig.close().await }
    })
    .await?;
    rig.close().await?;
    rig.end().await
}

pub async fn multiple_pools_isolated<A: Suite>() -> Outcome {
    let (one, other) = (Rig::<A>::sized(3, 3, |_| ()).await?, Rig::<A>::sized(3, 3, |_| ()).await?);
    let ids = one.workspaces(1).await?;
    assert_eq!(other.pools.list_workspaces().await?, [], "what one has made, the other does not see");
    other.workspaces(1).await?;
    one.write(&ids[0], 1).await?;
    other.write(&ids[0], 2).await?;
    assert_eq!((one.read(&ids[0]).await?, other.read(&ids[0]).await?), (Some(1), Some(2)));
    one.end().await?;
    other.serves(&ids[0]).await?;
    other.end().await
}

pub async fn pool_manager_isolation<A: Suite>() -> Outcome {
    let one = Rig::<A>::sized(3, 3, |_| ()).await?;
    let other = one.another(3).await?;
    let ids = one.workspaces(1).await?;
    one.write(&ids[0], 1).await?;
    assert_eq!(other.read(&ids[0]).await?, Some(1), "both are pools of the same databases");
    assert_eq!(other.pools.stats().workspaces.opened, 1, "with connections of their own");
    other.close().await?;
    drop(other);
    one.serves(&ids[0]).await?;
    one.end().await
}

pub async fn metrics_tracking<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(2).await?;
    for id in [&ids[0], &ids[0], &ids[1]] {
        rig.serves(id).await?;
    }
    let missing = WorkspaceId::new("missing")?;
    rig.pools.acquire(&missing).await.err().ok_or("a database that is not there was opened")?;

    let share = rig.pools.stats().workspaces;
    assert_eq!((share.acquired, share.hits, share.errors), (3, 1, 1), "{share:?}");
    assert_eq!((share.opened, share.closed, share.open_failures), (2, 0, 1), "{share:?}");
    let all = rig.pools.workspace_stats();
    let answers = |id: &WorkspaceId| {
        all.by_workspace.get(id).map(|stats| (stats.answers.acquired, stats.answers.errors))
    };
    assert_eq!((answers(&ids[0]), answers(&ids[1])), (Some((2, 0)), Some((1, 0))));
    assert_eq!(answers(&missing), Some((0, 1)));
    let idle = || async { rig.pools.stats().workspaces.connections.idle == 2 };
    eventually("two idle connections", SOON, idle).await?;
    rig.end().await
}
