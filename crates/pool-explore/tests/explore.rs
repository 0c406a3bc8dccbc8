//! Every schedule of small worlds: no law is broken, and a planted bug breaks one.

use pool_explore::enumerate::{Bug, Scenario, explore};
use rstest::rstest;

/// A world and how large it must be at least, so that it does not shrink unseen. Limits change in one of them, and look-ups
/// are made in another; most of the larger worlds have both.
#[rstest]
#[case::one_workspace(Scenario { workspaces: 1, mishaps: 2, ..Scenario::default() }, 11_700)]
#[case::two_workspaces(Scenario { mishaps: 2, ..Scenario::default() }, 132_000)]
#[case::two_connections(Scenario { budget: 2, callers: 4, ..Scenario::default() }, 171_000)]
#[case::three_workspaces(Scenario { workspaces: 3, budget: 2, opens: 1, ..Scenario::default() }, 60_000)]
#[case::three_workspaces_and_four_callers(Scenario { workspaces: 3, budget: 2, opens: 1, callers: 4, quanta: 0, ..Scenario::default() }, 116_000)]
#[case::three_connections(Scenario { budget: 3, callers: 4, quanta: 0, ..Scenario::default() }, 59_000)]
#[case::limits_that_change(Scenario { budget: 2, limits: true, ..Scenario::default() }, 33_500)]
#[case::outages(Scenario { budget: 2, outages: true, ..Scenario::default() }, 1)]
#[case::look_ups(Scenario { callers: 4, look_ups: true, ..Scenario::default() }, 61_500)]
fn no_schedule_breaks_a_law(#[case] scenario: Scenario, #[case] states: usize) {
    search(scenario, states);
}

/// Callers 0 and 2 share a workspace; caller 3 shares caller 1's.
const SMALL: Scenario = Scenario { callers: 4, ..ALL };

/// In which everything may happen.
const ALL: Scenario = Scenario {
    workspaces: 2,
    budget: 1,
    per_workspace: 2,
    opens: 8,
    callers: 3,
    mishaps: 1,
    quanta: 1,
    limits: true,
    look_ups: true,
    outages: true,
    bug: None,
};

/// Larger worlds, for `cargo xtask test-pools --race`; minutes.
#[rstest]
#[case::two_workspaces(Scenario { mishaps: 2, ..ALL })]
#[case::two_connections(Scenario { budget: 2, callers: 4, ..ALL })]
#[case::three_workspaces(Scenario { workspaces: 3, budget: 2, opens: 1, ..ALL })]
#[case::more_callers(Scenario { callers: 5, mishaps: 2, ..Scenario::default() })]
#[case::more_mishaps(Scenario { budget: 2, callers: 3, mishaps: 3, quanta: 0, ..Scenario::default() })]
#[case::more_connections(Scenario { budget: 2, callers: 4, mishaps: 2, quanta: 0, ..Scenario::default() })]
#[case::more_workspaces(Scenario { workspaces: 3, budget: 2, callers: 5, ..ALL })]
#[case::more_of_all(Scenario { workspaces: 3, budget: 3, callers: 5, quanta: 0, ..ALL })]
#[ignore = "minutes; cargo xtask test-pools --race runs it"]
fn no_schedule_of_a_larger_world_breaks_a_law(#[case] scenario: Scenario) {
    search(scenario, 1);
}

fn search(scenario: Scenario, states: usize) {
    let Scenario { workspaces, budget, callers, mishaps, .. } = scenario;
    match explore(&Scenario { bug: bug_of_environment(), ..scenario }) {
        Ok(report) => {
            let world =
                format!("{workspaces} workspaces, budget {budget}, {callers} callers, {mishaps} mishaps");
            println!("race: {report} of {world}");
            assert!(report.states >= states, "the world is not as large as it was: {report}");
        }
        Err(violation) => panic!("{violation}"),
    }
}

/// The bug that `POOL_PLANTED` names, to prove that the search bites.
fn bug_of_environment() -> Option<Bug> {
    match std::env::var("POOL_PLANTED").ok()?.as_str() {
        "lost-wake-up" => Some(Bug::LostWakeUp),
        "lost-grant" => Some(Bug::GrantLostOnCancel),
        _ => None,
    }
}

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
#[case::e1_stale_token(Bug::StaleToken, "E1", SMALL)]
#[case::s1_cut_keeps_slot(Bug::CutKeepsSlot, "S1", SMALL)]
#[case::c1_forgotten_closer(Bug::ForgottenCloser, "C1", SMALL)]
#[case::w5_yields_early(Bug::YieldsEarly, "W5", SMALL)]
#[case::o6_forgotten_moment(Bug::ForgottenMoment, "O6", SMALL)]
fn a_planted_bug_is_found_with_a_short_story(
    #[case] bug: Bug,
    #[case] law: &str,
    #[case] scenario: Scenario,
) {
    let violation = explore(&Scenario { bug: Some(bug), ..scenario }).expect_err("the bug was planted");
    println!("{bug:?}: {violation}");
    assert_eq!(violation.broken.law, law, "{violation}");
    assert!(violation.steps.len() < 12, "{violation}");
}
