//! Clauses of the manager over the adapter: the contract as an application sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pool_core::{AcquireError, CloseError, Driver, DriverErrorKind};
use pool_manager::PoolManager;
use tokio::time::sleep;

use super::world::{World, id};
use super::{Adapter, Miss, Outcome, hold};

/// How many tasks use how many workspaces, each so often, over a budget that suffices for two of them.
const TASKS: usize = 8;
const WORKSPACES: usize = 4;
const ROUNDS: usize = 12;
const BUDGET: u32 = 2;

fn error(doing: &str, error: &dyn std::error::Error) -> Miss {
    Miss::Broken(format!("could not {doing}: {error}"))
}

/// Workspaces `w0` and so on, in each of which its number has been written.
async fn numbered<A: Adapter>(world: &World<A>, manager: &PoolManager<A::Driver>) -> Outcome {
    for number in 0..WORKSPACES {
        let id = id(&format!("w{number}"))?;
        manager.ensure_workspace(&id).await.map_err(|why| error("ensure", &why))?;
        let mut lease = manager.acquire(&id).await.map_err(|why| error("acquire", &why))?;
        world.write(&mut lease, number_of(number)).await?;
    }
    Ok(())
}

fn number_of(workspace: usize) -> i64 {
    i64::try_from(workspace).unwrap_or_default() + 100
}

/// What a lease under load must read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    ItsOwn,
    Anything,
}

/// Tasks that use workspaces in turn. Returns the most sessions that a witness has counted meanwhile, if there is one.
async fn load<A: Adapter>(
    world: &World<A>,
    manager: &PoolManager<A::Driver>,
    reads: Reads,
) -> Result<Option<usize>, Miss> {
    let done = AtomicBool::new(false);
    let watch = async {
        let mut most = None;
        while !done.load(Ordering::Relaxed) {
            let Ok(counted) = world.sessions().await else { return None };
            most = most.max(Some(counted));
            sleep(Duration::from_millis(2)).await;
        }
        most
    };
    let one_task = async |task: usize| -> Outcome {
        for round in 0..ROUNDS {
            let workspace = (task + round) % WORKSPACES;
            let id = id(&format!("w{workspace}"))?;
            let mut lease = manager.acquire(&id).await.map_err(|why| error("acquire", &why))?;
            let read = world.read(&mut lease).await?;
            let expected = Some(number_of(workspace));
            let is_right = reads == Reads::Anything || read == expected;
            hold(is_right, || format!("a lease for {id} reads {read:?}, and not {expected:?}"))?;
        }
        Ok(())
    };
    let tasks = async {
        let outcomes = futures_util::future::join_all((0..TASKS).map(one_task)).await;
        done.store(true, Ordering::Relaxed);
        outcomes.into_iter().collect::<Outcome>()
    };
    let (outcome, most) = tokio::join!(tasks, watch);
    outcome?;
    Ok(most)
}

pub(super) async fn b1_the_budget_holds_under_load_as_a_witness_counts<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    world.sessions().await?;
    let manager = world.manager(BUDGET, |_| ()).await?;
    numbered(world, &manager).await?;
    let most = load(world, &manager, Reads::Anything).await?.unwrap_or_default();
    let limit = manager.stats().limit() as usize;
    hold(most <= limit, || format!("a witness counted {most} sessions of {limit}"))?;
    close(&manager).await
}

pub(super) async fn i2_each_lease_under_load_is_in_its_own_database<A: Adapter>(world: &World<A>) -> Outcome {
    let manager = world.manager(BUDGET, |_| ()).await?;
    numbered(world, &manager).await?;
    load(world, &manager, Reads::ItsOwn).await?;
    close(&manager).await
}

async fn close<D: Driver>(manager: &PoolManager<D>) -> Outcome {
    manager.close().await.map_err(|why| error("close", &why))
}

pub(super) async fn w5_a_lonely_caller_reuses_one_connection<A: Adapter>(world: &World<A>) -> Outcome {
    let manager = world.manager(BUDGET, |_| ()).await?;
    numbered(world, &manager).await?;
    let before = manager.stats().workspaces.opened;
    for _ in 0..50 {
        let mut lease = manager.acquire(&id("w0")?).await.map_err(|why| error("acquire", &why))?;
        world.read(&mut lease).await?;
        drop(lease);
    }
    let opened = manager.stats().workspaces.opened - before;
    // One more where a connection is made clean while its caller is back already.
    hold(opened <= u64::from(BUDGET), || {
        format!("50 leases one after the other opened {opened} connections")
    })?;
    close(&manager).await
}

