//! What is told of a share: counts, pressure, failures, and what it costs to remember them.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{
    Acquire, AcquireError, Answers, Claim, CloseReason, DriverError, DriverErrorKind, Effects, Phase,
    Pressure, RegistryConfig, Stage, Terms,
};

use crate::world::{World, closes, nothing, opens, refused, target};

#[test]
fn s1_a_checked_lease_counts_when_its_check_has_come_to_a_good_end() {
    let mut config = RegistryConfig::new(4, 4);
    config.check_after = Duration::ZERO;
    let mut world = World::with(config);
    world.idle("a");
    let counted = |world: &World| {
        let stats = world.registry.stats();
        (stats.acquired, stats.hits)
    };
    assert_eq!(counted(&world), (1, 0));
    world.pass(Duration::from_secs(1));
    let leased = world.hit("a");
    assert!(leased.check_first);
    assert_eq!(counted(&world), (1, 0), "nobody has it yet");
    world.registry.checked(&target("a"), true);
    assert_eq!(counted(&world), (2, 1));
    world.registry.checked(&target("a"), false);
    assert_eq!(counted(&world), (3, 1), "one that has waited is no hit");
    world.registry.not_served(&target("a"), true);
    assert_eq!(counted(&world), (2, 0));
    world.registry.not_served(&target("a"), false);
    assert_eq!(counted(&world), (1, 0));
    world.release(leased);
}

#[test]
fn s3_a_caller_that_goes_away_while_its_connection_is_checked_is_counted_once() {
    let mut world = World::new(1, 1);
    world.idle("a");
    world.pass(Duration::from_secs(1));
    let leased = world.hit("a");
    assert!(leased.check_first);
    world.registry.check_given_up(&target("a"));
    world.release(leased);
    let answers = world.registry.target_stats(&target("a")).answers;
    assert_eq!((answers.acquired, answers.given_up), (1, 1));
    assert_eq!(world.registry.stats().given_up, 1);
}

#[test]
fn s1_pressure_tells_how_full_things_are() {
    let mut world = World::new(4, 2);
    let leased = world.lease("a");
    world.idle("b");
    let _waits = world.ask("c");
    let pressure = |in_target| Pressure {
        in_use: 1,
        counted: 3,
        limit: 4,
        target_counted: in_target,
        target_limit: 2,
        waiting: 1,
    };
    assert_eq!(world.registry.pressure_on(&target("a")), pressure(1));
    assert_eq!(world.registry.pressure_on(&target("nobody")), pressure(0));
    assert_eq!(world.registry.stats().waiting, 1);
    let terms = Terms { ceiling: Some(1), ..Terms::default() };
    let effects = world.registry.set_terms(&target("a"), terms, world.now);
    world.take(effects);
    assert_eq!(world.registry.pressure_on(&target("a")).target_limit, 1);
    world.release(leased);
    world.fail_first();
}

#[test]
fn s1_everything_that_was_opened_closed_evicted_or_has_failed_is_counted() {
    let mut world = World::new(1, 1);
    world.idle("a");
    let _b = world.ask("b");
    assert_eq!(world.close_all_owed(), [(1, CloseReason::Evicted)]);
    let stats = world.registry.stats();
    assert_eq!((stats.opened, stats.closed, stats.evicted, stats.open_failures), (1, 1, 1, 0));
    world.fail_first();
    assert_eq!(world.registry.stats().open_failures, 1);
    assert_eq!(world.registry.stats().miscounts, 0);
}

#[test]
fn c1_an_empty_share_is_drained_as_soon_as_it_is_closed() {
    let mut world = World::new(2, 2);
    assert!(world.registry.is_empty() && !world.registry.is_closed());
    let effects = world.registry.close_all(world.now);
    assert!(effects.drained);
    assert!(world.registry.is_closed());
}

#[test]
fn c1_a_share_with_a_lease_is_not_drained() {
    let mut world = World::new(2, 2);
    let leased = world.lease("a");
    assert!(!world.registry.is_empty());
    let effects: Effects<_> = world.registry.close_all(world.now);
    // What is in use is waited for apart from the rest.
    world.take(effects);
    world.release(leased);
    assert_eq!(world.close_all_owed().len(), 1);
    assert!(world.registry.is_empty());
}

