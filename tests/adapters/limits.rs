//! Limits: each ceiling as a witness counts it, while the load runs, and what a caller is told at it.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use pool_core::{AcquireError, CloseError, Stage, WorkspaceId};
use pool_testkit::eventually;
use pool_testkit::run::replaced;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::rig::{BUDGET, CEILING, Outcome, Rig, SOON, Suite, all_at_once, is_missing};
use crate::support::figures;

/// Runs `load`, and returns the most sessions that a witness counted meanwhile, if there is one.
async fn watched<A: Suite>(rig: &Rig<A>, load: impl Future<Output = Outcome>) -> Outcome<Option<usize>> {
    let most = AtomicUsize::new(0);
    let mut load = pin!(load);
    let look_on = async {
        while let Some(counted) = rig.sessions().await {
            most.fetch_max(counted, Ordering::Relaxed);
            sleep(Duration::from_millis(1)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = &mut load => done?,
        () = look_on => {}
    }
    Ok(rig.sessions().await.map(|last| most.into_inner().max(last)))
}

pub async fn max_connections_respected<A: Suite>() -> Outcome {
    const TASKS: usize = 64;
    const ROUNDS: usize = 8;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(30).await?;
    // Full to the brim: one more has to wait.
    let leases = rig.hold(&ids[..BUDGET as usize]).await?;
    let (pools, id) = (rig.pools.clone(), ids[20].clone());
    let one_more = tokio::spawn(async move { pools.acquire(&id).await.map(drop) });
    rig.queue_is(1).await?;
    let stats = rig.pools.stats();
    assert_eq!(stats.workspaces.connections.in_use, BUDGET);
    rig.witness_counts(stats.connections().total() + stats.control).await?;
    assert!(!one_more.is_finished(), "a sixteenth connection was had out of fifteen");
    drop(leases);
    one_more.await??;

    // A storm on twice as many workspaces as there are connections.
    let storm = all_at_once(TASKS, |task| {
        let (rig, ids) = (rig.clone(), ids.clone());
        async move {
            for round in 0..ROUNDS {
                rig.serves(&ids[(7 * task + 11 * round) % ids.len()]).await?;
            }
            Ok(())
        }
    });
    let most = watched(&rig, async { storm.await.map(drop) }).await?;
    let stats = rig.pools.stats();
    assert!(most.is_none_or(|most| most <= stats.limit() as usize), "{most:?} of {}", stats.limit());
    assert_eq!(stats.workspaces.peak, BUDGET, "reached, never passed");
    assert_eq!(stats.workspaces.acquired, 16 + (TASKS * ROUNDS) as u64, "everybody was served");
    rig.end().await
}

pub async fn connection_reuse<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(10).await?;
    for _ in 0..20 {
        for id in &ids {
            rig.serves(id).await?;
        }
    }
    // Also when one has been idle for so long that it is checked first.
    sleep(Duration::from_millis(600)).await;
    for id in &ids {
        rig.serves(id).await?;
    }
    let stats = rig.pools.stats().workspaces;
    assert_eq!((stats.opened, stats.closed, stats.acquired, stats.hits), (10, 0, 210, 200), "{stats:?}");

    // Fifty tasks at one workspace share what it may have; none gets a connection of its own.
    all_at_once(50, |_| {
        let (rig, id) = (rig.clone(), ids[0].clone());
        async move {
            for _ in 0..10 {
                rig.serves(&id).await?;
            }
            Ok(())
        }
    })
    .await?;
    let counts = rig.pools.workspace(&ids[0]).counts();
    assert!(counts.total() <= CEILING, "{counts:?}");
    rig.end().await
}

pub async fn connection_timeout_handling<A: Suite>() -> Outcome {
    const PATIENCE: Duration = Duration::from_millis(400);
    let rig = Rig::<A>::sized(4, 2, |settings| settings.acquire_timeout = PATIENCE).await?;
    let ids = rig.workspaces(3).await?;
    let [a, b, c] = [&ids[0], &ids[1], &ids[2]];

    let of_a = rig.hold(&[a.clone(), a.clone()]).await?;
    let error = rig.pools.acquire(a).await.err().ok_or("a third of two was had")?;
    let AcquireError::TimedOut { waiting_for, after, pressure, .. } = &error else { panic!("{error}") };
    assert_eq!((*waiting_for, *after >= PATIENCE), (Stage::WorkspaceCeiling, true), "{error}");
    assert_eq!((pressure.target_counted, pressure.target_limit, pressure.waiting), (2, 2, 1), "{error}");

    let of_b = rig.hold(&[b.clone(), b.clone()]).await?;
    let (one, other) = tokio::join!(rig.pools.acquire(c), rig.pools.acquire(c));
    for told in [one, other] {
        let error = told.err().ok_or("a fifth of four was had")?;
        let AcquireError::TimedOut { waiting_for: Stage::Budget, pressure, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((pressure.in_use, pressure.counted, pressure.limit), (4, 4, 4), "{error}");
    }
    assert!(rig.pools.try_acquire(c).await?.is_none(), "nothing is idle");
    assert_eq!(rig.pools.stats().workspaces.waiting, 0, "a caller that gave up leaves no trace");
    drop((of_a, of_b));
    for id in &ids {
        rig.serves(id).await?;
    }
    rig.end().await
}

pub async fn idle_connection_cleanup<A: Suite>() -> Outcome {
    const IDLE: Duration = Duration::from_millis(500);
    let rig = Rig::<A>::sized(BUDGET, CEILING, |settings| settings.idle_timeout = Some(IDLE)).await?;
    let ids = rig.workspaces(6).await?;
    let mut in_use = rig.pools.acquire(&ids[0]).await?;
    drop(rig.hold(&ids[1..]).await?);
    let last_use = Instant::now();
    let left = || async {
        let counts = rig.pools.stats().workspaces.connections;
        let is_early = counts.idle < 5 && last_use.elapsed() < IDLE;
        assert!(!is_early, "closed before its time, after {:?}: {counts:?}", last_use.elapsed());
        counts.total() == 1
    };
    eventually("idle connections being closed", SOON, left).await?;
    let stats = rig.pools.stats().workspaces;
    assert_eq!((stats.opened, stats.closed, stats.evicted), (6, 5, 0), "closed for being idle: {stats:?}");
    assert_eq!(stats.targets, 1, "a workspace without connections costs nothing: {stats:?}");
    rig.ask(&mut in_use).await?;
    drop(in_use);
    for id in &ids {
        rig.serves(id).await?;
    }
    rig.end().await
}

pub async fn connection_stats_accuracy<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(20).await?;
    let figures = || figures(rig.pools.stats().workspaces);
    assert_eq!(figures(), ((0, 0, 0), (0, 0, 0), (0, 0)));
    for again in [0, 5] {
        let leases = rig.hold(&ids[..5]).await?;
        assert_eq!(figures(), ((5, 0, 0), (5, 0, 0), (5 + again, again)));
        drop(leases);
        assert_eq!(figures(), ((0, 5, 0), (5, 0, 0), (5 + again, again)));
    }
    // Twenty workspaces, room for fifteen: the five that were used longest ago make way.
    for id in &ids {
        rig.serves(id).await?;
    }
    assert_eq!(figures(), ((0, 15, 0), (20, 5, 5), (30, 10)));
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(rig.pools.workspace(id).counts().idle, u32::from(i >= 5), "{id}");
    }
    // A database that does not exist: nobody makes way for it.
    let missing = WorkspaceId::new("missing")?;
    rig.pools.acquire(&missing).await.err().ok_or("a database that is not there was opened")?;
    assert_eq!(figures(), ((0, 15, 0), (20, 5, 5), (30, 10)));

    callers_at_a_ceiling_are_counted_while_they_wait(&rig, &ids[19]).await?;
    rig.pools.close_workspace(&ids[19]).await?;
    assert_eq!(figures(), ((0, 5, 0), (29, 24, 14), (40, 11)));
    rig.settled().await?;
    rig.end().await
}

