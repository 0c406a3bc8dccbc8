//! Bugs planted on purpose, so that the checks can prove that they bite. Without the feature
//! `planted-bugs` the answer to [`Registry::has_bug`] is a constant, and the compiler removes them.

use std::time::Instant;

use super::Registry;
#[cfg(feature = "planted-bugs")]
use super::{Waiter, WaiterState};
use crate::budget::Slot;
#[cfg(feature = "planted-bugs")]
use crate::budget::SlotState;
#[cfg(feature = "planted-bugs")]
use crate::stats::CloseReason;
use crate::token::Effects;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, missing_docs)]
pub enum Bug {
    /// A cancelled caller takes the connection granted to it along.
    GrantLostOnCancel,
    /// A caller that has gone keeps its place in the queue.
    CancelledWaiterServed,
    /// A failed open keeps its slot.
    SlotLeakedOnFailedOpen,
    /// One free slot is given to two opens.
    DoubleGrant,
    /// Nothing idle is ever closed for another target.
    NoEviction,
    /// Where nothing is idle, a connection that was granted and not yet fetched is closed.
    EvictsInUse,
    /// A connection is never closed for the turn of another target.
    NeverYields,
    /// A connection is closed for another target before it has served its own for a quantum.
    YieldsEarly,
    /// The world is not asked to come back when patience ends.
    ForgottenMoment,
    /// The target that has had most is served first.
    UnfairTurn,
    /// The youngest waiter is served first.
    LastComeFirstServed,
    /// An answered waiter is not woken.
    LostWakeUp,
    /// A retry after a failed open is asked of nobody.
    ForgottenRetry,
    /// A close that was confirmed is still counted by its workspace.
    CountDriftOnClose,
    /// The slot of a connection is free when its close begins, not when the server has let go.
    SlotFreedEarly,
    /// The serial number of a connection is not looked at, so a token of its predecessor passes for its own.
    StaleToken,
    /// A lease that was cut goes on counting.
    CutKeepsSlot,
    /// Nobody is told that what is being closed has no connection left.
    ForgottenCloser,
}

#[cfg(feature = "planted-bugs")]
impl<C> Registry<C> {
    /// Plants `bug`.
    pub fn plant(&mut self, bug: Bug) {
        self.planted = Some(bug);
    }

    pub(super) fn has_bug(&self, bug: Bug) -> bool {
        self.planted == Some(bug)
    }

    /// A slot that is somebody else's, if a bug says so.
    pub(super) fn reserve_wrongly(&mut self) -> Option<Slot> {
        let (counted, limit) = (self.budget.counted(), self.budget.limit());
        let wrongly = match self.planted? {
            Bug::DoubleGrant => counted == limit && self.budget.count(SlotState::Opening) > 0,
            Bug::SlotFreedEarly => counted - self.budget.count(SlotState::Closing) < limit,
            _ => false,
        };
        wrongly.then(|| self.budget.reserve_beyond())
    }

    /// Closes a connection that was granted and not yet fetched, if a bug says so, and nothing is idle.
    pub(super) fn evict_wrongly(&mut self, now: Instant, effects: &mut Effects<C>) {
        if !self.has_bug(Bug::EvictsInUse) || self.fair.ready_len() == 0 || self.slots_coming() > 0 {
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

#[cfg(not(feature = "planted-bugs"))]
#[allow(clippy::unused_self)]
impl<C> Registry<C> {
    pub(super) const fn has_bug(&self, _: Bug) -> bool {
        false
    }

    pub(super) const fn reserve_wrongly(&self) -> Option<Slot> {
        None
    }

    pub(super) const fn evict_wrongly(&self, _: Instant, _: &Effects<C>) {}
}
