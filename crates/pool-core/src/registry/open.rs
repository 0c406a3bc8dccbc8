//! Opens: one for a target until its first success, then as many as it has waiters; they outlive the callers that
//! asked, and fail to those who wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fair::Fair;
use super::{Conn, ConnState, Existence, Failure, Registry, u32_of};
use crate::budget::{Slot, SlotState, take_one};
use crate::error::{AcquireError, DriverError, DriverErrorKind};
use crate::events::CloseReason;
use crate::ids::{ConnectionId, Target};
use crate::token::{Effects, LeaseDebt, OpenWork};

impl<C, S> Registry<C, S> {
    /// An open succeeded. The connection serves the target's eldest waiter, or is idle if the callers
    /// have gone (law O2). `session` is kept for as long as it is open, and `retire_at` ends its life at the next return
    /// after it.
    pub fn opened(
        &mut self,
        work: OpenWork,
        conn: C,
        session: S,
        retire_at: Option<Instant>,
        now: Instant,
    ) -> (ConnectionId, Effects<C>) {
        let Open { ws, slot, took, .. } = self.end_open(work, now);
        self.costs.opened_in(took);
        self.workspace_mut(ws).patience_ends = None;
        self.admit(ws, slot, conn, session, retire_at, now)
    }

    /// A connection of `ws` has come, with its slot.
    pub(super) fn admit(
        &mut self,
        ws: u32,
        mut slot: Slot,
        conn: C,
        session: S,
        retire_at: Option<Instant>,
        now: Instant,
    ) -> (ConnectionId, Effects<C>) {
        self.totals.opened += 1;
        self.budget.shift(&mut slot, SlotState::InUse);
        let workspace = &mut self.workspaces[ws as usize];
        let pause_before = self.failures.remove(&workspace.target).map(|failure| failure.pause);
        workspace.in_use += 1;
        workspace.existence = Existence::Known;
        workspace.opens.has_succeeded = true;
        let vacant = self.conns.vacant_entry();
        let id = ConnectionId::new(u32_of(vacant.key()), self.next_serial);
        let state = ConnState::InUse { since: now };
        vacant.insert(Conn {
            id,
            session,
            workspace: ws,
            slot,
            opened_at: now,
            retire_at,
            retires_for: CloseReason::Lifetime,
            is_new: true,
            pause_before,
            lingers_until: None,
            state,
        });
        self.next_serial = self.next_serial.wrapping_add(1);
        let mut effects = Effects::default();
        self.assign(LeaseDebt { id }, conn, now, &mut effects);
        self.settle(ws, now, &mut effects);
        (id, effects)
    }

    /// An open failed. The slot goes back; the waiters that nothing else can serve are told why; the
    /// next open for this target waits for the pause to pass (law O3).
    pub fn open_failed(&mut self, work: OpenWork, error: Arc<DriverError>, now: Instant) -> Effects<C> {
        let Open { ws, target, slot, number, turn, .. } = self.end_open(work, now);
        Fair::refund(&mut self.workspace_mut(ws).account, turn);
        self.budget.free(slot);
        self.totals.open_failures += 1;
        let mut effects = Effects::default();
        if number >= self.workspace(ws).opens.valid_from {
            if error.kind == DriverErrorKind::DatabaseMissing && self.config.look_up {
                self.workspace_mut(ws).existence = Existence::Unknown;
            }
            self.back_off(&target, Arc::clone(&error), false, now);
            self.fail_unserved(ws, &error, now, &mut effects);
        }
        self.settle(ws, now, &mut effects);
        effects
    }

    /// An open takes so long that it stops counting against the limit on simultaneous opens, so that a
    /// few hung databases cannot hold up the others (law O1). It keeps its slot. At most half of the
    /// share goes to such opens and to those that were given up.
    pub fn open_is_slow(&mut self, work: &mut OpenWork, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        if work.holds_permit && self.slow_opens + self.lost.hung() < self.half() {
            work.holds_permit = false;
            take_one(&mut self.permits_taken, &mut self.totals.miscounts);
            self.slow_opens += 1;
            self.start_opens(now, &mut effects);
        }
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
        if let Some(ws) = self.by_target.get(target).copied() {
            let next = self.next_open + 1;
            let workspace = self.workspace_mut(ws);
            workspace.opens.valid_from = next;
            workspace.existence = Existence::Known;
        }
        self.retry(target, now)
    }

