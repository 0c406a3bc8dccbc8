//! What blocks and wakes, under every interleaving of threads that loom can make: a caller leaves its waker
//! under the lock, an answer takes it under the lock, and wakes after the lock is released. The place
//! in the queue is the one that `pool-manager` awaits, with loom's mutex in the place of std's.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use loom::future::block_on;
use loom::sync::{Arc, Mutex};
use loom::thread;
use pool_core::{
    Acquire, CloseWork, Door, Effects, Leased, Lru, OpenWork, QueuedAcquire, Registry, RegistryConfig,
    Target, WorkspaceId,
};

type Conn = u32;
/// A registry behind loom's mutex, at one moment.
#[derive(Clone)]
struct LoomDoor {
    registry: Arc<Mutex<Registry<Conn>>>,
    now: Instant,
}

impl Door for LoomDoor {
    type Connection = Conn;
    type Session = ();

    fn with<R>(&self, _: &'static str, section: impl FnOnce(&mut Registry<Conn>, Instant) -> R) -> R {
        section(&mut self.registry.lock().unwrap(), self.now)
    }

    /// As a shell does, only that connects and closes are over at once.
    fn perform(&self, effects: Effects<Conn>) {
        let mut todo = vec![effects];
        while let Some(effects) = todo.pop() {
            // The rest is about failures, patience and closing, which these worlds have none of.
            let Effects { opens, closes, wakes, dead, drained: _, retry_at, due_at, look_ups } = effects;
            assert!(dead.is_empty() && retry_at.is_none() && due_at.is_none() && look_ups.is_empty());
            wakes.wake();
            todo.extend(opens.into_iter().map(|work: OpenWork| {
                let (_, effects) =
                    self.with("opened", |registry, now| registry.opened(work, 1, (), None, now));
                effects
            }));
            todo.extend(closes.into_iter().map(|work: CloseWork<Conn>| {
                let (_, debt) = work.split();
                self.with("closed", |registry, now| registry.closed(debt, now))
            }));
        }
    }
}

fn target(name: &str) -> Target {
    Target::Workspace(WorkspaceId::new(name).unwrap())
}

fn ask(door: &LoomDoor, name: &str) -> Result<Leased<Conn>, QueuedAcquire<LoomDoor>> {
    match door.with("acquire", |registry, now| registry.acquire(&target(name), now)) {
        Acquire::Leased(leased) => Ok(leased),
        Acquire::Queued(ticket, effects) => {
            let queued = QueuedAcquire::new(door.clone(), ticket);
            door.perform(effects);
            Err(queued)
        }
        Acquire::Refused(error) => panic!("{error}"),
    }
}

fn give_back(door: &LoomDoor, leased: Leased<Conn>) {
    let Leased { debt, conn, .. } = leased;
    door.perform(door.with("release", |registry, now| registry.release(debt, conn, now)));
}

fn use_once(door: &LoomDoor, name: &str) {
    let leased = ask(door, name).or_else(block_on).unwrap();
    give_back(door, leased);
}

fn check(names: [&'static str; 2], cancels: bool) {
    let schedules = std::sync::Arc::new(AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&schedules);
    loom::model(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let registry = Registry::new(RegistryConfig::new(1, 1), Box::new(Lru::default()));
        let door = LoomDoor { registry: Arc::new(Mutex::new(registry)), now };
        let other = thread::spawn({
            let door = door.clone();
            move || use_once(&door, names[1])
        });
        if cancels {
            drop(ask(&door, names[0]).map(|leased| give_back(&door, leased)));
        } else {
            use_once(&door, names[0]);
        }
        other.join().unwrap();
        let registry = door.registry.lock().unwrap();
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
