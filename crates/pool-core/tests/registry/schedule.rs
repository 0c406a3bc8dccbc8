//! Patience, quanta, shares and anticipation: who gets the next slot, and when.

use std::time::Duration;

use pool_core::{Claim, CloseReason, RegistryConfig, Terms};
use rstest::rstest;

use crate::world::{CLOSE, LEASE, OPEN, QUANTUM, SWITCH, World, closes, due_at, nothing, opens, target};

const A_MOMENT: Duration = Duration::from_nanos(1);

fn just_before(time: Duration) -> Duration {
    time.saturating_sub(A_MOMENT)
}

/// `a` has a connection in use and `others` have idle ones, each with one; the budget is spent.
fn spent(others: &[&str], opens: u32) -> (World, pool_core::Leased<u32>) {
    let limit = 1 + u32::try_from(others.len()).unwrap();
    let mut world =
        World::with(RegistryConfig { quantum: Some(QUANTUM), opens, ..RegistryConfig::new(limit, limit) });
    for name in others {
        world.idle_in_time(name);
    }
    let held = world.lease_in_time("a");
    (world, held)
}

#[test]
fn w3_a_waiter_rather_waits_for_a_connection_of_its_own_workspace() {
    let (mut world, held) = spent(&["b"], 8);
    let ticket = world.ask("a");
    assert_eq!(world.asked, due_at(world.now + SWITCH));
    world.pass(just_before(SWITCH));
    world.release(held);
    assert_eq!(world.asked, nothing());
    world.served(ticket);
    // What was promised has become void.
    world.pass(SWITCH);
    assert_eq!(world.asked, nothing());
}

#[test]
fn w3_patience_ends_at_the_promised_moment_after_the_price_of_a_switch() {
    let (mut world, _held) = spent(&["b"], 8);
    let _ticket = world.ask("a");
    world.pass(just_before(SWITCH));
    assert_eq!(world.closes.len(), 0);
    world.pass(A_MOMENT);
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted));
}

#[test]
fn w3_e3_with_a_free_slot_nobody_is_patient() {
    let mut world = World::new(3, 3);
    world.idle_in_time("b");
    let _held = world.lease_in_time("a");
    let _ticket = world.ask("a");
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn w3_a_slot_that_becomes_free_is_taken_by_a_patient_waiter() {
    let (mut world, _held) = spent(&["b"], 8);
    let _ticket = world.ask("a");
    let b = world.hit("b");
    let effects = world.registry.discard(b.debt, b.conn, world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["b"], CloseReason::Discarded));
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn w3_a_queue_longer_than_a_switch_is_not_patient() {
    let (mut world, _held) = spent(&["b"], 8);
    // Leases take a millisecond and a switch five: the fifth waiter is as well served by waiting, the sixth is not.
    let _patient: Vec<_> = (0..5).map(|_| world.ask("a")).collect();
    assert_eq!(world.closes.len(), 0);
    let _sixth = world.ask("a");
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted));
}

#[test]
fn w3_a_queue_that_two_connections_serve_may_be_twice_as_long() {
    let mut world = World::new(3, 3);
    world.idle_in_time("b");
    let _held = [world.lease_in_time("a"), world.lease_in_time("a")];
    let _patient: Vec<_> = (0..10).map(|_| world.ask("a")).collect();
    assert_eq!(world.closes.len(), 0);
    let _eleventh = world.ask("a");
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted));
}

#[test]
fn w3_patience_is_counted_anew_after_a_moment_in_which_nobody_waited() {
    let mut world = World::new(2, 1);
    world.idle_in_time("b");
    let held = world.lease_in_time("a");
    let first = world.ask("a");
    world.release(held);
    let _held = world.served(first);
    world.pass(SWITCH);
    let _second = world.ask("a");
    let terms = Terms { ceiling: Some(2), ..Terms::default() };
    let effects = world.registry.set_terms(&target("a"), terms, world.now);
    world.take(effects);
    assert_eq!(world.asked, due_at(world.now + SWITCH));
}

#[test]
fn w3_a_workspace_without_a_connection_is_not_patient() {
    let mut world = World::new(1, 1);
    world.idle_in_time("b");
    let _ticket = world.ask("a");
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted));
}

#[test]
fn w3_patience_is_counted_anew_after_a_new_connection() {
    let (mut world, _held) = spent(&["b", "c"], 1);
    let (first, _second) = (world.ask("a"), world.ask("a"));
    world.pass(SWITCH);
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted));
    world.close_in_time();
    assert_eq!(world.asked, opens(&["a"]));
    world.open_in_time();
    assert_eq!(world.asked, due_at(world.now + SWITCH), "the second one waits for two connections now");
    world.served(first);
    world.pass(just_before(SWITCH));
    assert_eq!(world.closes.len(), 0);
    world.pass(A_MOMENT);
    assert_eq!(world.asked, closes(&["c"], CloseReason::Evicted));
}

