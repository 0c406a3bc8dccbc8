//! Every schedule of small worlds: no law is broken, and a planted bug breaks one.

use pool_testkit::explore::{Bug, Scenario, explore};
use rstest::rstest;

#[rstest]
fn no_schedule_breaks_a_law(#[values(1, 2)] budget: u32) {
    match explore(&Scenario { budget, ..Scenario::default() }) {
        Ok(report) => {
            println!("budget {budget}: {report}");
            assert!(report.states > 500, "the world is not as large as it was: {report}");
        }
        Err(violation) => panic!("{violation}"),
    }
}

/// Larger worlds, at the size that `POOL_EXPLORE_CALLERS` says; `cargo xtask test-pools --race` makes it 5.
#[rstest]
fn no_schedule_of_a_larger_world_breaks_a_law(#[values(2, 3)] workspaces: u32, #[values(1, 2)] budget: u32) {
    let callers = std::env::var("POOL_EXPLORE_CALLERS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let scenario = Scenario { workspaces, budget, callers, bug: bug_of_environment(), ..Scenario::default() };
    match explore(&scenario) {
        Ok(report) => {
            println!("race: {report} of {workspaces} workspaces, budget {budget}, {callers} callers");
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
#[case::w4_grant_lost_on_cancel(Bug::GrantLostOnCancel, "W4")]
#[case::s1_slot_leaked_on_failed_open(Bug::SlotLeakedOnFailedOpen, "S1")]
#[case::w3_no_eviction(Bug::NoEviction, "W3")]
#[case::w1_last_come_first_served(Bug::LastComeFirstServed, "W1")]
#[case::w3_lost_wake_up(Bug::LostWakeUp, "W3")]
fn a_planted_bug_is_found_with_a_short_story(#[case] bug: Bug, #[case] law: &str) {
    // Callers 0 and 2 share a workspace; caller 3 shares caller 1's.
    let scenario = Scenario { callers: 4, breakages: 0, bug: Some(bug), ..Scenario::default() };
    let violation = explore(&scenario).expect_err("the bug was planted");
    println!("{bug:?}: {violation}");
    assert_eq!(violation.broken.law, law, "{violation}");
    assert!(violation.steps.len() < 12, "{violation}");
}
