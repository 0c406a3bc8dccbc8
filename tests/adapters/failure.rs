//! Failure: what breaks is told to those whom it concerns, to nobody else, and the pool works on after it.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use pool_core::{AcquireError, CloseError, WorkspaceId};
use pool_testkit::eventually;
use pool_testkit::run::replaced;
use tokio::time::{Instant, sleep, timeout};

use super::rig::{BUDGET, CEILING, Outcome, Rig, SOON, Suite, all_at_once, is_missing, until_served};
use crate::support::ids::strange_ids;

/// Longer than a connection may be idle without being checked.
const CHECKED_AFTER: Duration = Duration::from_millis(600);

pub async fn stale_connection_detection<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(3).await?;
    let mut leases = rig.hold(&ids).await?;
    if rig.world.end_session(&mut leases[0]).await.is_err() {
        drop(leases);
        replaced("nobody can end its sessions: one whose database was made again under it is found out");
        return a_database_is_made_again(rig, &ids[0]).await;
    }
    // Ended in its holder's hands: the holder is told, and nobody else meets it.
    rig.ask(&mut leases[0]).await.err().ok_or("a session that has ended has answered")?;
    drop(leases);
    for id in &ids {
        rig.serves(id).await?;
    }
    // Ended while idle, for so long that it is checked: nobody notices.
    rig.settled().await?;
    let opened = rig.pools.stats().workspaces.opened;
    for id in &ids {
        let mut lease = rig.pools.acquire(id).await?;
        rig.world.end_session(&mut lease).await.map_err(|cannot| cannot.0)?;
    }
    sleep(CHECKED_AFTER).await;
    for id in &ids {
        rig.serves(id).await?;
    }
    assert_eq!(rig.pools.stats().workspaces.opened, opened + 3, "each was replaced once");
    rig.settled().await?;
    rig.end().await
}

async fn a_database_is_made_again<A: Suite>(rig: Rig<A>, id: &WorkspaceId) -> Outcome {
    rig.write(id, 1).await?;
    let other = rig.another(2).await?;
    assert!(other.pools.drop_workspace(id).await?);
    other.pools.ensure_workspace(id).await?;
    other.write(id, 2).await?;
    assert_eq!(rig.read(id).await?, Some(2), "and not what was in the one before");
    other.close().await?;
    drop(other);
    rig.end().await
}

pub async fn workspace_database_deleted_externally<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(2).await?;
    let gone = &ids[0];
    rig.write(gone, 1).await?;
    rig.serves(&ids[1]).await?;
    rig.world.delete(&rig.database(gone)).await?;
    // A session that was used a moment ago may meet one caller.
    let told = || async { rig.pools.acquire(gone).await.err().is_some_and(|error| is_missing(&error)) };
    eventually("the database being missed", SOON, told).await?;
    assert!(!rig.pools.workspace_exists(gone).await?);
    assert_eq!(rig.pools.list_workspaces().await?, [ids[1].clone()]);
    rig.serves(&ids[1]).await?;

    // `ensure` does not believe what it knew: the database is made again, empty, and opened at once.
    rig.pools.ensure_workspace(gone).await?;
    assert_eq!(rig.read(gone).await?, None, "it is another database");
    // Deleted before the pool was asked to drop it: there is nothing left to drop.
    rig.world.delete(&rig.database(gone)).await?;
    assert!(!rig.pools.drop_workspace(gone).await?);
    rig.settled().await?;
    rig.end().await
}

pub async fn invalid_database_name<A: Suite>() -> Outcome {
    const CALLERS: u32 = 50;
    let rig = Rig::<A>::new().await?;
    let good = rig.workspaces(1).await?.remove(0);
    for impossible in ["", "a\0b", &"x".repeat(256)] {
        assert!(WorkspaceId::new(impossible).is_err(), "{impossible:?}");
    }
    // A storm for a database that does not exist: everybody is told, an open is tried once a pause.
    let (missing, began) = (WorkspaceId::new("missing")?, Instant::now());
    for told in join_all((0..CALLERS).map(|_| rig.pools.acquire(&missing))).await {
        let error = told.err().ok_or("a database that is not there was opened")?;
        assert!(is_missing(&error), "{error}");
    }
    let pauses = u64::try_from(began.elapsed().as_millis() / 50)?;
    let failures = rig.pools.stats().workspaces.open_failures;
    assert!((1..=1 + pauses).contains(&failures), "{failures} opens in {:?}", began.elapsed());
    rig.serves(&good).await?;
    rig.pools.ensure_workspace(&missing).await?;
    rig.serves(&missing).await?;
    rig.end().await
}

pub async fn recover_from_connection_errors<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(2).await?;
    let (bad, good) = (&ids[0], &ids[1]);
    rig.write(bad, 1).await?;
    rig.pools.close_workspace(bad).await?;
    rig.world.refuse(&rig.database(bad), true).await?;
    for _ in 0..3 {
        let error = rig.pools.acquire(bad).await.err().ok_or("it is refused, and was opened")?;
        let AcquireError::OpenFailed { source, .. } = &error else { panic!("{error}") };
        assert!(source.source.is_some() || error.to_string().contains(source.kind.to_string().as_str()));
        rig.serves(good).await?;
    }
    rig.world.refuse(&rig.database(bad), false).await?;
    until_served(&rig, bad, "the database being open again").await?;
    assert_eq!(rig.read(bad).await?, Some(1), "nothing is lost");

    // What holders leave, in each way, and one that only gives its connection up.
    for way in rig.world.ways() {
        let mut lease = rig.pools.acquire(good).await?;
        rig.world.leave(&mut lease, way).await?;
        drop(lease);
        rig.settled().await?;
        rig.serves(good).await?;
    }
    rig.pools.acquire(good).await?.discard();
    drop(rig.hold(&vec![good.clone(); CEILING as usize]).await?);
    rig.settled().await?;
    rig.end().await
}

