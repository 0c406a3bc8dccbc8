//! An open that would close a connection of another workspace asks first whether there is anything to connect to.

use std::sync::Arc;

use pool_core::{
    AcquireError, Claim, CloseReason, DriverError, DriverErrorKind, Phase, RegistryConfig, Target,
};

use crate::world::{Asked, World, closes, nothing, opens, target};

fn world(limit: u32) -> World {
    World::with(RegistryConfig { look_up: true, ..RegistryConfig::new(limit, limit) })
}

fn look_ups(names: &[&str]) -> Asked {
    Asked { look_ups: names.iter().map(|name| target(name)).collect(), ..nothing() }
}

impl World {
    fn is_found(&mut self, name: &str) {
        let effects = self.registry.looked_up(&target(name), None, self.now);
        self.take(effects);
    }

    fn is_missing(&mut self, name: &str) {
        let missing = DriverError::new(Phase::Catalog, DriverErrorKind::DatabaseMissing, name);
        let effects = self.registry.looked_up(&target(name), Some(Arc::new(missing)), self.now);
        self.take(effects);
    }
}

#[test]
fn o4_an_open_that_would_evict_asks_first_and_evicts_when_the_database_was_found() {
    let mut world = world(1);
    world.idle("warm");
    let ticket = world.ask("new");
    assert_eq!(world.asked, look_ups(&["new"]));
    let _second = world.ask("new");
    assert_eq!(world.asked, nothing(), "one question for all its callers");
    world.is_found("new");
    assert_eq!(world.asked, closes(&["warm"], CloseReason::Evicted));
    world.close_all_owed();
    world.open_all();
    world.served(ticket);
}

#[test]
fn o4_a_database_that_is_missing_fails_its_callers_and_costs_nobody_a_connection() {
    let mut world = world(1);
    world.idle("warm");
    let tickets = [world.ask("missing"), world.ask("missing")];
    world.is_missing("missing");
    assert_eq!(world.asked, nothing());
    for ticket in tickets {
        let Claim::Failed(error) = world.claim(ticket) else { panic!("not told") };
        let AcquireError::OpenFailed { retryable: false, source, .. } = error else { panic!("{error}") };
        assert_eq!((source.phase, source.kind), (Phase::Catalog, DriverErrorKind::DatabaseMissing));
    }
    let AcquireError::OpenFailed { retry_in, .. } = world.refusal("missing") else { panic!("not refused") };
    assert_eq!(world.registry.stats().evicted, 0);
    world.hit("warm");
    // The answer is remembered for the pause, and then asked for again.
    world.pass(retry_in);
    let _again = world.ask("missing");
    assert_eq!(world.asked, look_ups(&["missing"]));
}

#[test]
fn o4_with_a_free_slot_nothing_is_asked() {
    let mut world = world(2);
    world.idle("warm");
    let _ticket = world.ask("new");
    assert_eq!(world.asked, opens(&["new"]));
}

#[test]
fn o4_what_was_opened_before_is_not_asked_about() {
    let mut world = world(2);
    world.idle("warm");
    let held = world.lease("known");
    let effects = world.registry.discard(held.debt, held.conn, world.now);
    world.take(effects);
    let _ticket = world.ask("known");
    world.close_all_owed();
    let _other = world.ask("other");
    assert_eq!(world.look_ups, [target("other")]);
}

#[test]
fn o4_the_system_exists() {
    let mut world = world(1);
    world.idle("warm");
    let asked = world.registry.acquire(&Target::System, world.now);
    let pool_core::Acquire::Queued(_ticket, effects) = asked else { panic!("{asked:?}") };
    world.take(effects);
    assert_eq!(world.asked, closes(&["warm"], CloseReason::Evicted));
}

#[test]
fn o4_a_slot_that_becomes_free_is_taken_before_the_answer_which_is_then_ignored() {
    let mut world = world(1);
    let held = world.lease("warm");
    let ticket = world.ask("new");
    assert_eq!(world.asked, look_ups(&["new"]));
    let effects = world.registry.discard(held.debt, held.conn, world.now);
    world.take(effects);
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["new"]));
    world.open_all();
    let _second = world.ask("new");
    world.is_missing("new");
    assert_eq!(world.asked, nothing(), "it was there, and is open");
    assert_eq!(world.registry.stats().open_failures, 0);
    world.served(ticket);
}

#[test]
fn o4_an_answer_from_before_the_creation_is_ignored() {
    let mut world = world(1);
    world.idle("warm");
    let ticket = world.ask("new");
    let effects = world.registry.clear_failure(&target("new"), world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["warm"], CloseReason::Evicted), "it was created, so it exists");
    world.is_missing("new");
    assert_eq!(world.asked, nothing());
    world.close_all_owed();
    world.open_all();
    world.served(ticket);
}

#[test]
fn o4_an_answer_that_nobody_waits_for_any_more_is_ignored() {
    let mut world = world(1);
    world.idle("warm");
    let ticket = world.ask("new");
    let gave_up = world.registry.cancel_wait(ticket, world.now);
    world.take(gave_up.effects);
    world.is_found("new");
    world.is_missing("new");
    assert_eq!(world.asked, nothing());
    assert_eq!(world.registry.stats().open_failures, 0);
}

#[test]
fn o4_a_database_that_proves_missing_after_all_is_asked_about_again() {
    let mut world = world(1);
    world.idle("warm");
    let _told = world.ask("new");
    world.is_found("new");
    world.close_all_owed();
    let work = world.opens.remove(0);
    let missing = DriverError::new(Phase::Connect, DriverErrorKind::DatabaseMissing, "new");
    let effects = world.registry.open_failed(work, Arc::new(missing), world.now);
    world.take(effects);
    world.idle("warm");
    let AcquireError::OpenFailed { retry_in, .. } = world.refusal("new") else { panic!("not refused") };
    world.pass(retry_in);
    let _again = world.ask("new");
    assert_eq!(world.asked, look_ups(&["new"]));
}

#[test]
fn o4_a_storm_of_unknown_ids_closes_nothing_and_asks_once_each() {
    let mut world = world(4);
    for name in ["a", "b", "c", "d"] {
        world.idle(name);
    }
    let names: Vec<_> = (0..800).map(|i| format!("unknown{i}")).collect();
    let tickets: Vec<_> = names.iter().map(|name| world.ask(name)).collect();
    assert_eq!((world.look_ups.len(), world.closes.len()), (800, 0));
    for name in &names {
        world.is_missing(name);
        assert_eq!(world.asked, nothing());
    }
    assert!(tickets.into_iter().all(|ticket| matches!(world.claim(ticket), Claim::Failed(_))));
    assert_eq!((world.registry.stats().evicted, world.registry.stats().targets), (0, 4));
}