/// One workspace at its ceiling, and three callers that wait for it.
async fn callers_at_a_ceiling_are_counted_while_they_wait<A: Suite>(
    rig: &Rig<A>,
    id: &WorkspaceId,
) -> Outcome {
    let figures = || figures(rig.pools.stats().workspaces);
    let leases = rig.hold(&vec![id.clone(); CEILING as usize]).await?;
    let mut waiters = JoinSet::new();
    for _ in 0..3 {
        let (pools, id) = (rig.pools.clone(), id.clone());
        waiters.spawn(async move { pools.acquire(&id).await.map(drop) });
    }
    rig.queue_is(3).await?;
    assert_eq!(figures(), ((10, 5, 3), (29, 14, 14), (40, 11)));
    waiters.shutdown().await;
    assert_eq!(figures(), ((10, 5, 0), (29, 14, 14), (40, 11)), "a caller that has gone is not counted");
    drop(leases);
    Ok(())
}

pub async fn max_open_connections_per_database<A: Suite>() -> Outcome {
    const TASKS: usize = 40;
    let rig = Rig::<A>::sized(BUDGET, 4, |_| ()).await?;
    let ids = rig.workspaces(3).await?;
    // The budget has room for eleven more; this workspace has not.
    let leases = rig.hold(&vec![ids[0].clone(); 4]).await?;
    let (pools, id) = (rig.pools.clone(), ids[0].clone());
    let one_more = tokio::spawn(async move { pools.acquire(&id).await.map(drop) });
    all_at_once(2 * TASKS, |task| {
        let (rig, id) = (rig.clone(), ids[1 + task % 2].clone());
        async move { rig.serves(&id).await }
    })
    .await?;
    rig.queue_is(1).await?;
    for id in &ids {
        let counts = rig.pools.workspace(id).counts();
        assert!(counts.total() <= 4, "{id}: {counts:?}");
    }
    drop(leases);
    one_more.await??;
    assert_eq!(rig.pools.stats().workspaces.evicted, 0, "nobody had to make room for anybody");
    rig.end().await
}

