//! Opening and replacing: failures, storms, and connections that break.

use std::sync::Arc;
use std::time::Duration;

use pool_core::{
    Acquire, AcquireError, Claim, CloseReason, DriverError, DriverErrorKind, Phase, RegistryConfig, Stage,
    Ticket,
};
use rstest::rstest;

use crate::world::{Asked, World, broke, closes, nothing, opens, refused, target};

#[test]
fn o1_a_hung_open_neither_blocks_other_opens_nor_keeps_its_permit() {
    let mut config = RegistryConfig::new(4, 4);
    config.opens = 1;
    let mut world = World::with(config);
    let _hung = world.ask("hung");
    let mut hung = world.opens.remove(0);
    let other = world.ask("other");
    assert_eq!(world.asked, nothing(), "one open at a time here");
    let effects = world.registry.open_is_slow(&mut hung, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["other"]));
    assert_eq!(world.open_all(), [target("other")]);
    world.served(other);
    let effects = world.registry.open_failed(hung, refused(), world.now);
    world.take(effects);
}

#[test]
fn o2_an_open_outlives_the_caller_that_asked_for_it() {
    let mut world = World::new(1, 1);
    let ticket = world.ask("a");
    let gave_up = world.registry.cancel_wait(ticket, world.now);
    assert_eq!(gave_up.waiting_for, Stage::Opening);
    world.take(gave_up.effects);
    world.open_all();
    let conn = world.hit("a").conn;
    assert_eq!(conn, 1);
}

#[test]
fn o3_a_failed_open_tells_the_waiters_and_gives_the_slot_back() {
    let mut world = World::new(1, 1);
    let (first, second) = (world.ask("a"), world.ask("a"));
    let other = world.ask("b");
    world.fail_first();
    for ticket in [first, second] {
        let Claim::Failed(error) = world.claim(ticket) else { panic!("not told") };
        assert!(matches!(error, AcquireError::OpenFailed { retryable: true, .. }), "{error}");
        assert!(error.to_string().contains("connecting to db:5432/x failed"), "{error}");
    }
    assert_eq!(world.open_all(), [target("b")]);
    world.served(other);
}

#[test]
fn o3_a_target_that_failed_backs_off_longer_each_time() {
    let mut world = World::new(1, 1);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let _told = world.ask("a");
        world.fail_first();
        let AcquireError::OpenFailed { retry_in, .. } = world.refusal("a") else { panic!("not refused") };
        pauses.push(retry_in.as_millis());
        world.pass(retry_in);
    }
    assert_eq!(pauses[..4], [50, 100, 200, 400]);
    assert_eq!(pauses[9], 5_000);
}

#[test]
fn o3_waiters_that_a_live_connection_can_serve_outlast_a_failed_open() {
    let mut world = World::new(4, 4);
    let held = world.lease("a");
    let ticket = world.ask("a");
    world.fail_first();
    let ticket = world.waits(ticket);
    // After the pause another open is tried.
    world.pass(Duration::from_millis(50));
    let effects = world.registry.retry(&target("a"), world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["a"]));
    world.release(held);
    assert_eq!(world.asked, nothing());
    world.served(ticket);
}

#[test]
fn o4_a_storm_for_a_missing_database_costs_one_open() {
    let mut world = World::new(8, 8);
    let tickets: Vec<_> = (0..100).map(|_| world.ask("missing")).collect();
    assert_eq!((world.opens.len(), &world.asked), (1, &nothing()));
    world.fail_first();
    assert_eq!(world.asked, nothing());
    for ticket in tickets {
        assert!(matches!(world.claim(ticket), Claim::Failed(_)));
    }
    for _ in 0..100 {
        world.refusal("missing");
    }
    assert!(world.opens.is_empty());
    assert_eq!(world.registry.stats().open_failures, 1);
}

#[test]
fn o4_a_database_that_was_just_created_is_opened_at_once() {
    let mut world = World::new(8, 8);
    let _told = world.ask("new");
    world.fail_first();
    let effects = world.registry.clear_failure(&target("new"), world.now);
    world.take(effects);
    world.lease("new");
}

#[test]
fn l3_a_broken_connection_is_replaced_at_the_front_of_the_queue() {
    let mut world = World::new(1, 1);
    world.idle("a");
    let broken = world.hit("a");
    let behind = world.ask("a");
    let (again, effects) = world.registry.replace(broken.debt, broken.conn, broke(), world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Broken));
    let Acquire::Queued(ticket, effects) = again else { panic!("nothing else is idle") };
    world.take(effects);
    assert_eq!(world.asked, nothing());
    world.close_all_owed();
    world.open_all();
    assert_eq!(world.served(ticket).conn, 2);
    world.waits(behind);
}

