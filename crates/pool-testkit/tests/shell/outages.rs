//! A server that goes dark as a whole, in virtual time: what it costs its callers, and how soon they are served again.

use std::time::Duration;

use pool_core::{AcquireError, DriverErrorKind, Health};
use pool_testkit::fakes::{FakeServer, Gate};
use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Manager, id, start};

const WORKSPACES: usize = 48;
const BUDGET: u32 = 81;
/// What `start` adds for the system.
const SYSTEM: usize = 2;
const DARK: Duration = Duration::from_secs(12);
/// How long an answer may take before the server counts as lost, after the moment at which it is asked: when an open has taken
/// 250 ms, or the check of an idle connection a second.
const FOUND_OUT: Duration = Duration::from_millis(2_500);

fn names() -> Vec<String> {
    (0..WORKSPACES).map(|number| format!("w{number}")).collect()
}

async fn world() -> (FakeServer, Manager) {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (server, manager) = start(BUDGET, &names, |_| ()).await;
    server.connect_takes(Duration::from_millis(5));
    (server, manager)
}

/// Asks again and again, as services do, until it has been served at or after `from`; returns when.
async fn persist(manager: Manager, name: String, from: Instant) -> Instant {
    loop {
        if let Ok(lease) = manager.acquire(&id(&name)).await
            && Instant::now() >= from
        {
            drop(lease);
            return Instant::now();
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[rstest]
#[case::cold(false)]
#[case::warm(true)]
#[tokio::test(start_paused = true)]
async fn o7_a_server_that_was_dark_serves_everybody_within_two_seconds_of_its_return(#[case] is_warm: bool) {
    let (server, manager) = world().await;
    if is_warm {
        for name in names() {
            drop(manager.acquire(&id(&name)).await.unwrap());
        }
        sleep(Duration::from_secs(1)).await;
    }
    server.goes_dark();
    let light = Instant::now() + DARK;
    let mut callers = JoinSet::new();
    for name in names() {
        callers.spawn(persist(manager.clone(), name, light));
    }
    sleep(DARK).await;
    server.goes_light();
    let mut last = light;
    while let Some(served) = callers.join_next().await {
        last = last.max(served.unwrap());
    }
    assert!(last - light <= Duration::from_secs(2), "the last was served after {:?}", last - light);
    let budget = BUDGET as usize + SYSTEM;
    assert!(server.peak() <= budget, "{} sessions of {budget}", server.peak());
}

#[tokio::test(start_paused = true)]
async fn o7_while_the_server_is_lost_callers_are_told_at_once_and_nothing_is_opened() {
    let (server, manager) = world().await;
    server.goes_dark();
    timeout(FOUND_OUT, manager.acquire(&id("w0"))).await.expect("it is told").unwrap_err();
    let (began, connects) = (Instant::now(), server.connects());
    for name in names() {
        let error = manager.acquire(&id(&name)).await.unwrap_err();
        let AcquireError::OpenFailed { source, retryable, .. } = &error else { panic!("{error}") };
        assert_eq!((source.kind, retryable), (DriverErrorKind::TimedOut, &true), "{error}");
    }
    assert_eq!((began.elapsed(), server.connects()), (Duration::ZERO, connects));
    assert!(matches!(manager.health(), Health::Unavailable { .. }), "{}", manager.health());
    assert!(manager.system().acquire().await.is_err(), "the system share is on the same server");
}

#[tokio::test(start_paused = true)]
async fn o7_a_held_connection_stays_its_holders_and_serves_who_waits_for_it() {
    let (server, manager) = world().await;
    let held = manager.acquire(&id("w0")).await.unwrap();
    server.goes_dark();
    timeout(FOUND_OUT, manager.acquire(&id("w1"))).await.expect("it is told").unwrap_err();
    assert!(timeout(Duration::from_secs(1), manager.acquire(&id("w0"))).await.is_err(), "that may come back");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn o1_a_database_that_hangs_is_not_taken_for_the_server() {
    let (server, manager) = world().await;
    server.script("fake_ws_w0", [Gate::Hold]);
    let hung = tokio::spawn({
        let manager = manager.clone();
        async move { manager.acquire(&id("w0")).await.map(drop) }
    });
    for _ in 0..20 {
        sleep(Duration::from_millis(100)).await;
        for name in &names()[1..] {
            drop(manager.acquire(&id(name)).await.unwrap());
        }
    }
    assert!(!hung.is_finished());
    server.let_go();
    hung.await.unwrap().unwrap();
}

/// How many logins of the first minute are no question of the pool's own: opens that were under way together, and those that
/// took their turn before the pool had asked.
const AT_ONCE: u64 = 2 * 12;

#[tokio::test(start_paused = true)]
async fn o7_a_password_that_is_wrong_costs_a_handful_of_logins_a_minute_however_many_workspaces() {
    let (server, manager) = world().await;
    server.refuse_logins(true);
    let mut callers = JoinSet::new();
    let from = Instant::now() + Duration::from_mins(2);
    for name in names() {
        callers.spawn(persist(manager.clone(), name, from));
    }
    let mut connects = server.connects();
    for most in [AT_ONCE + 12, 7] {
        sleep(Duration::from_mins(1)).await;
        let logins = server.connects() - connects;
        assert!(logins <= most, "{logins} logins in a minute");
        connects += logins;
    }
    let error = manager.acquire(&id("w0")).await.unwrap_err();
    let AcquireError::OpenFailed { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind, DriverErrorKind::Refused, "{error}");

    server.refuse_logins(false);
    let right = Instant::now();
    while let Some(served) = callers.join_next().await {
        served.unwrap();
    }
    assert!(right.elapsed() <= Duration::from_secs(11), "all were served after {:?}", right.elapsed());
}

#[tokio::test(start_paused = true)]
async fn o1_a_database_that_refuses_is_not_taken_for_the_server() {
    let (server, manager) = world().await;
    server.script("fake_ws_w0", [Gate::Fail(DriverErrorKind::Refused); 20]);
    let refused = tokio::spawn(persist(manager.clone(), "w0".to_owned(), Instant::now()));
    for name in &names()[1..] {
        sleep(Duration::from_millis(50)).await;
        drop(manager.acquire(&id(name)).await.unwrap());
    }
    assert!(!refused.is_finished());
    refused.await.unwrap();
}
