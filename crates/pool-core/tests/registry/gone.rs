//! Connections that are doubted, or of no use any more, although their sessions have not ended.

use pool_core::CloseReason;

use crate::world::{World, closes, nothing};

#[test]
fn l3_what_is_idle_at_a_moment_of_doubt_is_checked_before_its_next_use() {
    let mut world = World::new(2, 2);
    world.idle("a");
    let later = world.lease("b");
    let effects = world.registry.doubt_idle(world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing());
    world.now += std::time::Duration::from_nanos(1);
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
