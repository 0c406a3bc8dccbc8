//! Concurrency: many tasks at once, on many workspaces and on one, at the documented sizes.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::try_join_all;
use pool_core::{AcquireError, WorkspaceId};
use tokio::time::timeout;

use super::rig::{Failed, Outcome, Rig, Suite, all_at_once, is_missing};

pub async fn concurrent_workspace_creation<A: Suite>() -> Outcome {
    const TASKS: usize = 50;
    let rig = Rig::<A>::new().await?;
    let made = all_at_once(TASKS, |i| {
        let rig = rig.clone();
        async move {
            let id = WorkspaceId::new(format!("made_{i}"))?;
            rig.pools.ensure_workspace(&id).await?;
            rig.write(&id, i64::try_from(i)?).await?;
            Ok((i, id))
        }
    })
    .await?;
    for (i, id) in made {
        assert_eq!(rig.read(&id).await?, Some(i64::try_from(i)?), "{id} holds what its own task wrote");
    }
    assert_eq!(rig.pools.list_workspaces().await?.len(), TASKS);
    rig.settled().await?;
    rig.end().await
}

pub async fn concurrent_same_workspace_access<A: Suite>() -> Outcome {
    const TASKS: usize = 100;
    let rig = Rig::<A>::new().await?;
    let id = rig.workspaces(1).await?.remove(0);
    all_at_once(TASKS, |_| {
        let (rig, id) = (rig.clone(), id.clone());
        async move { rig.serves(&id).await }
    })
    .await?;
    let stats = rig.pools.stats().workspaces;
    assert_eq!(stats.acquired, 100, "every task was served, once");
    assert!(stats.opened <= 10, "one workspace stays below its ceiling: {stats:?}");
    rig.settled().await?;
    rig.end().await
}

pub async fn concurrent_read_write_operations<A: Suite>() -> Outcome {
    const WORKSPACES: usize = 5;
    const READERS: usize = 4;
    const EACH: i64 = 25;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(WORKSPACES).await?;
    all_at_once(WORKSPACES * (READERS + 1), |task| {
        let (rig, id) = (rig.clone(), ids[task % WORKSPACES].clone());
        async move {
            let mut before = 0;
            for value in 1..=EACH {
                if task < WORKSPACES {
                    rig.write(&id, value).await?;
                    continue;
                }
                let seen = rig.read(&id).await?.unwrap_or_default();
                assert!(seen >= before, "what was written is never lost: {before}, then {seen}");
                before = seen;
            }
            Ok(())
        }
    })
    .await?;
    for id in &ids {
        assert_eq!(rig.read(id).await?, Some(EACH));
    }
    rig.end().await
}

pub async fn concurrent_cleanup<A: Suite>() -> Outcome {
    const WORKSPACES: usize = 20;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(WORKSPACES).await?;
    for id in &ids {
        rig.serves(id).await?;
    }
    // Half of them are only closed; the others go for good.
    let dropped = all_at_once(WORKSPACES, |i| {
        let (rig, id) = (rig.clone(), ids[i].clone());
        async move {
            if i % 2 == 0 {
                rig.pools.close_workspace(&id).await?;
                return Ok(false);
            }
            Ok(rig.pools.drop_workspace(&id).await?)
        }
    })
    .await?;
    assert_eq!(dropped.into_iter().filter(|dropped| *dropped).count(), WORKSPACES / 2);
    assert_eq!(rig.pools.list_workspaces().await?.len(), WORKSPACES / 2);
    assert_eq!(rig.pools.stats().workspaces.connections.total(), 0);
    rig.serves(&ids[0]).await?;
    all_at_once(8, |_| {
        let rig = rig.clone();
        async move { rig.close().await }
    })
    .await?;
    rig.end().await
}

/// Whatever users do at once, in an order that the seed decides.
pub async fn race_detector_stress_test<A: Suite>() -> Outcome {
    const TASKS: usize = 32;
    const STEPS: usize = 30;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(8).await?;
    let mut dice = fastrand::Rng::with_seed(pool_testkit::run::seed());
    let forks: Vec<_> = (0..TASKS).map(|_| dice.fork()).collect();
    all_at_once(TASKS, |task| {
        let (rig, ids, mut dice) = (rig.clone(), ids.clone(), forks[task].clone());
        async move {
            for _ in 0..STEPS {
                stress(&rig, &ids[dice.usize(..ids.len())], &mut dice).await?;
            }
            Ok(())
        }
    })
    .await?;
    rig.settled().await?;
    rig.end().await
}

