//! Opens: single flight per target, outliving the caller that asked, failing to those who wait.

use std::sync::Arc;
use std::time::Instant;

use super::planted::Bug;
use super::{Conn, ConnState, Failure, Registry, u32_of};
use crate::budget::SlotState;
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
        self.place(LeaseDebt { id }, conn, now, &mut effects);
        self.settle(ws, now, &mut effects);
        (id, effects)
    }

    /// An open failed. The slot goes back; the waiters that nothing else can serve are told why; the
    /// next open for this target waits for the pause to pass (law O3).
    pub fn open_failed(&mut self, work: OpenWork, error: Arc<DriverError>, now: Instant) -> Effects<C> {
        let OpenWork { target, workspace: ws, slot, holds_permit } = work;
        self.end_open(ws, holds_permit);
        if !self.has_bug(Bug::SlotLeakedOnFailedOpen) {
            self.budget.free(slot);
        }
        self.totals.open_failures += 1;
        let mut effects = Effects::default();
        let failure = self.back_off(&target, error, now);
        if self.workspace(ws).in_use == 0 {
            self.fail_waiters(ws, &failure, &mut effects);
        } else if !self.workspace(ws).waiters.is_empty() {
            effects.retry_at = self.failures.get(&target).map(|failure| (target.clone(), failure.retry_at));
        }
        self.settle(ws, now, &mut effects);
        effects
    }

    /// An open takes so long that it stops counting against the limit on simultaneous opens, so that a
    /// few hung databases cannot hold up the others (law O1). It keeps its slot.
    pub fn open_is_slow(&mut self, work: &mut OpenWork) -> Effects<C> {
        let mut effects = Effects::default();
        if std::mem::take(&mut work.holds_permit) {
            self.permits_taken -= 1;
            self.feed(&mut effects);
        }
        effects
    }

    /// The pause of `target` is over: its waiters may open again.
    pub fn retry(&mut self, target: &Target, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        if let Some(ws) = self.by_target.get(target).copied() {
            self.settle(ws, now, &mut effects);
        }
        effects
    }

    /// Forgets that opens for `target` failed: its database has just been created.
    pub fn forgive(&mut self, target: &Target, now: Instant) -> Effects<C> {
        self.failures.remove(target);
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
        self.failures.retain(|_, failure| failure.retry_at + keep > now);
    }

    fn end_open(&mut self, ws: u32, holds_permit: bool) {
        self.workspace_mut(ws).opening = false;
        self.permits_taken -= u32::from(holds_permit);
    }

    fn back_off(&mut self, target: &Target, error: Arc<DriverError>, now: Instant) -> AcquireError {
        let (first, max) = (self.config.backoff_first, self.config.backoff_max);
        let pause = self.failures.get(target).map_or(first, |before| (before.pause * 2).min(max));
        let failure = Failure { error, pause, retry_at: now + pause };
        let told = failure.to_error(target, now);
        self.failures.insert(target.clone(), failure);
        told
    }
}

impl Failure {
    pub(super) fn to_error(&self, target: &Target, now: Instant) -> AcquireError {
        AcquireError::OpenFailed {
            target: target.clone(),
            retryable: self.error.kind.is_retryable(),
            retry_in: self.retry_at.saturating_duration_since(now),
            source: Arc::clone(&self.error),
        }
    }
}
