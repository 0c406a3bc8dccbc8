//! Lifetimes, closing, and what is left afterwards.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{AcquireError, CloseError, Observer, WorkspacePools};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{busy, id, settle, start};

#[test]
fn l2_jobs_that_never_ran_are_settled_with_the_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_server, manager) = runtime.block_on(start(8, &["a", "b", "c"], |_| ()));
    runtime.block_on(async {
        let ids = [id("a"), id("b"), id("c")];
        let mut asking: Vec<_> = ids.iter().map(|id| Box::pin(manager.acquire(id))).collect();
        for future in &mut asking {
            assert!(futures_util::poll!(future).is_pending());
        }
    });
    drop(runtime);
    assert_eq!(manager.stats().workspaces.connections.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn c3_a_repeated_close_is_told_the_same_at_once() {
    let (_server, manager) = start(2, &["a"], |s| s.close_timeout = Duration::from_secs(3)).await;
    let _held = manager.acquire(&id("a")).await.unwrap();
    let first = manager.close().await;
    assert!(matches!(first, Err(CloseError::Cut { leases: 1, .. })), "{first:?}");
    let began = Instant::now();
    let again = manager.close().await;
    assert!(matches!(again, Err(CloseError::Cut { leases: 1, .. })), "{again:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
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
async fn c1_a_lease_that_was_cut_gives_its_slot_back_and_its_drop_is_harmless() {
    let (server, manager) = start(1, &["a"], |s| s.close_timeout = Duration::from_secs(3)).await;
    let mut held = [manager.acquire(&id("a")).await.unwrap()];
    for round in 1..4 {
        let outcome = manager.close_workspace(&id("a")).await;
        assert!(matches!(outcome, Err(CloseError::Cut { leases: 1, .. })), "{outcome:?}");
        assert_eq!(manager.stats().workspaces.connections.total(), 0, "the server has no session of it");
        let next = manager.acquire(&id("a")).await.unwrap();
        drop(std::mem::replace(&mut held[0], next));
        settle().await;
        let stats = manager.stats().workspaces;
        assert_eq!((stats.connections.in_use, stats.connections.total()), (1, 1), "round {round}: {stats:?}");
        assert_eq!((stats.opened, stats.closed), (round + 1, round), "{stats:?}");
    }
    assert_eq!(server.sessions_of("fake_ws_a"), 1);
    drop(held);
    settle().await;
    assert_eq!((busy(&manager), manager.stats().workspaces.connections.idle), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn c1_a_lease_that_could_not_be_cut_stays_counted_until_it_comes_back() {
    let (server, manager) = start(1, &["a"], |s| s.close_timeout = Duration::from_secs(3)).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    server.refuse_to_terminate(true);
    let outcome = manager.close_workspace(&id("a")).await;
    assert!(matches!(outcome, Err(CloseError::Held { leases: 1, .. })), "{outcome:?}");
    assert_eq!(manager.stats().workspaces.connections.in_use, 1, "the server may count it");
    drop(held);
    settle().await;
    assert_eq!(manager.stats().workspaces.connections.total(), 0);
    assert_eq!(server.sessions_of("fake_ws_a"), 0);
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
                _ => return,
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