pub async fn concurrent_failures<A: Suite>() -> Outcome {
    const TASKS: usize = 20;
    const ROUNDS: i64 = 8;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(10).await?;
    let (lucky, unlucky) = ids.split_at(5);
    for id in &unlucky[..2] {
        rig.world.refuse(&rig.database(id), true).await?;
    }
    all_at_once(TASKS, |task| {
        let (rig, bad) = (rig.clone(), unlucky[task % 5].clone());
        let (good, is_writer) = (lucky[task % 5].clone(), task < 5);
        async move {
            for round in 1..=ROUNDS {
                drop(timeout(Duration::from_millis(5), rig.serves(&bad)).await);
                // Any error of one of the lucky half ends the case here.
                if is_writer { rig.write(&good, round).await? } else { rig.serves(&good).await? }
            }
            Ok(())
        }
    })
    .await?;
    for id in lucky {
        assert_eq!(rig.read(id).await?, Some(ROUNDS), "{id}: everything of the lucky half is there");
    }
    for id in &unlucky[..2] {
        rig.world.refuse(&rig.database(id), false).await?;
    }
    for id in unlucky {
        until_served(&rig, id, "each serving again").await?;
    }
    let stats = rig.pools.stats().workspaces;
    assert!(stats.open_failures > 0 && stats.peak <= BUDGET, "{stats:?}");
    rig.settled().await?;
    rig.end().await
}

pub async fn cleanup_handles_partially_failed_state<A: Suite>() -> Outcome {
    const PATIENCE: Duration = Duration::from_millis(300);
    let rig = Rig::<A>::sized(BUDGET, CEILING, |settings| settings.close_timeout = PATIENCE).await?;
    let ids = rig.workspaces(5).await?;
    for id in &ids {
        rig.serves(id).await?;
    }
    // One database is gone, one takes nobody, one connection is unclean, and one is held past every patience.
    rig.world.delete(&rig.database(&ids[0])).await?;
    rig.pools.close_workspace(&ids[1]).await?;
    rig.world.refuse(&rig.database(&ids[1]), true).await?;
    rig.pools.acquire(&ids[1]).await.err().ok_or("it is refused, and was opened")?;
    if let Some(way) = rig.world.ways().first() {
        rig.world.leave(&mut *rig.pools.acquire(&ids[2]).await?, way).await?;
    }
    let held = rig.pools.acquire(&ids[3]).await?;

    match rig.pools.close().await {
        Err(CloseError::Cut { leases: 1, after }) => assert!(after >= PATIENCE, "{after:?}"),
        // It counts until it comes back, for nothing can end it.
        Err(CloseError::Held { leases: 1, .. }) => {
            replaced("nobody can end its sessions: one that is held counts until it comes back");
            assert_eq!(rig.pools.stats().connections().total(), 1);
        }
        other => panic!("one lease was held: {other:?}"),
    }
    drop(held);
    let nothing = || async { rig.pools.stats().connections().total() == 0 };
    eventually("nothing being counted", SOON, nothing).await?;
    rig.witness_counts(0).await?;
    rig.world.refuse(&rig.database(&ids[1]), false).await
}

pub async fn system_connection_retry<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(3).await?;
    if rig.has_system() {
        let mut system = rig.pools.system().acquire().await?;
        rig.world.end_session(&mut system).await.map_err(|cannot| cannot.0)?;
        rig.ask(&mut system).await.err().ok_or("a session that has ended has answered")?;
    } else {
        replaced(
            "there is no system connection: databases are managed without one, whatever became of the others",
        );
        for id in &ids {
            rig.pools.acquire(id).await?.discard();
        }
    }
    // Whatever the connection was, the next question has its answer.
    let late = WorkspaceId::new("late")?;
    rig.pools.ensure_workspace(&late).await?;
    assert!(rig.pools.workspace_exists(&late).await?);
    assert_eq!(rig.pools.list_workspaces().await?.len(), 4);
    assert!(rig.pools.drop_workspace(&late).await?);
    rig.settled().await?;
    rig.end().await
}

pub async fn edge_cases<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = strange_ids().into_iter().map(WorkspaceId::new).collect::<Result<Vec<_>, _>>()?;
    for (number, id) in (0..).zip(&ids) {
        rig.pools.ensure_workspace(id).await?;
        assert_eq!(rig.read(id).await?, None, "{id} is nobody else's");
        rig.write(id, number).await?;
    }
    for (number, id) in (0..).zip(&ids) {
        assert_eq!(rig.read(id).await?, Some(number), "{id}");
    }
    let (mut listed, mut asked) = (rig.pools.list_workspaces().await?, ids.clone());
    listed.sort();
    asked.sort();
    assert_eq!(listed, asked, "each is listed by its own id");
    for id in &ids {
        assert!(rig.pools.drop_workspace(id).await?, "{id}");
    }
    assert_eq!(rig.pools.list_workspaces().await?, []);
    rig.end().await
}

pub async fn double_cleanup_idempotency<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(4).await?;
    drop(rig.hold(&ids).await?);
    let held = rig.pools.acquire(&ids[0]).await?;
    // A close that is dropped leaves the pool closed to new work; the next one finishes it.
    let first = rig.pools.close().now_or_never();
    assert!(first.is_none(), "a lease is out");
    assert!(matches!(rig.pools.acquire(&ids[1]).await, Err(AcquireError::Closed)));
    drop(held);
    let (one, other) = tokio::join!(rig.pools.close(), rig.pools.close());
    one?;
    other?;
    rig.close().await?;
    rig.end().await
}
