//! Pauses after opens that failed or hung: when they end, and how long they are remembered.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{Acquire, Claim, DriverError, DriverErrorKind, Phase, RegistryConfig};
use rstest::rstest;

use crate::world::{Asked, World, broke, nothing, opens, target};

/// The first pause, by default.
const PAUSE: Duration = Duration::from_millis(50);
const A_MOMENT: Duration = Duration::from_nanos(1);
/// Longer than any failure is remembered.
const LONG: Duration = Duration::from_hours(1);

impl World {
    fn retry(&mut self, name: &str) {
        let effects = self.registry.retry(&target(name), self.now);
        self.take(effects);
    }

    /// How many failures are remembered after what is old has been forgotten.
    fn remembered(&mut self) -> usize {
        let effects = self.registry.expire(self.now);
        self.take(effects);
        self.registry.view(self.now).failures.len()
    }
}

#[rstest]
#[case::missing_where_it_is_asked(DriverErrorKind::DatabaseMissing, true, 0)]
#[case::another_failure(DriverErrorKind::Unreachable, true, 2)]
#[case::missing_where_nothing_is_asked(DriverErrorKind::DatabaseMissing, false, 2)]
fn o4_what_was_known_to_exist_is_doubted_when_it_is_missing_and_can_be_asked_about(
    #[case] kind: DriverErrorKind,
    #[case] look_up: bool,
    #[case] known: u8,
) {
    let mut world = World::with(RegistryConfig { look_up, ..RegistryConfig::new(2, 2) });
    let _held = world.lease("a");
    let _waiting = world.ask("a");
    let error = Arc::new(DriverError::new(Phase::Connect, kind, "a"));
    let effects = world.registry.open_failed(world.opens.remove(0), error, world.now);
    world.take(effects);
    assert_eq!(world.registry.view(world.now).workspaces[0].known, known);
}

#[test]
fn o1_slow_opens_and_lost_ones_keep_no_more_than_half_of_the_share() {
    let mut world = World::with(RegistryConfig { opens: 1, ..RegistryConfig::new(4, 1) });
    let _waiting = ["slow", "lost", "next", "other"].map(|name| world.ask(name));
    let mut slow = world.opens.remove(0);
    let effects = world.registry.open_is_slow(&mut slow, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["lost"]));
    let lost = world.give_up_first();
    assert_eq!(world.asked.opens, [target("next")]);
    let mut next = world.opens.remove(0);
    let effects = world.registry.open_is_slow(&mut next, world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing(), "two of four slots are kept already");
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
    let effects = world.registry.open_is_slow(&mut next, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["other"]));
    world.opens.extend([slow, next]);
}

#[test]
fn o3_a_retry_that_comes_before_its_time_is_still_owed() {
    let mut world = World::new(2, 2);
    let _held = world.lease("a");
    let _waiting = world.ask("a");
    world.fail_first();
    assert_eq!(world.asked, Asked { retry_at: Some((target("a"), world.now + PAUSE)), ..nothing() });
    world.pass(PAUSE.saturating_sub(A_MOMENT));
    world.retry("a");
    assert_eq!(world.asked, nothing(), "neither opened nor asked for again");
    world.pass(A_MOMENT);
    world.retry("a");
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn e4_a_failure_whose_retry_found_nobody_is_forgotten() {
    let mut world = World::new(2, 2);
    let held = world.lease("a");
    let waiting = world.ask("a");
    world.fail_first();
    let gave_up = world.registry.cancel_wait(waiting, world.now);
    world.take(gave_up.effects);
    world.pass(LONG);
    assert_eq!(world.remembered(), 1, "its retry is owed");
    world.retry("a");
    assert_eq!(world.remembered(), 0);
    world.release(held);
}

#[test]
fn o1_an_open_that_hung_is_remembered_as_long_as_some_are_lost() {
    let mut world = World::new(4, 4);
    let _told = world.ask("hung");
    let lost = world.give_up_first();
    world.pass(LONG);
    assert_eq!(world.remembered(), 1);
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
    assert_eq!(world.remembered(), 0);
}

#[test]
fn e4_a_failure_is_remembered_for_the_longest_pause_beyond_its_own() {
    let mut world = World::new(4, 4);
    let _told = world.ask("a");
    world.fail_first();
    world.pass((PAUSE + Duration::from_secs(5)).saturating_sub(A_MOMENT));
    assert_eq!(world.remembered(), 1);
    world.pass(A_MOMENT);
    assert_eq!(world.remembered(), 0);
}

#[test]
fn o3_a_new_connection_that_proves_broken_cuts_no_pause_short() {
    let mut world = World::new(3, 3);
    let _held = world.lease("a");
    let (new, _waiting) = (world.ask("a"), world.ask("a"));
    world.open_first();
    world.fail_first();
    let paused = |world: &World, at| world.registry.view(at).failures[0].1;
    let last = world.now + PAUSE.saturating_sub(A_MOMENT);
    assert!(paused(&world, last));
    let broken = world.served(new);
    let (again, effects) = world.registry.replace(broken.debt, broken.conn, broke(), world.now);
    world.take(effects);
    let Acquire::Queued(_, effects) = again else { panic!("{again:?}") };
    world.take(effects);
    assert!(paused(&world, last));
}

#[test]
fn o3_a_new_connection_that_proves_broken_after_a_failure_makes_a_shorter_pause_longer() {
    let mut world = World::new(3, 3);
    let held = world.lease("a");
    let waiting = world.ask("a");
    world.fail_first();
    world.pass(PAUSE);
    world.retry("a");
    let _second = world.ask("a");
    // One open comes, so that the failure is forgotten, and the other one fails for the first time.
    world.open_first();
    world.fail_first();
    let twice = world.now + (2 * PAUSE).saturating_sub(A_MOMENT);
    let paused = |world: &World| world.registry.view(twice).failures[0].1;
    assert!(!paused(&world));
    let broken = world.served(waiting);
    let (_again, effects) = world.registry.replace(broken.debt, broken.conn, broke(), world.now);
    world.take(effects);
    assert!(paused(&world));
    world.release(held);
}

#[test]
fn o3_waiters_that_another_open_can_serve_outlast_a_failed_one() {
    let mut world = World::new(3, 3);
    let held = world.lease("a");
    let (first, second) = (world.ask("a"), world.ask("a"));
    let effects = world.registry.discard(held.debt, held.conn, world.now);
    world.take(effects);
    world.fail_first();
    let tickets = [world.waits(first), world.waits(second), world.ask("a")];
    world.fail_first();
    for ticket in tickets {
        assert!(matches!(world.claim(ticket), Claim::Failed(_)), "that was the last one");
    }
}
