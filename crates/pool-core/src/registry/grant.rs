//! First come first served within a target: grants, answers and the queue of its waiters.

use std::time::Instant;

use super::{ConnState, Registry, WaiterState};
use crate::error::AcquireError;
use crate::token::{Effects, LeaseDebt, Leased};

impl<C, S> Registry<C, S> {
    /// Hands a connection to the eldest waiter of its target.
    pub(super) fn grant_eldest(
        &mut self,
        ws: u32,
        debt: LeaseDebt,
        conn: C,
        now: Instant,
        effects: &mut Effects<C>,
    ) {
        let Some(id) = self.workspace(ws).waiters.front() else {
            unreachable!("a grant is made only to a queue that is not empty")
        };
        self.conns[debt.id.index() as usize].state = ConnState::InUse { since: now };
        let since = self.waiters[id as usize].since;
        let waited = Some(now.saturating_duration_since(since));
        let leased = Leased { conn, debt, check_first: false, waited };
        self.answer(ws, id, WaiterState::Granted { leased, since: now }, effects);
    }

    /// Tells all queued waiters of `ws` that they will not be served.
    pub(super) fn fail_waiters(&mut self, ws: u32, why: &AcquireError, effects: &mut Effects<C>) {
        while let Some(id) = self.workspace(ws).waiters.front() {
            self.answer(ws, id, WaiterState::Failed(why.clone()), effects);
        }
    }

    /// Takes a waiter that gave up out of the queue.
    pub(super) fn unqueue(&mut self, ws: u32, id: u32) {
        self.workspaces[ws as usize].waiters.remove(&mut self.waiter_links, id);
    }

    fn answer(&mut self, ws: u32, id: u32, answer: WaiterState<C>, effects: &mut Effects<C>) {
        self.unqueue(ws, id);
        self.workspace_mut(ws).unclaimed += 1;
        let waiter = &mut self.waiters[id as usize];
        waiter.state = answer;
        effects.wakes.0.extend(waiter.waker.take());
    }

    /// A target without connections, waiters and closes has no entry (law E4).
    pub(super) fn forget_if_spent(&mut self, ws: u32) {
        if self.workspaces.get(ws as usize).is_some_and(super::Workspace::is_spent) {
            let workspace = self.workspaces.remove(ws as usize);
            self.by_target.remove(&workspace.target);
            self.remembered.keep(workspace.target.clone(), workspace.answers);
            self.fair.close_account(workspace.target, &workspace.account);
        }
    }
}
