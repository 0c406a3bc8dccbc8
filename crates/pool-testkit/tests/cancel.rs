//! Cancellation swept over every await point: each future of the manager is polled once, twice, three times
//! and so on, and dropped; the pool must be as it was each time, and serve the next caller.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pool_core::{Limits, WorkspaceId};
use pool_manager::PoolManager;
use pool_testkit::fakes::{FakeDriver, FakeServer};
use pool_testkit::poll_at_most;
use rstest::rstest;
use tokio::time::sleep;

type Manager = PoolManager<FakeDriver>;

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

/// What is being cancelled, and the situation it is cancelled in.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Nothing is open.
    ColdAcquire,
    /// The budget is spent; an idle connection of another workspace must go first.
    AcquireByEviction,
    /// An idle connection is to be checked, and is dead.
    AcquireOfADeadConnection,
    /// Somebody else holds the only connection and gives it back meanwhile.
    AcquireInAQueue,
    Ensure,
    DropWorkspace,
    CloseWorkspace,
    Close,
}

/// Runs one round: the future is dropped after `polls` polls. Returns whether it had come to its end.
async fn round(what: What, polls: usize) -> bool {
    let server = FakeServer::new();
    server.connect_takes(Duration::from_millis(3));
    server.close_takes(Duration::from_millis(2));
    let manager =
        server.manager(Limits::new(3).system(2), |s| s.close_timeout = Duration::from_secs(1)).unwrap();
    for name in ["a", "b"] {
        manager.ensure_workspace(&id(name)).await.unwrap();
    }
    let done = cancelled(what, polls, &manager, &server).await;
    // Whatever was under way comes to its end; then nothing may be left of the cancelled caller.
    sleep(Duration::from_secs(5)).await;
    let stats = manager.stats();
    for share in [stats.workspaces, stats.system] {
        let now = share.connections;
        assert_eq!(
            now.in_use + now.opening + now.closing + share.waiting,
            0,
            "{what:?} at {polls}: {share:?}"
        );
        assert_eq!(share.opened, share.closed + u64::from(now.idle), "{what:?} at {polls}: {share:?}");
    }
    if !matches!(what, What::Close) {
        manager.ensure_workspace(&id("b")).await.unwrap();
        drop(manager.acquire(&id("b")).await.unwrap());
        drop(manager.system().acquire().await.unwrap());
    }
    manager.close().await.unwrap();
    assert_eq!(server.sessions(), 0, "{what:?} at {polls}");
    done
}

async fn cancelled(what: What, polls: usize, manager: &Manager, server: &FakeServer) -> bool {
    let (a, b) = (id("a"), id("b"));
    match what {
        What::ColdAcquire => poll_at_most(polls, manager.acquire(&a)).await,
        What::AcquireByEviction => {
            drop(manager.acquire(&b).await.unwrap());
            poll_at_most(polls, manager.acquire(&a)).await
        }
        What::AcquireOfADeadConnection => {
            drop(manager.acquire(&a).await.unwrap());
            server.kill_sessions_of("fake_ws_a");
            sleep(Duration::from_secs(1)).await;
            poll_at_most(polls, manager.acquire(&a)).await
        }
        What::AcquireInAQueue => {
            let held = manager.acquire(&a).await.unwrap();
            tokio::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                drop(held);
            });
            poll_at_most(polls, manager.acquire(&a)).await
        }
        What::Ensure => poll_at_most(polls, manager.ensure_workspace(&id("new"))).await,
        What::DropWorkspace => {
            drop(manager.acquire(&a).await.unwrap());
            poll_at_most(polls, manager.drop_workspace(&a)).await
        }
        What::CloseWorkspace => {
            let held = manager.acquire(&a).await.unwrap();
            tokio::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                drop(held);
            });
            poll_at_most(polls, manager.close_workspace(&a)).await
        }
        What::Close => {
            let held = manager.acquire(&a).await.unwrap();
            tokio::spawn(async move {
                sleep(Duration::from_millis(1)).await;
                drop(held);
            });
            poll_at_most(polls, manager.close()).await
        }
    }
}

#[rstest]
#[case::w4_o2_cold_acquire(What::ColdAcquire)]
#[case::w4_acquire_by_eviction(What::AcquireByEviction)]
#[case::w4_l3_acquire_of_a_dead_connection(What::AcquireOfADeadConnection)]
#[case::w4_acquire_in_a_queue(What::AcquireInAQueue)]
#[case::ensure(What::Ensure)]
#[case::drop_workspace(What::DropWorkspace)]
#[case::c1_close_workspace(What::CloseWorkspace)]
#[case::c3_close(What::Close)]
#[tokio::test(start_paused = true)]
async fn a_future_dropped_at_any_await_point_leaves_the_pool_whole(#[case] what: What) {
    let mut points = 0;
    while !round(what, points).await {
        points += 1;
        assert!(points < 1_000, "{what:?} does not come to its end");
    }
    println!("race: {points} cancellation points of {what:?}");
    assert!(points > 1, "{what:?} has points to be cancelled at");
}
