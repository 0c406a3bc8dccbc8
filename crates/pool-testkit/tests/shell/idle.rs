//! What becomes of connections that nobody holds: those that die, and those whose check is cut short.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_core::{
    AcquireError, Answers, CloseReason, Condition, Driver, DriverErrorKind, Event, Observer, Phase, Stage,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{id, settle, start};

#[tokio::test(start_paused = true)]
async fn s1_idle_connections_that_died_leave_the_count_without_an_acquire() {
    let (server, manager) = start(8, &["a", "b"], |_| ()).await;
    let held = [manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("a")).await.unwrap()];
    drop((held, manager.acquire(&id("b")).await.unwrap(), manager.system().acquire().await.unwrap()));
    settle().await;
    // Three of workspaces, one of the system pool, and the catalog's own.
    assert_eq!(manager.stats().connections().idle, 5);
    server.kill_sessions_of("fake_ws_a");
    server.kill_sessions_of("postgres");
    sleep(Duration::from_secs(2)).await;
    let counted = manager.stats().connections();
    assert_eq!((counted.total(), counted.idle), (1, 1), "{counted:?}");
    assert_eq!(server.sessions(), 1);
}

#[tokio::test(start_paused = true)]
async fn s1_nothing_is_asked_of_the_server_while_nothing_is_idle() {
    let (server, manager) = start(8, &["a"], |_| ()).await;
    manager.close_workspace(&id("a")).await.unwrap();
    let _all = [manager.acquire(&id("a")).await.unwrap(), manager.system().acquire().await.unwrap()];
    // The catalog's own connection goes by its idle timeout.
    sleep(Duration::from_mins(6)).await;
    assert_eq!(manager.stats().connections().idle, 0);
    let before = server.questions();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(server.questions(), before);
}

#[tokio::test(start_paused = true)]
async fn s1_idle_connections_are_asked_about_once_a_second_in_one_question() {
    let (server, manager) = start(8, &["a", "b"], |s| s.idle_timeout = None).await;
    drop([manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("b")).await.unwrap()]);
    let before = server.questions();
    sleep(Duration::from_mins(1)).await;
    let asked = server.questions() - before;
    assert!((55..=61).contains(&asked), "asked {asked} times in a minute");
}

