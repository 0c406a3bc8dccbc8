//! Opens: single flight per target, outliving the caller that asked, failing to those who wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::planted::Bug;
use super::{Conn, ConnState, Failure, Opening, Registry, u32_of};
use crate::budget::{SlotState, take_one};
use crate::error::{AcquireError, DriverError};
use crate::ids::{ConnectionId, Target};
use crate::token::{Effects, LeaseDebt, OpenWork};

impl<C> Registry<C> {
    /// An open succeeded. The connection serves the target's eldest waiter, or is idle if the callers
    /// have gone (law O2). `retire_at` ends its life at the next return after it.
    pub fn opened(
        &mut self,
        work: OpenWork,
        conn: C,
        retire_at: Option<Instant>,
        now: Instant,
    ) -> (ConnectionId, Effects<C>) {
        let OpenWork { target, workspace: ws, mut slot, holds_permit } = work;
        self.end_open(ws, holds_permit);
        self.failures.remove(&target);
        self.totals.opened += 1;
        self.budget.shift(&mut slot, SlotState::InUse);
        self.workspace_mut(ws).in_use += 1;
        let vacant = self.conns.vacant_entry();
        let id = ConnectionId::new(u32_of(vacant.key()), self.next_serial);
        vacant.insert(Conn { id, workspace: ws, slot, retire_at, state: ConnState::InUse });
        self.next_serial = self.next_serial.wrapping_add(1);
        let mut effects = Effects::default();
        self.assign(LeaseDebt { id }, conn, now, &mut effects);
        self.settle(ws, now, &mut effects);
        (id, effects)
    }

    /// An open failed. The slot goes back; the waiters that nothing else can serve are told why; the
    /// next open for this target waits for the pause to pass (law O3).
    pub fn open_failed(&mut self, work: OpenWork, error: Arc<DriverError>, now: Instant) -> Effects<C> {
        let OpenWork { target, workspace: ws, slot, holds_permit } = work;
        let was = self.end_open(ws, holds_permit);
        if self.has_bug(Bug::SlotLeakedOnFailedOpen) {
            std::mem::forget(slot);
        } else {
            self.budget.free(slot);
        }
        self.totals.open_failures += 1;
        let mut effects = Effects::default();
        if !matches!(was, Opening::Outdated) {
            self.back_off(&target, Arc::clone(&error), now);
            self.fail_unserved(ws, &error, now, &mut effects);
        }
        self.settle(ws, now, &mut effects);
        effects
    }

    /// An open takes so long that it stops counting against the limit on simultaneous opens, so that a
    /// few hung databases cannot hold up the others (law O1). It keeps its slot. At most half of the
    /// budget goes to such opens.
    pub fn open_is_slow(&mut self, work: &mut OpenWork) -> Effects<C> {
        let mut effects = Effects::default();
        if work.holds_permit && self.slow_opens < (self.config.limit / 2).max(1) {
            work.holds_permit = false;
            take_one(&mut self.permits_taken, &mut self.totals.miscounts);
            self.slow_opens += 1;
            self.start_opens(&mut effects);
        }
        effects
    }

    /// An open has taken longer than anybody should wait: its waiters are told, and so is everybody who
    /// asks until it ends. It keeps its slot, since the server may count it, and is still to be reported.
    pub fn open_given_up(&mut self, work: &OpenWork, error: Arc<DriverError>, now: Instant) -> Effects<C> {
        let ws = work.workspace;
        let mut effects = Effects::default();
        self.workspace_mut(ws).opening = Opening::GivenUp(Arc::clone(&error));
        self.back_off(&work.target, Arc::clone(&error), now);
        self.fail_unserved(ws, &error, now, &mut effects);
        self.settle(ws, now, &mut effects);
        effects
    }

    /// The pause of `target` is over: its waiters may open again.
    pub fn retry(&mut self, target: &Target, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        if let Some(failure) = self.failures.get_mut(target).filter(|failure| failure.retry_at <= now) {
            failure.retry_is_owed = false;
        }
        if let Some(ws) = self.by_target.get(target).copied() {
            self.settle(ws, now, &mut effects);
        }
        effects
    }

    /// Forgets that opens for `target` failed: its database has just been created.
    pub fn clear_failure(&mut self, target: &Target, now: Instant) -> Effects<C> {
        self.failures.remove(target);
        if let Some(ws) = self.by_target.get(target).copied()
            && let opening @ Opening::UnderWay = &mut self.workspace_mut(ws).opening
        {
            *opening = Opening::Outdated;
        }
        self.retry(target, now)
    }

    /// Why the last open for `target` failed, while that is fresh.
    pub(super) fn last_failure(&self, target: &Target) -> Option<Arc<DriverError>> {
        self.failures.get(target).map(|failure| Arc::clone(&failure.error))
    }

    pub(super) fn is_backing_off(&self, target: &Target, now: Instant) -> bool {
        !self.failures.is_empty() && self.failures.get(target).is_some_and(|failure| failure.retry_at > now)
    }

    /// Forgets failures whose pause ended long ago, so that ids that never existed cost nothing.
    pub(super) fn forget_old_failures(&mut self, now: Instant) {
        let keep = self.config.backoff_max;
        self.failures.retain(|_, failure| failure.retry_is_owed || failure.retry_at + keep > now);
    }

    fn end_open(&mut self, ws: u32, holds_permit: bool) -> Opening {
        if holds_permit {
            take_one(&mut self.permits_taken, &mut self.totals.miscounts);
        } else {
            take_one(&mut self.slow_opens, &mut self.totals.miscounts);
        }
        std::mem::take(&mut self.workspace_mut(ws).opening)
    }

    fn back_off(&mut self, target: &Target, error: Arc<DriverError>, now: Instant) {
        let (first, max) = (self.config.backoff_first, self.config.backoff_max);
        let pause = self.failures.get(target).map_or(first, |before| (before.pause * 2).min(max));
        let failure = Failure { error, pause, retry_at: now + pause, retry_is_owed: false };
        self.failures.insert(target.clone(), failure);
    }

    /// Tells the waiters why there is no connection, unless one in use may come back to them.
    fn fail_unserved(&mut self, ws: u32, error: &Arc<DriverError>, now: Instant, effects: &mut Effects<C>) {
        let workspace = self.workspace(ws);
        if workspace.in_use > 0 {
            return;
        }
        let failure = self.failures.get(&workspace.target);
        let pause = failure.map(|failure| failure.retry_at.saturating_duration_since(now));
        let told = open_error(&workspace.target, error, pause.unwrap_or_default());
        self.fail_waiters(ws, &told, effects);
    }

    /// Asks to be called when the pause of a target is over, if somebody waits for that.
    pub(super) fn owe_retry(&mut self, ws: u32, now: Instant, effects: &mut Effects<C>) {
        let workspace = &self.workspaces[ws as usize];
        if workspace.waiters.is_empty() || self.failures.is_empty() || self.has_bug(Bug::ForgottenRetry) {
            return;
        }
        if let Some(failure) = self.failures.get_mut(&workspace.target)
            && failure.retry_at > now
            && !std::mem::replace(&mut failure.retry_is_owed, true)
        {
            effects.retry_at = Some((workspace.target.clone(), failure.retry_at));
        }
    }
}

pub(super) fn open_error(target: &Target, error: &Arc<DriverError>, retry_in: Duration) -> AcquireError {
    AcquireError::OpenFailed {
        target: target.clone(),
        retryable: error.kind.is_retryable(),
        retry_in,
        source: Arc::clone(error),
    }
}
