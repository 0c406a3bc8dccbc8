//! Connections that are doubted, or of no use any more, although their sessions have not ended.

use std::time::Duration;

use pool_core::{CloseReason, Target};

use crate::world::{QUANTUM, World, closes, nothing, target};

#[test]
fn l3_what_is_idle_at_a_moment_of_doubt_is_checked_before_its_next_use() {
    let mut world = World::new(2, 2);
    world.idle("a");
    let later = world.lease("b");
    let effects = world.registry.doubt_idle(world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing());
    world.now += Duration::from_nanos(1);
    world.release(later);
    assert!(world.hit("a").check_first);
    assert!(!world.hit("b").check_first, "it was in use");
}

#[test]
fn l2_connections_of_a_runtime_that_has_ended_are_closed_now_or_when_they_come_back() {
    let mut world = World::new(4, 4);
    let (idle, in_use, other) = (world.lease("a"), world.lease("a"), world.lease("b"));
    let ids = [idle.debt.connection(), in_use.debt.connection()];
    world.release(idle);
    let effects = world.registry.orphaned(&ids, world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["a"], CloseReason::RuntimeEnded));
    world.release(in_use);
    assert_eq!(world.asked, closes(&["a"], CloseReason::RuntimeEnded));
    world.release(other);
    assert_eq!(world.asked, nothing());
}

#[test]
fn s4_what_is_in_use_is_known_with_its_target_and_since_when_and_what_is_idle_is_not() {
    let mut world = World::new(2, 2);
    world.idle("b");
    world.now += Duration::from_secs(1);
    let held = world.hit("b");
    let (id, since) = (held.debt.connection(), world.now);
    world.now += Duration::from_secs(1);
    let leases: Vec<_> = world.registry.leases().map(|(id, of, since, ())| (id, of.clone(), since)).collect();
    assert_eq!(leases, [(id, target("b"), since)]);
    world.release(held);
    assert_eq!(world.registry.leases().count(), 0);
}

#[test]
fn s4_a_session_is_found_by_its_own_id_and_by_no_other() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let id = held.debt.connection();
    assert!(world.registry.session_mut(id).is_some());
    let effects = world.registry.discard(held.debt, held.conn, world.now);
    world.take(effects);
    assert!(world.registry.session_mut(id).is_none(), "it is being closed");
    world.close_all_owed();
    let next = world.lease("a");
    assert_eq!(next.debt.connection().index(), id.index(), "in the same place");
    assert!(world.registry.session_mut(id).is_none() && world.registry.session(id).is_none());
    world.release(next);
}

#[test]
fn s4_what_makes_room_tells_for_whom_and_what_does_not_tells_nobody() {
    let mut world = World::new(1, 1);
    let held = world.lease_in_time("a");
    let (_b, _more) = (world.ask("b"), world.ask("a"));
    world.pass(QUANTUM);
    world.release(held);
    assert_eq!(
        made_room_for(&mut world),
        (CloseReason::Yielded, Some(target("b"))),
        "not for its own target"
    );

    let mut world = World::new(1, 1);
    world.idle("a");
    let _b = world.ask("b");
    assert_eq!(made_room_for(&mut world), (CloseReason::Evicted, Some(target("b"))));

    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let effects = world.registry.discard(held.debt, held.conn, world.now);
    world.take(effects);
    assert_eq!(made_room_for(&mut world), (CloseReason::Discarded, None));
}

/// Why the one connection is closed, and for whom.
fn made_room_for(world: &mut World) -> (CloseReason, Option<Target>) {
    let (_, debt) = world.closes.pop().unwrap().split();
    let told = (debt.reason(), debt.for_whom().cloned());
    let effects = world.registry.closed(debt, world.now);
    world.take(effects);
    told
}

#[test]
fn o8_what_is_to_be_retired_and_is_idle_goes_with_the_next_pass_and_says_why() {
    let mut world = World::new(2, 2);
    let leased = world.lease("a");
    let id = leased.debt.connection();
    world.release(leased);
    world.idle("b");
    world.registry.retire_on_return(id, CloseReason::Outdated, world.now);
    let effects = world.registry.expire(world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Outdated));
    world.close_all_owed();
}
