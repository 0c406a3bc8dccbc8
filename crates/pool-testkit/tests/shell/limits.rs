//! Limits and terms that change while running.

use std::time::Duration;

use pool_core::{AcquireError, Limits, LimitsError, Stage, Terms};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Manager, id, settle, start};

fn limits_of(manager: &Manager) -> (u32, u32) {
    let stats = manager.stats();
    (stats.workspaces.limit, stats.system.limit)
}

#[tokio::test(start_paused = true)]
async fn b1_limits_that_grow_serve_those_who_wait_at_once() {
    let (server, manager) = start(1, &["a", "b", "c"], |_| ()).await;
    let _held = manager.acquire(&id("a")).await.unwrap();
    let mut waiting = JoinSet::new();
    for name in ["b", "c"] {
        let manager = manager.clone();
        waiting.spawn(async move { manager.acquire(&id(name)).await.unwrap() });
    }
    settle().await;
    assert_eq!(manager.stats().workspaces.waiting, 2);
    manager.set_limits(Limits::new(5).system(2)).unwrap();
    settle().await;
    assert_eq!(waiting.join_all().await.len(), 2);
    assert_eq!((limits_of(&manager), server.sessions_of("fake_ws_c")), ((3, 2), 1));
}

#[tokio::test(start_paused = true)]
async fn b1_limits_that_shrink_close_what_is_idle_and_cut_nothing() {
    let (server, manager) = start(6, &["a", "b"], |_| ()).await;
    let held = [manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("a")).await.unwrap()];
    let idle = [manager.acquire(&id("b")).await.unwrap(), manager.acquire(&id("b")).await.unwrap()];
    drop(idle);
    manager.set_limits(Limits::new(3).system(2)).unwrap();
    settle().await;
    assert_eq!((server.sessions_of("fake_ws_a"), server.sessions_of("fake_ws_b")), (2, 0));
    let error = manager.acquire_within(&id("b"), Duration::from_millis(50)).await.unwrap_err();
    let AcquireError::TimedOut { waiting_for: Stage::Budget, pressure, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((pressure.counted, pressure.limit), (2, 1));
    drop(held);
    settle().await;
    assert_eq!(manager.stats().workspaces.connections.total(), 1);
    drop(manager.acquire(&id("b")).await.unwrap());
}

/// Uses connections of workspaces and of the system pool at random until it is dropped.
async fn use_at_random(manager: Manager, mut dice: fastrand::Rng) {
    loop {
        let name = id(["a", "b", "c", "d"][dice.usize(..4)]);
        let within = Duration::from_millis(dice.u64(1..40));
        let hold = Duration::from_millis(dice.u64(..20));
        if dice.bool() {
            let lease = manager.acquire_within(&name, within).await;
            sleep(hold).await;
            drop(lease);
        } else {
            let system = manager.system();
            let lease = tokio::time::timeout(within, system.acquire()).await;
            sleep(hold).await;
            drop(lease);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b1_b3_one_share_grows_only_as_the_other_shrinks() {
    for seed in 0..20 {
        let (server, manager) = start(10, &["a", "b", "c", "d"], |_| ()).await;
        server.connect_takes(Duration::from_millis(3));
        server.close_takes(Duration::from_millis(7));
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut users: JoinSet<()> = (0..30).map(|_| use_at_random(manager.clone(), dice.fork())).collect();
        for _ in 0..20 {
            let system = dice.u32(1..11);
            manager.set_limits(Limits::new(12).system(system)).unwrap();
            for _ in 0..dice.u32(1..60) {
                sleep(Duration::from_millis(1)).await;
                let (stats, sessions) = (manager.stats(), server.sessions());
                assert!(sessions <= 12, "seed {seed}: the server has {sessions} sessions");
                let counted = stats.connections().total() + stats.control;
                assert!(counted <= 12, "seed {seed}: {stats:?}");
            }
            if dice.u32(..4) == 0 {
                sleep(Duration::from_millis(1_200)).await;
                assert_eq!(limits_of(&manager), (12 - system, system), "seed {seed}");
            }
        }
        assert!(server.peak() <= 12, "seed {seed}: the server had {} sessions", server.peak());
        users.shutdown().await;
        manager.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn b1_limits_that_cannot_hold_are_refused_and_change_nothing() {
    let (_server, manager) = start(8, &["a"], |_| ()).await;
    let refused = manager.set_limits(Limits::new(4).system(4)).unwrap_err();
    assert_eq!(refused, LimitsError::NothingForWorkspaces { total: 4, system: 4 });
    let refused = manager.set_limits(Limits::new(10).system(2).per_workspace(9)).unwrap_err();
    assert_eq!(refused, LimitsError::PerWorkspace { per_workspace: 9, workspaces: 8 });
    assert_eq!(limits_of(&manager), (8, 2));
}

#[tokio::test(start_paused = true)]
async fn b2_a_ceiling_may_be_set_while_running() {
    let (_server, manager) = start(4, &["a"], |_| ()).await;
    let held = [manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("a")).await.unwrap()];
    manager.set_terms(&id("a"), Terms { weight: 1, ceiling: Some(2) }).unwrap();
    let error = manager.acquire_within(&id("a"), Duration::from_millis(10)).await.unwrap_err();
    assert!(matches!(error, AcquireError::TimedOut { waiting_for: Stage::WorkspaceCeiling, .. }), "{error}");
    let a = id("a");
    let (third, ()) = tokio::join!(manager.acquire(&a), async {
        settle().await;
        manager.set_terms(&id("a"), Terms { weight: 1, ceiling: Some(3) }).unwrap();
    });
    let third = third.unwrap();
    manager.set_terms(&id("a"), Terms { weight: 1, ceiling: Some(1) }).unwrap();
    assert_eq!(manager.stats().workspaces.connections.in_use, 3, "no lease is cut");
    drop((held, third));
    settle().await;
    assert_eq!(manager.stats().workspaces.connections.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn w6_terms_that_cannot_hold_are_refused_with_the_numbers() {
    let (_server, manager) = start(8, &["a"], |_| ()).await;
    let whose = pool_core::Target::from(&id("a"));
    let refused = manager.set_terms(&id("a"), Terms { weight: 0, ceiling: None }).unwrap_err();
    assert_eq!(refused, LimitsError::Weight { target: whose.clone() });
    for ceiling in [0, 9] {
        let refused = manager.set_terms(&id("a"), Terms { weight: 1, ceiling: Some(ceiling) }).unwrap_err();
        assert_eq!(refused, LimitsError::Ceiling { target: whose.clone(), ceiling, workspaces: 8 });
        assert!(refused.to_string().contains("give 1 to 8"), "{refused}");
    }
    manager.set_terms(&id("a"), Terms { weight: 1, ceiling: Some(8) }).unwrap();
}
