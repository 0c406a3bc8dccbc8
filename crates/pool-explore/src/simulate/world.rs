//! A world as data: how much there is of everything, who wants what, and what things cost.

use std::time::Duration;

/// Who asks for which workspace, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Every workspace has this many callers; each asks again as soon as it is done.
    Busy {
        /// Of one workspace.
        callers: u32,
    },
    /// Tasks walk over the workspaces in round robin, each from a place of its own.
    Walk {
        /// In all.
        tasks: u32,
    },
    /// Tasks choose a workspace anew for each request.
    Picks {
        /// In all.
        tasks: u32,
        /// How they choose.
        demand: Demand,
    },
    /// Users make several requests of one workspace, then others come.
    Sessions {
        /// At a time.
        users: u32,
        /// Of one user.
        requests: u32,
    },
    /// This many callers of one workspace ask at one moment, once.
    Cold {
        /// In all.
        callers: u32,
    },
}

/// How often each workspace is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// All alike.
    Uniform,
    /// The n-th workspace 1/n times as often as the first.
    Zipf,
}

/// A world to be simulated. Equal worlds have equal figures.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Connections that workspaces may have together.
    pub slots: u32,
    /// Connections that one workspace may have.
    pub per_workspace: u32,
    /// Connects under way at a time.
    pub permits: u32,
    /// Workspaces of the workload.
    pub workspaces: u32,
    /// Their weights, given out in turn; empty if all weigh the same.
    pub weights: Vec<u32>,
    /// Who wants what.
    pub workload: Workload,
    /// Beside the workload, a workspace with one caller that asks about this often.
    pub quiet_asks_every: Option<Duration>,
    /// Beside the workload, as many callers from the first moment of the measurement, each with an id of its own
    /// that has no database.
    pub unknown_ids: u32,
    /// How long a lease lasts.
    pub query: Duration,
    /// How long a task thinks between two requests.
    pub think: Duration,
    /// How long an open takes.
    pub connect: Duration,
    /// How long a close takes, the server's word included.
    pub close: Duration,
    /// By how much of its mean each of these times may be off, either way.
    pub jitter: f64,
    /// How many connects a second the server has time for; none if they cost it nothing.
    pub connects_per_second: Option<u32>,
    /// How long a connection serves its workspace before it yields.
    pub quantum: Duration,
    /// What all choices begin with.
    pub seed: u64,
    /// How long the world runs before the measurement, at least; see [`World::warm_up`].
    pub warm_up: Duration,
    /// How long is measured, at least.
    pub at_least: Duration,
    /// How many cycles are measured, at least.
    pub cycles: u32,
}

impl Default for World {
    /// Forty busy workspaces with four callers each on ten slots.
    fn default() -> Self {
        Self {
            slots: 10,
            per_workspace: 10,
            permits: 8,
            workspaces: 40,
            weights: Vec::new(),
            workload: Workload::Busy { callers: 4 },
            quiet_asks_every: None,
            unknown_ids: 0,
            query: Duration::from_millis(1),
            think: Duration::ZERO,
            connect: Duration::from_millis(3),
            close: Duration::from_millis(2),
            jitter: 0.1,
            connects_per_second: None,
            quantum: Duration::from_millis(20),
            seed: 1,
            warm_up: Duration::from_millis(500),
            at_least: Duration::from_secs(1),
            cycles: 20,
        }
    }
}

/// How many cycles the law of equal shares (W6) is about.
pub(super) const CYCLES_OF_THE_LAW: u32 = 10;

/// How many cycles it takes until it does not matter any more how the world began.
const CYCLES_OF_WARM_UP: u32 = 4;

impl World {
    /// How long a connection serves before it yields: the quantum, up to the end of the query under way, where all queries
    /// are as short as they can be.
    pub fn turn(&self) -> Duration {
        let queries = self.quantum.as_secs_f64() / (self.query.as_secs_f64() * (1.0 - self.jitter));
        self.query.mul_f64(queries.ceil().max(1.0))
    }

    /// What handing a slot from one workspace to another costs: a close and a connect, or, where permits are short, the
    /// slot's share of the permits' time.
    pub fn switch(&self) -> Duration {
        (self.close + self.connect).max(self.connect * self.slots / self.permits)
    }

    /// Whether permits, and not slots, bound how often workspaces take turns.
    pub fn permits_bind(&self) -> bool {
        self.switch() > self.close + self.connect
    }

    /// How long it takes until all workspaces of the workload have had their turn.
    pub fn cycle(&self) -> Duration {
        let rounds = f64::from(self.workspaces) / f64::from(self.slots);
        (self.turn() + self.switch()).mul_f64(rounds.max(1.0))
    }

    /// How many turns of its workspace a caller waits for at the most: a turn serves some callers, and leaves the rest.
    pub fn turns_of_a_caller(&self) -> u32 {
        let Workload::Busy { callers } = self.workload else { return 1 };
        let per_turn = (self.turn().as_secs_f64() / self.query.as_secs_f64()).max(1.0);
        let mut turns = 1;
        while f64::from(turns) * per_turn + 0.5 < f64::from(callers) {
            turns += 1;
        }
        turns
    }

    /// The share of the slots' capacity that a scheduler with this quantum can reach.
    pub fn possible_goodput(&self) -> f64 {
        self.turn().as_secs_f64() / (self.turn() + self.switch()).as_secs_f64()
    }

    /// How many requests a second get done by one fresh connection each.
    pub fn fresh_connections_per_second(&self) -> f64 {
        let one = (self.connect + self.query + self.close).as_secs_f64();
        let of_slots = f64::from(self.slots) / one;
        self.connects_per_second.map_or(of_slots, |rate| of_slots.min(f64::from(rate)))
    }

    /// How long the world runs before the measurement: it begins with nobody served, and needs some cycles to forget it.
    pub fn warm_up(&self) -> Duration {
        self.warm_up.max(self.cycle() * CYCLES_OF_WARM_UP)
    }

    /// How long is measured.
    pub fn duration(&self) -> Duration {
        self.at_least.max(self.cycle() * self.cycles)
    }

    pub(super) fn weight(&self, workspace: u32) -> f64 {
        let nth = self.weights.iter().cycle().nth(workspace as usize);
        f64::from(nth.copied().unwrap_or(1))
    }

    /// The slots that the workload could use.
    pub(super) fn usable_slots(&self) -> u32 {
        let Workload::Busy { callers } = self.workload else { return self.slots };
        self.slots.min(self.workspaces * callers.min(self.per_workspace))
    }

    /// The workspaces that have a database: those of the workload, and the quiet one.
    pub(super) fn existing(&self) -> u32 {
        self.workspaces + u32::from(self.quiet_asks_every.is_some())
    }

    pub(super) fn all_workspaces(&self) -> u32 {
        self.existing() + self.unknown_ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_counted_in_turns_and_switches() {
        let world = World { jitter: 0.0, ..World::default() };
        assert_eq!(world.turn(), Duration::from_millis(20));
        assert_eq!(world.switch(), Duration::from_millis(5));
        assert_eq!(world.cycle(), Duration::from_millis(100));
        let one_permit = World { permits: 1, ..world.clone() };
        assert_eq!(one_permit.switch(), Duration::from_millis(30));
        assert!((one_permit.possible_goodput() - 0.4).abs() < 1e-9);
        let long_queries = World { query: Duration::from_millis(15), ..world };
        assert_eq!(long_queries.turn(), Duration::from_millis(30));
        assert_eq!(long_queries.turns_of_a_caller(), 2);
    }
}