/// One step: a caller that goes away, a statement that is dropped, a connection that is left unclean, a close, or a plain query.
async fn stress<A: Suite>(rig: &Rig<A>, id: &WorkspaceId, dice: &mut fastrand::Rng) -> Outcome {
    let patience = Duration::from_micros(dice.u64(..5_000));
    let step = match dice.u32(..10) {
        0 => {
            drop(timeout(patience, rig.pools.acquire(id)).await);
            Ok(())
        }
        1 => {
            drop(timeout(patience, rig.serves(id)).await);
            Ok(())
        }
        2 => {
            drop(timeout(patience, rig.pools.close_workspace(id)).await);
            Ok(())
        }
        3 => leave_unclean(rig, id, dice).await,
        _ => rig.serves(id).await,
    };
    step.or_else(|error| if is_closing(&error) { Ok(()) } else { Err(error) })
}

async fn leave_unclean<A: Suite>(rig: &Rig<A>, id: &WorkspaceId, dice: &mut fastrand::Rng) -> Outcome {
    let Some(way) = dice.choice(rig.world.ways()) else { return Ok(()) };
    let mut lease = rig.pools.acquire(id).await?;
    // Another holder's lock may be in its way.
    drop(timeout(Duration::from_millis(50), rig.world.leave(&mut lease, way)).await);
    Ok(())
}

fn is_closing(error: &Failed) -> bool {
    matches!(error.downcast_ref(), Some(AcquireError::WorkspaceClosing { .. }))
}

/// The callers ask in one task, one after the other, so their order is known.
pub async fn high_contention<A: Suite>() -> Outcome {
    const CONTENDERS: usize = 200;
    let rig = Rig::<A>::sized(5, 5, |_| ()).await?;
    let id = rig.workspaces(1).await?.remove(0);
    let served = Mutex::new(Vec::new());
    try_join_all((0..CONTENDERS).map(|i| {
        let (rig, id, served) = (&rig, &id, &served);
        async move {
            let mut lease = rig.pools.acquire(id).await?;
            served.lock().map_err(|_| "another contender has panicked")?.push(i);
            rig.ask(&mut lease).await
        }
    }))
    .await?;
    let order = served.into_inner()?;
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), CONTENDERS, "every one is served");
    // Connections that are free at once may be fetched in any order, and there are five.
    let is_near = |(place, i): (usize, &usize)| place.abs_diff(*i) < 5;
    assert!(order.iter().enumerate().all(is_near), "first come, first served: {order:?}");
    let stats = rig.pools.stats().workspaces;
    assert!(stats.opened <= 5 && stats.peak <= 5, "{stats:?}");
    rig.end().await
}

pub async fn rapid_create_destroy<A: Suite>() -> Outcome {
    const TASKS: usize = 8;
    const ROUNDS: usize = 5;
    let rig = Rig::<A>::new().await?;
    let id = WorkspaceId::new("phoenix")?;
    let served = all_at_once(TASKS, |i| {
        let (rig, id) = (rig.clone(), id.clone());
        async move {
            let mut served = 0;
            for round in 0..ROUNDS {
                rig.pools.ensure_workspace(&id).await?;
                match rig.pools.acquire(&id).await {
                    Ok(lease) => {
                        drop(lease);
                        served += 1;
                    }
                    Err(error) => {
                        let is_gone =
                            matches!(error, AcquireError::WorkspaceClosing { .. }) || is_missing(&error);
                        assert!(is_gone, "only because it was dropped meanwhile: {error}");
                    }
                }
                if (i + round) % 2 == 0 {
                    rig.pools.drop_workspace(&id).await?;
                }
            }
            Ok(served)
        }
    })
    .await?;
    assert!(served.into_iter().sum::<usize>() > 0, "somebody was served between its creation and its end");
    rig.pools.ensure_workspace(&id).await?;
    super::rig::until_served(&rig, &id, "the last one serving").await?;
    assert!(rig.pools.drop_workspace(&id).await?);
    assert_eq!(rig.pools.list_workspaces().await?, []);
    rig.end().await
}
