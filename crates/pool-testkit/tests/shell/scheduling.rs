//! Who gets the next slot, as a caller of the shell sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pool_core::{AcquireError, DriverErrorKind, Limits, Phase, Stage, Terms};
use pool_manager::StartError;
use pool_testkit::fakes::{FakeServer, Gate};
use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Manager, id, settle, start};

const CONNECT: Duration = Duration::from_millis(20);
const CLOSE: Duration = Duration::from_millis(5);

/// `a` has a connection in use, and `b` an idle one; the budget is spent.
async fn spent() -> (FakeServer, Manager, pool_manager::Lease<pool_testkit::fakes::FakeDriver>) {
    let (server, manager) = start(2, &["a", "b"], |_| ()).await;
    server.connect_takes(CONNECT);
    server.close_takes(CLOSE);
    manager.acquire(&id("b")).await.unwrap().discard();
    sleep(CLOSE).await;
    drop(manager.acquire(&id("b")).await.unwrap());
    let held = manager.acquire(&id("a")).await.unwrap();
    (server, manager, held)
}

#[tokio::test(start_paused = true)]
async fn o6_patience_ends_at_the_promised_moment_although_nothing_else_happens() {
    let (_server, manager, _held) = spent().await;
    let began = Instant::now();
    let _second = manager.acquire(&id("a")).await.unwrap();
    // As long as a switch takes, and then the switch.
    let switch = CONNECT + CLOSE;
    let waited = began.elapsed();
    let grain = Duration::from_millis(3);
    assert!(waited >= switch * 2 && waited <= switch * 2 + grain, "waited {waited:?}");
    assert_eq!(manager.stats().workspaces.evicted, 1);
}

