//! Limits and terms that change while running, bounded queues, and callers that do not wait.

use std::time::Duration;

use pool_core::{Acquire, AcquireError, Claim, CloseReason, RegistryConfig, Terms};

use crate::world::{Asked, LEASE, QUANTUM, SWITCH, World, closes, nothing, opens, refused, target};

impl World {
    fn set_limits(&mut self, limit: u32, per_target: u32) {
        let effects = self.registry.set_limits(&RegistryConfig::new(limit, per_target), self.now);
        self.take(effects);
    }

    fn set_terms(&mut self, name: &str, weight: u32, ceiling: Option<u32>) {
        let effects = self.registry.set_terms(&target(name), Terms { weight, ceiling }, self.now);
        self.take(effects);
    }

    fn counted(&self) -> u32 {
        self.registry.stats().connections.total()
    }
}

#[test]
fn b1_a_limit_that_grows_starts_opens() {
    let mut world = World::new(1, 1);
    let _held = world.lease("a");
    let _waiting = [world.ask("b"), world.ask("c"), world.ask("d")];
    world.set_limits(3, 1);
    assert_eq!(world.asked, opens(&["b", "c"]));
    assert_eq!(world.registry.allowed(), 3);
}

#[test]
fn b2_a_ceiling_that_grows_starts_opens() {
    let mut world = World::new(4, 1);
    let _held = world.lease("a");
    let _waiting = [world.ask("a"), world.ask("a"), world.ask("a")];
    assert_eq!(world.asked, nothing());
    world.set_limits(4, 3);
    assert_eq!(world.asked, opens(&["a", "a"]));
}

#[test]
fn b1_a_limit_that_shrinks_closes_what_is_idle_then_what_comes_back_and_cuts_nothing() {
    let mut world = World::new(5, 5);
    let held: Vec<_> = ["a", "b", "c"].iter().map(|name| world.lease(name)).collect();
    world.idle("d");
    world.idle("e");
    world.set_limits(2, 2);
    assert_eq!(world.asked, closes(&["d", "e"], CloseReason::LimitLowered));
    assert_eq!((world.registry.allowed(), world.registry.stats().limit), (5, 2));
    world.close_all_owed();
    assert_eq!(world.registry.allowed(), 3, "what has gone does not come again");
    let waiting = world.ask("f");
    assert_eq!(world.asked, nothing(), "nothing opens until there is room");
    let mut held = held.into_iter();
    world.release(held.next().unwrap());
    assert_eq!(world.asked, closes(&["a"], CloseReason::LimitLowered));
    world.close_all_owed();
    assert_eq!((world.asked.clone(), world.counted(), world.registry.allowed()), (nothing(), 2, 2));
    world.release(held.next().unwrap());
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted));
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["f"]));
    world.open_all();
    world.served(waiting);
}

#[test]
fn b1_a_limit_below_what_is_counted_is_never_exceeded_further() {
    let mut world = World::new(4, 4);
    let mut held: Vec<_> = (0..4).map(|_| world.lease("a")).collect();
    world.set_limits(1, 1);
    let _waiting = [world.ask("a"), world.ask("b")];
    let mut most = 4;
    while let Some(leased) = held.pop() {
        world.release(leased);
        world.close_all_owed();
        assert!(world.registry.allowed() <= most, "{} of {most}", world.registry.allowed());
        most = world.registry.allowed();
        assert!(world.counted() <= most.max(1));
    }
    assert_eq!(most, 1);
}

#[test]
fn b1_open_connections_that_arrive_after_the_limit_shrank_are_closed_when_they_come_back() {
    let mut world = World::new(2, 2);
    let (first, second) = (world.ask("a"), world.ask("b"));
    world.set_limits(1, 1);
    world.open_all();
    let (first, second) = (world.served(first), world.served(second));
    world.release(first);
    assert_eq!(world.asked, closes(&["a"], CloseReason::LimitLowered));
    world.release(second);
    assert_eq!(world.asked, nothing());
}