#[test]
fn c1_a_lease_that_is_to_be_retired_is_closed_when_it_comes_back_and_only_that_one() {
    let mut world = World::new(2, 2);
    let (first, second) = (world.lease("a"), world.lease("a"));
    world.registry.retire_on_return(first.debt.connection(), CloseReason::WorkspaceClosed, world.now);
    world.release(second);
    assert_eq!(world.asked, nothing());
    world.release(first);
    assert_eq!(world.asked, closes(&["a"], CloseReason::WorkspaceClosed), "and why");
    world.close_all_owed();
}

#[test]
fn w2_fewer_opens_at_a_time_can_be_set_while_running() {
    let mut world = World::new(4, 4);
    let fewer = RegistryConfig { opens: 1, ..RegistryConfig::new(4, 4) };
    let effects = world.registry.set_limits(&fewer, world.now);
    world.take(effects);
    let _a = world.ask("a");
    assert_eq!(world.asked, opens(&["a"]));
    let _b = world.ask("b");
    assert_eq!(world.asked, nothing(), "one open at a time");
    world.fail_first();
    assert_eq!(world.asked, opens(&["b"]));
    world.fail_first();
}

#[test]
fn e4_a_connection_that_is_idle_for_exactly_as_long_as_it_may_expires() {
    let mut world = World::new(2, 2);
    world.idle("a");
    let almost = Duration::from_mins(5).saturating_sub(Duration::from_nanos(1));
    world.pass(almost);
    let effects = world.registry.expire(world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing());
    world.pass(Duration::from_nanos(1));
    let effects = world.registry.expire(world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["a"], CloseReason::IdleTimeout));
    world.close_all_owed();
}

#[test]
fn e4_a_connection_that_has_lived_exactly_as_long_as_it_may_expires() {
    let mut world = World::new(2, 2);
    let ticket = world.ask("a");
    let work = world.opens.remove(0);
    let almost = world.now + Duration::from_secs(1);
    let ends = almost + Duration::from_nanos(1);
    let (_, effects) = world.registry.opened(work, 1, (), Some(ends), world.now);
    world.take(effects);
    let leased = world.served(ticket);
    world.release(leased);
    let effects = world.registry.expire(almost);
    world.take(effects);
    assert_eq!(world.asked, nothing());
    let effects = world.registry.expire(ends);
    world.now = ends;
    world.take(effects);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Lifetime));
    world.close_all_owed();
}

#[test]
fn o3_the_last_failure_is_told_to_who_gives_up_and_forgotten_after_a_success() {
    let mut config = RegistryConfig::new(2, 2);
    config.backoff_first = Duration::from_millis(50);
    let mut world = World::with(config);
    let held = world.lease("a");
    let ticket = world.ask("a");
    world.fail_first();
    let ticket = world.waits(ticket);
    let gave_up = world.registry.cancel_wait(ticket, world.now);
    assert_eq!(gave_up.last_failure.as_ref().map(|error| error.kind), Some(refused().kind));
    assert_eq!(gave_up.waiting_for, Stage::Opening);
    world.take(gave_up.effects);
    world.pass(Duration::from_millis(50));
    let ticket = world.ask("a");
    world.open_all();
    let second = world.served(ticket);
    let ticket = world.ask("a");
    let gave_up = world.registry.cancel_wait(ticket, world.now);
    assert!(gave_up.last_failure.is_none());
    assert_eq!(gave_up.waiting_for, Stage::WorkspaceCeiling);
    world.take(gave_up.effects);
    world.release(held);
    world.release(second);
}