#[tokio::test(start_paused = true)]
async fn w3_a_caller_is_served_by_a_connection_of_its_own_workspace_before_another_one_is_closed() {
    let (server, manager, held) = spent().await;
    let a = id("a");
    let (second, ()) = tokio::join!(manager.acquire(&a), async {
        sleep(Duration::from_millis(10)).await;
        drop(held);
    });
    drop(second.unwrap());
    // What was promised has become void.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(manager.stats().workspaces.evicted, 0);
    assert_eq!((server.sessions_of("fake_ws_a"), server.sessions_of("fake_ws_b")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn w3_ten_callers_of_a_workspace_without_a_connection_are_served_within_400_ms() {
    let (server, manager) = start(20, &["cold"], |_| ()).await;
    server.connect_takes(Duration::from_millis(120));
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..10 {
        let manager = manager.clone();
        callers.spawn(async move { (manager.acquire(&id("cold")).await.unwrap(), began.elapsed()) });
    }
    // All keep what they got.
    let leases = callers.join_all().await;
    let longest = leases.iter().map(|(_, waited)| *waited).max().unwrap();
    assert!(longest <= Duration::from_millis(400), "the last one waited {longest:?}");
}

#[tokio::test(start_paused = true)]
async fn o4_a_storm_of_unknown_ids_evicts_nothing_and_is_asked_about_in_batches() {
    let names: Vec<String> = (0..10).map(|i| format!("warm{i}")).collect();
    let warm: Vec<_> = names.iter().map(String::as_str).collect();
    let (server, manager) = start(10, &warm, |_| ()).await;
    server.connect_takes(CONNECT);
    server.look_ups_take(Duration::from_millis(2));
    for name in &warm {
        drop(manager.acquire(&id(name)).await.unwrap());
    }
    let (connects, look_ups) = (server.connects(), server.look_ups());
    let mut storm = JoinSet::new();
    for i in 0..800 {
        let manager = manager.clone();
        storm.spawn(async move { manager.acquire(&id(&format!("unknown{i}"))).await.map(drop) });
    }
    let mut longest = Duration::ZERO;
    while !storm.is_empty() {
        for name in &warm {
            let began = Instant::now();
            drop(manager.acquire(&id(name)).await.unwrap());
            longest = longest.max(began.elapsed());
        }
        sleep(Duration::from_micros(100)).await;
        while let Some(told) = storm.try_join_next() {
            let Err(AcquireError::OpenFailed { retryable: false, source, .. }) = told.unwrap() else {
                panic!("not told")
            };
            assert_eq!((source.phase, source.kind), (Phase::Catalog, DriverErrorKind::DatabaseMissing));
        }
    }
    assert_eq!(longest, Duration::ZERO, "the others do not wait");
    assert_eq!((server.connects() - connects, manager.stats().workspaces.evicted), (0, 0));
    let asked = server.look_ups() - look_ups;
    assert!(asked <= 4, "800 ids took {asked} questions");
    for name in &warm {
        assert_eq!(server.sessions_of(&format!("fake_ws_{name}")), 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn o4_a_workspace_that_the_pool_has_never_seen_is_found_and_served() {
    let (server, manager) = start(1, &["a"], |_| ()).await;
    // Somebody else creates it.
    let other = server.manager(Limits::new(4).system(2), |_| ()).unwrap();
    other.ensure_workspace(&id("b")).await.unwrap();
    drop(manager.acquire(&id("a")).await.unwrap());
    let look_ups = server.look_ups();
    drop(manager.acquire(&id("b")).await.unwrap());
    drop(manager.acquire(&id("a")).await.unwrap());
    drop(manager.acquire(&id("b")).await.unwrap());
    assert_eq!(server.look_ups() - look_ups, 1, "what is known is not asked again");
}

#[tokio::test(start_paused = true)]
async fn o4_a_catalog_that_does_not_answer_keeps_nobody_out() {
    let (server, manager) = start(1, &["a"], |s| s.check_timeout = Duration::from_secs(1)).await;
    let other = server.manager(Limits::new(4).system(2), |_| ()).unwrap();
    other.ensure_workspace(&id("b")).await.unwrap();
    drop(manager.acquire(&id("a")).await.unwrap());
    server.look_ups_take(Duration::from_hours(1));
    let began = Instant::now();
    drop(manager.acquire(&id("b")).await.unwrap());
    assert!(began.elapsed() <= Duration::from_millis(1_010), "waited {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn w6_slots_are_shared_by_weight_which_may_be_set_while_running() {
    let (server, manager) =
        start(1, &["heavy", "light"], |s| s.quantum = Some(Duration::from_millis(10))).await;
    server.connect_takes(Duration::from_millis(3));
    let mut busy = JoinSet::new();
    let grants = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    for (at, name) in ["heavy", "light"].into_iter().enumerate() {
        for _ in 0..4 {
            let (manager, grants) = (manager.clone(), Arc::clone(&grants));
            busy.spawn(async move {
                loop {
                    let lease = manager.acquire(&id(name)).await.unwrap();
                    sleep(Duration::from_millis(1)).await;
                    grants[at].fetch_add(1, Ordering::Relaxed);
                    drop(lease);
                }
            });
        }
    }
    let mut ratios = Vec::new();
    for weight in [1, 3] {
        manager.set_terms(&id("heavy"), Terms { weight, ceiling: None }).unwrap();
        let before = [&grants[0], &grants[1]].map(|grants| grants.load(Ordering::Relaxed));
        sleep(Duration::from_secs(5)).await;
        let after = [&grants[0], &grants[1]].map(|grants| grants.load(Ordering::Relaxed));
        #[allow(clippy::cast_precision_loss)]
        ratios.push((after[0] - before[0]) as f64 / (after[1] - before[1]) as f64);
    }
    // A turn's connect is part of its slot-time, and the light one has more of them for each statement.
    assert!((0.8..=1.25).contains(&ratios[0]) && (2.4..=4.5).contains(&ratios[1]), "{ratios:?}");
}

#[tokio::test(start_paused = true)]
async fn w3_a_caller_may_have_a_time_limit_of_its_own() {
    let (server, manager) = start(1, &["a", "b"], |s| s.acquire_timeout = Duration::from_secs(1)).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    let began = Instant::now();
    let error = manager.acquire_within(&id("b"), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_millis(50));
    let AcquireError::TimedOut { waiting_for: Stage::Budget, after, .. } = error else { panic!("{error}") };
    assert_eq!(after, Duration::from_millis(50));
    // One that is longer than the acquire timeout holds as well.
    let b = id("b");
    let (lease, ()) = tokio::join!(manager.acquire_within(&b, Duration::from_secs(3)), async {
        sleep(Duration::from_secs(2)).await;
        drop(held);
    });
    drop(lease.unwrap());
    // Without any time, what is idle is still had, and nothing else.
    drop(manager.acquire_within(&id("b"), Duration::ZERO).await.unwrap());
    server.connect_takes(CONNECT);
    manager.acquire_within(&id("a"), Duration::ZERO).await.unwrap_err();
    assert_eq!(manager.stats().workspaces.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_wait_gets_what_is_idle_or_nothing() {
    let (server, manager) = start(2, &["a"], |_| ()).await;
    let connects = server.connects();
    assert!(manager.try_acquire(&id("a")).await.unwrap().is_none());
    settle().await;
    assert_eq!(server.connects(), connects, "nothing is opened for it");
    drop(manager.acquire(&id("a")).await.unwrap());
    let lease = manager.try_acquire(&id("a")).await.unwrap().unwrap();
    assert!(manager.try_acquire(&id("a")).await.unwrap().is_none());
    drop(lease);
    let before = manager.stats().workspaces;
    assert_eq!((before.acquired, before.hits), (2, 1));
    // After a while it is checked first, and counts when it proved alive.
    sleep(Duration::from_millis(600)).await;
    drop(manager.try_acquire(&id("a")).await.unwrap().unwrap());
    let after = manager.stats().workspaces;
    assert_eq!((server.checks(), after.acquired, after.hits), (1, 3, 2));
    // One that proves broken is closed, and there is none.
    sleep(Duration::from_millis(600)).await;
    server.kill_sessions_of("fake_ws_a");
    assert!(manager.try_acquire(&id("a")).await.unwrap().is_none());
    settle().await;
    let stats = manager.stats().workspaces;
    assert_eq!((stats.connections.total(), stats.acquired), (0, 3));
    manager.close().await.unwrap();
    assert!(matches!(manager.try_acquire(&id("a")).await, Err(AcquireError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn w1_a_queue_is_bounded_and_says_so_at_once() {
    let limits = Limits::new(3).system(2).waiting_per_workspace(2);
    let (_server, manager) = start(1, &["a", "b"], |s| s.limits = limits).await;
    let _held = manager.acquire(&id("a")).await.unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let manager = manager.clone();
        waiting.spawn(async move { manager.acquire(&id("a")).await.map(drop) });
    }
    settle().await;
    let began = Instant::now();
    let error = manager.acquire(&id("a")).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
    let AcquireError::QueueFull { waiting: 2, limit: 2, .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains("2 callers wait for it, of at most 2"), "{error}");
    // The queue of another workspace is another one.
    let error = manager.acquire_within(&id("b"), Duration::from_millis(1)).await.unwrap_err();
    assert!(matches!(error, AcquireError::TimedOut { .. }), "{error}");
}

#[rstest]
#[case::none(Duration::ZERO)]
#[case::longer_than_anybody_waits(Duration::from_secs(6))]
#[tokio::test]
async fn w5_a_quantum_that_cannot_hold_is_refused_with_the_numbers(#[case] quantum: Duration) {
    let server = FakeServer::new();
    let refused = server.manager(Limits::new(10), |s| {
        s.quantum = Some(quantum);
        s.acquire_timeout = Duration::from_secs(5);
    });
    let Err(error) = refused.map(drop) else { panic!("not refused") };
    assert!(matches!(error.downcast_ref(), Some(StartError::Quantum { .. })), "{error}");
    let told = error.to_string();
    assert!(told.contains(&format!("{quantum:?}")) && told.contains("5s"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn o6_waiters_whose_last_hope_breaks_after_an_open_was_given_up_are_told_at_once() {
    let (server, manager) = start(2, &["a"], |s| s.connect_timeout = Duration::from_secs(1)).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    server.script("fake_ws_a", [Gate::Hold]);
    let waiting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.acquire(&id("a")).await.map(drop) }
    });
    sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished(), "the connection in use may come back to it");
    server.kill_sessions_of("fake_ws_a");
    let began = Instant::now();
    drop(held);
    let told = waiting.await.unwrap();
    assert!(matches!(told, Err(AcquireError::OpenFailed { .. })), "{told:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    server.let_go();
}