#[test]
fn b2_a_ceiling_that_shrinks_closes_what_is_idle_then_what_comes_back() {
    let mut world = World::new(5, 5);
    let held: Vec<_> = (0..4).map(|_| world.lease("a")).collect();
    let mut held = held.into_iter();
    let oldest = held.next().unwrap();
    let conn = oldest.conn;
    world.release(oldest);
    world.set_terms("a", 1, Some(2));
    assert_eq!(world.asked, closes(&["a"], CloseReason::LimitLowered));
    assert_eq!(world.close_all_owed(), [(conn, CloseReason::LimitLowered)]);
    let waiting = world.ask("a");
    assert_eq!(world.asked, nothing());
    world.release(held.next().unwrap());
    assert_eq!(
        world.asked,
        closes(&["a"], CloseReason::LimitLowered),
        "its callers wait, and it is one too many"
    );
    world.close_all_owed();
    world.release(held.next().unwrap());
    world.served(waiting);
}

#[test]
fn b1_of_what_comes_back_after_a_limit_shrank_no_more_is_closed_than_is_too_much() {
    let mut world = World::new(3, 3);
    let [first, second, _third] = ["a", "b", "c"].map(|name| world.lease(name));
    world.set_limits(2, 2);
    world.release(first);
    assert_eq!(world.asked, closes(&["a"], CloseReason::LimitLowered));
    world.release(second);
    assert_eq!(world.asked, nothing(), "the close is under way, and makes two of three");
}

#[test]
fn b2_of_what_comes_back_after_a_ceiling_shrank_no_more_is_closed_than_is_too_much() {
    let mut world = World::new(4, 4);
    let [first, second, third] = ["a", "a", "a"].map(|name| world.lease(name));
    world.set_terms("a", 1, Some(2));
    world.release(first);
    assert_eq!(world.asked, closes(&["a"], CloseReason::LimitLowered));
    world.release(second);
    assert_eq!(world.asked, nothing(), "the close is under way, and makes two of three");
    world.release(third);
    world.set_terms("a", 1, Some(1));
    assert_eq!(world.asked, closes(&["a"], CloseReason::LimitLowered), "one of two that are idle");
}

#[test]
fn b2_a_ceiling_of_ones_own_holds_for_a_workspace_that_comes_later() {
    let mut world = World::new(4, 1);
    world.set_terms("a", 1, Some(2));
    let _held = world.lease("a");
    let _second = world.ask("a");
    assert_eq!(world.asked, opens(&["a"]));
    let _third = world.ask("a");
    assert_eq!(world.asked, nothing());
    world.set_terms("a", 1, Some(3));
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn b2_a_ceiling_that_was_set_for_all_holds_for_a_workspace_that_comes_later() {
    let mut world = World::new(4, 1);
    world.set_limits(3, 2);
    let _held = world.lease("a");
    let _second = world.ask("a");
    assert_eq!(world.asked, opens(&["a"]));
    let _third = world.ask("a");
    assert_eq!(world.asked, nothing());
}

#[test]
fn s1_pressure_tells_the_limits_that_were_set_while_running() {
    let mut world = World::new(4, 1);
    world.set_limits(3, 2);
    let pressure = world.registry.pressure_on(&target("a"));
    assert_eq!((pressure.limit, pressure.target_limit), (3, 2));
}

#[test]
fn w6_a_weight_of_nothing_counts_as_one() {
    let ahead = [0, 1].map(|weight| {
        let mut world = World::new(1, 1);
        world.set_terms("a", weight, None);
        let held = world.lease_in_time("a");
        let _other = world.ask("other");
        // A turn is a quantum and a switch.
        world.pass(4 * (QUANTUM + SWITCH));
        let effects = world.registry.discard(held.debt, held.conn, world.now);
        world.take(effects);
        world.registry.view(world.now).workspaces[0].turns_ahead
    });
    assert_eq!(ahead, [4, 4]);
}

#[test]
fn b2_terms_that_are_taken_back_are_those_of_all() {
    let mut world = World::new(4, 2);
    world.set_terms("a", 1, Some(1));
    let _held = world.lease("a");
    let _second = world.ask("a");
    assert_eq!(world.asked, nothing());
    world.set_terms("a", 1, None);
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn w6_a_weight_may_change_while_running() {
    let mut world = World::new(1, 1);
    let held = world.lease_in_time("a");
    let (_b, _more) = (world.ask("b"), world.ask("a"));
    world.pass(QUANTUM);
    world.set_terms("a", 1_000, None);
    assert_eq!(world.asked, nothing());
    // What it has had before counts with the weight that it had then; from now on it hardly pays.
    world.pass(QUANTUM);
    world.release(held);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Yielded), "it has had a quantum, and b nothing");
}

