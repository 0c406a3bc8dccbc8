//! Give back, discard, expire, and the end of a close.

use std::time::Instant;

use super::{ConnState, Registry};
use crate::budget::{SlotState, take_one};
use crate::events::CloseReason;
use crate::ids::ConnectionId;
use crate::token::{CloseDebt, CloseWork, Effects, LeaseDebt};

impl<C, S> Registry<C, S> {
    /// A connection came back clean. Cost without waiters: O(1), no allocation.
    pub fn release(&mut self, debt: LeaseDebt, conn: C, now: Instant) -> Effects<C> {
        if self.forget_cut(&debt).is_some() {
            return Effects::dead(conn);
        }
        let ws = self.conns[debt.id.index() as usize].workspace;
        let mut effects = Effects::default();
        self.take_back(debt, conn, now, &mut effects);
        self.settle(ws, now, &mut effects);
        effects
    }

    /// The holder has no further use for a connection: it is closed. That says nothing about others.
    pub fn discard(&mut self, debt: LeaseDebt, conn: C, now: Instant) -> Effects<C> {
        self.close_leased(debt, conn, CloseReason::Discarded, now)
    }

    /// A connection came back broken. Connections that were idle at this moment are checked before their next use, for they
    /// may have broken with it.
    pub fn discard_broken(&mut self, debt: LeaseDebt, conn: C, now: Instant) -> Effects<C> {
        if !self.cut.contains_key(&debt.id) {
            self.note_breakage(now);
        }
        self.close_leased(debt, conn, CloseReason::Broken, now)
    }

    /// A connection could not be made clean. Of those that were idle at this moment only the ones of its target are checked
    /// before their next use: what hangs may be their database, and the server has not failed.
    pub fn discard_unclean(&mut self, debt: LeaseDebt, conn: C, now: Instant) -> Effects<C> {
        if !self.cut.contains_key(&debt.id) {
            let ws = self.conns[debt.id.index() as usize].workspace;
            self.workspace_mut(ws).broken_at = Some(now);
        }
        self.close_leased(debt, conn, CloseReason::Broken, now)
    }

    fn close_leased(&mut self, debt: LeaseDebt, conn: C, reason: CloseReason, now: Instant) -> Effects<C> {
        if self.forget_cut(&debt).is_some() {
            return Effects::dead(conn);
        }
        let ws = self.conns[debt.id.index() as usize].workspace;
        let mut effects = Effects::default();
        self.retire_leased(debt, conn, reason, now, &mut effects);
        self.settle(ws, now, &mut effects);
        effects
    }

    /// The server no longer counts a connection: its slot is free.
    pub fn closed(&mut self, debt: CloseDebt, now: Instant) -> Effects<C> {
        let CloseDebt { workspace: ws, slot, is_slow, began, .. } = debt;
        self.charge(ws, now);
        self.costs.closed_in(now.saturating_duration_since(began));
        if is_slow {
            take_one(&mut self.slow_closes, &mut self.totals.miscounts);
        }
        self.budget.free(slot);
        self.totals.closed += 1;
        self.one_less(ws, |ws| &mut ws.closing);
        let mut effects = Effects::default();
        self.settle(ws, now, &mut effects);
        effects
    }

    /// A close takes so long that nobody should count on its slot: room is made elsewhere.
    pub fn close_is_slow(&mut self, debt: &mut CloseDebt, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        if !std::mem::replace(&mut debt.is_slow, true) {
            self.slow_closes += 1;
            self.start_opens(now, &mut effects);
        }
        effects
    }

    /// Closes what has been idle too long or has lived too long, and forgets old failures. To be called
    /// now and then; costs a pass over the connections.
    pub fn expire(&mut self, now: Instant) -> Effects<C> {
        self.forget_old_failures(now);
        let idle_timeout = self.config.idle_timeout;
        let due = |(retire_at, retires_for): (Option<Instant>, CloseReason), since: Instant| {
            if retire_at.is_some_and(|at| at <= now) {
                return Some(retires_for);
            }
            let idle_for = now.saturating_duration_since(since);
            idle_timeout.is_some_and(|timeout| idle_for >= timeout).then_some(CloseReason::IdleTimeout)
        };
        let expired: Vec<_> = self
            .conns
            .iter()
            .filter_map(|(_, entry)| match entry.state {
                ConnState::Idle { since, .. } => {
                    Some((entry.id, due((entry.retire_at, entry.retires_for), since)?))
                }
                ConnState::InUse { .. } => None,
            })
            .collect();
        let closes = expired.into_iter().map(|(id, reason)| self.retire_idle(id, reason, now)).collect();
        Effects { closes, ..Effects::default() }
    }

    /// Takes a clean connection back: retired if its time has come, else placed.
    pub(super) fn take_back(&mut self, debt: LeaseDebt, conn: C, now: Instant, effects: &mut Effects<C>) {
        let entry = &mut self.conns[debt.id.index() as usize];
        entry.is_new = false;
        let ws = entry.workspace;
        let (lived, retires_for) = (entry.retire_at.is_some_and(|at| at <= now), entry.retires_for);
        if let ConnState::InUse { since } = entry.state {
            self.costs.leased(since, now);
        }
        if lived && !self.closed {
            return self.retire_leased(debt, conn, retires_for, now, effects);
        }
        if self.is_over_the_limit(ws) {
            return self.retire_leased(debt, conn, CloseReason::LimitLowered, now, effects);
        }
        if self.must_yield(ws, debt.id, now) {
            self.retire_leased(debt, conn, CloseReason::Yielded, now, effects);
            if let Some(close) = effects.closes.last_mut() {
                close.debt.for_whom = self.first_in_line(close.target());
            }
            return;
        }
        self.assign(debt, conn, now, effects);
    }

