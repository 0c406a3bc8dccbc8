//! A planted bug breaks a law, in a small world and after a short story: the checks bite.

use planted_explore::enumerate::{Scenario, explore};
use pool_core::{Bug, plant};
use rstest::rstest;

/// Callers 0 and 2 share a workspace; caller 3 shares caller 1's. Everything may happen.
const SMALL: Scenario = Scenario { callers: 4, ..Scenario::ALL };

#[rstest]
#[case::w4_grant_lost_on_cancel(Bug::GrantLostOnCancel, "W4", SMALL)]
#[case::w4_cancelled_waiter_served(Bug::CancelledWaiterServed, "W4", SMALL)]
#[case::s1_slot_leaked_on_failed_open(Bug::SlotLeakedOnFailedOpen, "S1", SMALL)]
#[case::b1_double_grant(Bug::DoubleGrant, "B1", SMALL)]
#[case::w3_no_eviction(Bug::NoEviction, "W3", SMALL)]
#[case::e1_evicts_in_use(Bug::EvictsInUse, "E1", SMALL)]
#[case::w2_never_yields(Bug::NeverYields, "W2", SMALL)]
#[case::w2_unfair_turn(Bug::UnfairTurn, "W2", Scenario { workspaces: 3, ..SMALL })]
#[case::w1_last_come_first_served(Bug::LastComeFirstServed, "W1", SMALL)]
#[case::w3_lost_wake_up(Bug::LostWakeUp, "W3", SMALL)]
#[case::w3_forgotten_retry(Bug::ForgottenRetry, "W3", Scenario { budget: 2, ..SMALL })]
#[case::s1_count_drift_on_close(Bug::CountDriftOnClose, "S1", SMALL)]
#[case::b1_slot_freed_early(Bug::SlotFreedEarly, "B1", SMALL)]
#[case::e3_stale_token(Bug::StaleToken, "E3", SMALL)]
#[case::s1_cut_keeps_slot(Bug::CutKeepsSlot, "S1", SMALL)]
#[case::c1_forgotten_closer(Bug::ForgottenCloser, "C1", SMALL)]
#[case::w5_yields_early(Bug::YieldsEarly, "W5", SMALL)]
#[case::s3_answers_forgotten(Bug::AnswersForgotten, "S3", SMALL)]
#[case::o6_forgotten_moment(Bug::ForgottenMoment, "O6", SMALL)]
fn a_planted_bug_is_found_with_a_short_story(
    #[case] bug: Bug,
    #[case] law: &str,
    #[case] scenario: Scenario,
) {
    plant(bug);
    let violation = explore(&scenario).expect_err("the bug was planted");
    println!("{bug:?}: {violation}");
    assert_eq!(violation.broken.law, law, "{violation}");
    assert!(violation.steps.len() < 12, "{violation}");
}

/// Nothing is found where nothing is planted, so what is found is the bug.
#[test]
fn without_a_bug_no_law_is_broken() {
    explore(&Scenario { callers: 3, ..SMALL }).expect("no law is broken");
}

/// The bug that `POOL_PLANTED` names, told as a race is: `cargo xtask test-pools --race --planted`.
#[test]
#[ignore = "fails with the bug that POOL_PLANTED names; cargo xtask test-pools --race runs it"]
fn no_schedule_breaks_a_law_with_the_bug_of_the_environment() {
    match std::env::var("POOL_PLANTED").as_deref() {
        Ok("lost-wake-up") => plant(Bug::LostWakeUp),
        Ok("lost-grant") => plant(Bug::GrantLostOnCancel),
        Ok(other) => panic!("no such bug: {other}"),
        Err(_) => {}
    }
    match explore(&SMALL) {
        Ok(report) => println!("race: {report} with the bug of the environment, if any"),
        Err(violation) => panic!("{violation}"),
    }
}
