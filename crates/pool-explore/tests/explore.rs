//! Every schedule of small worlds: no law is broken.

use pool_explore::enumerate::{Scenario, explore};
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

/// Larger worlds, for `cargo xtask test-pools --race`; minutes.
#[rstest]
#[case::two_workspaces(Scenario { mishaps: 2, ..Scenario::ALL })]
#[case::two_connections(Scenario { budget: 2, callers: 4, ..Scenario::ALL })]
#[case::three_workspaces(Scenario { workspaces: 3, budget: 2, opens: 1, ..Scenario::ALL })]
#[case::more_callers(Scenario { callers: 5, mishaps: 2, ..Scenario::default() })]
#[case::more_mishaps(Scenario { budget: 2, callers: 3, mishaps: 3, quanta: 0, ..Scenario::default() })]
#[case::more_connections(Scenario { budget: 2, callers: 4, mishaps: 2, quanta: 0, ..Scenario::default() })]
#[case::more_workspaces(Scenario { workspaces: 3, budget: 2, callers: 5, ..Scenario::ALL })]
#[case::more_of_all(Scenario { workspaces: 3, budget: 3, callers: 5, quanta: 0, ..Scenario::ALL })]
#[ignore = "minutes; cargo xtask test-pools --race runs it"]
fn no_schedule_of_a_larger_world_breaks_a_law(#[case] scenario: Scenario) {
    search(scenario, 1);
}

fn search(scenario: Scenario, states: usize) {
    let Scenario { workspaces, budget, callers, mishaps, .. } = scenario;
    match explore(&scenario) {
        Ok(report) => {
            let world =
                format!("{workspaces} workspaces, budget {budget}, {callers} callers, {mishaps} mishaps");
            println!("race: {report} of {world}");
            assert!(report.states >= states, "the world is not as large as it was: {report}");
        }
        Err(violation) => panic!("{violation}"),
    }
}