#[test]
fn w1_a_queue_is_bounded_and_says_so_with_the_numbers() {
    let mut world = World::with(RegistryConfig {
        waiting_per_target: 2,
        check_after: Duration::ZERO,
        ..RegistryConfig::new(1, 1)
    });
    world.idle("a");
    world.pass(LEASE);
    let checked = world.hit("a");
    let waiting = [world.ask("a"), world.ask("a")];
    let AcquireError::QueueFull { target: whose, waiting: 2, limit: 2 } = world.refusal("a") else {
        panic!("not refused")
    };
    assert_eq!(whose, target("a"));
    // Another workspace has a queue of its own.
    let _other = world.ask("b");
    // A caller that was served already, with a connection that proved broken, does not wait behind the bound.
    let (again, effects) = world.registry.replace(checked.debt, checked.conn, refused(), world.now);
    world.take(effects);
    let Acquire::Queued(replaced, effects) = again else { panic!("refused: {again:?}") };
    world.take(effects);
    assert!(matches!(world.refusal("a"), AcquireError::QueueFull { waiting: 3, limit: 2, .. }));
    for ticket in waiting.into_iter().chain([replaced]) {
        let gave_up = world.registry.cancel_wait(ticket, world.now);
        world.take(gave_up.effects);
    }
    let _room_again = world.ask("a");
}

#[test]
fn w1_a_bound_that_is_set_while_running_holds_from_then_on() {
    let mut world = World::new(1, 1);
    let _held = world.lease("a");
    let _waiting = [world.ask("a"), world.ask("a")];
    let effects = world
        .registry
        .set_limits(&RegistryConfig { waiting_per_target: 1, ..RegistryConfig::new(1, 1) }, world.now);
    world.take(effects);
    assert!(matches!(world.refusal("a"), AcquireError::QueueFull { waiting: 2, limit: 1, .. }));
}

#[test]
fn a_caller_that_does_not_wait_gets_what_is_idle_or_nothing() {
    let mut world = World::new(2, 2);
    assert!(world.registry.try_acquire(&target("a"), world.now).unwrap().is_none());
    let stats = world.registry.stats();
    assert_eq!(
        (stats.targets, stats.connections.total(), stats.waiting),
        (0, 0, 0),
        "nothing was begun for it"
    );
    let conn = world.idle("a");
    let leased = world.registry.try_acquire(&target("a"), world.now).unwrap().unwrap();
    assert_eq!(leased.conn, conn);
    assert!(world.registry.try_acquire(&target("a"), world.now).unwrap().is_none());
    assert_eq!(world.registry.stats().waiting, 0);
    world.release(leased);
    let effects = world.registry.begin_close(&target("a"), world.now);
    world.take(effects);
    let refused = world.registry.try_acquire(&target("a"), world.now).unwrap_err();
    assert!(matches!(refused, AcquireError::WorkspaceClosing { .. }), "{refused}");
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    let refused = world.registry.try_acquire(&target("a"), world.now).unwrap_err();
    assert!(matches!(refused, AcquireError::Closed), "{refused}");
}

#[test]
fn a_caller_that_does_not_wait_is_told_to_check_what_was_idle_for_long() {
    let mut world = World::new(1, 1);
    world.idle("a");
    world.pass(Duration::from_millis(501));
    let acquired = world.registry.stats().acquired;
    let leased = world.registry.try_acquire(&target("a"), world.now).unwrap().unwrap();
    assert!(leased.check_first);
    assert_eq!(world.registry.stats().acquired, acquired, "it counts when the check has come to a good end");
}

#[test]
fn b1_limits_that_did_not_change_ask_for_nothing() {
    let mut world = World::new(2, 2);
    let held = [world.lease("a"), world.lease("b")];
    let ticket = world.ask("c");
    world.set_limits(2, 2);
    assert_eq!(world.asked, Asked::default());
    world.pass(SWITCH);
    let ticket = world.waits(ticket);
    let [first, _second] = held;
    world.release(first);
    world.close_all_owed();
    world.open_all();
    assert!(matches!(world.claim(ticket), Claim::Leased(_)));
}
