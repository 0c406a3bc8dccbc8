//! Opens that nobody waits for any more. The server may count them, so they keep their slots until somebody knows better,
//! and nothing else: neither their target, nor a permit, nor a caller (law O5).
//!
//! A database that hangs while the server answers must not get all slots in this way, one attempt after the other. So when
//! lost opens hold half of the share, a target whose last open hung starts no other until a slot comes back (law O1).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::Registry;
use super::fair::Fair;
use super::open::Open;
use crate::budget::Slot;
use crate::error::DriverError;
use crate::ids::{ConnectionId, Target};
use crate::token::{Effects, LostOpen, OpenWork};

/// The lost opens of a share.
#[derive(Debug, Default)]
pub(super) struct Lost {
    by_target: HashMap<Target, u32>,
    all: u32,
    /// Those among them that were lost while the server answered.
    hung: u32,
    /// The number of the last open that nothing is held against, since the server was lost with it.
    forgiven: u64,
    /// Whether they are so many that targets whose last open hung are held back.
    holds_back: bool,
}

impl Lost {
    pub(super) fn all(&self) -> u32 {
        self.all
    }

    pub(super) fn of(&self, target: &Target) -> u32 {
        if self.all == 0 { 0 } else { self.by_target.get(target).copied().unwrap_or_default() }
    }

    pub(super) fn hung(&self) -> u32 {
        self.hung
    }

    fn add(&mut self, target: Target, slot: Slot, number: u64) -> LostOpen {
        self.all += 1;
        self.hung += u32::from(number > self.forgiven);
        *self.by_target.entry(target.clone()).or_default() += 1;
        LostOpen { target, slot, number }
    }

    fn remove(&mut self, target: &Target, number: u64) {
        self.all = self.all.saturating_sub(1);
        self.hung = self.hung.saturating_sub(u32::from(number > self.forgiven));
        if let Some(count) = self.by_target.get_mut(target) {
            *count -= 1;
            if *count == 0 {
                self.by_target.remove(target);
            }
        }
    }

    /// All that have been started up to the one with this number are held against nobody.
    pub(super) fn forgive(&mut self, last: u64) {
        (self.forgiven, self.hung) = (last, 0);
    }

    /// For [`View`](super::View).
    pub(super) fn view(&self) -> (Vec<(Target, u32)>, u32, bool) {
        let mut lost: Vec<_> =
            self.by_target.iter().map(|(target, count)| (target.clone(), *count)).collect();
        lost.sort();
        (lost, self.hung, self.holds_back)
    }
}

impl<C, S> Registry<C, S> {
    /// An open has taken longer than anybody should wait: its waiters are told, and the next open of its target waits for
    /// a pause to pass, as after one that failed (law O3).
    pub fn open_given_up(
        &mut self,
        work: OpenWork,
        error: Arc<DriverError>,
        now: Instant,
    ) -> (LostOpen, Effects<C>) {
        let (ws, lost) = self.lose_open(work, now);
        self.totals.open_failures += 1;
        self.back_off(&lost.target, Arc::clone(&error), true, now);
        let mut effects = Effects::default();
        self.fail_unserved(ws, &error, now, &mut effects);
        self.hold_back_the_hung(now, &mut effects);
        self.settle(ws, now, &mut effects);
        (lost, effects)
    }

    /// A lost open has come to a good end after all: its connection serves a waiter of its target, or is idle.
    ///
    /// # Errors
    /// Both back: the target has as many connections as it may have, or is being closed. The connection is to be closed,
    /// and then [`Registry::lost_ended`] to be called.
    pub fn lost_opened(
        &mut self,
        lost: LostOpen,
        conn: C,
        session: S,
        retire_at: Option<Instant>,
        now: Instant,
    ) -> Result<(ConnectionId, Effects<C>), (LostOpen, C)> {
        if self.is_closing(&lost.target) || self.has_all_it_may_have(&lost.target) {
            return Err((lost, conn));
        }
        let LostOpen { target, slot, number } = lost;
        self.lost.remove(&target, number);
        let ws = self.entry(&target);
        self.charge(ws, now);
        let (id, mut effects) = self.admit(ws, slot, conn, session, retire_at, now);
        self.hold_back_the_hung(now, &mut effects);
        Ok((id, effects))
    }

    /// The server does not count a lost open, or no longer: its slot is free. Whatever became of it was told when it was
    /// given up.
    pub fn lost_ended(&mut self, lost: LostOpen, now: Instant) -> Effects<C> {
        let LostOpen { target, slot, number } = lost;
        self.budget.free(slot);
        self.lost.remove(&target, number);
        let mut effects = Effects::default();
        self.hold_back_the_hung(now, &mut effects);
        match self.by_target.get(&target).copied() {
            Some(ws) => self.settle(ws, now, &mut effects),
            None => self.start_opens(now, &mut effects),
        }
        effects.drained |= self.has_only_leases_left();
        effects
    }

