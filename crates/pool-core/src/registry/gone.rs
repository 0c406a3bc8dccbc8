//! Sessions that have ended on the server although nobody closed them here.

use std::time::Instant;

use super::{Conn, ConnState, Registry, WaiterState};
use crate::error::AcquireError;
use crate::events::CloseReason;
use crate::ids::{ConnectionId, Target};
use crate::token::{Effects, LeaseDebt};

impl<C, S> Registry<C, S> {
    /// The connections that are idle, for a driver that can tell which of them still exist. Costs a pass over the
    /// connections.
    pub fn idle(&self) -> Vec<ConnectionId> {
        let idle = self.conns.iter().filter(|(_, entry)| matches!(entry.state, ConnState::Idle { .. }));
        idle.map(|(_, entry)| entry.id).collect()
    }

    /// What ends the session of `id` from outside; none once it is being closed.
    pub fn session(&self, id: ConnectionId) -> Option<&S> {
        self.conns.get(id.index() as usize).filter(|entry| entry.id == id).map(|entry| &entry.session)
    }

    /// The same, to be changed.
    pub fn session_mut(&mut self, id: ConnectionId) -> Option<&mut S> {
        let entry = self.conns.get_mut(id.index() as usize).filter(|entry| entry.id == id)?;
        Some(&mut entry.session)
    }

    /// The connections that are in use: whose each is, since when, and its session. Granted ones that their callers have not
    /// fetched yet are among them.
    pub fn leases(&self) -> impl Iterator<Item = (ConnectionId, &Target, Instant, &S)> {
        self.conns.iter().filter_map(|(_, entry)| match entry.state {
            ConnState::InUse { since } => {
                Some((entry.id, &self.workspace(entry.workspace).target, since, &entry.session))
            }
            ConnState::Idle { .. } => None,
        })
    }

    /// The same of all connections that are idle or in use.
    pub fn sessions(&self) -> impl Iterator<Item = (ConnectionId, &S)> {
        self.conns.iter().map(|(_, entry)| (entry.id, &entry.session))
    }

    /// What is idle at this moment may be dead, such as after the machine slept: it is checked before its next use.
    pub fn doubt_idle(&mut self, now: Instant) -> Effects<C> {
        self.note_breakage(now);
        Effects::default()
    }

    /// The server has ended the sessions of `gone`, which were idle when it was asked. Those that are still idle are
    /// closed, and the others that are idle at this moment are checked before their next use. A connection that was
    /// leased meanwhile is left to its holder (law E1), who will find it broken.
    pub fn vanished(&mut self, gone: &[ConnectionId], now: Instant) -> Effects<C> {
        self.retire_those_idle(gone, CloseReason::Broken, now)
    }

    fn retire_those_idle(&mut self, ids: &[ConnectionId], reason: CloseReason, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        for id in ids {
            if let Some(id) = self.idle_now(*id) {
                effects.closes.push(self.retire_idle(id, reason, now));
            }
        }
        if !effects.closes.is_empty() {
            self.note_breakage(now);
        }
        effects
    }

    /// Connections that will never be of use again, although the server has not ended them, such as those of a runtime that
    /// has: what is idle is closed now, and what is in use when it comes back.
    pub fn orphaned(&mut self, ids: &[ConnectionId], now: Instant) -> Effects<C> {
        for id in ids {
            self.retire_on_return(*id, CloseReason::RuntimeEnded, now);
        }
        self.retire_those_idle(ids, CloseReason::RuntimeEnded, now)
    }

    /// A close has ended the session of a connection in use, and the server says that it is gone: its slot is free,
    /// although its holder still has the connection, whose return changes no count any more. A caller that it was
    /// granted to, and who has not fetched it, is refused. Returns whose it was; none if it has come back meanwhile, so
    /// that its close is under way.
    pub fn cut(&mut self, id: ConnectionId, now: Instant) -> Option<(Target, Effects<C>)> {
        let entry = self.conns.get(id.index() as usize)?;
        if entry.id != id || !matches!(entry.state, ConnState::InUse { .. }) {
            return None;
        }
        let Conn { id, workspace: ws, slot, opened_at, .. } = self.conns.remove(id.index() as usize);
        self.overdue.remove(&(opened_at, id.index()));
        self.charge(ws, now);
        self.budget.free(slot);
        self.totals.closed += 1;
        self.one_less(ws, |ws| &mut ws.in_use);
        let target = self.workspace(ws).target.clone();
        let mut effects = Effects::default();
        match self.revoke_grant(id, &target) {
            Some(conn) => effects.dead.push(conn),
            None => drop(self.cut.insert(id, target.clone())),
        }
        self.settle(ws, now, &mut effects);
        Some((target, effects))
    }

    /// Whose the connection behind `debt` was, if it has been cut; with this, it is forgotten.
    pub(super) fn forget_cut(&mut self, debt: &LeaseDebt) -> Option<Target> {
        // Almost always there is none, and the warm path saves the hash.
        if self.cut.is_empty() { None } else { self.cut.remove(&debt.id) }
    }

    /// Takes a connection back from the caller that it was granted to, unless that has fetched it. The caller has been
    /// woken, and is told that there is none after all.
    fn revoke_grant(&mut self, id: ConnectionId, target: &Target) -> Option<C> {
        let is_it = |state: &WaiterState<C>| matches!(state, WaiterState::Granted { leased, .. } if leased.debt.id == id);
        let (_, waiter) = self.waiters.iter_mut().find(|(_, waiter)| is_it(&waiter.state))?;
        let refusal = if self.closed {
            AcquireError::Closed
        } else {
            AcquireError::WorkspaceClosing { target: target.clone() }
        };
        match std::mem::replace(&mut waiter.state, WaiterState::Failed(refusal)) {
            WaiterState::Granted { leased, .. } => Some(leased.conn),
            WaiterState::Queued | WaiterState::Failed(_) => None,
        }
    }

    /// The connection that `id` means, if it is idle: an index alone may be that of a later connection.
    fn idle_now(&self, id: ConnectionId) -> Option<ConnectionId> {
        let entry = self.conns.get(id.index() as usize)?;
        (entry.id == id && matches!(entry.state, ConnState::Idle { .. })).then_some(entry.id)
    }
}