pub(super) async fn e2_a_full_budget_serves_another_workspace_by_closing_an_idle_connection<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let manager = world.manager(1, |_| ()).await?;
    numbered(world, &manager).await?;
    let stats = manager.stats().workspaces;
    // Evicted, or closed as they came back.
    hold(stats.opened >= 4 && stats.closed >= 3, || format!("4 workspaces in turn on one slot: {stats:?}"))?;
    hold(stats.connections.total() <= 1, || format!("{stats:?}"))?;
    close(&manager).await
}

pub(super) async fn l3_a_connection_that_ended_while_idle_is_replaced_unseen<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let manager = world.manager(BUDGET, |settings| settings.check_after = Duration::ZERO).await?;
    numbered(world, &manager).await?;
    let id = id("w0")?;
    let mut lease = manager.acquire(&id).await.map_err(|why| error("acquire", &why))?;
    world.read(&mut lease).await?;
    world.adapter.end_session(&mut lease).await?;
    drop(lease);
    for _ in 0..3 {
        let mut lease = manager.acquire(&id).await.map_err(|why| error("acquire", &why))?;
        world.answers_rightly(&mut lease, 37).await?;
    }
    close(&manager).await
}

pub(super) async fn l1_a_lease_that_was_left_unclean_is_clean_for_the_next_holder<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let manager = world.manager(1, |_| ()).await?;
    numbered(world, &manager).await?;
    let id = id("w0")?;
    for way in world.adapter.ways() {
        let mut lease = manager.acquire(&id).await.map_err(|why| error("acquire", &why))?;
        world.adapter.leave(&mut lease, way).await?;
        drop(lease);
        let mut lease = manager.acquire(&id).await.map_err(|why| error("acquire", &why))?;
        let is_left = world.adapter.is_left(&mut lease, way).await?;
        hold(!is_left, || format!("the next holder sees {way}"))?;
        world.answers_rightly(&mut lease, 41).await?;
    }
    close(&manager).await
}

pub(super) async fn o4_a_missing_database_is_told_to_its_caller<A: Adapter>(world: &World<A>) -> Outcome {
    let manager = world.manager(BUDGET, |_| ()).await?;
    match manager.acquire(&id("nobody")?).await {
        Err(AcquireError::OpenFailed { source, retryable: false, .. })
            if source.kind == DriverErrorKind::DatabaseMissing => {}
        Err(other) => return Err(Miss::Broken(format!("{other}"))),
        Ok(_) => return Err(Miss::Broken("a workspace that was never made was leased".into())),
    }
    close(&manager).await
}

pub(super) async fn c1_a_lease_held_past_the_deadline_is_cut_or_counted<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let adjust = |settings: &mut pool_manager::Settings| settings.close_timeout = Duration::from_millis(200);
    let manager = world.manager(BUDGET, adjust).await?;
    numbered(world, &manager).await?;
    // What was used before may still be made clean in the background.
    while manager.stats().workspaces.connections.in_use > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let mut held = manager.acquire(&id("w0")?).await.map_err(|why| error("acquire", &why))?;
    let can_be_cut = manager.driver().handle(&held).is_some();
    let closed = manager.close().await;
    let counted = manager.stats().workspaces.connections.in_use;
    if can_be_cut {
        let is_cut = matches!(closed, Err(CloseError::Cut { leases: 1, .. }));
        hold(is_cut && counted == 0, || format!("{closed:?}, and {counted} counted in use"))?;
        let used = world.adapter.echo(&mut held, 31).await;
        hold(used.is_err(), || format!("a lease that was cut answered {used:?}"))?;
    } else {
        let is_told = matches!(closed, Err(CloseError::Held { leases: 1, .. })) && counted == 1;
        hold(is_told, || format!("it lives on: {closed:?}, and {counted} counted in use"))?;
    }
    drop(held);
    let all_back = async {
        while manager.stats().connections().total() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let late = |_| Miss::Broken("it still counts 10 s after it came back".into());
    tokio::time::timeout(Duration::from_secs(10), all_back).await.map_err(late)
}

pub(super) async fn c2_a_close_leaves_nothing<A: Adapter>(world: &World<A>) -> Outcome {
    world.sessions().await?;
    let manager = Arc::new(world.manager(BUDGET, |_| ()).await?);
    numbered(world, &manager).await?;
    load(world, &manager, Reads::Anything).await?;
    close(&manager).await?;
    let left = world.sessions().await?;
    hold(left == 0, || format!("{left} sessions right after the close"))
}
