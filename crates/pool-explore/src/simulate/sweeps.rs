//! One number of a world at a time, from small to large, all else as in the world that is the default.

use std::time::Duration;

use super::case::Case;
use super::goals::goals_of_the_busy;
use super::world::{Workload, World};

/// How many of its switches a turn lasts, and within which bounds.
const SWITCHES_PER_QUANTUM: u32 = 4;
const QUANTUM_MIN: Duration = Duration::from_millis(10);
const QUANTUM_MAX: Duration = Duration::from_millis(500);

pub(super) fn sweeps() -> Vec<Case> {
    [slots(), workspaces(), queries(), connects(), permits()].concat()
}

fn point(sweep: &'static str, value: f64, about: String, world: World) -> Case {
    let quantum = (world.connect + world.close) * SWITCHES_PER_QUANTUM;
    let world = World { quantum: quantum.clamp(QUANTUM_MIN, QUANTUM_MAX), ..world };
    let goals = goals_of_the_busy(&world);
    Case { name: format!("{sweep}-{value}"), sweep: Some((sweep, value)), about, world, peer: None, goals }
}

/// Four workspaces for each slot.
fn slots() -> Vec<Case> {
    let at = |slots: u32| {
        let workspaces = slots * 4;
        let about = format!("{workspaces} busy workspaces on {slots} slots");
        point("slots", f64::from(slots), about, World { slots, workspaces, ..World::default() })
    };
    [1, 2, 5, 10, 20, 50, 100, 200].map(at).into()
}

fn workspaces() -> Vec<Case> {
    let at = |workspaces: u32| {
        let about = format!("{workspaces} busy workspaces on 10 slots");
        point("workspaces", f64::from(workspaces), about, World { workspaces, ..World::default() })
    };
    [2, 5, 10, 20, 50, 100, 200, 500, 1_000].map(at).into()
}

fn queries() -> Vec<Case> {
    let at = |tenths: u32| {
        let value = f64::from(tenths) / 10.0;
        let about = format!("40 busy workspaces on 10 slots, queries of {value} ms");
        let query = Duration::from_micros(u64::from(tenths) * 100);
        point("query-ms", value, about, World { query, ..World::default() })
    };
    [2, 5, 10, 20, 50, 100, 200, 500, 1_000].map(at).into()
}

fn connects() -> Vec<Case> {
    let at = |millis: u32| {
        let about = format!("40 busy workspaces on 10 slots, connects of {millis} ms");
        let connect = Duration::from_millis(u64::from(millis));
        point("connect-ms", f64::from(millis), about, World { connect, ..World::default() })
    };
    [1, 2, 5, 10, 20, 50, 100].map(at).into()
}

/// More slots, so that few permits are felt.
fn permits() -> Vec<Case> {
    let at = |permits: u32| {
        let about = format!("160 busy workspaces on 40 slots, {permits} connects at a time");
        let workload = Workload::Busy { callers: 4 };
        let world = World { permits, slots: 40, workspaces: 160, workload, ..World::default() };
        point("permits", f64::from(permits), about, world)
    };
    [1, 2, 4, 8, 16].map(at).into()
}
