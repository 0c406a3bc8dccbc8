//! First come first served within a target, in turn between targets. [`Registry::settle`] ends every
//! transition: it brings the open queue up to date and hands out what can be handed out, so that a
//! free slot and an eligible waiter never coexist (law W3).

use std::time::Instant;

use super::planted::Bug;
use super::{Opening, Registry, WaiterState};
use crate::budget::SlotState;
use crate::error::AcquireError;
use crate::stats::CloseReason;
use crate::token::{Effects, LeaseDebt, Leased, OpenWork};

impl<C> Registry<C> {
    /// Brings the world up to date after something about `ws` changed.
    pub(super) fn settle(&mut self, ws: u32, now: Instant, effects: &mut Effects<C>) {
        self.review_open_queue(ws, now);
        self.start_opens(effects);
        self.owe_retry(ws, now, effects);
        let workspace = self.workspace(ws);
        let drained = workspace.closers > 0 && workspace.counted() == workspace.in_use
            || self.closed && self.budget.counted() == self.budget.count(SlotState::InUse);
        effects.drained |= drained && !self.has_bug(Bug::ForgottenCloser);
        self.forget_if_spent(ws);
    }

    /// A target that has callers waiting and could open a connection stands in the open queue. It
    /// keeps its place while it stays eligible, and starts at the back when it becomes so again.
    fn review_open_queue(&mut self, ws: u32, now: Instant) {
        let (wants, stands) = (self.may_open(ws, now), self.open_queue_links.is_linked(ws));
        if wants && !stands {
            if self.has_bug(Bug::UnfairTurn) {
                self.open_queue.push_front(&mut self.open_queue_links, ws);
            } else {
                self.open_queue.push_back(&mut self.open_queue_links, ws);
            }
            self.workspace_mut(ws).queued_since = Some(now);
        } else if !wants && stands {
            self.open_queue.remove(&mut self.open_queue_links, ws);
        }
    }

    /// Whether `ws` is eligible for a slot: one open at a time, below its ceiling, not backing off. A
    /// target with a queue beyond that rather inherits its own connections as they come back.
    pub(super) fn may_open(&self, ws: u32, now: Instant) -> bool {
        let workspace = self.workspace(ws);
        !workspace.waiters.is_empty()
            && !workspace.opening.is_some()
            && workspace.counted() < self.config.per_target
            && workspace.closers == 0
            && !self.closed
            && !self.is_backing_off(&workspace.target, now)
    }

    /// Starts opens while there is room, then makes room for the opens that could start at once if there
    /// were some. Room is made only when there is none (law E3), and only as much as is wanted, so that a
    /// queue of misses does not empty the idle set.
    pub(super) fn start_opens(&mut self, effects: &mut Effects<C>) {
        while self.permits_taken < self.config.opens
            && let Some(ws) = self.open_queue.front()
            && let Some(slot) = self.budget.reserve().or_else(|| self.reserve_wrongly())
        {
            self.open_queue.remove(&mut self.open_queue_links, ws);
            self.permits_taken += 1;
            self.totals.peak = self.totals.peak.max(self.budget.counted());
            let workspace = self.workspace_mut(ws);
            workspace.opening = Opening::UnderWay;
            let target = workspace.target.clone();
            effects.opens.push(OpenWork { target, workspace: ws, slot, holds_permit: true });
        }
        if self.has_bug(Bug::NoEviction) {
            return;
        }
        self.evict_wrongly(effects);
        while self.budget.is_full()
            && self.slots_coming() < self.opens_wanted()
            && let Some(victim) = self.policy.victim()
        {
            effects.closes.push(self.retire_idle(victim, CloseReason::Evicted));
        }
    }

    /// How many opens would start now if there were slots.
    fn opens_wanted(&self) -> u32 {
        self.open_queue.len().min(self.config.opens - self.permits_taken.min(self.config.opens))
    }

    /// Slots that will be free in a moment.
    pub(super) fn slots_coming(&self) -> u32 {
        let closing = self.budget.count(SlotState::Closing);
        debug_assert!(self.slow_closes <= closing, "{} slow closes of {closing}", self.slow_closes);
        closing.saturating_sub(self.slow_closes)
    }

    /// Whether a connection of `ws` that came back must be closed for another target although callers of
    /// `ws` wait for it (law W2). The slots already on their way serve the first targets of the open queue; the
    /// first one they do not reach decides, by how long it has stood there.
    pub(super) fn must_yield(&self, ws: u32, now: Instant) -> bool {
        if self.workspace(ws).waiters.is_empty() || self.has_bug(Bug::NeverYields) {
            return false;
        }
        let coming = self.slots_coming();
        if !self.budget.is_full() || coming >= self.opens_wanted() {
            return false;
        }
        let mut unreached = self.open_queue.iter(&self.open_queue_links).skip(coming as usize);
        let next = unreached.find(|other| *other != ws);
        let since = next.and_then(|next| self.workspace(next).queued_since);
        since.is_some_and(|since| now.saturating_duration_since(since) >= self.config.turn)
    }

    /// Hands a connection to the eldest waiter of its target.
    pub(super) fn grant_eldest(
        &mut self,
        ws: u32,
        debt: LeaseDebt,
        conn: C,
        now: Instant,
        effects: &mut Effects<C>,
    ) {
        let queue = &self.workspace(ws).waiters;
        let eldest = if self.has_bug(Bug::LastComeFirstServed) { queue.back() } else { queue.front() };
        let Some(id) = eldest else { unreachable!("a grant is made only to a queue that is not empty") };
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

    /// A target without connections, waiters and closes has no entry (law E4).
    pub(super) fn forget_if_spent(&mut self, ws: u32) {
        if self.workspaces.get(ws as usize).is_some_and(super::Workspace::is_spent) {
            let workspace = self.workspaces.remove(ws as usize);
            self.by_target.remove(&workspace.target);
        }
    }

    fn answer(&mut self, ws: u32, id: u32, answer: WaiterState<C>, effects: &mut Effects<C>) {
        self.unqueue(ws, id);
        self.workspace_mut(ws).unclaimed += 1;
        let waiter = &mut self.waiters[id as usize];
        waiter.state = answer;
        if !self.has_bug(Bug::LostWakeUp) {
            effects.wakes.0.extend(self.waiters[id as usize].waker.take());
        }
    }
}
