//! Opening, waiting and leasing.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{
    AcquireError, CatalogError, Condition, Driver, DriverErrorKind, Limits, Phase, Stage, Target,
};
use pool_testkit::fakes::{FakeServer, Gate};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Manager, id, settle, start};

#[tokio::test(start_paused = true)]
async fn o2_an_open_outlives_the_caller_that_asked_for_it() {
    let (server, manager) = start(1, &["a"], |_| ()).await;
    server.connect_takes(Duration::from_millis(100));
    timeout(Duration::from_millis(10), manager.acquire(&id("a"))).await.unwrap_err();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(manager.stats().workspaces.connections.idle, 1);
    drop(manager.acquire(&id("a")).await.unwrap());
    assert_eq!(manager.stats().workspaces.opened, 1);
}

#[tokio::test(start_paused = true)]
async fn o3_a_failed_open_reaches_the_caller_with_phase_and_cause() {
    let (server, manager) = start(1, &["a"], |_| ()).await;
    server.script("fake_ws_a", [Gate::Fail(DriverErrorKind::ServerNotReady)]);
    let error = manager.acquire(&id("a")).await.unwrap_err();
    let AcquireError::OpenFailed { retryable: true, retry_in, source, .. } = error else { panic!("{error}") };
    assert_eq!((source.phase, source.kind), (Phase::Connect, DriverErrorKind::ServerNotReady));
    // Until the pause is over nobody is sent to the server; afterwards it is asked again.
    let connects = server.connects();
    manager.acquire(&id("a")).await.unwrap_err();
    assert_eq!(server.connects(), connects);
    sleep(retry_in).await;
    drop(manager.acquire(&id("a")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn o3_an_open_that_hangs_is_given_up_and_told() {
    let (server, manager) = start(2, &["a", "b"], |s| s.connect_timeout = Duration::from_secs(2)).await;
    server.script("fake_ws_a", [Gate::Hold]);
    let began = Instant::now();
    let error = manager.acquire(&id("a")).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert!(error.to_string().contains("gave up after 2s"), "{error}");
    drop(manager.acquire(&id("b")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn w3_a_waiter_that_queues_during_a_back_off_is_served_after_it() {
    let (server, manager) = start(4, &["a"], |_| ()).await;
    server.script("fake_ws_a", [Gate::Succeed, Gate::Fail(DriverErrorKind::Unreachable)]);
    let _held = manager.acquire(&id("a")).await.unwrap();
    server.connect_takes(Duration::from_millis(10));
    timeout(Duration::from_millis(1), manager.acquire(&id("a"))).await.unwrap_err();
    sleep(Duration::from_millis(15)).await;
    let began = Instant::now();
    drop(manager.acquire(&id("a")).await.unwrap());
    assert!(began.elapsed() < Duration::from_secs(1), "waited {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn o1_a_hung_close_delays_no_other_workspace() {
    let (server, manager) = start(3, &["a", "b", "c", "d"], |_| ()).await;
    for name in ["a", "b", "c"] {
        drop(manager.acquire(&id(name)).await.unwrap());
        settle().await;
    }
    server.close_takes(Duration::from_hours(1));
    timeout(Duration::from_millis(5), manager.acquire(&id("d"))).await.unwrap_err();
    server.close_takes(Duration::ZERO);
    drop(manager.acquire(&id("d")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn b1_an_open_that_was_given_up_keeps_its_slot_until_it_ends() {
    let (server, manager) = start(1, &["hung", "b"], |s| {
        s.connect_timeout = Duration::from_secs(1);
        s.acquire_timeout = Duration::from_secs(5);
    })
    .await;
    server.script("fake_ws_hung", [Gate::Hold]);
    manager.acquire(&id("hung")).await.unwrap_err();
    assert_eq!(manager.stats().workspaces.connections.opening, 1);
    manager.acquire(&id("b")).await.unwrap_err();
    server.let_go();
    drop(manager.acquire(&id("b")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn o1_hung_opens_hold_up_nobody_else() {
    let (server, manager) = start(20, &["ok"], |_| ()).await;
    let mut hung = JoinSet::new();
    for i in 0..10 {
        let name = format!("hung{i}");
        server.script(&format!("fake_ws_{name}"), [Gate::Hold]);
        let manager = manager.clone();
        hung.spawn(async move { manager.acquire(&id(&name)).await.map(drop) });
    }
    settle().await;
    // The first eight take all permits for opens; as they turn out to be slow, they lose them.
    let began = Instant::now();
    drop(manager.acquire(&id("ok")).await.unwrap());
    assert!(began.elapsed() <= Duration::from_millis(500), "waited {:?}", began.elapsed());
    server.let_go();
}

#[tokio::test(start_paused = true)]
async fn o4_a_storm_for_a_missing_database_costs_one_connect() {
    let (server, manager) = start(8, &[], |_| ()).await;
    let before = server.connects();
    let mut callers = JoinSet::new();
    for _ in 0..500 {
        let manager = manager.clone();
        callers.spawn(async move { manager.acquire(&id("missing")).await.map(drop) });
    }
    while let Some(called) = callers.join_next().await {
        called.unwrap().unwrap_err();
    }
    assert_eq!(server.connects() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn o4_many_callers_ensure_a_workspace_once() {
    let (server, manager) = start(8, &[], |_| ()).await;
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let manager = manager.clone();
        callers.spawn(async move { manager.ensure_workspace(&id("new")).await });
    }
    while let Some(called) = callers.join_next().await {
        called.unwrap().unwrap();
    }
    assert_eq!(server.look_ups(), 1);
}

#[tokio::test(start_paused = true)]
async fn w3_a_timeout_is_kept_and_named() {
    let (_server, manager) = start(1, &["a", "b"], |s| s.acquire_timeout = Duration::from_secs(5)).await;
    let _held = manager.acquire(&id("a")).await.unwrap();
    let began = Instant::now();
    let error = manager.acquire(&id("b")).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    let AcquireError::TimedOut { waiting_for, after, pressure, .. } = error else { panic!("{error}") };
    assert_eq!((waiting_for, after, pressure.in_use), (Stage::Budget, Duration::from_secs(5), 1));
    assert_eq!(manager.stats().workspaces.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn w1_callers_of_one_workspace_are_served_in_the_order_they_came() {
    let (_server, manager) = start(1, &["a"], |_| ()).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    let served = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut callers = JoinSet::new();
    for i in 0..50 {
        let (manager, served) = (manager.clone(), Arc::clone(&served));
        callers.spawn(async move {
            let _lease = manager.acquire(&id("a")).await.unwrap();
            served.lock().unwrap().push(i);
        });
        settle().await;
    }
    drop(held);
    callers.join_all().await;
    assert_eq!(*served.lock().unwrap(), (0..50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn w2_a_flood_does_not_starve_a_quiet_workspace() {
    let (server, manager) = start(2, &["loud", "quiet"], |_| ()).await;
    server.connect_takes(Duration::from_millis(3));
    let mut flood = JoinSet::new();
    for _ in 0..20 {
        let manager = manager.clone();
        flood.spawn(async move {
            loop {
                let lease = manager.acquire(&id("loud")).await.unwrap();
                sleep(Duration::from_millis(1)).await;
                drop(lease);
            }
        });
    }
    sleep(Duration::from_millis(100)).await;
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let began = Instant::now();
        drop(manager.acquire(&id("quiet")).await.unwrap());
        longest = longest.max(began.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    // The turn (3 ms), a hold (1 ms), a connect (3 ms), and the timer's grain.
    assert!(longest <= Duration::from_millis(12), "the quiet one waited {longest:?}");
}

#[tokio::test(start_paused = true)]
async fn b1_e3_the_server_never_sees_more_than_the_budget() {
    let (server, manager) = start(3, &[], |_| ()).await;
    server.connect_takes(Duration::from_millis(2));
    server.close_takes(Duration::from_millis(5));
    let mut callers = JoinSet::new();
    for i in 0..200 {
        let manager = manager.clone();
        callers.spawn(async move {
            let name = id(&format!("w{}", i % 20));
            manager.ensure_workspace(&name).await.unwrap();
            let lease = manager.acquire(&name).await.unwrap();
            assert_eq!(lease.database(), format!("fake_ws_w{}", i % 20));
            sleep(Duration::from_millis(i % 3)).await;
        });
    }
    while let Some(called) = callers.join_next().await {
        called.unwrap();
    }
    assert!(server.peak() <= 3 + 2, "the server saw {} sessions", server.peak());
    assert!(manager.stats().workspaces.evicted > 0);
}

#[tokio::test(start_paused = true)]
async fn l1_a_dirty_connection_is_made_clean_before_the_next_holder_gets_it() {
    let (_server, manager) = start(1, &["a"], |_| ()).await;
    let mut lease = manager.acquire(&id("a")).await.unwrap();
    lease.make_dirty();
    drop(lease);
    let mut next = manager.acquire(&id("a")).await.unwrap();
    assert_eq!(manager.driver().inspect(&mut next), Condition::Clean);
    assert_eq!(manager.stats().workspaces.opened, 1, "it was worth keeping");
}

#[tokio::test(start_paused = true)]
async fn l3_a_connection_that_died_while_idle_is_replaced_unseen() {
    let (server, manager) = start(2, &["a"], |_| ()).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    server.kill_sessions_of("fake_ws_a");
    sleep(Duration::from_secs(1)).await;
    let mut lease = manager.acquire(&id("a")).await.unwrap();
    assert_eq!(manager.driver().inspect(&mut lease), Condition::Clean);
    assert_eq!(manager.stats().workspaces.opened, 2);
}

#[tokio::test(start_paused = true)]
async fn b3_the_system_share_is_not_to_be_had_by_workspaces() {
    let (_server, manager) = start(2, &["a"], |s| s.acquire_timeout = Duration::from_secs(1)).await;
    let _all = [manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("a")).await.unwrap()];
    manager.acquire(&id("a")).await.unwrap_err();
    let _system = [manager.system().acquire().await.unwrap(), manager.system().acquire().await.unwrap()];
    manager.system().acquire().await.unwrap_err();
    let stats = manager.stats();
    assert_eq!(stats.connections().in_use, stats.limit());
}

#[tokio::test(start_paused = true)]
async fn o1_a_list_of_workspaces_that_hangs_is_given_up() {
    let (server, manager) = start(1, &["a"], |s| s.change_timeout = Duration::from_mins(1)).await;
    server.list_takes(Duration::from_hours(1));
    let began = Instant::now();
    let error = manager.list_workspaces().await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_mins(1));
    assert!(matches!(error, CatalogError::TimedOut { target: Target::Catalog, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_connection_is_replaced_counts_once() {
    let (server, manager) = start(2, &["a"], |s| s.check_after = Duration::ZERO).await;
    drop([manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("a")).await.unwrap()]);
    let before = manager.stats().workspaces;
    assert_eq!((before.acquired, before.hits), (2, 0));
    // Both are checked and found dead, one after the other; the third is new.
    sleep(Duration::from_millis(1)).await;
    server.kill_sessions_of("fake_ws_a");
    let lease = manager.acquire(&id("a")).await.unwrap();
    let after = manager.stats().workspaces;
    assert_eq!((after.acquired, after.hits, after.opened), (3, 0, 3));
    drop(lease);
    // A connection that proves alive is a hit.
    sleep(Duration::from_millis(1)).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    let after = manager.stats().workspaces;
    assert_eq!((after.acquired, after.hits, after.opened), (4, 1, 3));
}

#[tokio::test(start_paused = true)]
async fn l3_a_connection_discarded_on_purpose_casts_no_doubt_on_others() {
    let (server, manager) = start(3, &["a", "b"], |_| ()).await;
    let discarded = manager.acquire(&id("a")).await.unwrap();
    drop(manager.acquire(&id("b")).await.unwrap());
    discarded.discard();
    drop(manager.acquire(&id("b")).await.unwrap());
    assert_eq!(server.checks(), 0, "nobody has broken");
    let broken = manager.acquire(&id("a")).await.unwrap();
    server.kill_sessions_of("fake_ws_a");
    drop(broken);
    drop(manager.acquire(&id("b")).await.unwrap());
    assert_eq!(server.checks(), 1);
}

/// Begins to create `hung` workspaces whose creation hangs, on a system share of `system`.
async fn creations_that_hang(system: u32, hung: u32) -> (FakeServer, Manager, JoinSet<()>) {
    let server = FakeServer::new();
    let manager = server.manager(Limits::new(10 + system).system(system), |_| ()).unwrap();
    let mut creating = JoinSet::new();
    for number in 0..hung {
        let name = format!("hung{number}");
        server.hang_creation(&format!("fake_ws_{name}"));
        let manager = manager.clone();
        creating.spawn(async move { drop(manager.ensure_workspace(&id(&name)).await) });
    }
    settle().await;
    (server, manager, creating)
}

#[tokio::test(start_paused = true)]
async fn o1_creations_that_hang_do_not_stop_the_system_share() {
    let (server, manager, creating) = creations_that_hang(8, 4).await;
    let began = Instant::now();
    manager.workspace_exists(&id("a")).await.unwrap();
    manager.list_workspaces().await.unwrap();
    drop(manager.system().acquire().await.unwrap());
    assert_eq!(began.elapsed(), Duration::ZERO);
    manager.ensure_workspace(&id("a")).await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
    server.let_go();
    creating.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn o1_a_small_system_share_keeps_a_connection_from_creations_that_hang() {
    let (server, manager, creating) = creations_that_hang(2, 2).await;
    let began = Instant::now();
    manager.workspace_exists(&id("a")).await.unwrap();
    manager.list_workspaces().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    server.let_go();
    sleep(Duration::from_millis(1)).await;
    server.let_go();
    creating.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn o1_a_system_share_that_grows_lets_another_creation_in() {
    let (server, manager, mut creating) = creations_that_hang(2, 1).await;
    let other = manager.clone();
    creating.spawn(async move { other.ensure_workspace(&id("a")).await.unwrap() });
    settle().await;
    assert!(creating.try_join_next().is_none(), "one creation at a time here");
    manager.set_limits(Limits::new(12).system(3)).unwrap();
    let began = Instant::now();
    creating.join_next().await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    server.let_go();
    creating.join_all().await;
}
