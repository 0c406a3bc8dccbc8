//! What is measured, from outside of the registry: levels over time, by workspace, and how long callers waited.

use std::time::Duration;

use pool_core::Broken;

use super::tasks::Group;
use super::world::World;

/// Of each workspace a number of things, and the sum of that number over time.
pub(super) struct Levels {
    counts: Vec<u32>,
    since: Vec<Duration>,
    sums: Vec<Duration>,
    /// The sums at each mark.
    marks: Vec<Vec<Duration>>,
}

impl Levels {
    fn new(workspaces: u32) -> Self {
        let count = workspaces as usize;
        Self {
            counts: vec![0; count],
            since: vec![Duration::ZERO; count],
            sums: vec![Duration::ZERO; count],
            marks: Vec::new(),
        }
    }

    fn add_up(&mut self, at: usize, now: Duration) {
        self.sums[at] += now.saturating_sub(self.since[at]) * self.counts[at];
        self.since[at] = now;
    }

    fn rise(&mut self, workspace: u32, now: Duration) -> u32 {
        self.add_up(workspace as usize, now);
        self.counts[workspace as usize] += 1;
        self.counts[workspace as usize]
    }

    fn fall(&mut self, workspace: u32, now: Duration) {
        self.add_up(workspace as usize, now);
        self.counts[workspace as usize] -= 1;
    }

    fn mark(&mut self, now: Duration) {
        for at in 0..self.counts.len() {
            self.add_up(at, now);
        }
        self.marks.push(self.sums.clone());
    }

    /// What was added up between the first mark and the last one.
    pub(super) fn measured(&self) -> Vec<Duration> {
        between(self.marks.first(), self.marks.last())
    }

    /// What was added up between each mark and the next.
    pub(super) fn parts(&self) -> impl Iterator<Item = Vec<Duration>> {
        self.marks.windows(2).map(|pair| between(pair.first(), pair.last()))
    }
}

fn between(from: Option<&Vec<Duration>>, to: Option<&Vec<Duration>>) -> Vec<Duration> {
    let pairs = to.into_iter().flatten().zip(from.into_iter().flatten());
    pairs.map(|(to, from)| to.saturating_sub(*from)).collect()
}

/// Callers of one workspace that wait, and since when none of them has been served.
#[derive(Clone, Default)]
struct Queue {
    waiting: u32,
    unserved_since: Duration,
}

pub(super) struct Meter {
    slots: u32,
    per_workspace: u32,
    permits: u32,
    existing: u32,
    counted: u32,
    opening: u32,
    is_measuring: bool,
    /// Connections that count for a workspace, in any state.
    pub(super) slot_time: Levels,
    /// Leases.
    pub(super) lease_time: Levels,
    queues: Vec<Queue>,
    /// When each task asked, and whether it still waits.
    asked: Vec<(Duration, bool)>,
    pub(super) workload_waits: Vec<Duration>,
    pub(super) quiet_waits: Vec<Duration>,
    /// From the question to the return of the connection.
    pub(super) latencies: Vec<Duration>,
    pub(super) longest_unserved: Duration,
    pub(super) grants: u64,
    pub(super) connects: u64,
    pub(super) refused: u64,
    pub(super) peak: u32,
}

impl Meter {
    pub(super) fn new(world: &World, tasks: u32) -> Self {
        let workspaces = world.all_workspaces();
        Self {
            slots: world.slots,
            per_workspace: world.per_workspace.min(world.slots),
            permits: world.permits,
            existing: world.existing(),
            counted: 0,
            opening: 0,
            is_measuring: false,
            slot_time: Levels::new(workspaces),
            lease_time: Levels::new(workspaces),
            queues: vec![Queue::default(); workspaces as usize],
            asked: vec![(Duration::ZERO, false); tasks as usize],
            workload_waits: Vec::new(),
            quiet_waits: Vec::new(),
            latencies: Vec::new(),
            longest_unserved: Duration::ZERO,
            grants: 0,
            connects: 0,
            refused: 0,
            peak: 0,
        }
    }

    /// A part of the measurement ends; the first mark begins it.
    pub(super) fn mark(&mut self, now: Duration) {
        self.is_measuring = true;
        self.slot_time.mark(now);
        self.lease_time.mark(now);
    }

