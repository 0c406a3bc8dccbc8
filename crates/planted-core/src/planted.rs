//! Which bug is planted on this thread, and those that take more than a condition.

use std::cell::Cell;
use std::time::Instant;

use super::{Registry, Waiter, WaiterState};
use crate::budget::{Slot, SlotState};
use crate::events::CloseReason;
use crate::token::Effects;

BUGS

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants `bug` in every registry of this thread.
pub fn plant(bug: Bug) {
    PLANTED.set(Some(bug));
}

pub(super) fn has(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

impl<C, S> Registry<C, S> {
    /// A slot that is somebody else's, if a bug says so.
    pub(super) fn reserve_wrongly(&mut self) -> Option<Slot> {
        let (counted, limit) = (self.budget.counted(), self.budget.limit());
        let wrongly = match PLANTED.get()? {
            Bug::DoubleGrant => counted == limit && self.budget.count(SlotState::Opening) > 0,
            Bug::SlotFreedEarly => counted - self.budget.count(SlotState::Closing) < limit,
            _ => false,
        };
        wrongly.then(|| self.budget.slot())
    }

    /// Closes a connection that was granted and not yet fetched, if a bug says so, and nothing is idle.
    pub(super) fn evict_wrongly(&mut self, now: Instant, effects: &mut Effects<C>) {
        if !has(Bug::EvictsInUse) || self.fair.ready_len() == 0 || self.slots_coming() > 0 {
            return;
        }
        let granted = |waiter: &Waiter<C>| matches!(waiter.state, WaiterState::Granted { .. });
        let Some((id, waiter)) = self.waiters.iter_mut().find(|(_, waiter)| granted(waiter)) else { return };
        let (id, ws) = (super::u32_of(id), waiter.workspace);
        if let WaiterState::Granted { leased, .. } = std::mem::replace(&mut waiter.state, WaiterState::Queued)
        {
            let workspace = &mut self.workspaces[ws as usize];
            workspace.unclaimed -= 1;
            workspace.waiters.push_front(&mut self.waiter_links, id);
            self.retire_leased(leased.debt, leased.conn, CloseReason::Evicted, now, effects);
        }
    }
}
