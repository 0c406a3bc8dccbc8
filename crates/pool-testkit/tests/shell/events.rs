//! What observers are told, and what a view shows.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pool_core::{
    Answers, CloseReason, ConnectionId, Event, Observer, PoolView, ShareStats, Target, WorkspacePools,
};
use tokio::time::sleep;

use crate::support::{Manager, id, settle, start};

/// Holds each event against those before it.
#[derive(Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Default)]
struct Book {
    /// Whether each connection that lives is held.
    held: BTreeMap<ConnectionId, bool>,
    /// Leases that were cut and have not come back.
    cut: Vec<ConnectionId>,
    begun: u64,
    answers: Answers,
    opened: u64,
    closed: u64,
    failed_opens: u64,
    recycled: u64,
}

impl Observer for Ledger {
    fn on(&self, event: &Event<'_>) {
        if !is_of_a_workspace(event) {
            return;
        }
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::WaitStarted { .. } => book.begun += 1,
            Event::Acquired { connection, .. } => {
                assert_eq!(
                    book.held.insert(*connection, true),
                    Some(false),
                    "held by two, or by nobody's leave"
                );
                book.answers.acquired += 1;
            }
            Event::Failed { .. } => book.answers.errors += 1,
            Event::TimedOut { .. } | Event::GaveUp { .. } => book.answers.given_up += 1,
            Event::Released { connection, .. } => {
                if let Some(held) = book.held.get_mut(connection) {
                    assert!(std::mem::take(held), "released twice");
                } else {
                    let at = book.cut.iter().position(|cut| cut == connection);
                    book.cut.remove(at.unwrap());
                }
            }
            Event::Recycled { connection, .. } => {
                assert_eq!(book.held.get(connection), Some(&false));
                book.recycled += 1;
            }
            Event::Opened { connection, .. } => {
                assert_eq!(book.held.insert(*connection, false), None, "opened twice");
                book.opened += 1;
            }
            Event::OpenFailed { .. } => book.failed_opens += 1,
            Event::Closed { connection, reason, for_whom, target } => {
                let was_held = book.held.remove(connection).unwrap();
                assert_eq!(was_held, *reason == CloseReason::Cut, "closed for {reason}");
                if was_held {
                    book.cut.push(*connection);
                }
                assert!(for_whom.is_none_or(|whom| whom != *target), "nobody makes room for itself");
                book.closed += 1;
            }
            _ => {}
        }
    }
}

fn is_of_a_workspace(event: &Event<'_>) -> bool {
    let (Event::WaitStarted { target }
    | Event::Acquired { target, .. }
    | Event::Failed { target, .. }
    | Event::TimedOut { target, .. }
    | Event::GaveUp { target, .. }
    | Event::Released { target, .. }
    | Event::Recycled { target, .. }
    | Event::Opened { target, .. }
    | Event::OpenFailed { target, .. }
    | Event::Closed { target, .. }) = event
    else {
        return false;
    };
    matches!(target, Target::Workspace(_))
}

impl Ledger {
    /// The events add up to what the pool has counted.
    pub fn agrees_with(&self, share: &ShareStats) {
        let book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = (book.opened, book.closed, book.failed_opens);
        assert_eq!(told, (share.opened, share.closed, share.open_failures));
        let answers = (book.answers.acquired, book.answers.errors, book.answers.given_up);
        assert_eq!(answers, (share.acquired, share.errors, share.given_up));
        // An idle connection that is checked first is waited for, too; a refusal may come at once.
        let (least, most) = (share.acquired - share.hits, share.acquired + share.errors + share.given_up);
        assert!((least..=most).contains(&book.begun), "{} began to wait, {share:?}", book.begun);
        assert!(book.cut.is_empty() && book.held.values().all(|held| !held), "all leases have come back");
    }
}

async fn observed(budget: u32, names: &[&str]) -> (Arc<Ledger>, Manager) {
    let ledger = Arc::new(Ledger::default());
    let told = Arc::clone(&ledger);
    let (_, manager) = start(budget, names, |settings| {
        settings.observer = Some(told);
        settings.close_timeout = Duration::from_millis(100);
    })
    .await;
    (ledger, manager)
}

