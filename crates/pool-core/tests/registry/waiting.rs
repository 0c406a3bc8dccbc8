//! Waiting: who is served next, and what a caller that gives up leaves behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use pool_core::{Claim, CloseReason, Stage};

use crate::world::{Asked, World, closes, nothing, target};

/// Counts how often it is woken.
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn w1_waiters_of_a_workspace_are_served_first_come_first_served() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("a");
    let tickets: Vec<_> = (0..5).map(|_| world.ask("a")).collect();
    for ticket in tickets {
        world.release(held);
        held = world.served(ticket);
    }
}

#[test]
fn w2_a_flood_yields_to_another_workspace_when_its_turn_has_come() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("loud");
    let mut flood: Vec<_> = (0..10).map(|_| world.ask("loud")).collect();
    let quiet = world.ask("quiet");
    // Within the turn, the warm connection goes on serving its own workspace.
    world.release(held);
    assert_eq!(world.asked, nothing());
    held = world.served(flood.remove(0));
    // The quiet one's eldest waiter has now waited the turn: the connection is closed for it.
    world.pass(Duration::from_millis(3));
    world.release(held);
    assert_eq!(world.close_all_owed()[0].1, CloseReason::Yielded);
    assert_eq!(world.open_all(), [target("quiet")]);
    let quiet = world.served(quiet);
    // And the flood gets its turn back.
    world.release(quiet);
    world.close_all_owed();
    assert_eq!(world.open_all(), [target("loud")]);
    world.served(flood.remove(0));
}

#[test]
fn w2_waiting_workspaces_open_in_turn() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("a");
    let tickets: Vec<_> = ["b", "c", "d"].iter().map(|name| world.ask(name)).collect();
    for (ticket, name) in tickets.into_iter().zip(["b", "c", "d"]) {
        world.release(held);
        world.close_all_owed();
        assert_eq!(world.open_all(), [target(name)]);
        held = world.served(ticket);
    }
}

#[test]
fn w3_an_answered_waiter_is_woken() {
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let mut world = World::new(1, 1);
    let ticket = world.ask("a");
    let waker = Waker::from(Arc::clone(&count));
    let Claim::Waiting(ticket) = world.registry.claim(ticket, &mut Some(waker), world.now) else {
        panic!("served early")
    };
    world.open_all();
    assert_eq!(world.asked, Asked { wakes: 1, ..nothing() });
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    world.served(ticket);
}

#[test]
fn w3_a_waker_that_panics_loses_no_other_wake_up() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("the executor has a bug");
        }
    }
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let mut world = World::new(1, 1);
    let wakers = [Waker::from(Arc::new(Bomb)), Waker::from(Arc::clone(&count)), Waker::from(count.clone())];
    let mut tickets = Vec::new();
    for waker in wakers {
        let ticket = world.ask("a");
        let Claim::Waiting(ticket) = world.registry.claim(ticket, &mut Some(waker), world.now) else {
            panic!("early")
        };
        tickets.push(ticket);
    }
    world.fail_first();
    assert_eq!(world.asked, Asked { wakes: 3, ..nothing() });
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    for ticket in tickets {
        assert!(matches!(world.claim(ticket), Claim::Failed(_)));
    }
}

#[test]
fn w4_a_cancelled_waiter_leaves_no_trace() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let before = world.registry.view(world.now);
    let ticket = world.ask("b");
    let gave_up = world.registry.cancel_wait(ticket, world.now);
    assert_eq!((gave_up.waiting_for, gave_up.pressure.in_use), (Stage::Budget, 1));
    world.take(gave_up.effects);
    assert_eq!(world.registry.view(world.now), before);
    world.release(held);
    assert_eq!(world.asked, nothing(), "nobody wants the slot any more");
}

#[test]
fn w4_a_grant_that_meets_a_cancelled_waiter_goes_to_the_next() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let (first, second) = (world.ask("a"), world.ask("a"));
    world.release(held);
    let gave_up = world.registry.cancel_wait(first, world.now);
    world.take(gave_up.effects);
    world.served(second);
}

#[test]
fn w2_a_hung_close_does_not_end_the_turns() {
    let mut world = World::new(2, 2);
    let (held, broken) = (world.lease("loud"), world.lease("loud"));
    let effects = world.registry.discard_broken(broken.debt, broken.conn, world.now);
    world.take(effects);
    let (_, mut hung) = world.closes.remove(0).split();
    let _quiet = world.ask("quiet");
    let _flood = world.ask("loud");
    let effects = world.registry.close_is_slow(&mut hung, world.now);
    world.take(effects);
    world.pass(Duration::from_millis(3));
    world.release(held);
    assert_eq!(world.asked, closes(&["loud"], CloseReason::Yielded));
    let effects = world.registry.closed(hung, world.now);
    world.take(effects);
}

#[test]
fn w2_impatient_callers_do_not_stop_the_turns() {
    let mut world = World::new(1, 1);
    let mut held = world.lease("loud");
    let mut hasty = world.ask("hasty");
    let _quiet = world.ask("quiet");
    for round in 0.. {
        let next = world.ask("loud");
        world.pass(Duration::from_millis(2));
        let newer = world.ask("hasty");
        let gave_up = world.registry.cancel_wait(hasty, world.now);
        world.take(gave_up.effects);
        hasty = newer;
        world.release(held);
        held = match world.claim(next) {
            Claim::Leased(leased) => leased,
            _ => return,
        };
        assert!(round < 3, "the ring does not move");
    }
}