#[test]
fn o6_a_call_that_comes_before_the_promised_moment_has_it_promised_again() {
    let (mut world, _held) = spent(&["b"], 8);
    let _ticket = world.ask("a");
    let at = world.now + SWITCH;
    let effects = world.registry.due(world.now + just_before(SWITCH));
    assert_eq!(effects.describe(), due_at(at));
    let effects = world.registry.due(at);
    assert_eq!(effects.describe(), closes(&["b"], CloseReason::Evicted));
    world.now = at;
    world.take(effects);
    assert_eq!(world.registry.due(at + SWITCH).describe(), nothing());
}

#[test]
fn e2_a_connection_of_a_workspace_that_keeps_another_goes_first() {
    let mut world = World::new(3, 3);
    let oldest = world.idle("single");
    let (first, second) = (world.lease("double"), world.lease("double"));
    let (spare, _in_use) = (first.conn, second);
    world.release(first);
    let _new = world.ask("new");
    assert_eq!(world.close_all_owed(), [(spare, CloseReason::Evicted)]);
    world.open_all();
    // Nobody keeps another one now: the least recently used goes.
    let _newer = world.ask("newer");
    assert_eq!(world.close_all_owed(), [(oldest, CloseReason::Evicted)]);
}

#[test]
fn e2_of_spare_connections_the_least_recently_used_goes_first() {
    let mut world = World::new(5, 5);
    world.idle("single");
    let held: Vec<_> = ["x", "y", "x", "y"].iter().map(|name| world.lease(name)).collect();
    let conns: Vec<_> = held.iter().map(|leased| leased.conn).collect();
    for leased in held {
        world.pass(Duration::from_micros(1));
        world.release(leased);
    }
    let _new = [world.ask("new"), world.ask("newer"), world.ask("newest")];
    let mut closed = world.close_all_owed();
    closed.sort_by_key(|(conn, _)| *conn);
    let evicted = |conn| (conn, CloseReason::Evicted);
    // One of each pair; then only single ones are left.
    assert_eq!(closed, [evicted(1), evicted(conns[0]), evicted(conns[1])]);
}

#[test]
fn w5_a_connection_serves_for_a_quantum_before_it_yields() {
    let mut world = World::new(1, 1);
    let mut held = world.lease_in_time("loud");
    let opened = world.now;
    let _quiet = world.ask("quiet");
    while world.now + LEASE < opened + QUANTUM {
        let next = world.ask("loud");
        world.pass(LEASE);
        world.release(held);
        assert_eq!(world.asked, nothing());
        held = world.served(next);
    }
    let next = world.ask("loud");
    world.pass(just_before((opened + QUANTUM).saturating_duration_since(world.now)));
    world.release(held);
    assert_eq!(world.asked, nothing(), "a nanosecond is missing");
    held = world.served(next);
    let _next = world.ask("loud");
    world.pass(A_MOMENT);
    world.release(held);
    assert_eq!(world.asked, closes(&["loud"], CloseReason::Yielded));
}

#[test]
fn w5_a_connection_that_nobody_of_its_own_wants_goes_at_once() {
    let mut world = World::new(1, 1);
    let held = world.lease_in_time("loud");
    let _quiet = world.ask("quiet");
    world.release(held);
    assert_eq!(world.asked, closes(&["loud"], CloseReason::Evicted));
}

#[test]
fn w5_nothing_yields_while_a_slot_is_free_or_on_its_way() {
    let mut world = World::new(2, 1);
    let (held, broken) = (world.lease_in_time("loud"), world.lease_in_time("other"));
    let _quiet = world.ask("quiet");
    let _next = world.ask("loud");
    world.pass(QUANTUM);
    let effects = world.registry.discard_broken(broken.debt, broken.conn, world.now);
    world.take(effects);
    world.release(held);
    assert_eq!(world.asked, nothing());
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["quiet"]));
}

/// `a` has asked again so long after its connection was closed for `b`; now it has one again, and `b` waits.
fn comes_back(after: Duration) -> (World, pool_core::Leased<u32>, pool_core::Ticket) {
    comes_back_in(World::new(1, 1), after)
}

fn comes_back_in(mut world: World, after: Duration) -> (World, pool_core::Leased<u32>, pool_core::Ticket) {
    let held = world.lease_in_time("a");
    let b = world.ask("b");
    world.release(held);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted), "nothing is known of its habits");
    world.pass(after);
    let a = world.ask("a");
    world.close_all_owed();
    world.open_in_time();
    let held = world.served(b);
    world.pass(LEASE);
    world.release(held);
    world.close_in_time();
    world.open_in_time();
    let held = world.served(a);
    let b = world.ask("b");
    (world, held, b)
}