    /// The answer about one of [`Effects::look_ups`]: `target` exists, or it does not, as `missing` says. An answer that
    /// came too late to matter is ignored; whoever cannot tell says that it exists, and the open shows the truth.
    pub fn looked_up(
        &mut self,
        target: &Target,
        missing: Option<Arc<DriverError>>,
        now: Instant,
    ) -> Effects<C> {
        let mut effects = Effects::default();
        let Some(ws) = self.by_target.get(target).copied() else { return effects };
        if self.workspace(ws).existence != Existence::Asked {
            return effects;
        }
        match missing {
            None => self.workspace_mut(ws).existence = Existence::Known,
            Some(error) => {
                self.workspace_mut(ws).existence = Existence::Unknown;
                self.totals.open_failures += 1;
                self.back_off(target, Arc::clone(&error), false, now);
                self.fail_unserved(ws, &error, now, &mut effects);
            }
        }
        self.settle(ws, now, &mut effects);
        effects
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
        let some_are_lost = self.lost.hung() > 0;
        self.failures.retain(|_, failure| {
            failure.retry_is_owed || failure.retry_at + keep > now || failure.has_hung && some_are_lost
        });
    }

    pub(super) fn end_open(&mut self, work: OpenWork, now: Instant) -> Open {
        let OpenWork { target, workspace: ws, slot, holds_permit, number, began, turn } = work;
        self.charge(ws, now);
        if holds_permit {
            take_one(&mut self.permits_taken, &mut self.totals.miscounts);
        } else {
            take_one(&mut self.slow_opens, &mut self.totals.miscounts);
        }
        self.one_less(ws, |ws| &mut ws.opens.under_way);
        Open { ws, target, slot, number, took: now.saturating_duration_since(began), turn }
    }

    pub(super) fn back_off(
        &mut self,
        target: &Target,
        error: Arc<DriverError>,
        has_hung: bool,
        now: Instant,
    ) {
        let pause = self.pause_after(self.failures.get(target).map_or(Duration::ZERO, |before| before.pause));
        self.pause(target, error, has_hung, pause, now);
    }

    fn pause_after(&self, before: Duration) -> Duration {
        (before * 2).max(self.config.backoff_first).min(self.config.backoff_max)
    }

    fn pause(
        &mut self,
        target: &Target,
        error: Arc<DriverError>,
        has_hung: bool,
        pause: Duration,
        now: Instant,
    ) {
        let failure = Failure { error, has_hung, pause, retry_at: now + pause, retry_is_owed: false };
        self.failures.insert(target.clone(), failure);
    }

    /// A new connection has proved broken before any caller could use it. The first one is replaced at once, since any
    /// connection may break (law L3). When the next open comes to the same end, it counts as a failed open (law O3):
    /// otherwise a server that breaks every new connection would have its callers open one after another.
    pub(super) fn new_one_is_broken(
        &mut self,
        target: &Target,
        pause_before: Option<Duration>,
        error: Arc<DriverError>,
        now: Instant,
        effects: &mut Effects<C>,
    ) {
        let Some(ws) = self.by_target.get(target).copied() else { return };
        let pause = pause_before.map_or(Duration::ZERO, |before| self.pause_after(before));
        // A pause that another open has caused meanwhile is not cut short.
        if self.failures.get(target).is_none_or(|failure| failure.retry_at <= now + pause) {
            self.pause(target, Arc::clone(&error), false, pause, now);
        }
        if self.is_backing_off(target, now) {
            self.fail_unserved(ws, &error, now, effects);
        }
    }

    /// Tells the waiters why there is no connection, unless one in use may come back to them, or another open serve them.
    pub(super) fn fail_unserved(
        &mut self,
        ws: u32,
        error: &Arc<DriverError>,
        now: Instant,
        effects: &mut Effects<C>,
    ) {
        let workspace = self.workspace(ws);
        if workspace.in_use > 0 || workspace.opens.under_way > 0 {
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
        if workspace.waiters.is_empty() || self.failures.is_empty() {
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

/// An open that has ended.
pub(super) struct Open {
    pub(super) ws: u32,
    pub(super) target: Target,
    pub(super) slot: Slot,
    pub(super) number: u64,
    took: Duration,
    pub(super) turn: Duration,
}

pub(super) fn open_error(target: &Target, error: &Arc<DriverError>, retry_in: Duration) -> AcquireError {
    AcquireError::OpenFailed {
        target: target.clone(),
        retryable: error.kind.is_retryable(),
        retry_in,
        source: Arc::clone(error),
    }
}