pub async fn connection_limit_protects_system<A: Suite>() -> Outcome {
    const FLOOD: usize = 100;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(20).await?;
    let leases = rig.hold(&ids[..BUDGET as usize]).await?;
    let mut flood = JoinSet::new();
    for i in 0..FLOOD {
        let (rig, id) = (rig.clone(), ids[i % ids.len()].clone());
        flood.spawn(async move { rig.serves(&id).await });
    }
    rig.queue_is(FLOOD).await?;
    if rig.has_system() {
        for _ in 0..20 {
            rig.ask(&mut *rig.pools.system().acquire().await?).await?;
        }
    } else {
        replaced("there is no system database: databases are managed while every connection is held");
        let refused = rig.pools.system().acquire().await.err().ok_or("a system database was opened")?;
        assert!(matches!(refused, AcquireError::NoSystemDatabase { .. }), "{refused}");
    }
    let late = WorkspaceId::new("late")?;
    rig.pools.ensure_workspace(&late).await?;
    assert!(rig.pools.workspace_exists(&late).await? && rig.pools.drop_workspace(&late).await?);
    assert_eq!(rig.pools.stats().workspaces.waiting as usize, FLOOD, "and nobody was served out of turn");
    drop(leases);
    crate::support::finish(flood).await?;
    rig.settled().await?;
    rig.end().await
}

pub async fn no_connection_leaks_on_error<A: Suite>() -> Outcome {
    const TIMES: usize = 6;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(5).await?;
    all_at_once(TIMES * ids.len(), |task| {
        let (rig, id) = (rig.clone(), ids[task % ids.len()].clone());
        async move {
            for way in rig.world.ways() {
                let mut lease = rig.pools.acquire(&id).await?;
                // Where another one's lock is in its way, the statement is dropped in the midst of its wait.
                drop(timeout(Duration::from_millis(50), rig.world.leave(&mut lease, way)).await);
            }
            drop(timeout(Duration::from_micros(300), rig.serves(&id)).await);
            let missing = rig.pools.acquire(&WorkspaceId::new("missing")?).await.err();
            assert!(missing.is_some_and(|error| is_missing(&error)));
            let holds = rig.pools.acquire(&id).await?;
            let panicked = tokio::spawn(async move {
                let _held = holds;
                panic!("a holder that panics, as it is meant to");
            });
            assert!(panicked.await.is_err());
            Ok(())
        }
    })
    .await?;
    rig.settled().await?;
    // Nothing of the capacity is lost, and what comes back is fit for use.
    let everything: Vec<_> = ids.iter().cycle().take(BUDGET as usize).cloned().collect();
    let mut leases = rig.hold(&everything).await?;
    for lease in &mut leases {
        rig.ask(lease).await?;
        for way in rig.world.ways() {
            assert!(!rig.world.is_left(lease, way).await?, "{way} reached the next holder");
        }
    }
    drop(leases);
    rig.end().await
}

pub async fn cleanup_releases_all_resources<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(8).await?;
    for id in &ids[1..] {
        rig.serves(id).await?;
    }
    let mut leases = rig.hold(&vec![ids[0].clone(); CEILING as usize]).await?;
    let (pools, id) = (rig.pools.clone(), ids[0].clone());
    let waiter = tokio::spawn(async move { pools.acquire(&id).await.map(drop) });
    rig.queue_is(1).await?;

    let (closed, held) = tokio::join!(rig.pools.close(), async {
        // A waiter is told at once; a holder is waited for.
        assert!(matches!(waiter.await, Ok(Err(AcquireError::Closed))));
        rig.ask(&mut leases[0]).await?;
        drop(leases);
        Ok::<_, super::rig::Failed>(())
    });
    held?;
    let graceful: Result<(), CloseError> = closed;
    graceful?;
    rig.witness_counts(0).await?;
    let refused = try_join_all(ids.iter().map(|id| rig.pools.acquire(id))).await.err();
    assert!(matches!(refused, Some(AcquireError::Closed)));
    assert_eq!(
        join_all(ids.iter().map(|id| rig.pools.try_acquire(id)))
            .await
            .iter()
            .filter(|told| told.is_ok())
            .count(),
        0
    );
    rig.end().await
}
