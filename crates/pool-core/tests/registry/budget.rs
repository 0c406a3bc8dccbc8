//! Budget and eviction: how many, and who has to go.

use std::time::Duration;

use pool_core::{CloseReason, RegistryConfig};

use crate::world::{World, closes, nothing, opens, target};

#[test]
fn b1_a_spent_budget_opens_nothing_more() {
    let mut world = World::new(2, 2);
    let held = [world.lease("a"), world.lease("b")];
    let ticket = world.ask("c");
    assert_eq!(world.asked, nothing());
    let [first, _second] = held;
    world.release(first);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted), "the evicted connection still counts");
    world.close_all_owed();
    assert_eq!(world.open_all(), [target("c")]);
    world.served(ticket);
    assert_eq!(world.registry.stats().peak, 2);
}

#[test]
fn b2_a_workspace_at_its_ceiling_waits_for_its_own_connections() {
    let mut world = World::new(10, 1);
    let held = world.lease("a");
    let ticket = world.ask("a");
    assert_eq!(world.asked, nothing());
    world.release(held);
    world.served(ticket);
}

#[test]
fn e1_a_connection_in_use_is_never_chosen() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let _waiting = world.ask("b");
    assert_eq!(world.asked, nothing());
    world.release(held);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Evicted));
}

#[test]
fn e2_the_least_recently_used_idle_connection_is_closed() {
    let mut world = World::new(2, 2);
    let a = world.idle("a");
    let b = world.idle("b");
    let again = world.hit("a");
    world.release(again);
    let _c = world.ask("c");
    assert_eq!(world.close_all_owed(), [(b, CloseReason::Evicted)]);
    assert_ne!(a, b);
}

#[test]
fn e3_nothing_is_evicted_while_the_budget_has_room() {
    let mut world = World::new(3, 3);
    world.idle("a");
    let _b = world.ask("b");
    assert_eq!(world.asked, opens(&["b"]));
}

#[test]
fn e3_a_queue_of_misses_does_not_empty_the_idle_set() {
    let mut config = RegistryConfig::new(8, 1);
    config.opens = 2;
    let mut world = World::with(config);
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        world.idle(name);
    }
    let _tickets: Vec<_> = (0..20).map(|i| world.ask(&format!("miss{i}"))).collect();
    assert_eq!(world.closes.len(), 2);
}

#[test]
fn e4_a_workspace_without_connections_has_no_entry() {
    let mut world = World::new(2, 2);
    world.idle("a");
    world.pass(Duration::from_hours(1));
    let effects = world.registry.expire(world.now);
    world.take(effects);
    world.close_all_owed();
    assert_eq!(world.registry.stats().targets, 0);
    assert!(world.registry.is_empty());
}
