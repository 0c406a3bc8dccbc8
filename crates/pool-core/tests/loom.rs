//! What blocks and wakes, under every interleaving of threads that loom can make: a caller leaves its waker
//! under the lock, an answer takes it under the lock, and wakes after the lock is released. This is how
//! `pool-manager` drives the registry, with loom's mutex in the place of std's.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use loom::future::block_on;
use loom::sync::{Arc, Mutex};
use loom::thread;
use pool_core::{
    Acquire, Claim, CloseWork, Effects, LeaseDebt, Leased, Lru, OpenWork, Registry, RegistryConfig, Target,
    Ticket, WorkspaceId,
};

type Conn = u32;
type Door = Arc<Mutex<Registry<Conn>>>;

/// Performs effects as a shell does, only that connects and closes are over at once.
fn perform(door: &Door, effects: Effects<Conn>, now: Instant) {
    let mut todo = vec![effects];
    while let Some(Effects { opens, closes, wakes, .. }) = todo.pop() {
        wakes.wake();
        todo.extend(opens.into_iter().map(|work: OpenWork| {
            let (_, effects) = door.lock().unwrap().opened(work, 1, None, now);
            effects
        }));
        todo.extend(closes.into_iter().map(|work: CloseWork<Conn>| {
            let (_, debt) = work.split();
            door.lock().unwrap().closed(debt, now)
        }));
    }
}

/// A place in the queue, as `pool-manager` polls and drops it.
struct QueuedAcquire {
    door: Door,
    ticket: Option<Ticket>,
    now: Instant,
}

impl Future for QueuedAcquire {
    type Output = Leased<Conn>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Leased<Conn>> {
        let this = self.get_mut();
        let ticket = this.ticket.take().unwrap();
        let mut waker = Some(context.waker().clone());
        let claim = this.door.lock().unwrap().claim(ticket, &mut waker, this.now);
        match claim {
            Claim::Waiting(ticket) => {
                this.ticket = Some(ticket);
                Poll::Pending
            }
            Claim::Leased(leased) => Poll::Ready(leased),
            Claim::Failed(error) => panic!("{error}"),
        }
    }
}

impl Drop for QueuedAcquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let gave_up = self.door.lock().unwrap().cancel_wait(ticket, self.now);
            perform(&self.door, gave_up.effects, self.now);
        }
    }
}

fn target(name: &str) -> Target {
    Target::Workspace(WorkspaceId::new(name).unwrap())
}

fn ask(door: &Door, name: &str, now: Instant) -> Result<Leased<Conn>, QueuedAcquire> {
    let answer = door.lock().unwrap().acquire(&target(name), now);
    match answer {
        Acquire::Leased(leased) => Ok(leased),
        Acquire::Queued(ticket, effects) => {
            let queued = QueuedAcquire { door: Arc::clone(door), ticket: Some(ticket), now };
            perform(door, effects, now);
            Err(queued)
        }
        Acquire::Refused(error) => panic!("{error}"),
    }
}

fn give_back(door: &Door, debt: LeaseDebt, conn: Conn, now: Instant) {
    let effects = door.lock().unwrap().release(debt, conn, now);
    perform(door, effects, now);
}

fn use_once(door: &Door, name: &str, now: Instant) {
    let leased = match ask(door, name, now) {
        Ok(leased) => leased,
        Err(queued) => block_on(queued),
    };
    give_back(door, leased.debt, leased.conn, now);
}

fn check(names: [&'static str; 2], cancels: bool) {
    let schedules = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&schedules);
    loom::model(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let door: Door =
            Arc::new(Mutex::new(Registry::new(RegistryConfig::new(1, 1), Box::new(Lru::default()))));
        let other = thread::spawn({
            let door = Arc::clone(&door);
            move || use_once(&door, names[1], now)
        });
        if cancels {
            drop(ask(&door, names[0], now).map(|leased| give_back(&door, leased.debt, leased.conn, now)));
        } else {
            use_once(&door, names[0], now);
        }
        other.join().unwrap();
        let registry = door.lock().unwrap();
        registry.check(now).unwrap();
        let stats = registry.stats();
        assert_eq!((stats.waiting, stats.connections.in_use), (0, 0));
    });
    println!("race: {} thread interleavings by loom", schedules.load(Ordering::Relaxed));
}

#[test]
fn w3_two_threads_on_one_workspace_are_both_served() {
    check(["a", "a"], false);
}

#[test]
fn w3_two_threads_on_two_workspaces_are_both_served() {
    check(["a", "b"], false);
}

#[test]
fn w4_a_caller_that_gives_up_leaves_the_other_one_served() {
    check(["a", "a"], true);
}

#[test]
fn w4_a_caller_that_gives_up_leaves_the_other_workspace_served() {
    check(["a", "b"], true);
}
