//! The table of worlds, and what is to be reached in each.

use std::time::Duration;

use super::case::{Case, Figure, Goal, Peer, millis};
use super::goals::goals_of_the_busy;
use super::sweeps::sweeps;
use super::world::{Demand, Workload, World};

/// All cases: worlds of their own, then the sweeps.
pub fn cases() -> Vec<Case> {
    let worlds = [busy(), walks(), picks(), others()].concat();
    worlds.into_iter().chain(sweeps()).collect()
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn case(name: &str, about: &str, world: World, peer: Option<Peer>, goals: Vec<Goal>) -> Case {
    Case { name: name.into(), sweep: None, about: about.into(), world, peer, goals }
}

fn busy() -> Vec<Case> {
    let busy = |name: &str, about: &str, world: World| {
        let goals = goals_of_the_busy(&world);
        case(name, about, world, None, goals)
    };
    let workload = |callers| Workload::Busy { callers };
    // The price of a switch that these worlds have had since they were first looked at, and four of it for a turn.
    let dear = World { connect: ms(5), close: ms(2), quantum: ms(28), ..World::default() };
    let two = World { slots: 1, workspaces: 2, workload: workload(2), query: us(200), ..dear.clone() };
    let forty = World { slots: 10, workspaces: 40, query: us(200), ..dear.clone() };
    let uneven = World { slots: 45, workspaces: 200, query: us(200), ..dear.clone() };
    // To the nanosecond alike, so that whoever is favoured once is favoured for ever.
    let equal = World { jitter: 0.0, ..uneven.clone() };
    let loud = World {
        slots: 45,
        workspaces: 60,
        workload: workload(10),
        query: ms(10),
        quiet_asks_every: Some(ms(100)),
        at_least: ms(20_000),
        ..World::default()
    };
    let weights = World { weights: vec![1, 3], ..World::default() };
    let mut cases = vec![
        busy("two-on-one", "2 busy workspaces on one slot", two),
        busy("forty-on-ten", "40 busy workspaces on 10 slots", forty),
        busy("equals", "200 equal workspaces on 45 slots; all times exactly alike", equal),
        busy("equals-jittered", "200 equal workspaces on 45 slots", uneven),
        busy(
            "weights",
            "40 busy workspaces on 10 slots; every second one weighs three times as much",
            weights,
        ),
        busy("loud-and-quiet", "60 workspaces with 10 callers each, and a quiet one, on 45 slots", loud),
    ];
    // A caller that has nobody behind it: its connection is idle for the moment between two requests, and is kept for it.
    let lonely = World { workload: workload(1), ..World::default() };
    cases.push(busy("lonely", "40 workspaces with one busy caller each on 10 slots", lonely));
    for case in &mut cases {
        if case.world.quiet_asks_every.is_some() {
            // The first slot whose quantum ends, and a switch: its close, its wait for a permit, its connect.
            let world = &case.world;
            let bound = millis(world.turn() + world.switch());
            case.goals.push(Goal::AtMost(Figure::QuietP99, bound));
        }
        if !case.world.weights.is_empty() {
            // A workspace that weighs less waits longer: the bound of equals is not its own.
            let of_equals = [Figure::LongestUnserved, Figure::LongestWait];
            case.goals.retain(|goal| !of_equals.contains(&goal.figure()));
        }
    }
    cases
}

fn walks() -> Vec<Case> {
    let walk = |slots: u32, least: f64| {
        let world = World {
            slots,
            workspaces: 100,
            workload: Workload::Walk { tasks: 16 },
            query: us(100),
            jitter: 0.5,
            at_least: ms(5_000),
            cycles: 0,
            ..World::default()
        };
        let about = format!("16 tasks in round robin over 100 workspaces, {slots} connections");
        let goals = vec![Goal::AtLeast(Figure::GrantsOfPeer, least)];
        case(&format!("walk-{slots}"), &about, world, Some(Peer::OneEach), goals)
    };
    vec![walk(105, 0.97), walk(60, 0.95), walk(80, 0.95), walk(150, 0.95)]
}

fn picks() -> Vec<Case> {
    let base = World {
        slots: 50,
        workspaces: 1_000,
        query: us(100),
        connects_per_second: Some(330),
        at_least: ms(20_000),
        warm_up: ms(2_000),
        cycles: 0,
        ..World::default()
    };
    let picks = |name: &str, about: &str, demand, least: f64| {
        let world = World { workload: Workload::Picks { tasks: 64, demand }, ..base.clone() };
        let goals = vec![Goal::AtLeast(Figure::GrantsOfPeer, least)];
        case(name, about, world, Some(Peer::FreshConnections), goals)
    };
    let sessions =
        World { workload: Workload::Sessions { users: 48, requests: 8 }, think: ms(1), ..base.clone() };
    let of_all = "64 tasks, each request of one of 1,000 workspaces, 50 slots, 330 connects a second";
    vec![
        picks("picks-uniform", &format!("{of_all}; all alike"), Demand::Uniform, 1.0),
        picks("picks-zipf", &format!("{of_all}; Zipf"), Demand::Zipf, 1.8),
        case(
            "sessions",
            "48 users at a time, each with 8 requests of one of 1,000 workspaces, 50 slots",
            sessions,
            None,
            vec![Goal::AtMost(Figure::ConnectsPerGrant, 0.125)],
        ),
    ]
}

fn others() -> Vec<Case> {
    let cold = World {
        slots: 20,
        workspaces: 1,
        workload: Workload::Cold { callers: 10 },
        query: ms(5_000),
        connect: ms(120),
        jitter: 0.0,
        at_least: ms(5_000),
        cycles: 0,
        ..World::default()
    };
    let storm = World {
        slots: 45,
        workspaces: 60,
        workload: Workload::Picks { tasks: 64, demand: Demand::Uniform },
        unknown_ids: 800,
        query: ms(5),
        connects_per_second: Some(330),
        at_least: ms(3_000),
        cycles: 0,
        ..World::default()
    };
    vec![
        case(
            "cold",
            "10 callers of one cold workspace at 120 ms a connect, 20 slots free",
            cold,
            None,
            vec![Goal::AtMost(Figure::LongestWait, 400.0)],
        ),
        case(
            "storm",
            "64 tasks on 60 workspaces, 45 slots, 330 connects a second, beside 800 ids without a database",
            storm,
            Some(Peer::NoUnknownIds),
            vec![Goal::AtMost(Figure::LatencyOfPeer, 2.0)],
        ),
    ]
}