    /// Decides what a connection that nobody holds is for: a close under way, its own target's eldest
    /// waiter, or the idle set. A new connection skips the turn check, because its target already won the turn that
    /// opened it.
    pub(super) fn assign(&mut self, debt: LeaseDebt, conn: C, now: Instant, effects: &mut Effects<C>) {
        let ws = self.conns[debt.id.index() as usize].workspace;
        if self.closed {
            self.retire_leased(debt, conn, CloseReason::PoolClosed, now, effects);
        } else if self.workspace(ws).closers > 0 {
            self.retire_leased(debt, conn, CloseReason::WorkspaceClosed, now, effects);
        } else if self.workspace(ws).waiters.is_empty() {
            self.make_idle(debt, conn, now);
        } else {
            self.grant_eldest(ws, debt, conn, now, effects);
        }
    }

    /// Has a connection closed for this reason: one that is in use when it comes back, such as one that a close did not wait for; an
    /// idle one by the next [`expire`](Self::expire).
    pub fn retire_on_return(&mut self, id: ConnectionId, reason: CloseReason, now: Instant) {
        if let Some(entry) = self.conns.get_mut(id.index() as usize).filter(|entry| entry.id == id) {
            entry.retire_at = Some(now);
            entry.retires_for = reason;
        }
    }

    /// Whether a connection of `ws` that comes back is one too many: the limit was lowered, or the target's ceiling.
    fn is_over_the_limit(&self, ws: u32) -> bool {
        let workspace = self.workspace(ws);
        self.budget.allowed() > self.budget.limit()
            && self.budget.counted().saturating_sub(self.slots_coming()) > self.budget.limit()
            || workspace.ceiling_allowed > workspace.ceiling && self.is_above_its_ceiling(ws)
    }

    pub(super) fn is_above_its_ceiling(&self, ws: u32) -> bool {
        let workspace = self.workspace(ws);
        workspace.counted().saturating_sub(workspace.closing) > workspace.ceiling
    }

    pub(super) fn note_breakage(&mut self, now: Instant) {
        self.broken_at = Some(now);
    }

    /// Turns a connection in hand into a close.
    pub(super) fn retire_leased(
        &mut self,
        debt: LeaseDebt,
        conn: C,
        reason: CloseReason,
        now: Instant,
        effects: &mut Effects<C>,
    ) {
        let ws = self.conns[debt.id.index() as usize].workspace;
        self.charge(ws, now);
        self.one_less(ws, |ws| &mut ws.in_use);
        effects.closes.push(self.retire(debt.id, conn, reason, now));
    }

    /// Turns an idle connection into a close.
    pub(super) fn retire_idle(
        &mut self,
        id: ConnectionId,
        reason: CloseReason,
        now: Instant,
    ) -> CloseWork<C> {
        self.no_candidate(id);
        let entry = &mut self.conns[id.index() as usize];
        let in_use = ConnState::InUse { since: now };
        let ConnState::Idle { conn, .. } = std::mem::replace(&mut entry.state, in_use) else {
            unreachable!("only idle connections are retired from the idle set")
        };
        let ws = entry.workspace;
        self.charge(ws, now);
        self.workspaces[ws as usize].idle.remove(&mut self.idle_links, id.index());
        self.retire(id, conn, reason, now)
    }

    fn retire(&mut self, id: ConnectionId, conn: C, reason: CloseReason, now: Instant) -> CloseWork<C> {
        let entry = self.conns.remove(id.index() as usize);
        self.overdue.remove(&(entry.opened_at, id.index()));
        let (ws, mut slot) = (entry.workspace, entry.slot);
        self.budget.shift(&mut slot, SlotState::Closing);
        self.totals.evicted += u64::from(matches!(reason, CloseReason::Evicted | CloseReason::Yielded));
        let workspace = self.workspace_mut(ws);
        workspace.closing += 1;
        let target = workspace.target.clone();
        let debt =
            CloseDebt { target, id, workspace: ws, slot, reason, for_whom: None, is_slow: false, began: now };
        CloseWork { conn, debt }
    }

    fn make_idle(&mut self, debt: LeaseDebt, conn: C, now: Instant) {
        let id = debt.id;
        let entry = &self.conns[id.index() as usize];
        let (ws, opened_at) = (entry.workspace, entry.opened_at);
        self.charge(ws, now);
        if !self.overdue.is_empty() {
            self.overdue.remove(&(opened_at, id.index()));
        }
        let lingers_until = self.lingers_until(ws, opened_at, now);
        let entry = &mut self.conns[id.index() as usize];
        entry.state = ConnState::Idle { conn, since: now };
        entry.lingers_until = lingers_until;
        entry.is_new = false;
        self.budget.shift(&mut entry.slot, SlotState::Idle);
        let workspace = &mut self.workspaces[ws as usize];
        take_one(&mut workspace.in_use, &mut self.totals.miscounts);
        workspace.idle.push_back(&mut self.idle_links, id.index());
        self.policy.touched(id, &workspace.target);
        if lingers_until.is_some() {
            self.lingering.push_back(&mut self.lingering_links, id.index());
        }
    }
}
