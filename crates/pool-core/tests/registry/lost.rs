//! Opens that nobody waits for any more: who is told, who is held back, and when everything has come to its end.

use std::time::Duration;

use pool_core::Claim;
use rstest::rstest;

use crate::world::{Asked, World, nothing, opens, target};

/// The first pause, by default.
const PAUSE: Duration = Duration::from_millis(50);
const A_MOMENT: Duration = Duration::from_nanos(1);

#[test]
fn o5_a_share_that_is_not_being_closed_is_not_drained_by_the_end_of_a_lost_open() {
    let mut world = World::new(4, 4);
    let _told = world.ask("a");
    let lost = world.give_up_first();
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing());
    assert!(world.registry.is_empty());
}

#[test]
fn c1_a_closed_share_is_drained_when_its_last_lost_open_has_ended() {
    let mut world = World::new(4, 4);
    let _told = [world.ask("a"), world.ask("b")];
    let lost = [world.give_up_first(), world.give_up_first()];
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    for (lost, is_last) in lost.into_iter().zip([false, true]) {
        let effects = world.registry.lost_ended(lost, world.now);
        world.take(effects);
        assert_eq!(world.asked, Asked { drained: is_last, ..nothing() });
    }
}

#[test]
fn c1_a_close_is_told_when_the_last_lost_open_has_ended_beside_a_lease() {
    let mut world = World::new(4, 4);
    let _held = world.lease("a");
    let told = world.ask("b");
    let lost = world.give_up_first();
    assert!(matches!(world.claim(told), Claim::Failed(_)));
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
    assert_eq!(world.asked, Asked { drained: true, ..nothing() }, "only a lease is left");
}

#[rstest]
#[case::while_the_pause_goes_on(PAUSE.saturating_sub(A_MOMENT), true)]
#[case::when_it_is_over(PAUSE, false)]
fn o6_waiters_whose_last_connection_breaks_after_an_open_hung_are_told(
    #[case] after: Duration,
    #[case] told: bool,
) {
    let mut world = World::new(4, 4);
    let held = world.lease("a");
    let ticket = world.ask("a");
    let lost = world.give_up_first();
    world.pass(after);
    let effects = world.registry.discard_broken(held.debt, held.conn, world.now);
    world.take(effects);
    match world.claim(ticket) {
        Claim::Failed(_) => assert!(told),
        Claim::Waiting(_) => assert!(!told && world.asked.opens == [target("a")]),
        other @ Claim::Leased(_) => panic!("{other:?}"),
    }
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
}

#[test]
fn o5_waiters_of_a_target_that_is_held_back_are_served_when_a_slot_of_another_one_comes_back() {
    let mut world = World::new(4, 4);
    let _held = world.lease("a");
    let _waiting = world.ask("a");
    let lost = world.give_up_first();
    let _told = world.ask("b");
    let other = world.give_up_first();
    world.pass(PAUSE);
    let effects = world.registry.retry(&target("a"), world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing(), "half of the share is lost");
    let effects = world.registry.lost_ended(other, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["a"]));
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
}