    /// Nobody waits for an open any more; the turn that it was given comes back to its target.
    pub(super) fn lose_open(&mut self, work: OpenWork, now: Instant) -> (u32, LostOpen) {
        let Open { ws, target, slot, number, turn, .. } = self.end_open(work, now);
        Fair::refund(&mut self.workspace_mut(ws).account, turn);
        (ws, self.lost.add(target, slot, number))
    }

    /// Half of the share: the most that slow and lost opens may keep while others have none.
    pub(super) fn half(&self) -> u32 {
        (self.config.limit / 2).max(1)
    }

    /// Whether the last open of `target` hung, and lost opens hold so many slots that it starts no other.
    pub(super) fn is_held_back(&self, target: &Target) -> bool {
        self.lost.holds_back && self.failures.get(target).is_some_and(|failure| failure.has_hung)
    }

    /// Waiters whose last connection has gone after an open hung, or while the server is lost, have nothing left to wait
    /// for (law O6).
    pub(super) fn fail_the_hopeless(&mut self, ws: u32, now: Instant, effects: &mut Effects<C>) {
        let workspace = self.workspace(ws);
        if workspace.waiters.is_empty() {
            return;
        }
        if let Some(told) = self.outage_error(&workspace.target) {
            if workspace.in_use == 0 {
                self.fail_waiters(ws, &told, effects);
            }
            return;
        }
        let failure = self.failures.get(&workspace.target).filter(|failure| failure.has_hung);
        if let Some(failure) = failure
            && (failure.retry_at > now || self.lost.holds_back)
        {
            let error = Arc::clone(&failure.error);
            self.fail_unserved(ws, &error, now, effects);
        }
    }

    /// Holds targets back, or lets them go, when that has changed. Costs a pass over the failures that are remembered.
    pub(super) fn hold_back_the_hung(&mut self, now: Instant, effects: &mut Effects<C>) {
        let holds_back = self.lost.hung >= self.half();
        if std::mem::replace(&mut self.lost.holds_back, holds_back) == holds_back {
            return;
        }
        let hung = self.failures.iter().filter(|(_, failure)| failure.has_hung);
        let mut changed: Vec<u32> =
            hung.filter_map(|(target, _)| self.by_target.get(target).copied()).collect();
        changed.sort_unstable();
        for ws in changed {
            self.fail_the_hopeless(ws, now, effects);
            self.review(ws, now);
        }
        self.start_opens(now, effects);
    }

    fn has_all_it_may_have(&self, target: &Target) -> bool {
        let ws = self.entry_of(target);
        ws.is_some_and(|ws| ws.counted() >= ws.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::ids::WorkspaceId;

    fn target(name: &str) -> Target {
        Target::Workspace(WorkspaceId::new(name).unwrap())
    }

    #[test]
    fn what_was_lost_with_the_server_is_counted_and_held_against_nobody() {
        let (mut lost, mut budget) = (Lost::default(), Budget::new(4));
        let mut add = |lost: &mut Lost, name: &str, number| {
            let slot = budget.reserve().unwrap();
            lost.add(target(name), slot, number)
        };
        let (first, second) = (add(&mut lost, "b", 1), add(&mut lost, "a", 2));
        assert_eq!((lost.all(), lost.hung()), (2, 2));
        lost.forgive(2);
        assert_eq!((lost.all(), lost.hung()), (2, 0));
        let third = add(&mut lost, "b", 3);
        assert_eq!((lost.all(), lost.hung(), lost.of(&target("b"))), (3, 1, 2));
        assert_eq!(lost.view(), (vec![(target("a"), 1), (target("b"), 2)], 1, false));
        for open in [first, second] {
            lost.remove(&open.target, open.number);
            budget.free(open.slot);
        }
        assert_eq!((lost.all(), lost.hung(), lost.of(&target("b"))), (1, 1, 1));
        lost.remove(&third.target, third.number);
        budget.free(third.slot);
        assert_eq!((lost.all(), lost.hung(), lost.of(&target("b"))), (0, 0, 0));
        assert_eq!(lost.view(), (Vec::new(), 0, false));
    }
    #[test]
    fn o7_what_began_before_the_server_answered_again_and_is_lost_later_is_held_against_nobody() {
        let (mut lost, mut budget) = (Lost::default(), Budget::new(4));
        lost.forgive(2);
        let before = lost.add(target("a"), budget.reserve().unwrap(), 2);
        assert_eq!((lost.all(), lost.hung()), (1, 0));
        let after = lost.add(target("a"), budget.reserve().unwrap(), 3);
        assert_eq!((lost.all(), lost.hung()), (2, 1));
        for open in [before, after] {
            lost.remove(&open.target, open.number);
            budget.free(open.slot);
            assert_eq!((lost.all(), lost.hung()), if open.number == 2 { (1, 1) } else { (0, 0) });
        }
    }
}
