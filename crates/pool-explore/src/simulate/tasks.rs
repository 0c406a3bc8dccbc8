//! The tasks of a world: which workspace each asks for next, and after what pause.

use std::time::Duration;

use fastrand::Rng;

use super::world::{Demand, Workload, World};

/// Whose figures a task's requests are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// The workload.
    Workload,
    /// The workspace that asks now and then.
    Quiet,
    /// Ids without a database.
    Unknown,
}

/// How long a caller that was refused waits before it asks again.
pub(super) const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(100);

struct Task {
    group: Group,
    /// The workspace that it asked for last, or asks for next.
    workspace: u32,
    /// Requests that it goes on making there.
    left: u32,
}

pub(super) struct Tasks {
    all: Vec<Task>,
    workload: Workload,
    workspaces: u32,
    think: Duration,
    quiet_asks_every: Duration,
    /// For Zipf: the sum of the shares up to each workspace.
    shares: Vec<f64>,
}

impl Tasks {
    pub(super) fn new(world: &World) -> Self {
        let count = match world.workload {
            Workload::Busy { callers } => world.workspaces * callers,
            Workload::Walk { tasks } | Workload::Picks { tasks, .. } => tasks,
            Workload::Sessions { users, .. } => users,
            Workload::Cold { callers } => callers,
        };
        let first = |task: u32| match world.workload {
            Workload::Busy { .. } => task % world.workspaces,
            Workload::Walk { tasks } => task * world.workspaces / tasks,
            Workload::Picks { .. } | Workload::Sessions { .. } | Workload::Cold { .. } => 0,
        };
        let workload = (0..count).map(|n| Task { group: Group::Workload, workspace: first(n), left: 0 });
        let quiet = world.quiet_asks_every.map(|_| Task {
            group: Group::Quiet,
            workspace: world.workspaces,
            left: 0,
        });
        let unknown = (world.existing()..world.all_workspaces()).map(|workspace| Task {
            group: Group::Unknown,
            workspace,
            left: 0,
        });
        Self {
            all: workload.chain(quiet).chain(unknown).collect(),
            workload: world.workload,
            workspaces: world.workspaces,
            think: world.think,
            quiet_asks_every: world.quiet_asks_every.unwrap_or_default(),
            shares: zipf_shares(world.workspaces),
        }
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn group(&self, task: u32) -> Group {
        self.all[task as usize].group
    }

    /// The workspace that a task has asked for.
    pub(super) fn workspace(&self, task: u32) -> u32 {
        self.all[task as usize].workspace
    }

    /// When a task asks for the first time.
    pub(super) fn begins(&self, task: u32, world: &World) -> Duration {
        match self.group(task) {
            Group::Unknown => world.warm_up(),
            Group::Workload if matches!(self.workload, Workload::Cold { .. }) => world.warm_up(),
            Group::Workload | Group::Quiet => Duration::ZERO,
        }
    }

    /// Chooses what a task asks for now.
    pub(super) fn choose(&mut self, task: u32, rng: &mut Rng) -> u32 {
        let Self { all, workload, workspaces, shares, .. } = self;
        let task = &mut all[task as usize];
        match *workload {
            Workload::Picks { demand, .. } if task.group == Group::Workload => {
                task.workspace = pick(demand, *workspaces, shares, rng);
            }
            Workload::Sessions { requests, .. } if task.group == Group::Workload => {
                if task.left == 0 {
                    task.workspace = pick(Demand::Uniform, *workspaces, shares, rng);
                    task.left = requests;
                }
                task.left -= 1;
            }
            _ => {}
        }
        task.workspace
    }

    /// A task has been served: how long it pauses before it asks again, or none if it does not.
    pub(super) fn served(&mut self, task: u32, rng: &mut Rng) -> Option<Duration> {
        let (workload, workspaces) = (self.workload, self.workspaces);
        let task = &mut self.all[task as usize];
        match (task.group, workload) {
            (Group::Quiet, _) => Some(self.quiet_asks_every.mul_f64(0.5 + rng.f64())),
            (Group::Workload, Workload::Cold { .. }) => None,
            (Group::Workload, Workload::Walk { .. }) => {
                task.workspace = (task.workspace + 1) % workspaces;
                Some(self.think)
            }
            (Group::Workload | Group::Unknown, _) => Some(self.think),
        }
    }
}

fn pick(demand: Demand, workspaces: u32, shares: &[f64], rng: &mut Rng) -> u32 {
    match demand {
        Demand::Uniform => rng.u32(0..workspaces),
        Demand::Zipf => {
            let at = rng.f64() * shares.last().copied().unwrap_or_default();
            let nth = shares.partition_point(|sum| *sum <= at);
            u32::try_from(nth).unwrap_or_default().min(workspaces - 1)
        }
    }
}

fn zipf_shares(workspaces: u32) -> Vec<f64> {
    let shares = (1..=workspaces).scan(0.0, |sum, nth| {
        *sum += 1.0 / f64::from(nth);
        Some(*sum)
    });
    shares.collect()
}