#[tokio::test(start_paused = true)]
async fn s4_a_lease_that_is_cut_is_told_as_cut_and_as_released_when_it_comes_back() {
    let (ledger, manager) = observed(2, &["a"]).await;
    let held = manager.acquire(&id("a")).await.unwrap();
    manager.close_workspace(&id("a")).await.unwrap_err();
    assert_eq!(ledger.0.lock().unwrap().cut, [held.connection()]);
    drop(held);
    settle().await;
    ledger.agrees_with(&manager.stats().workspaces);
}

#[tokio::test(start_paused = true)]
async fn s4_a_connection_that_made_room_tells_for_whom() {
    #[derive(Default)]
    struct ForWhom(Mutex<Vec<Option<Target>>>);
    impl Observer for ForWhom {
        fn on(&self, event: &Event<'_>) {
            if let Event::Closed { for_whom, target: Target::Workspace(_), .. } = event {
                self.0.lock().unwrap().push(for_whom.cloned());
            }
        }
    }
    let told = Arc::new(ForWhom::default());
    let observer = Arc::clone(&told);
    let (_server, manager) = start(1, &["a", "b"], |settings| settings.observer = Some(observer)).await;
    for name in ["a", "b"] {
        drop(manager.acquire(&id(name)).await.unwrap());
    }
    sleep(Duration::from_mins(10)).await;
    assert_eq!(*told.0.lock().unwrap(), [Some(Target::from(&id("b"))), None]);
}

/// The line on which this is called.
#[track_caller]
fn line() -> u32 {
    Location::caller().line()
}

#[tokio::test(start_paused = true)]
async fn s4_a_view_shows_who_holds_who_waits_and_what_is_opening_and_where_each_asked() {
    async fn over_the_port<P: WorkspacePools>(pools: &P) -> P::Lease {
        pools.acquire(&id("b")).await.unwrap()
    }
    let (server, manager) = start(2, &["a", "b"], |_| ()).await;
    server.connect_takes(Duration::from_secs(1));
    let (held, held_at) = (manager.acquire(&id("a")).await.unwrap(), line());
    sleep(Duration::from_secs(3)).await;
    let other = over_the_port(&manager).await;
    let db = manager.workspace(&id("a"));
    let (waiting, waits_at) = (db.acquire(), line());
    let mut waiting = std::pin::pin!(waiting);
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    sleep(Duration::from_secs(2)).await;

    let view = manager.view();
    let leases: Vec<_> =
        view.leases.iter().map(|lease| (lease.connection, lease.at.map(Location::line))).collect();
    assert_eq!(leases[0], (held.connection(), Some(held_at)), "the longest first");
    assert_eq!(leases[1].0, other.connection());
    assert_eq!(view.leases[0].lasting, Duration::from_secs(6), "since it was granted");
    assert!(
        view.leases[1].at.is_some_and(|at| at.file().ends_with("events.rs")),
        "the port has its caller, too"
    );
    let [wait] = &view.waiting[..] else { panic!("{view}") };
    assert_eq!((wait.at.line(), wait.lasting), (waits_at, Duration::from_secs(2)));
    assert!(view.opening.is_empty(), "there is no slot for another: {view}");
    assert!(view.to_string().contains(&format!("events.rs:{held_at}")), "{view}");

    drop(other);
    settle().await;
    let view: PoolView = manager.view();
    assert_eq!(
        view.opening.iter().map(|open| &open.target).collect::<Vec<_>>(),
        [&Target::from(&id("a"))],
        "{view}"
    );
    drop(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn s4_a_connection_that_is_being_made_clean_is_held_by_nobody() {
    let (server, manager) = start(1, &["a"], |_| ()).await;
    let mut lease = manager.acquire(&id("a")).await.unwrap();
    lease.make_dirty();
    server.goes_dark();
    drop(lease);
    settle().await;
    let view = manager.view();
    assert!(matches!(&view.leases[..], [lease] if lease.at.is_none()), "{view}");
    server.goes_light();
}