/// A storm of ids that do not exist leaves nothing behind, and a target that is still paused is not forgotten.
#[test]
fn e4_failures_are_forgotten_some_time_after_their_pause() {
    let mut config = RegistryConfig::new(2, 2);
    (config.backoff_first, config.backoff_max) = (Duration::from_millis(50), Duration::from_secs(1));
    let mut world = World::with(config);
    let pause_of = |world: &mut World| match world.registry.acquire(&target("a"), world.now) {
        Acquire::Refused(AcquireError::OpenFailed { retry_in, .. }) => Some(retry_in),
        Acquire::Queued(ticket, effects) => {
            world.take(effects);
            let cancelled = world.registry.cancel_wait(ticket, world.now);
            world.take(cancelled.effects);
            None
        }
        other => panic!("{other:?}"),
    };
    let mut pauses = Vec::new();
    for _ in 0..4 {
        assert_eq!(pause_of(&mut world), None, "the pause is over");
        world.fail_first();
        let pause = pause_of(&mut world).expect("a pause");
        pauses.push(pause.as_millis());
        world.pass(pause);
        // Forgetting is a part of expiring; what is paused, or was a moment ago, stays.
        let effects = world.registry.expire(world.now);
        world.take(effects);
    }
    assert_eq!(pauses, [50, 100, 200, 400]);
    world.pass(Duration::from_secs(2));
    let effects = world.registry.expire(world.now);
    world.take(effects);
    assert_eq!(pause_of(&mut world), None);
    world.fail_first();
    assert_eq!(pause_of(&mut world), Some(Duration::from_millis(50)), "as if it had never failed");
}

#[test]
fn o4_a_missing_database_counts_as_one_failure_for_all_who_wait() {
    let mut config = RegistryConfig::new(1, 1);
    config.look_up = true;
    let mut world = World::with(config);
    world.idle("a");
    let waits = [world.ask("missing"), world.ask("missing")];
    let asked = std::mem::take(&mut world.look_ups);
    assert_eq!(asked, [target("missing")]);
    let missing = DriverError::new(Phase::Catalog, DriverErrorKind::DatabaseMissing, "db:5432/x");
    let effects = world.registry.looked_up(&asked[0], Some(Arc::new(missing)), world.now);
    world.take(effects);
    for ticket in waits {
        assert!(matches!(world.claim(ticket), pool_core::Claim::Failed(AcquireError::OpenFailed { .. })));
    }
    assert_eq!(world.registry.stats().open_failures, 1);
}

#[test]
fn s3_answers_are_counted_for_their_workspace_and_outlive_its_entry() {
    let mut world = World::new(1, 1);
    let answers = |world: &World, name: &str| {
        let stats = world.registry.target_stats(&target(name));
        let Answers { acquired, hits, errors, given_up } = stats.answers;
        (stats.connections.total(), stats.waiting, [acquired, hits, errors, given_up])
    };
    world.idle("a");
    let held = world.hit("a");
    let waits = world.ask("a");
    assert_eq!(answers(&world, "a"), (1, 1, [2, 1, 0, 0]));
    let gave_up = world.registry.cancel_wait(waits, world.now);
    world.take(gave_up.effects);
    world.release(held);
    assert_eq!(answers(&world, "a"), (1, 0, [2, 1, 0, 1]));
    // Another one takes its only connection, and it has no entry any more.
    let b = world.ask("b");
    world.close_all_owed();
    assert_eq!((answers(&world, "a"), world.registry.stats().targets), ((0, 0, [2, 1, 0, 1]), 1));
    world.fail_first();
    assert!(matches!(world.claim(b), Claim::Failed(_)));
    world.refusal("b");
    assert_eq!((answers(&world, "b"), world.registry.stats().targets), ((0, 0, [0, 0, 2, 0]), 0));
    world.registry.asks_again(&target("b"));
    assert_eq!(answers(&world, "b").2, [0, 0, 1, 0]);
    // It goes on where it was.
    world.idle("a");
    assert_eq!(answers(&world, "a"), (1, 0, [3, 1, 0, 1]));
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    world.registry.try_acquire(&target("a"), world.now).unwrap_err();
    let (mut all, forgotten) = world.registry.all_target_stats();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let sums: Vec<_> = all.into_iter().map(|(target, stats)| (target, stats.answers.total())).collect();
    assert_eq!((sums, forgotten), (vec![(target("a"), 5), (target("b"), 1)], Answers::default()));
    let stats = world.registry.stats();
    assert_eq!([stats.acquired, stats.hits, stats.errors, stats.given_up], [3, 1, 2, 1]);
}