    /// An open has begun: from now on the server may count it.
    pub(super) fn open_begins(&mut self, workspace: u32, now: Duration) -> Result<(), Broken> {
        self.counted += 1;
        self.opening += 1;
        self.connects += u64::from(self.is_measuring);
        self.peak = self.peak.max(self.counted);
        let of_workspace = self.slot_time.rise(workspace, now);
        keep("B1", self.counted, self.slots, "connections")?;
        keep("B2", of_workspace, self.per_workspace, "connections of one workspace")?;
        keep("W3", self.opening, self.permits, "opens under way")
    }

    pub(super) fn open_ends(&mut self, workspace: u32, succeeded: bool, now: Duration) {
        self.opening -= 1;
        if !succeeded {
            self.is_gone(workspace, now);
        }
    }

    /// The server no longer counts a connection.
    pub(super) fn is_gone(&mut self, workspace: u32, now: Duration) {
        self.counted -= 1;
        self.slot_time.fall(workspace, now);
    }

    pub(super) fn asks(&mut self, task: u32, now: Duration) {
        self.asked[task as usize] = (now, false);
    }

    pub(super) fn waits(&mut self, task: u32, workspace: u32, now: Duration) {
        self.asked[task as usize].1 = true;
        let queue = &mut self.queues[workspace as usize];
        if queue.waiting == 0 {
            queue.unserved_since = now;
        }
        queue.waiting += 1;
    }

    pub(super) fn is_served(&mut self, task: u32, group: Group, workspace: u32, now: Duration) {
        self.leaves_queue(task, workspace, now);
        self.lease_time.rise(workspace, now);
        if self.is_measuring {
            self.grants += 1;
            self.note_wait(group, now.saturating_sub(self.asked[task as usize].0));
        }
    }

    pub(super) fn is_refused(&mut self, task: u32, workspace: u32, now: Duration) {
        self.leaves_queue(task, workspace, now);
        self.refused += u64::from(self.is_measuring);
    }

    pub(super) fn releases(&mut self, task: u32, group: Group, workspace: u32, now: Duration) {
        self.lease_time.fall(workspace, now);
        if self.is_measuring && group == Group::Workload {
            self.latencies.push(now.saturating_sub(self.asked[task as usize].0));
        }
    }

    /// At the end, callers that still wait have waited until then.
    pub(super) fn end(&mut self, groups: impl Fn(u32) -> (Group, u32), now: Duration) {
        for task in 0..u32::try_from(self.asked.len()).unwrap_or(u32::MAX) {
            let (asked, waits) = self.asked[task as usize];
            if waits {
                let (group, workspace) = groups(task);
                self.note_unserved(workspace, now);
                self.note_wait(group, now.saturating_sub(asked));
            }
        }
        self.mark(now);
    }

    fn leaves_queue(&mut self, task: u32, workspace: u32, now: Duration) {
        if std::mem::take(&mut self.asked[task as usize].1) {
            self.note_unserved(workspace, now);
            self.queues[workspace as usize].waiting -= 1;
        }
        self.queues[workspace as usize].unserved_since = now;
    }

    fn note_unserved(&mut self, workspace: u32, now: Duration) {
        if self.is_measuring && workspace < self.existing {
            let unserved = now.saturating_sub(self.queues[workspace as usize].unserved_since);
            self.longest_unserved = self.longest_unserved.max(unserved);
        }
    }

    fn note_wait(&mut self, group: Group, waited: Duration) {
        match group {
            Group::Workload => self.workload_waits.push(waited),
            Group::Quiet => self.quiet_waits.push(waited),
            Group::Unknown => {}
        }
    }
}

fn keep(law: &'static str, count: u32, limit: u32, what: &str) -> Result<(), Broken> {
    if count <= limit {
        Ok(())
    } else {
        Err(Broken { law, what: format!("{count} {what}, {limit} allowed") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_summed_over_time_between_marks() {
        let at = Duration::from_millis;
        let mut levels = Levels::new(2);
        levels.rise(0, at(0));
        levels.mark(at(10));
        levels.rise(0, at(15));
        levels.fall(0, at(20));
        levels.rise(1, at(25));
        levels.mark(at(30));
        assert_eq!(levels.measured(), [at(25), at(5)]);
    }

    #[test]
    fn a_budget_that_is_exceeded_is_told() {
        let world = World { slots: 1, ..World::default() };
        let mut meter = Meter::new(&world, 0);
        assert_eq!(meter.open_begins(0, Duration::ZERO), Ok(()));
        let broken = meter.open_begins(1, Duration::ZERO).unwrap_err();
        assert_eq!(broken.law, "B1");
    }
}
