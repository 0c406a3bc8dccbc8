//! Every law that holds between transitions, by name, in one place. [`Registry::check`] recounts from
//! the entries what the counters claim; the schedule enumerator calls it after each step.

use std::time::Instant;

use super::{ConnState, Opening, Registry, WaiterState, u32_of};
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
    /// The open queue, and for how long each target has stood in it.
    pub open_queue: Vec<(Target, u128)>,
    /// Whether everything is being closed.
    pub closed: bool,
    /// The failures that are remembered, by target: whether the pause goes on, and whether a retry is owed.
    pub failures: Vec<(Target, bool, bool)>,
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
    /// The open under way, if there is one.
    pub opening: OpeningView,
    /// Connections being closed.
    pub closing: u32,
    /// How long ago each idle connection came back, in nanoseconds, in its list's order.
    pub idle_nanos: Vec<u128>,
    /// Waiters that have not been unclaimed.
    pub waiting: u32,
    /// Waiters that were unclaimed and have not fetched it.
    pub unclaimed: u32,
    /// Closes under way.
    pub closers: u32,
}

/// What a [`WorkspaceView`] says of an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpeningView {
    /// There is none.
    None,
    /// Under way.
    UnderWay,
    /// Under way since before the database was created.
    Outdated,
    /// Given up by its callers, and still under way.
    GivenUp,
}

impl From<&Opening> for OpeningView {
    fn from(opening: &Opening) -> Self {
        match opening {
            Opening::None => Self::None,
            Opening::UnderWay => Self::UnderWay,
            Opening::Outdated => Self::Outdated,
            Opening::GivenUp(_) => Self::GivenUp,
        }
    }
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
            // Whose pause has just ended is eligible once the retry that is owed has come.
            let failure = self.failures.get(&ws.target);
            let eligible = self.may_open(u32_of(id), now) && failure.is_none_or(|f| !f.retry_is_owed);
            hold("W3", !eligible || self.open_queue_links.is_linked(u32_of(id)), || {
                format!("{} is eligible for a slot but stands in no turn", ws.target)
            })?;
            let owed = failure.is_none_or(|f| f.retry_at <= now || f.retry_is_owed);
            hold("W3", !waiting || owed, || format!("{} waits for a pause that nobody watches", ws.target))?;
            hold("W3", !(eligible && permits > 0 && !self.budget.is_full()), || {
                format!("a free slot, and {} waits", ws.target)
            })?;
        }
        let since = |ws: u32| self.workspace(ws).queued_since;
        let in_order = self.open_queue.iter(&self.open_queue_links).map(since).is_sorted();
        hold("W2", in_order, || "a target stands in the open queue before one that came earlier".to_owned())?;
        let wanted = self.open_queue.len().min(permits);
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
        let granted: u32 = self.workspaces.iter().map(|(_, ws)| ws.unclaimed).sum();
        let unclaimed = u32_of(self.waiters.len() - queued);
        hold("W4", granted == unclaimed, || format!("{unclaimed} answers, {granted} counted"))
    }

    /// The semantic content at `now`.
    pub fn view(&self, now: Instant) -> View {
        let ago = |then: Instant| now.saturating_duration_since(then).as_nanos();
        let mut workspaces: Vec<_> =
            self.workspaces.iter().map(|(id, _)| self.workspace_view(u32_of(id), now)).collect();
        workspaces.sort_by(|a, b| a.target.cmp(&b.target));
        let stands = |ws: u32| {
            let workspace = self.workspace(ws);
            (workspace.target.clone(), workspace.queued_since.map_or(0, ago))
        };
        let mut failures: Vec<_> =
            self.failures.iter().map(|(t, f)| (t.clone(), f.retry_at > now, f.retry_is_owed)).collect();
        failures.sort();
        View {
            workspaces,
            open_queue: self.open_queue.iter(&self.open_queue_links).map(stands).collect(),
            closed: self.closed,
            failures,
            opens: (self.permits_taken, self.slow_opens),
            slow_closes: self.slow_closes,
        }
    }

    fn workspace_view(&self, id: u32, now: Instant) -> WorkspaceView {
        let ws = self.workspace(id);
        let idle_since = ws.idle.iter(&self.idle_links).filter_map(|conn| self.idle_since(conn));
        let retiring = self.conns.iter().filter(|(_, conn)| {
            conn.workspace == id
                && matches!(conn.state, ConnState::InUse)
                && conn.retire_at.is_some_and(|at| at <= now)
        });
        WorkspaceView {
            target: ws.target.clone(),
            in_use: ws.in_use,
            retiring: u32_of(retiring.count()),
            opening: OpeningView::from(&ws.opening),
            closing: ws.closing,
            idle_nanos: idle_since.map(|then| now.saturating_duration_since(then).as_nanos()).collect(),
            waiting: ws.waiters.len(),
            unclaimed: ws.unclaimed,
            closers: ws.closers,
        }
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
