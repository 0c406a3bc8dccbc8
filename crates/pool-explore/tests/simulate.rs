//! The table of worlds, held by tests: what is to be reached in virtual time depends on the code and on nothing else.
//! Each test runs one world, or one sweep, and says which goals were missed.

use std::time::Duration;

use pool_explore::simulate::{Case, Demand, Workload, World, cases, run};
use rstest::rstest;

/// Runs the cases of a name, or of a sweep.
fn reach(name: &str) {
    let asked: Vec<Case> = cases()
        .into_iter()
        .filter(|case| case.name == name || case.sweep.is_some_and(|s| s.0 == name))
        .collect();
    assert!(!asked.is_empty(), "no world is called {name}");
    let missed: Vec<String> = asked.iter().flat_map(missed).collect();
    assert!(missed.is_empty(), "missed:\n  {}", missed.join("\n  "));
}

fn missed(case: &Case) -> Vec<String> {
    match case.run() {
        Ok(judged) => judged.missed().map(|verdict| format!("{}: {verdict}", case.name)).collect(),
        Err(broken) => vec![format!("{}: {broken}", case.name)],
    }
}

#[rstest]
#[case::two_on_one_slot("two-on-one")]
#[case::forty_on_ten_slots("forty-on-ten")]
#[case::two_hundred_equal_ones("equals")]
#[case::two_hundred_with_jitter("equals-jittered")]
#[case::by_weight("weights")]
#[case::lonely_callers("lonely")]
fn w6_busy_workspaces_share_the_slots_and_keep_them_busy(#[case] world: &str) {
    reach(world);
}

#[rstest]
#[case::slots("slots")]
#[case::workspaces("workspaces")]
#[case::queries("query-ms")]
#[case::connects("connect-ms")]
#[case::permits("permits")]
fn w6_sharing_holds_over_a_sweep_of(#[case] sweep: &str) {
    reach(sweep);
}

#[test]
fn w6_a_quiet_workspace_beside_loud_ones_waits_for_one_quantum_and_one_switch() {
    reach("loud-and-quiet");
}

#[rstest]
#[case::a_slot_for_each("walk-105")]
#[case::far_too_few("walk-60")]
#[case::too_few("walk-80")]
#[case::plenty("walk-150")]
fn e2_a_second_connection_costs_nobody_a_first_one(#[case] world: &str) {
    reach(world);
}

#[rstest]
#[case::uniform("picks-uniform")]
#[case::zipf("picks-zipf")]
#[case::sessions("sessions")]
fn e2_what_is_kept_open_is_worth_more_than_fresh_connections(#[case] world: &str) {
    reach(world);
}

#[test]
fn w3_ten_callers_of_a_cold_workspace_do_not_wait_for_ten_connects() {
    reach("cold");
}

#[test]
fn o4_a_storm_of_unknown_ids_at_most_doubles_the_times_of_others() {
    reach("storm");
}

#[test]
fn the_same_seed_has_the_same_figures_and_another_has_others() {
    let workload = Workload::Picks { tasks: 30, demand: Demand::Zipf };
    let quiet_asks_every = Some(Duration::from_millis(20));
    let world = World { workload, quiet_asks_every, unknown_ids: 20, seed: 7, ..World::default() };
    let figures = run(&world).unwrap();
    assert_eq!(run(&world), Ok(figures));
    assert_ne!(run(&World { seed: 8, ..world }), Ok(figures));
}

/// Two callers on the one connection of the one workspace: one is served while the other waits.
#[test]
fn figures_are_those_that_a_pencil_finds() {
    let at = Duration::from_millis;
    let world = World {
        slots: 1,
        workspaces: 1,
        workload: Workload::Busy { callers: 2 },
        query: at(1),
        jitter: 0.0,
        warm_up: at(100),
        at_least: at(1_000),
        cycles: 0,
        ..World::default()
    };
    let figures = run(&world).unwrap();
    // The connect takes 3 ms, so that leases begin and end with the milliseconds: 101 is the first, 1,099 the last.
    assert_eq!((figures.grants, figures.connects, figures.refused, figures.peak), (1_000, 0, 0, 1));
    assert!((figures.goodput - 1.0).abs() < 1e-9, "{}", figures.goodput);
    assert_eq!((figures.waits.p50, figures.waits.max), (at(1), at(1)));
    assert_eq!((figures.latencies.p50, figures.latencies.max), (at(2), at(2)));
    assert_eq!(figures.longest_unserved, at(1));
    assert!((figures.jain_slot_time - 1.0).abs() < 1e-9 && (figures.spread - 1.0).abs() < 1e-9);
}

/// Four callers, one open at a time: the connects come one after the other, and the last caller has waited for all.
#[test]
fn a_wait_for_connects_is_counted_from_the_question() {
    let at = Duration::from_millis;
    let world = World {
        slots: 4,
        workspaces: 1,
        permits: 1,
        workload: Workload::Cold { callers: 4 },
        query: at(500),
        connect: at(10),
        jitter: 0.0,
        warm_up: at(100),
        at_least: at(400),
        cycles: 0,
        ..World::default()
    };
    let figures = run(&world).unwrap();
    assert_eq!((figures.grants, figures.connects, figures.peak), (4, 4, 4));
    assert_eq!(figures.waits.max, at(40));
}