/// Opens a connection to `a`, which a caller claims and finds broken.
fn breaks_when_new(world: &mut World, ticket: Ticket) -> Acquire<u32> {
    world.open_all();
    let broken = world.served(ticket);
    let (again, effects) = world.registry.replace(broken.debt, broken.conn, broke(), world.now);
    world.take(effects);
    world.close_all_owed();
    again
}

#[test]
fn o3_a_server_that_breaks_every_new_connection_backs_off_longer_each_time() {
    let mut world = World::new(4, 4);
    let mut ticket = world.ask("a");
    let mut pauses = Vec::new();
    for _ in 0..6 {
        match breaks_when_new(&mut world, ticket) {
            Acquire::Queued(again, effects) => {
                world.take(effects);
                ticket = again;
                pauses.push(0);
            }
            Acquire::Refused(AcquireError::OpenFailed { retry_in, source, .. }) => {
                assert_eq!(source.phase, Phase::Check);
                pauses.push(retry_in.as_millis());
                world.refusal("a");
                world.pass(retry_in);
                ticket = world.ask("a");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pauses, [0, 50, 100, 200, 400, 800]);
    world.open_all();
    let good = world.served(ticket);
    world.release(good);
    let again = world.hit("a");
    let (again, effects) = world.registry.replace(again.debt, again.conn, broke(), world.now);
    world.take(effects);
    let Acquire::Queued(_ticket, effects) = again else { panic!("one that has served is replaced at once") };
    world.take(effects);
}

#[test]
fn o3_everybody_who_waits_for_a_server_that_breaks_every_new_connection_is_told() {
    let mut world = World::new(1, 1);
    let first = world.ask("a");
    let second = world.ask("a");
    let Acquire::Queued(first, effects) = breaks_when_new(&mut world, first) else {
        panic!("replaced at once")
    };
    world.take(effects);
    let again = breaks_when_new(&mut world, first);
    assert!(matches!(again, Acquire::Refused(AcquireError::OpenFailed { .. })));
    assert!(matches!(world.claim(second), Claim::Failed(AcquireError::OpenFailed { .. })));
    assert!(world.opens.is_empty());
}

#[test]
fn l3_connections_that_were_idle_when_another_broke_are_checked() {
    let mut world = World::new(4, 4);
    world.idle("a");
    assert!(!world.hit("a").check_first, "used a moment ago");
    let (idle, broken) = (world.lease("b"), world.lease("c"));
    world.release(idle);
    let effects = world.registry.discard_broken(broken.debt, broken.conn, world.now);
    world.take(effects);
    assert!(world.hit("b").check_first);
}

#[test]
fn l3_when_a_connection_cannot_be_made_clean_only_those_of_its_workspace_are_checked() {
    let mut world = World::new(4, 4);
    let (idle, of_another, unclean) = (world.lease("a"), world.lease("b"), world.lease("a"));
    world.release(idle);
    world.release(of_another);
    let effects = world.registry.discard_unclean(unclean.debt, unclean.conn, world.now);
    world.take(effects);
    assert!(world.hit("a").check_first);
    assert!(!world.hit("b").check_first, "the server has not failed");
}

#[rstest]
#[case::the_session_was_lost(DriverErrorKind::ConnectionLost, true)]
#[case::the_server_refused_the_check(DriverErrorKind::Other, false)]
fn l3_a_check_that_fails_is_held_against_others_if_it_may_concern_them(
    #[case] kind: DriverErrorKind,
    #[case] of_all: bool,
) {
    let mut world = World::new(4, 4);
    let (of_another, broken) = (world.lease("b"), world.lease("a"));
    world.release(of_another);
    let error = Arc::new(DriverError::new(Phase::Check, kind, "here"));
    let (again, effects) = world.registry.replace(broken.debt, broken.conn, error, world.now);
    world.take(effects);
    let Acquire::Queued(_, more) = again else { panic!("replaced") };
    world.take(more);
    assert_eq!(world.hit("b").check_first, of_all);
}

#[test]
fn s1_idle_connections_whose_sessions_are_gone_are_closed_and_the_others_checked() {
    let mut world = World::new(4, 4);
    let (first, second, leased) = (world.lease("a"), world.lease("a"), world.lease("b"));
    for leased in [first, second, leased] {
        world.release(leased);
    }
    let asked = world.registry.idle();
    assert_eq!(asked.len(), 3);
    let lease = world.hit("b");
    let effects = world.registry.vanished(&asked[1..], world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Broken), "what is leased is left to its holder");
    assert_eq!(world.close_all_owed(), [(2, CloseReason::Broken)]);
    assert!(world.hit("a").check_first, "it may have broken with the other");
    world.release(lease);
}

#[test]
fn e1_a_connection_is_not_taken_for_the_one_that_had_its_place_before() {
    let mut world = World::new(1, 1);
    world.idle("a");
    let gone = world.registry.idle();
    let leased = world.hit("a");
    let effects = world.registry.discard(leased.debt, leased.conn, world.now);
    world.take(effects);
    world.close_all_owed();
    world.pass(Duration::from_millis(1));
    world.idle("a");
    let effects = world.registry.vanished(&gone, world.now);
    world.take(effects);
    assert_eq!(world.asked, nothing());
    assert!(!world.hit("a").check_first);
}

#[test]
fn l3_a_connection_idle_for_long_is_checked() {
    let mut world = World::new(1, 1);
    world.idle("a");
    world.pass(Duration::from_millis(501));
    assert!(world.hit("a").check_first);
}

#[test]
fn l3_where_the_server_says_nothing_one_check_speaks_for_all_that_were_idle() {
    let mut world = World::new(8, 8);
    let leases: Vec<_> = (0..3).map(|_| world.lease("a")).collect();
    for leased in leases {
        world.release(leased);
    }
    let late = world.lease("b");
    world.pass(Duration::from_mins(1));
    let checked = world.hit("a");
    world.pass(Duration::from_secs(1));
    world.release(late);
    let silent = Arc::new(DriverError::new(Phase::Check, DriverErrorKind::TimedOut, "db:5432/x"));
    let (again, effects) = world.registry.replace(checked.debt, checked.conn, silent, world.now);
    let Acquire::Queued(_ticket, more) = again else { panic!("no other of its connections is believed in") };
    world.take(more);
    assert_eq!(world.asked, opens(&["a"]));
    world.take(effects);
    assert_eq!(world.asked.closes.len(), 3, "its own three, and not the other workspace's");
}

#[test]
fn l3_a_connection_discarded_on_purpose_has_no_other_checked() {
    let mut world = World::new(4, 4);
    let (idle, discarded) = (world.lease("a"), world.lease("b"));
    world.release(idle);
    let effects = world.registry.discard(discarded.debt, discarded.conn, world.now);
    world.take(effects);
    assert_eq!(world.close_all_owed(), [(2, CloseReason::Discarded)]);
    assert!(!world.hit("a").check_first);
}

#[test]
fn l3_a_grant_fetched_late_is_checked_like_an_idle_connection() {
    let mut world = World::new(4, 1);
    for (late, breaks) in [(false, false), (true, false), (false, true)] {
        let (held, other) = (world.lease("a"), world.lease("b"));
        let ticket = world.ask("a");
        world.release(held);
        if breaks {
            let effects = world.registry.discard_broken(other.debt, other.conn, world.now);
            world.take(effects);
        } else {
            world.release(other);
        }
        world.pass(Duration::from_millis(if late { 501 } else { 500 }));
        let acquired = world.registry.stats().acquired;
        let leased = world.served(ticket);
        assert_eq!(leased.check_first, late || breaks);
        assert_eq!(world.registry.stats().acquired - acquired, u64::from(!leased.check_first));
        world = World::new(4, 1);
    }
}

#[test]
fn w3_a_waiter_that_queues_during_a_back_off_is_retried_after_it() {
    let mut world = World::new(4, 4);
    let _held = world.lease("a");
    let gone = world.ask("a");
    let gave_up = world.registry.cancel_wait(gone, world.now);
    world.take(gave_up.effects);
    world.fail_first();
    // Nobody waited when the open failed; this one comes during the pause.
    let Acquire::Queued(_ticket, effects) = world.registry.acquire(&target("a"), world.now) else {
        panic!("a connection in use may come back")
    };
    let (whom, at) = effects.retry_at.clone().expect("somebody is asked to watch the pause");
    assert_eq!((&whom, at), (&target("a"), world.now + Duration::from_millis(50)));
    world.take(effects);
    assert_eq!(world.asked, Asked { retry_at: Some((whom.clone(), at)), ..nothing() });
    world.now = at;
    let effects = world.registry.retry(&whom, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn o4_a_failure_from_before_the_creation_is_not_told() {
    let mut world = World::new(8, 8);
    let _first = world.ask("new");
    // The database is created while an open is under way that did not see it.
    let effects = world.registry.clear_failure(&target("new"), world.now);
    world.take(effects);
    let second = world.ask("new");
    world.fail_first();
    let second = world.waits(second);
    world.open_all();
    world.served(second);
}

#[test]
fn o5_an_open_that_was_given_up_keeps_its_slot_and_nothing_else() {
    let config = RegistryConfig { opens: 1, ..RegistryConfig::new(4, 1) };
    let mut world = World::with(config);
    let ticket = world.ask("hung");
    let lost = world.give_up_first();
    assert!(matches!(world.claim(ticket), Claim::Failed(AcquireError::OpenFailed { .. })));
    assert_eq!(world.registry.stats().connections.opening, 1, "the server may count it");
    assert_eq!(world.registry.target_counts(&target("hung")).opening, 1);
    world.refusal("hung");
    // Neither the only permit, nor the target's only place: after the pause it opens again.
    world.pass(Duration::from_secs(1));
    let ticket = world.ask("hung");
    assert_eq!(world.open_all(), [target("hung")]);
    let leased = world.served(ticket);
    world.release(leased);
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
    assert_eq!(world.registry.stats().connections.total(), 1);
    assert_eq!(world.registry.stats().open_failures, 1, "one failure, told once");
}

#[test]
fn o2_a_lost_open_that_ends_well_serves_whoever_comes() {
    let mut world = World::new(4, 4);
    let _gone = world.ask("hung");
    let lost = world.give_up_first();
    let (_, effects) = world.registry.lost_opened(lost, 7, (), None, world.now).expect("there is room");
    world.take(effects);
    assert_eq!(world.hit("hung").conn, 7);
}

#[rstest]
#[case::has_all_it_may_have(false)]
#[case::is_being_closed(true)]
fn o5_a_lost_open_that_ends_well_where_nobody_may_have_it_is_handed_back(#[case] is_closing: bool) {
    let mut world = World::new(4, 1);
    let _gone = world.ask("hung");
    let lost = world.give_up_first();
    world.pass(Duration::from_secs(1));
    if is_closing {
        let effects = world.registry.begin_close(&target("hung"), world.now);
        world.take(effects);
        assert!(!world.registry.is_drained(&target("hung")), "the server may count it");
    } else {
        let _second = world.ask("hung");
        world.open_all();
    }
    let (lost, conn) = world.registry.lost_opened(lost, 7, (), None, world.now).expect_err("no place for it");
    assert_eq!(conn, 7);
    let effects = world.registry.lost_ended(lost, world.now);
    assert_eq!(effects.drained, is_closing);
    world.take(effects);
}

#[test]
fn o1_databases_that_hang_keep_no_more_than_half_of_the_share() {
    let mut world = World::new(4, 4);
    let mut lost = Vec::new();
    for _ in 0..2 {
        let _ticket = world.ask("hung");
        lost.push(world.give_up_first());
        world.pass(Duration::from_mins(1));
    }
    world.refusal("hung");
    // Others are none of it.
    let other = world.ask("a");
    world.open_all();
    world.served(other);
    // With a slot, its turn comes back.
    let effects = world.registry.lost_ended(lost.remove(0), world.now);
    world.take(effects);
    let _ticket = world.ask("hung");
    assert_eq!(world.open_all(), [target("hung")]);
    let effects = world.registry.lost_ended(lost.remove(0), world.now);
    world.take(effects);
}

#[test]
fn o5_waiters_of_a_target_that_is_held_back_are_served_when_a_slot_comes_back() {
    let mut world = World::new(2, 2);
    let held = world.lease("a");
    let ticket = world.ask("a");
    let lost = world.give_up_first();
    let ticket = world.waits(ticket);
    world.pass(Duration::from_secs(1));
    let effects = world.registry.retry(&target("a"), world.now);
    world.take(effects);
    assert!(world.opens.is_empty(), "half of the share is lost");
    let effects = world.registry.lost_ended(lost, world.now);
    world.take(effects);
    assert_eq!(world.asked, opens(&["a"]));
    world.open_all();
    world.served(ticket);
    world.release(held);
}

#[test]
fn o1_a_hung_close_delays_no_other() {
    let mut world = World::new(3, 3);
    for name in ["a", "b", "c"] {
        world.idle(name);
    }
    let _d = world.ask("d");
    let (_, mut hung) = world.closes.remove(0).split();
    let effects = world.registry.close_is_slow(&mut hung, world.now);
    world.take(effects);
    assert_eq!(world.asked, closes(&["b"], CloseReason::Evicted), "room is made elsewhere");
    let effects = world.registry.closed(hung, world.now);
    world.take(effects);
}
