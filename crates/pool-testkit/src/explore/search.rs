//! Breadth first over all schedules, so that the first violation found has the shortest story. A state is
//! kept as the step that led to it; its world is built again by taking the steps once more, since debts
//! cannot be copied.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use pool_core::Broken;

use super::world::World;
use super::{Scenario, Step};

/// What a search has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Different states that were reached.
    pub states: usize,
    /// Steps that were taken from them.
    pub transitions: usize,
    /// The longest schedule, in steps.
    pub depth: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, transitions, depth } = self;
        write!(f, "{states} states, {transitions} transitions, schedules of up to {depth} steps")
    }
}

/// A law that was broken, and the shortest schedule that breaks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which law, and what was seen.
    pub broken: Broken,
    /// The schedule.
    pub steps: Vec<Step>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after:", self.broken)?;
        for (i, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>4}. {step}", i + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}

/// A reached state: the step that led to it, from which other one.
struct Node {
    from: usize,
    step: Option<Step>,
    depth: usize,
}

/// Runs every schedule of `scenario`, and checks every law after each step.
///
/// # Errors
/// The [`Violation`] with the shortest story.
pub fn explore(scenario: &Scenario) -> Result<Report, Violation> {
    let start = Instant::now();
    // States are told apart by a hash of 64 bits; of a million of them, two share one with a probability
    // of 3e-8, and then a part of the space is missed, never a false alarm raised.
    let hasher = RandomState::new();
    let mut seen = HashSet::from([hasher.hash_one(World::new(*scenario, start).fingerprint())]);
    let mut nodes = vec![Node { from: 0, step: None, depth: 0 }];
    let mut transitions = 0;
    let mut at = 0;
    while at < nodes.len() {
        let path = path_to(&nodes, at);
        let replay = || replay(scenario, start, &path);
        let world = replay();
        let possible = world.possible();
        if World::is_stuck(&possible) {
            world.check_the_end().map_err(|broken| Violation { broken, steps: path.clone() })?;
        }
        for step in possible {
            transitions += 1;
            let mut world = replay();
            world.take(step).map_err(|broken| {
                let steps = path.iter().copied().chain([step]).collect();
                Violation { broken, steps }
            })?;
            if seen.insert(hasher.hash_one(world.fingerprint())) {
                nodes.push(Node { from: at, step: Some(step), depth: nodes[at].depth + 1 });
            }
        }
        at += 1;
    }
    let depth = nodes.iter().map(|node| node.depth).max().unwrap_or_default();
    Ok(Report { states: nodes.len(), transitions, depth })
}

fn path_to(nodes: &[Node], mut at: usize) -> Vec<Step> {
    let mut path = Vec::new();
    while let Some(step) = nodes[at].step {
        path.push(step);
        at = nodes[at].from;
    }
    path.reverse();
    path
}

/// The world after `path`, every step of which was checked when it was first taken.
fn replay(scenario: &Scenario, start: Instant, path: &[Step]) -> World {
    let mut world = World::new(*scenario, start);
    for step in path {
        let _checked_before = world.take(*step);
    }
    world
}