#[tokio::test(start_paused = true)]
async fn l3_a_breakage_is_followed_by_the_question_at_once() {
    let (server, manager) = start(8, &["a", "b"], |_| ()).await;
    let (held, idle) = (manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("b")).await.unwrap());
    drop(idle);
    // Some time after the last question, long before the next one.
    sleep(Duration::from_millis(100)).await;
    server.kill_sessions_of("fake_ws_a");
    server.kill_sessions_of("fake_ws_b");
    drop(held);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(manager.stats().workspaces.connections.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn e1_a_connection_that_is_leased_while_the_question_is_under_way_is_left_to_its_holder() {
    let (server, manager) = start(1, &["a"], |s| s.check_after = Duration::MAX).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    server.answers_take(Duration::from_millis(300));
    server.kill_sessions_of("fake_ws_a");
    let before = server.questions();
    while server.questions() == before {
        sleep(Duration::from_millis(1)).await;
    }
    let lease = manager.acquire(&id("a")).await.unwrap();
    sleep(Duration::from_millis(400)).await;
    assert_eq!(manager.stats().workspaces.connections.in_use, 1, "its holder has it");
    drop(lease);
    settle().await;
    assert_eq!(manager.stats().workspaces.connections.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn l3_a_connection_whose_check_was_cut_short_is_given_back_and_asked_again() {
    let adjust = |s: &mut pool_manager::Settings| {
        s.acquire_timeout = Duration::from_millis(200);
        s.check_after = Duration::ZERO;
    };
    let (server, manager) = start(1, &["a"], adjust).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    server.checks_take(Duration::from_millis(500));
    for round in 0..6 {
        sleep(Duration::from_millis(1)).await;
        if round % 2 == 0 {
            let error = manager.acquire(&id("a")).await.unwrap_err();
            let AcquireError::TimedOut { waiting_for: Stage::Check, .. } = error else { panic!("{error}") };
        } else {
            // The caller goes away instead.
            timeout(Duration::from_millis(100), manager.acquire(&id("a"))).await.unwrap_err();
        }
        let checks = server.checks();
        // The check is finished off the caller's path; until then the connection is in use.
        assert_eq!(manager.stats().workspaces.connections.in_use, 1);
        sleep(Duration::from_secs(1)).await;
        assert_eq!((manager.stats().workspaces.connections.idle, server.checks()), (1, checks + 1));
    }
    server.checks_take(Duration::ZERO);
    let mut lease = manager.acquire(&id("a")).await.unwrap();
    assert_eq!(manager.driver().inspect(&mut lease), Condition::Clean);
    let stats = manager.stats().workspaces;
    assert_eq!((stats.opened, stats.closed), (1, 0), "a healthy connection was closed");
}

#[tokio::test(start_paused = true)]
async fn o1_a_server_whose_new_connections_all_hang_is_told_and_not_asked_again_at_once() {
    let (server, manager) = start(4, &["a", "b"], |s| s.check_after = Duration::ZERO).await;
    manager.close_workspace(&id("a")).await.unwrap();
    server.checks_take(Duration::from_mins(1));
    let before = server.connects();
    let a = id("a");
    let mut asked = Box::pin(manager.acquire(&a));
    timeout(Duration::ZERO, &mut asked).await.unwrap_err();
    // The grant is fetched a moment after it was made, so that it is checked.
    sleep(Duration::from_millis(1)).await;
    let began = Instant::now();
    for error in [asked.await.unwrap_err(), manager.acquire(&a).await.unwrap_err()] {
        let AcquireError::OpenFailed { source, .. } = error else { panic!("{error}") };
        assert_eq!((source.phase, source.kind), (Phase::Check, DriverErrorKind::TimedOut));
    }
    assert_eq!(began.elapsed(), 2 * Duration::from_secs(1), "two checks");
    assert_eq!(server.connects() - before, 2, "a broken connection is replaced once");
    settle().await;
    assert_eq!(manager.stats().workspaces.connections.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn l3_a_dead_connection_whose_check_was_cut_short_reaches_nobody() {
    let (server, manager) = start(1, &["a"], |s| s.check_after = Duration::ZERO).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    sleep(Duration::from_millis(1)).await;
    server.checks_take(Duration::from_millis(500));
    timeout(Duration::from_millis(100), manager.acquire(&id("a"))).await.unwrap_err();
    server.kill_sessions_of("fake_ws_a");
    let mut lease = manager.acquire(&id("a")).await.unwrap();
    assert_eq!(manager.driver().inspect(&mut lease), Condition::Clean);
    assert_eq!(manager.stats().workspaces.opened, 2);
}

#[tokio::test(start_paused = true)]
async fn s3_a_check_that_nobody_waits_for_is_counted_as_given_up() {
    let adjust = |s: &mut pool_manager::Settings| {
        s.acquire_timeout = Duration::from_millis(200);
        s.check_after = Duration::ZERO;
    };
    let (server, manager) = start(1, &["a"], adjust).await;
    drop(manager.acquire(&id("a")).await.unwrap());
    server.checks_take(Duration::from_millis(500));
    for given_up in 1..=3 {
        sleep(Duration::from_secs(1)).await;
        match given_up {
            1 => drop(manager.acquire(&id("a")).await.unwrap_err()),
            2 => drop(manager.try_acquire(&id("a")).await.unwrap_err()),
            _ => drop(timeout(Duration::from_millis(100), manager.acquire(&id("a"))).await.unwrap_err()),
        }
        let expected = Answers { acquired: 1, hits: 0, errors: 0, given_up };
        assert_eq!(manager.workspace(&id("a")).stats().answers, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn o8_sessions_that_are_outdated_are_replaced_when_they_are_idle() {
    let reasons = Arc::<Mutex<Vec<CloseReason>>>::default();
    let observer = Arc::new(Reasons(Arc::clone(&reasons)));
    let (server, manager) = start(8, &["a", "b"], |s| s.observer = Some(observer)).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    drop((manager.acquire(&id("a")).await.unwrap(), manager.acquire(&id("b")).await.unwrap()));
    settle().await;
    reasons.lock().unwrap().clear();
    let (checks, outdated) = (server.checks(), held.session());
    server.outdate_sessions();
    sleep(Duration::from_secs(1)).await;
    let counted = manager.stats().connections();
    assert_eq!(
        (counted.in_use, counted.total(), server.sessions()),
        (1, 1, 1),
        "the one in use is left to its holder"
    );
    drop(held);
    settle().await;
    assert_eq!(server.sessions(), 0);
    let mut reasons = reasons.lock().unwrap().clone();
    reasons.dedup();
    assert_eq!(
        (reasons, server.checks()),
        (vec![CloseReason::Outdated], checks),
        "nothing was broken, and nothing is doubted"
    );
    let next = manager.acquire(&id("a")).await.unwrap();
    assert!(next.session() > outdated);
    sleep(Duration::from_secs(2)).await;
    drop(next);
    settle().await;
    assert_eq!(manager.stats().workspaces.connections.idle, 1, "one that began later is kept");
}

/// Notes why connections are closed.
struct Reasons(Arc<Mutex<Vec<CloseReason>>>);

impl Observer for Reasons {
    fn on(&self, event: &Event<'_>) {
        if let Event::Closed { reason, .. } = event {
            self.0.lock().unwrap().push(*reason);
        }
    }
}
