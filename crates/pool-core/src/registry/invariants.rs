//! The laws that one state alone can show (B1, B2, E4, O6, S1 to S3, W3, W4), by name, in one place. [`Registry::check`] recounts from
//! the entries what the counters claim; the schedule enumerator calls it after each step. The laws about a step, and about what
//! callers see, are checked from outside (`laws.rs` of pool-explore).

use std::time::Instant;

use super::{Conn, ConnState, Existence, Registry, WaiterState, Workspace, u32_of};
use crate::budget::SlotState;
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
    /// The targets that stand ready for a slot, in their order, and those that take a free one only.
    pub ready: Vec<Target>,
    /// See `ready`.
    pub later: Vec<Target>,
    /// Whether a call of `due` is promised, and whether there will be nothing to do then.
    pub promised: (bool, bool),
    /// Whether everything is being closed.
    pub closed: bool,
    /// The failures that are remembered, by target: whether the pause goes on, whether a retry is owed, and whether the
    /// open had hung.
    pub failures: Vec<(Target, bool, bool, bool)>,
    /// The opens that nobody waits for any more, by target; how many hung while the server answered; whether those are so
    /// many that targets are held back.
    pub lost: (Vec<(Target, u32)>, u32, bool),
    /// Whether the server is lost.
    pub outage: bool,
    /// Opens that count against the limit on simultaneous ones, and those that do not.
    pub opens: (u32, u32),
    /// Closes that take so long that their slots are not counted on.
    pub slow_closes: u32,
}

/// The part of a [`View`] about one target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkspaceView {
    /// Which.
    pub target: Target,
    /// Connections held by callers or granted to them.
    pub in_use: u32,
    /// How many of those are to be closed when they come back.
    pub retiring: u32,
    /// How many of those have served their target for a quantum.
    pub matured: u32,
    /// How many of those are new, and how many of these were opened after a failure.
    pub new: (u32, u32),
    /// Opens under way.
    pub opening: u32,
    /// Opens that may have begun before the database was created.
    pub outdated: u32,
    /// Whether an open has succeeded since the entry was made.
    pub has_succeeded: bool,
    /// Whether it is known to exist: no, asked, yes.
    pub known: u8,
    /// The slot-time it has had beyond the least that any target has had, in turns, rounded down.
    pub turns_ahead: u32,
    /// Whether its waiters rather wait for a connection of its own.
    pub is_patient: bool,
    /// Whether it asked again at once the last time another target wanted its connection.
    pub comes_back: bool,
    /// Connections being closed.
    pub closing: u32,
    /// How long ago each idle connection came back, in nanoseconds, in its list's order; but for those that are kept.
    pub idle_nanos: Vec<u128>,
    /// Idle connections that are kept for their target a moment longer.
    pub lingering: u32,
    /// Waiters that have not been answered.
    pub waiting: u32,
    /// Waiters that were answered and have not claimed the answer.
    pub unclaimed: u32,
    /// Closes under way.
    pub closers: u32,
}

