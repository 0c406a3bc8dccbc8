//! A server that does not answer as a whole.

use std::time::Duration;

use pool_core::{Acquire, AcquireError, Claim, Health, RegistryConfig};

use crate::world::{Asked, World, nothing, opens, refused, target};

const AGAIN: Duration = Duration::from_millis(500);

fn goes_dark(world: &mut World) {
    let effects = world.registry.server_is_lost(refused(), AGAIN, world.now);
    world.take(effects);
}

fn answers(world: &mut World) {
    let effects = world.registry.server_answers(world.now);
    world.take(effects);
}

#[test]
fn o7_who_waits_for_a_server_that_is_lost_is_told_and_so_is_who_comes() {
    let mut world = World::new(4, 4);
    let waiting = world.ask("a");
    goes_dark(&mut world);
    assert!(matches!(world.claim(waiting), Claim::Failed(AcquireError::OpenFailed { .. })));
    let Acquire::Refused(error) = world.registry.acquire(&target("b"), world.now) else { panic!("not told") };
    assert!(matches!(error, AcquireError::OpenFailed { retry_in, .. } if retry_in == AGAIN), "{error}");
}

#[test]
fn o7_nothing_is_opened_while_the_server_is_lost_and_everything_when_it_answers() {
    let mut world = World::new(4, 4);
    let held = world.lease("a");
    goes_dark(&mut world);
    let waiting = world.ask("a");
    assert_eq!(world.asked, nothing(), "there are slots, and a waiter");
    let waiting = world.waits(waiting);
    answers(&mut world);
    assert_eq!(world.asked, opens(&["a"]));
    world.open_all();
    world.served(waiting);
    world.release(held);
}

#[test]
fn o7_a_waiter_whose_last_connection_breaks_meanwhile_is_told_although_its_close_hangs() {
    let mut world = World::new(4, 1);
    let held = world.lease("a");
    let waiting = world.ask("a");
    goes_dark(&mut world);
    let effects = world.registry.discard_broken(held.debt, held.conn, world.now);
    world.take(effects);
    assert!(matches!(world.claim(waiting), Claim::Failed(_)));
}

#[test]
fn o7_the_first_answer_ends_every_pause() {
    let mut world = World::new(4, 4);
    let _told = world.ask("a");
    world.fail_first();
    world.refusal("a");
    goes_dark(&mut world);
    answers(&mut world);
    let waiting = world.ask("a");
    assert_eq!(world.open_all(), [target("a")]);
    world.served(waiting);
}

#[test]
fn o7_an_open_from_before_is_replaced_at_once_and_has_not_failed() {
    let mut world = World::with(RegistryConfig { opens: 1, ..RegistryConfig::new(4, 1) });
    let _told = world.ask("a");
    goes_dark(&mut world);
    answers(&mut world);
    let waiting = world.ask("a");
    assert_eq!(world.asked, nothing(), "the open from before keeps the permit");
    let old = world.opens.remove(0);
    let (lost, effects) = world.registry.open_overtaken(old, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["a"]));
    world.open_all();
    world.served(waiting);
    assert_eq!(world.registry.stats().open_failures, 0);
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
}

#[test]
fn o7_what_was_lost_in_the_dark_holds_nobody_back() {
    let mut world = World::new(2, 2);
    let _told = world.ask("a");
    goes_dark(&mut world);
    let lost = world.give_up_first();
    answers(&mut world);
    // Half of the share is lost, and the last open of this one hung.
    let waiting = world.ask("a");
    assert_eq!(world.open_all(), [target("a")]);
    world.served(waiting);
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
}

#[test]
fn l2_who_waits_when_nobody_is_left_to_act_is_told_and_may_ask_again_at_once() {
    let mut world = World::new(2, 2);
    let waiting = [world.ask("a"), world.ask("b")];
    let effects = world.registry.nobody_is_left(&refused(), world.now);
    world.take(effects);
    for ticket in waiting {
        let Claim::Failed(AcquireError::OpenFailed { retry_in, .. }) = world.claim(ticket) else {
            panic!("not told")
        };
        assert_eq!(retry_in, Duration::ZERO);
    }
    assert_eq!(world.registry.stats().waiting, 0);
}

#[test]
fn l2_whoever_acts_next_is_asked_anew_for_what_was_asked_of_the_last_one() {
    let config = RegistryConfig { look_up: true, ..RegistryConfig::new(1, 1) };
    let mut world = World::with(config);
    world.idle("warm");
    let _waiting = world.ask("new");
    assert_eq!(world.look_ups, [target("new")]);
    let effects = world.registry.begin_again(world.now);
    world.take(effects);
    assert_eq!(world.asked, Asked { look_ups: vec![target("new")], ..nothing() });
}

#[test]
fn l2_nothing_that_the_last_one_saw_is_held_against_anybody() {
    let mut world = World::new(4, 4);
    let _held = world.lease("a");
    let _waiting = world.ask("a");
    world.fail_first();
    goes_dark(&mut world);
    let effects = world.registry.begin_again(world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn o7_the_health_tells_of_an_outage_of_how_long_it_lasts_and_of_its_end() {
    let mut world = World::new(4, 4);
    assert!(world.registry.health(world.now).is_serving());
    goes_dark(&mut world);
    world.now += Duration::from_secs(3);
    let Health::Unavailable { lasting, error } = world.registry.health(world.now) else { panic!("not told") };
    assert_eq!((lasting, error.kind), (Duration::from_secs(3), refused().kind));
    answers(&mut world);
    assert!(world.registry.health(world.now).is_serving());
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    assert!(matches!(world.registry.health(world.now), Health::Closed));
}
