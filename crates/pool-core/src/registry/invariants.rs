//! Every law that holds between transitions, by name, in one place. [`Registry::check`] recounts from
//! the entries what the counters claim; the schedule enumerator calls it after each step.

use std::time::Instant;

use super::{ConnState, Registry, WaiterState, u32_of};
use crate::ids::{ConnectionId, Target};

/// A law that was found broken, with what was seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("law {law} is broken: {what}")]
pub struct Broken {
    /// The clause, as docs/contract.md numbers it.
    pub law: &'static str,
    /// What was seen.
    pub what: String,
}

fn hold(law: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { law, what: what() }) }
}

/// The semantic content of a registry, without the ids it happens to use: two registries with the same
/// view behave alike. For state deduplication and for telling stories.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The entries, by target.
    pub workspaces: Vec<WorkspaceView>,
    /// The ring of turns.
    pub turns: Vec<Target>,
    /// Whether everything is being closed.
    pub closed: bool,
    /// Targets that back off.
    pub backing_off: Vec<Target>,
}

/// The part of a [`View`] about one target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkspaceView {
    /// Which.
    pub target: Target,
    /// Connections held by callers or granted to them.
    pub in_use: u32,
    /// Whether an open is under way.
    pub opening: bool,
    /// Connections being closed.
    pub closing: u32,
    /// How long ago each idle connection came back, in its list's order.
    pub idle_nanos: Vec<u128>,
    /// How long ago each queued waiter came, in the queue's order.
    pub waiting_nanos: Vec<u128>,
    /// Waiters that were answered and have not fetched it.
    pub answered: u32,
    /// Closes under way.
    pub closers: u32,
}

impl<C> Registry<C> {
    /// Checks every law that must hold between transitions.
    ///
    /// # Errors
    /// The first broken law, with the numbers.
    pub fn check(&self, now: Instant) -> Result<(), Broken> {
        self.check_budget()?;
        self.check_sums()?;
        self.check_waiting(now)?;
        self.check_entries()
    }

    fn check_budget(&self) -> Result<(), Broken> {
        let limit = self.config.limit;
        let counted: u32 = self.workspaces.iter().map(|(_, ws)| ws.counted()).sum();
        hold("B1", counted <= limit, || format!("{counted} of {limit} connections"))?;
        for (_, ws) in &self.workspaces {
            let per_target = self.config.per_target;
            hold("B2", ws.counted() <= per_target, || {
                format!("{} has {} of {per_target} connections", ws.target, ws.counted())
            })?;
        }
        Ok(())
    }

    fn check_sums(&self) -> Result<(), Broken> {
        let counts = self.counts();
        let recounted = self.workspaces.iter().fold([0; 4], |sum, (_, ws)| {
            [
                sum[0] + ws.in_use,
                sum[1] + ws.idle.len(),
                sum[2] + u32::from(ws.opening.is_some()),
                sum[3] + ws.closing,
            ]
        });
        let claimed = [counts.in_use, counts.idle, counts.opening, counts.closing];
        hold("S1", claimed == recounted, || {
            format!("the budget says {claimed:?}, the entries {recounted:?}")
        })?;
        let idle = self.conns.iter().filter(|(_, c)| matches!(c.state, ConnState::Idle { .. })).count();
        let live = counts.in_use + counts.idle;
        hold("S1", u32_of(self.conns.len()) == live && u32_of(idle) == counts.idle, || {
            format!("{} entries, {idle} of them idle, but {live} live", self.conns.len())
        })?;
        let totals = &self.totals;
        let alive = u64::from(live + counts.closing);
        hold("S2", totals.opened == totals.closed + alive, || {
            format!("opened {} closed {} alive {alive}", totals.opened, totals.closed)
        })
    }

    fn check_waiting(&self, now: Instant) -> Result<(), Broken> {
        let permits = self.config.opens.saturating_sub(self.permits_taken);
        for (id, ws) in &self.workspaces {
            let waiting = !ws.waiters.is_empty();
            hold("W3", !waiting || ws.idle.is_empty(), || {
                format!("{} has an idle connection and a waiter", ws.target)
            })?;
            let eligible = self.may_open(u32_of(id), now);
            hold("W3", !eligible || self.turn_links.is_linked(u32_of(id)), || {
                format!("{} is eligible for a slot but stands in no turn", ws.target)
            })?;
            let owed = self.failures.get(&ws.target).is_none_or(|f| f.retry_at <= now || f.retry_is_owed);
            hold("W3", !waiting || owed, || format!("{} waits for a pause that nobody watches", ws.target))?;
            hold("W3", !(eligible && permits > 0 && !self.budget.is_full()), || {
                format!("a free slot, and {} waits", ws.target)
            })?;
        }
        let wanted = self.turns.len().min(permits);
        let coming = self.slots_coming();
        hold("W3", coming >= wanted || self.policy.victim().is_none(), || {
            format!("{wanted} wait, {coming} slots are coming, and something is idle")
        })
    }

    fn check_entries(&self) -> Result<(), Broken> {
        for (_, ws) in &self.workspaces {
            hold("E4", !ws.is_spent(), || format!("{} has an entry and nothing else", ws.target))?;
        }
        let queued = self.waiters.iter().filter(|(_, w)| matches!(w.state, WaiterState::Queued)).count();
        let chained: u32 = self.workspaces.iter().map(|(_, ws)| ws.waiters.len()).sum();
        hold("W4", queued == chained as usize, || format!("{queued} wait, {chained} stand in queues"))?;
        let granted: u32 = self.workspaces.iter().map(|(_, ws)| ws.answered).sum();
        let answered = u32_of(self.waiters.len() - queued);
        hold("W4", granted == answered, || format!("{answered} answers, {granted} counted"))
    }

    /// The semantic content at `now`.
    pub fn view(&self, now: Instant) -> View {
        let ago = |then: Instant| now.saturating_duration_since(then).as_nanos();
        let mut workspaces: Vec<_> = self
            .workspaces
            .iter()
            .map(|(_, ws)| WorkspaceView {
                target: ws.target.clone(),
                in_use: ws.in_use,
                opening: ws.opening.is_some(),
                closing: ws.closing,
                idle_nanos: ws
                    .idle
                    .iter(&self.idle_links)
                    .filter_map(|id| self.idle_since(id))
                    .map(ago)
                    .collect(),
                waiting_nanos: ws
                    .waiters
                    .iter(&self.waiter_links)
                    .map(|id| ago(self.waiters[id as usize].since))
                    .collect(),
                answered: ws.answered,
                closers: ws.closers,
            })
            .collect();
        workspaces.sort_by(|a, b| a.target.cmp(&b.target));
        let turns = self.turns.iter(&self.turn_links).map(|ws| self.workspace(ws).target.clone()).collect();
        let mut backing_off: Vec<_> =
            self.failures.iter().filter(|(_, f)| f.retry_at > now).map(|(t, _)| t.clone()).collect();
        backing_off.sort();
        View { workspaces, turns, closed: self.closed, backing_off }
    }

    /// The connections in use, for a close that has to cut them.
    pub fn in_use(&self, target: Option<&Target>) -> Vec<ConnectionId> {
        self.conns
            .iter()
            .filter(|(_, entry)| matches!(entry.state, ConnState::InUse))
            .filter(|(_, entry)| target.is_none_or(|t| self.workspace(entry.workspace).target == *t))
            .map(|(_, entry)| entry.id)
            .collect()
    }

    fn idle_since(&self, id: u32) -> Option<Instant> {
        match self.conns[id as usize].state {
            ConnState::Idle { since, .. } => Some(since),
            ConnState::InUse => None,
        }
    }
}