impl<C, S> Registry<C, S> {
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
        // After a limit was lowered, more may be left for a while, and fewer with every close.
        let allowed = self.budget.allowed();
        let counted: u32 = self.workspaces.iter().map(|(_, ws)| ws.counted()).sum::<u32>() + self.lost.all();
        hold("B1", counted <= allowed, || format!("{counted} of {allowed} connections"))?;
        for (_, ws) in &self.workspaces {
            let ceiling = ws.ceiling_allowed;
            hold("B2", ws.counted() <= ceiling, || {
                format!("{} has {} of {ceiling} connections", ws.target, ws.counted())
            })?;
        }
        Ok(())
    }

    fn check_sums(&self) -> Result<(), Broken> {
        let counts = self.counts();
        let recounted = self.workspaces.iter().fold([0, 0, self.lost.all(), 0], |sum, (_, ws)| {
            [sum[0] + ws.in_use, sum[1] + ws.idle.len(), sum[2] + ws.opens.under_way, sum[3] + ws.closing]
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
        })?;
        let recounted = self.recounted_answers();
        hold("S3", recounted == totals.answers, || {
            format!("{:?} were counted in all, {recounted:?} by target", totals.answers)
        })
    }

    fn check_waiting(&self, now: Instant) -> Result<(), Broken> {
        let permits = self.config.opens.saturating_sub(self.permits_taken);
        for (id, ws) in &self.workspaces {
            let waiting = !ws.waiters.is_empty();
            hold("W3", !waiting || ws.idle.is_empty(), || {
                format!("{} has an idle connection and a waiter", ws.target)
            })?;
            // Whose pause has just ended is eligible once the retry that is owed has come.
            let failure = self.failures.get(&ws.target);
            let wants = self.wants(u32_of(id), now) && failure.is_none_or(|f| !f.retry_is_owed);
            hold("W3", !wants || ws.account.stands(), || {
                format!("{} is eligible for a slot but stands in no queue", ws.target)
            })?;
            let owed = failure.is_none_or(|f| f.retry_at <= now || f.retry_is_owed);
            hold("W3", !waiting || owed, || format!("{} waits for a pause that nobody watches", ws.target))?;
            hold("W3", !(wants && permits > 0 && !self.budget.is_full()), || {
                format!("a free slot, and {} waits", ws.target)
            })?;
            self.check_source(ws)?;
        }
        let wanted = self.opens_wanted();
        let coming = self.slots_coming();
        let candidates = self.budget.count(SlotState::Idle) - self.lingering.len();
        hold("W3", !self.budget.is_full() || coming >= wanted || candidates == 0, || {
            format!("{wanted} wait, {coming} slots are coming, and something is idle")
        })
    }

    /// Law O6: who waits has a source.
    fn check_source(&self, ws: &Workspace) -> Result<(), Broken> {
        let has_source = ws.in_use > 0
            || ws.opens.under_way > 0
            || ws.account.is_ready()
            || ws.existence == Existence::Asked
            || self.failures.get(&ws.target).is_some_and(|failure| failure.retry_is_owed)
            // Its own connections are on their way out, and it opens another when they are gone.
            || ws.closing > 0 && ws.counted() >= ws.ceiling;
        hold("O6", ws.waiters.is_empty() || has_source, || {
            format!("{} callers of {} wait for nothing", ws.waiters.len(), ws.target)
        })?;
        let is_promised = ws.patient_until.is_none_or(|until| self.promised.is_some_and(|at| at <= until));
        hold("O6", is_promised, || format!("{} is patient for ever", ws.target))?;
        let lingers = self.lingering.front().is_none() || self.promised.is_some();
        hold("O6", lingers, || "a connection is kept for ever".to_owned())
    }

    fn check_entries(&self) -> Result<(), Broken> {
        for (_, ws) in &self.workspaces {
            hold("E4", !ws.is_spent(), || format!("{} has an entry and nothing else", ws.target))?;
        }
        let queued = self.waiters.iter().filter(|(_, w)| matches!(w.state, WaiterState::Queued)).count();
        let chained: u32 = self.workspaces.iter().map(|(_, ws)| ws.waiters.len()).sum();
        hold("W4", queued == chained as usize, || format!("{queued} wait, {chained} stand in queues"))?;
        let granted: u32 = self.workspaces.iter().map(|(_, ws)| ws.unclaimed).sum();
        let unclaimed = u32_of(self.waiters.len() - queued);
        hold("W4", granted == unclaimed, || format!("{unclaimed} answers, {granted} counted"))
    }

    /// The semantic content at `now`.
    pub fn view(&self, now: Instant) -> View {
        let mut workspaces: Vec<_> =
            self.workspaces.iter().map(|(id, _)| self.workspace_view(u32_of(id), now)).collect();
        workspaces.sort_by(|a, b| a.target.cmp(&b.target));
        let target = |ws: u32| self.workspace(ws).target.clone();
        let mut failures: Vec<_> = self
            .failures
            .iter()
            .map(|(t, f)| (t.clone(), f.retry_at > now, f.retry_is_owed, f.has_hung))
            .collect();
        failures.sort();
        View {
            workspaces,
            ready: self.fair.ready().map(target).collect(),
            later: self.fair.later().map(target).collect(),
            promised: (
                self.promised.is_some(),
                self.promised.is_some_and(|at| self.next_moment().is_none_or(|next| next > at)),
            ),
            closed: self.closed,
            failures,
            lost: self.lost.view(),
            outage: self.outage.is_some(),
            opens: (self.permits_taken, self.slow_opens),
            slow_closes: self.slow_closes,
        }
    }

    fn workspace_view(&self, id: u32, now: Instant) -> WorkspaceView {
        let ws = self.workspace(id);
        let candidates = ws.idle.iter(&self.idle_links).filter(|id| !self.lingering_links.is_linked(*id));
        let idle_since = candidates.filter_map(|id| self.idle_since(id));
        let idle_nanos: Vec<_> =
            idle_since.map(|then| now.saturating_duration_since(then).as_nanos()).collect();
        let quantum = self.costs.quantum(self.config.quantum);
        let in_use = || {
            let in_use =
                |conn: &Conn<C, S>| conn.workspace == id && matches!(conn.state, ConnState::InUse { .. });
            self.conns.iter().map(|(_, conn)| conn).filter(move |conn| in_use(conn))
        };
        let new = || in_use().filter(|conn| conn.is_new);
        let retiring = in_use().filter(|conn| conn.retire_at.is_some_and(|at| at <= now));
        let matured = in_use().filter(|conn| now.saturating_duration_since(conn.opened_at) >= quantum);
        let least = self.workspaces.iter().map(|(_, ws)| ws.account.used()).min().unwrap_or_default();
        WorkspaceView {
            target: ws.target.clone(),
            in_use: ws.in_use,
            retiring: u32_of(retiring.count()),
            matured: u32_of(matured.count()),
            new: (u32_of(new().count()), u32_of(new().filter(|conn| conn.pause_before.is_some()).count())),
            opening: ws.opens.under_way,
            outdated: u32::from(ws.opens.valid_from > 0) * ws.opens.under_way,
            has_succeeded: ws.opens.has_succeeded,
            known: ws.existence as u8,
            turns_ahead: super::fair::turns(ws.account.used() - least, self.turn()),
            is_patient: ws.patient_until.is_some(),
            comes_back: ws.comes_back,
            closing: ws.closing,
            lingering: ws.idle.len() - u32_of(idle_nanos.len()),
            idle_nanos,
            waiting: ws.waiters.len(),
            unclaimed: ws.unclaimed,
            closers: ws.closers,
        }
    }

    /// The connections in use, for a close that has to cut them.
    pub fn in_use(&self, target: Option<&Target>) -> Vec<ConnectionId> {
        self.conns
            .iter()
            .filter(|(_, entry)| matches!(entry.state, ConnState::InUse { .. }))
            .filter(|(_, entry)| target.is_none_or(|t| self.workspace(entry.workspace).target == *t))
            .map(|(_, entry)| entry.id)
            .collect()
    }

    fn idle_since(&self, id: u32) -> Option<Instant> {
        match self.conns[id as usize].state {
            ConnState::Idle { since, .. } => Some(since),
            ConnState::InUse { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
