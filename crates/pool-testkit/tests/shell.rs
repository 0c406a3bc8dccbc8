//! The async shell's laws on a server in memory. Time is paused: it moves only when nothing else can.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use pool_core::{
    AcquireError, CloseError, Condition, Driver, DriverErrorKind, Limits, Observer, Phase, Stage,
    WorkspaceId, WorkspacePools,
};
use pool_manager::{PoolManager, Settings};
use pool_testkit::fakes::{FakeDriver, FakeServer, Gate};
use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

type Manager = PoolManager<FakeDriver>;

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

/// A manager with `budget` connections for workspaces, which exist as far as they are named.
async fn start(
    budget: u32,
    workspaces: &[&str],
    adjust: impl FnOnce(&mut Settings),
) -> (FakeServer, Manager) {
    let server = FakeServer::new();
    let manager = server.manager(Limits::new(budget + 2).system(2), adjust).unwrap();
    for name in workspaces {
        manager.ensure_workspace(&id(name)).await.unwrap();
    }
    (server, manager)
}

fn busy(manager: &Manager) -> u32 {
    let stats = manager.stats().workspaces;
    stats.connections.in_use + stats.connections.opening + stats.connections.closing + stats.waiting
}

/// Lets everything that can happen without time passing happen.
async fn settle() {
    sleep(Duration::from_nanos(1)).await;
}

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
async fn o3_an_open_that_hangs_is_given_up_and_its_slot_comes_back() {
    let (server, manager) = start(1, &["a", "b"], |s| s.connect_timeout = Duration::from_secs(2)).await;
    server.script("fake_ws_a", [Gate::Hold]);
    let began = Instant::now();
    let error = manager.acquire(&id("a")).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert!(error.to_string().contains("gave up after 2s"), "{error}");
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
async fn an_idle_connection_is_closed_after_the_idle_timeout_and_not_before() {
    let (server, manager) = start(2, &["a"], |s| s.idle_timeout = Some(Duration::from_mins(1))).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    sleep(Duration::from_secs(59)).await;
    assert_eq!(server.sessions_of("fake_ws_a"), 1);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(server.sessions_of("fake_ws_a"), 0);
    assert_eq!(manager.stats().workspaces.targets, 0, "an idle workspace costs nothing at all");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_retired_after_its_lifetime() {
    let (_server, manager) = start(2, &["a"], |s| {
        s.idle_timeout = None;
        s.max_lifetime = Some(Duration::from_mins(1));
    })
    .await;
    let first = manager.acquire(&id("a")).await.unwrap().session();
    sleep(Duration::from_secs(50)).await;
    assert_eq!(manager.acquire(&id("a")).await.unwrap().session(), first);
    sleep(Duration::from_secs(12)).await;
    assert_ne!(manager.acquire(&id("a")).await.unwrap().session(), first);
}

#[tokio::test(start_paused = true)]
async fn c1_closing_a_workspace_waits_for_its_leases_and_spares_the_others() {
    let (server, manager) = start(4, &["a", "b"], |_| ()).await;
    let (lease, _other) =
        (manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("b")).await.unwrap());
    let closing = tokio::spawn({
        let manager = manager.clone();
        async move { manager.close_workspace(&id("a")).await }
    });
    settle().await;
    assert!(matches!(manager.acquire(&id("a")).await, Err(AcquireError::WorkspaceClosing { .. })));
    assert!(!closing.is_finished());
    drop(lease);
    closing.await.unwrap().unwrap();
    assert_eq!((server.sessions_of("fake_ws_a"), server.sessions_of("fake_ws_b")), (0, 1));
    drop(manager.acquire(&id("a")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn c1_a_close_of_a_workspace_that_is_dropped_lets_it_work_again() {
    let (_server, manager) = start(4, &["a"], |_| ()).await;
    let lease = manager.acquire(&id("a")).await.unwrap();
    timeout(Duration::from_millis(10), manager.close_workspace(&id("a"))).await.unwrap_err();
    drop(manager.acquire(&id("a")).await.unwrap());
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn c1_c2_close_fails_waiters_waits_for_leases_and_leaves_nothing() {
    let (server, manager) = start(1, &["a", "b"], |_| ()).await;
    let lease = manager.acquire(&id("a")).await.unwrap();
    let waiting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.acquire(&id("b")).await.map(drop) }
    });
    settle().await;
    let closing = tokio::spawn({
        let manager = manager.clone();
        async move { manager.close().await }
    });
    assert!(matches!(waiting.await.unwrap(), Err(AcquireError::Closed)));
    assert!(matches!(manager.acquire(&id("a")).await, Err(AcquireError::Closed)));
    drop(lease);
    closing.await.unwrap().unwrap();
    assert_eq!(server.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn c1_leases_held_past_the_deadline_are_cut_and_their_drop_is_safe() {
    let (server, manager) = start(2, &["a"], |s| s.close_timeout = Duration::from_secs(3)).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    let began = Instant::now();
    let outcome = manager.close().await;
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    assert!(matches!(outcome, Err(CloseError::Cut { leases: 1, .. })), "{outcome:?}");
    assert_eq!(server.sessions(), 0);
    drop(held);
    assert_eq!(busy(&manager), 0);
}

#[tokio::test(start_paused = true)]
async fn c1_a_close_that_had_to_cut_returns_as_soon_as_only_leases_are_left() {
    let (server, manager) = start(2, &["a", "b"], |s| s.close_timeout = Duration::from_secs(3)).await;
    let kept = manager.acquire(&id("a")).await.unwrap();
    let late = manager.acquire(&id("b")).await.unwrap();
    server.close_takes(Duration::from_secs(1));
    let began = Instant::now();
    // Given back just before the deadline, closed just after it.
    let (outcome, ()) = tokio::join!(manager.close(), async {
        sleep(Duration::from_millis(2_900)).await;
        drop(late);
    });
    assert_eq!(began.elapsed(), Duration::from_millis(3_900));
    assert!(matches!(outcome, Err(CloseError::Cut { leases: 1, .. })), "{outcome:?}");
    drop(kept);
}

#[tokio::test(start_paused = true)]
async fn c3_close_may_be_raced_repeated_and_taken_up_again() {
    let (server, manager) = start(2, &["a"], |_| ()).await;
    let lease = manager.acquire(&id("a")).await.unwrap();
    timeout(Duration::from_millis(10), manager.close()).await.unwrap_err();
    drop(lease);
    let (one, two) = tokio::join!(manager.close(), manager.close());
    one.and(two).unwrap();
    manager.close().await.unwrap();
    assert_eq!(server.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn l2_without_a_close_the_last_handle_takes_everything_along() {
    let (server, manager) = start(2, &["a", "b"], |_| ()).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    let lease = manager.acquire(&id("b")).await.unwrap();
    drop(manager);
    settle().await;
    assert_eq!(server.sessions_of("fake_ws_b"), 1, "a lease that is out stays usable");
    drop(lease);
    settle().await;
    assert_eq!(server.sessions(), 0);
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
async fn durations_without_end_are_taken_for_what_they_mean() {
    let (_server, manager) = start(1, &["a", "b"], |s| {
        s.acquire_timeout = Duration::MAX;
        s.connect_timeout = Duration::MAX;
        s.check_timeout = Duration::MAX;
        s.idle_timeout = Some(Duration::MAX);
        s.max_lifetime = Some(Duration::MAX);
        s.close_timeout = Duration::MAX;
    })
    .await;
    drop(manager.acquire(&id("a")).await.unwrap());
    sleep(Duration::from_mins(1)).await;
    drop(manager.acquire(&id("b")).await.unwrap());
    drop(manager.acquire(&id("a")).await.unwrap());
    manager.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn drop_workspace_closes_its_connections_first_and_forgets_that_it_existed() {
    let (server, manager) = start(2, &["a"], |_| ()).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    assert!(manager.drop_workspace(&id("a")).await.unwrap());
    assert_eq!(server.sessions_of("fake_ws_a"), 0);
    assert!(!manager.workspace_exists(&id("a")).await.unwrap());
    manager.acquire(&id("a")).await.unwrap_err();
    manager.ensure_workspace(&id("a")).await.unwrap();
    drop(manager.acquire(&id("a")).await.unwrap());
    assert_eq!(manager.list_workspaces().await.unwrap(), [id("a")]);
}

#[tokio::test(start_paused = true)]
async fn an_observer_is_told_and_an_application_depends_on_the_port() {
    #[derive(Default)]
    struct Names(std::sync::Mutex<Vec<&'static str>>);
    impl Observer for Names {
        fn on(&self, event: &pool_core::Event<'_>) {
            let name = match event {
                pool_core::Event::Opened { .. } => "opened",
                pool_core::Event::Acquired { .. } => "acquired",
                pool_core::Event::Closed { .. } => "closed",
                _ => "other",
            };
            self.0.lock().unwrap().push(name);
        }
    }
    async fn application(pools: &impl WorkspacePools) {
        drop(pools.acquire(&id("a")).await.unwrap());
        pools.close_workspace(&id("a")).await.unwrap();
    }
    let names = Arc::new(Names::default());
    let told = Arc::clone(&names);
    let (_server, manager) = start(2, &["a"], |s| s.observer = Some(told)).await;
    names.0.lock().unwrap().clear();
    application(&manager).await;
    assert_eq!(*names.0.lock().unwrap(), ["opened", "acquired", "closed"]);
}

/// What a caller of a random schedule does with its connection.
async fn one_caller(manager: Manager, server: FakeServer, mut dice: fastrand::Rng) {
    for _ in 0..4 {
        let name = format!("w{}", dice.u32(..5));
        let patience = Duration::from_micros(dice.u64(..20_000));
        match timeout(patience, manager.acquire(&id(&name))).await {
            Ok(Ok(mut lease)) => {
                assert_eq!(lease.database(), format!("fake_ws_{name}"));
                if dice.u32(..5) == 0 {
                    lease.make_dirty();
                }
                sleep(Duration::from_micros(dice.u64(..5_000))).await;
                if dice.u32(..20) == 0 {
                    server.kill_sessions_of(&format!("fake_ws_{name}"));
                }
            }
            Ok(Err(AcquireError::OpenFailed { .. } | AcquireError::WorkspaceClosing { .. })) | Err(_) => {}
            Ok(Err(error)) => panic!("{error}"),
        }
        if dice.u32(..30) == 0 {
            let _ = timeout(patience, manager.close_workspace(&id(&name))).await;
        }
    }
}

#[rstest]
fn random_schedules_keep_the_laws(#[values(1, 2, 3)] budget: u32) {
    for seed in 0..100 {
        println!("budget {budget}, seed {seed}");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (server, manager) = start(budget, &["w0", "w1", "w2", "w3", "w4"], |_| ()).await;
            let mut dice = fastrand::Rng::with_seed(seed);
            server.connect_takes(Duration::from_micros(dice.u64(..3_000)));
            server.close_takes(Duration::from_micros(dice.u64(..3_000)));
            server.script("fake_ws_w0", (0..3).map(|_| Gate::Fail(DriverErrorKind::Unreachable)));
            let callers: JoinSet<()> =
                (0..20).map(|_| one_caller(manager.clone(), server.clone(), dice.fork())).collect();
            callers.join_all().await;
            sleep(Duration::from_secs(10)).await;
            let stats = manager.stats().workspaces;
            assert_eq!(busy(&manager), 0, "{stats:?}");
            assert_eq!(stats.opened, stats.closed + u64::from(stats.connections.idle), "{stats:?}");
            assert!(stats.peak <= budget, "{stats:?}");
            manager.close().await.unwrap();
            assert_eq!(server.sessions(), 0);
        });
    }
}