#[test]
fn w5_a_connection_whose_workspace_comes_back_at_once_is_kept_a_moment() {
    let (mut world, held, b) = comes_back(CLOSE);
    let conn = held.conn;
    world.pass(LEASE);
    world.release(held);
    assert_eq!(world.asked, due_at(world.now + SWITCH / 2));
    world.pass(just_before(SWITCH / 2));
    assert_eq!(world.closes.len(), 0);
    let again = world.hit("a");
    assert_eq!(again.conn, conn);
    world.waits(b);
}

#[test]
fn o6_a_connection_that_was_kept_in_vain_is_closed_at_the_promised_moment() {
    let (mut world, held, _b) = comes_back(CLOSE);
    world.pass(LEASE);
    world.release(held);
    world.pass(SWITCH / 2);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted));
}

#[test]
fn e2_a_connection_that_was_kept_in_vain_is_none_the_younger() {
    let mut world = World::new(2, 1);
    let other = world.lease_in_time("other");
    let (mut world, held, _b) = comes_back_in(world, CLOSE);
    world.pass(LEASE);
    world.release(held);
    assert_eq!(world.asked, due_at(world.now + SWITCH / 2));
    // The other one comes back at the moment at which the first one is kept no longer.
    world.now += SWITCH / 2;
    world.release(other);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted));
}

#[test]
fn w5_a_connection_that_has_had_its_turn_is_not_kept() {
    let (mut world, held, _b) = comes_back(CLOSE);
    world.pass(Duration::from_millis(40));
    world.release(held);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted));
}

#[test]
fn w5_a_connection_whose_workspace_came_back_late_is_not_kept() {
    let (mut world, held, _b) = comes_back(SWITCH);
    world.pass(LEASE);
    world.release(held);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted));
}

#[rstest]
#[case::as_many_as_waiters(20, 20, 8, 5, 4)]
#[case::as_the_ceiling_allows(20, 4, 8, 10, 3)]
#[case::as_permits_allow(20, 20, 6, 20, 6)]
#[case::as_slots_allow(3, 3, 8, 10, 2)]
fn w3_after_the_first_success_opens_start_together(
    #[case] limit: u32,
    #[case] ceiling: u32,
    #[case] permits: u32,
    #[case] callers: usize,
    #[case] more: usize,
) {
    let mut world = World::with(RegistryConfig { opens: permits, ..RegistryConfig::new(limit, ceiling) });
    let _tickets: Vec<_> = (0..callers).map(|_| world.ask("a")).collect();
    assert_eq!(world.opens.len(), 1, "before the first success, one");
    world.pass(OPEN);
    world.open_first();
    assert_eq!(world.asked.opens, vec![target("a"); more]);
}

#[test]
fn o6_waiters_whose_last_connection_breaks_after_an_open_was_given_up_are_told_at_once() {
    let mut world = World::new(2, 2);
    let held = world.lease("a");
    let ticket = world.ask("a");
    let hung = world.give_up_first();
    let ticket = world.waits(ticket);
    let effects = world.registry.discard_broken(held.debt, held.conn, world.now);
    world.take(effects);
    assert!(matches!(world.claim(ticket), Claim::Failed(_)), "the connection in use was its last hope");
    world.refusal("a");
    let effects = world.registry.lost_ended(hung, world.now);
    world.take(effects);
}

#[test]
fn patience_follows_what_opens_and_closes_take() {
    let mut world = World::new(2, 2);
    let ticket = world.ask("b");
    world.pass(Duration::from_millis(30));
    world.open_all();
    let leased = world.served(ticket);
    let effects = world.registry.discard(leased.debt, leased.conn, world.now);
    world.take(effects);
    world.pass(Duration::from_millis(8));
    world.close_all_owed();
    for name in ["b", "a"] {
        let ticket = world.ask(name);
        world.pass(Duration::from_millis(30));
        world.open_all();
        let leased = world.served(ticket);
        if name == "b" {
            world.release(leased);
        }
    }
    let _ticket = world.ask("a");
    assert_eq!(world.asked, due_at(world.now + Duration::from_millis(38)));
}

#[test]
fn patience_is_not_changed_by_one_lease_of_ten_minutes() {
    let (mut world, held) = spent(&["b"], 8);
    let long = world.hit("b");
    world.pass(Duration::from_mins(10));
    world.release(long);
    let _patient = [world.ask("a"), world.ask("a"), world.ask("a")];
    assert_eq!(world.closes.len(), 0);
    assert_eq!(world.due_at, Some(world.now + SWITCH));
    world.release(held);
}

#[test]
fn the_times_are_those_that_things_take_by_default() {
    use pool_core::registry::{CLOSE_DEFAULT, LEASE_DEFAULT, OPEN_DEFAULT};
    assert_eq!((OPEN, CLOSE, LEASE, SWITCH), (OPEN_DEFAULT, CLOSE_DEFAULT, LEASE_DEFAULT, OPEN + CLOSE));
}
