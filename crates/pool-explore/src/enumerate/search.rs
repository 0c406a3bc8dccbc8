//! Breadth first over all schedules, so that the first violation found has the shortest story. A state is
//! kept as the step that led to it; its world is built again by taking the steps once more, since debts
//! cannot be copied.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use pool_core::{Broken, Target};

use super::world::{World, targets_of};
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

/// Where every schedule begins.
struct Beginning {
    scenario: Scenario,
    targets: Arc<[Target]>,
    now: Instant,
}

/// The states reached so far, and how a world that means well goes from one to another.
struct Graph {
    nodes: Vec<Node>,
    // States are told apart by a hash of 64 bits; of a million of them, two share one with a probability
    // of 3e-8, and then a part of the space is missed, never a false alarm raised.
    seen: HashMap<u64, usize>,
    hasher: RandomState,
    transitions: usize,
    friendly: Vec<(usize, usize)>,
}

/// Runs every schedule of `scenario`, and checks every law after each step, and that everybody is served in the end.
///
/// # Errors
/// The [`Violation`] with the shortest story.
pub fn explore(scenario: &Scenario) -> Result<Report, Violation> {
    let beginning = Beginning { scenario: *scenario, targets: targets_of(scenario), now: Instant::now() };
    let mut graph = Graph::from(&beginning.replay(&[]));
    let mut at = 0;
    while at < graph.nodes.len() {
        graph.visit(at, &beginning)?;
        at += 1;
    }
    graph.check_progress()?;
    let depth = graph.nodes.iter().map(|node| node.depth).max().unwrap_or_default();
    Ok(Report { states: graph.nodes.len(), transitions: graph.transitions, depth })
}

impl Graph {
    fn from(world: &World) -> Self {
        let hasher = RandomState::new();
        Self {
            nodes: vec![Node { from: 0, step: None, depth: 0 }],
            seen: HashMap::from([(hasher.hash_one(world.fingerprint()), 0)]),
            hasher,
            transitions: 0,
            friendly: Vec::new(),
        }
    }

    /// Takes every step that is possible in state `at`.
    fn visit(&mut self, at: usize, beginning: &Beginning) -> Result<(), Violation> {
        let path = self.path_to(at);
        let world = beginning.replay(&path);
        let possible = world.possible();
        if !possible.iter().any(|step| world.is_friendly(*step)) {
            world.check_the_end().map_err(|broken| Violation { broken, steps: path.clone() })?;
        }
        let friendly: Vec<bool> = possible.iter().map(|step| world.is_friendly(*step)).collect();
        let mut unused = Some(world);
        for (step, is_friendly) in possible.into_iter().zip(friendly) {
            self.transitions += 1;
            let mut next = unused.take().unwrap_or_else(|| beginning.replay(&path));
            let mut take = || next.take(step);
            let taken = catch_unwind(AssertUnwindSafe(&mut take))
                .unwrap_or_else(|_| Err(Broken { law: "S1", what: "the registry panicked".to_owned() }));
            taken.map_err(|broken| {
                let steps = path.iter().copied().chain([step]).collect();
                Violation { broken, steps }
            })?;
            let to = self.reach(&next, at, step);
            if is_friendly {
                self.friendly.push((at, to));
            }
        }
        Ok(())
    }

    /// The state that `world` is in: a known one, or a new one that `step` led to.
    fn reach(&mut self, world: &World, from: usize, step: Step) -> usize {
        let new = self.nodes.len();
        let state = *self.seen.entry(self.hasher.hash_one(world.fingerprint())).or_insert(new);
        if state == new {
            self.nodes.push(Node { from, step: Some(step), depth: self.nodes[from].depth + 1 });
        }
        state
    }

    fn path_to(&self, mut at: usize) -> Vec<Step> {
        let mut path = Vec::new();
        while let Some(step) = self.nodes[at].step {
            path.push(step);
            at = self.nodes[at].from;
        }
        path.reverse();
        path
    }

    /// Liveness: a world that means well never goes in a circle, so it comes to an end, and the ends were checked.
    /// States without a friendly step into them are taken away until none is left (Kahn 1962); what stays goes in a
    /// circle, or is reached from one.
    fn check_progress(&self) -> Result<(), Violation> {
        let mut into = vec![0_u32; self.nodes.len()];
        for (_, to) in &self.friendly {
            into[*to] += 1;
        }
        // Edges were found in the order of the states they leave.
        let leaving = |at: usize| {
            let first = self.friendly.partition_point(|(from, _)| *from < at);
            self.friendly[first..].iter().take_while(move |(from, _)| *from == at).map(|(_, to)| *to)
        };
        let mut free: Vec<usize> = (0..into.len()).filter(|at| into[*at] == 0).collect();
        while let Some(at) = free.pop() {
            for to in leaving(at) {
                into[to] -= 1;
                if into[to] == 0 {
                    free.push(to);
                }
            }
        }
        match into.iter().position(|n| *n > 0) {
            None => Ok(()),
            Some(at) => Err(Violation {
                broken: Broken { law: "W3", what: "a world that means well can go in a circle".to_owned() },
                steps: self.path_to(at),
            }),
        }
    }
}

impl Beginning {
    /// The world after `path`, every step of which was checked when it was first taken.
    fn replay(&self, path: &[Step]) -> World {
        let mut world = World::new(self.scenario, &self.targets, self.now);
        for step in path {
            let _checked_before = world.step(*step);
        }
        world
    }
}
