//! Ask, queue, fetch the answer, give up.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::open::open_error;
use super::{Conn, ConnState, Registry, Waiter, WaiterState, Workspace, u32_of};
use crate::budget::SlotState;
use crate::error::{AcquireError, DriverError, DriverErrorKind, Pressure, Stage};
use crate::events::CloseReason;
use crate::ids::Target;
use crate::token::{Effects, LeaseDebt, Leased, Ticket};

/// The answer to `acquire`.
#[derive(Debug)]
#[must_use]
pub enum Acquire<C> {
    /// Served at once by an idle connection.
    Leased(Leased<C>),
    /// In the queue. Perform the effects, then claim until the answer is there.
    Queued(Ticket, Effects<C>),
    /// Not now; the error says why.
    Refused(AcquireError),
}

/// The answer to `claim`.
#[derive(Debug)]
#[must_use]
pub enum Claim<C> {
    /// Not yet; the ticket back.
    Waiting(Ticket),
    /// Served.
    Leased(Leased<C>),
    /// It will not be served.
    Failed(AcquireError),
}

/// What a caller that gave up was waiting for.
#[derive(Debug)]
#[must_use]
pub struct CancelledWait<C> {
    /// What was missing.
    pub waiting_for: Stage,
    /// How full things were.
    pub pressure: Pressure,
    /// Why the last open for the target failed, if it did.
    pub last_failure: Option<Arc<DriverError>>,
    /// To be performed: a grant that met nobody goes to the next.
    pub effects: Effects<C>,
    /// What the caller had left to be told with, to be dropped outside the lock.
    pub waker: Option<Waker>,
}

/// Where in its target's queue a waiter goes.
enum QueueEnd {
    Back,
    /// For a caller that had been served already, with a connection that turned out to be broken.
    Front,
}

impl<C, S> Registry<C, S> {
    /// Asks for a connection to `target`. Cost: one hash of the target; no allocation when a connection
    /// is idle.
    pub fn acquire(&mut self, target: &Target, now: Instant) -> Acquire<C> {
        self.acquire_at(target, QueueEnd::Back, now)
    }

    fn acquire_at(&mut self, target: &Target, end: QueueEnd, now: Instant) -> Acquire<C> {
        let answer = self.serve_or_queue(target, end, now);
        if let Acquire::Refused(_) = answer {
            self.count(target, |answers| answers.errors += 1);
        }
        answer
    }

    fn serve_or_queue(&mut self, target: &Target, end: QueueEnd, now: Instant) -> Acquire<C> {
        let ws = self.by_target.get(target).copied();
        if let Some(refusal) = self.refusal_while_closing(target, ws) {
            return Acquire::Refused(refusal);
        }
        if let Some(ws) = ws {
            self.learn_habit(ws, now);
            if let Some(leased) = self.lease_idle(ws, now) {
                return Acquire::Leased(leased);
            }
        }
        self.queue(target, end, now)
    }

    /// Serves a caller that does not wait: an idle connection, or none.
    ///
    /// # Errors
    /// [`AcquireError`]: the share or the target is being closed.
    pub fn try_acquire(&mut self, target: &Target, now: Instant) -> Result<Option<Leased<C>>, AcquireError> {
        let ws = self.by_target.get(target).copied();
        if let Some(refusal) = self.refusal_while_closing(target, ws) {
            self.count(target, |answers| answers.errors += 1);
            return Err(refusal);
        }
        let Some(ws) = ws else { return Ok(None) };
        self.learn_habit(ws, now);
        Ok(self.lease_idle(ws, now))
    }

    /// The answer to everybody while `target`, or everything, is being closed.
    fn refusal_while_closing(&self, target: &Target, ws: Option<u32>) -> Option<AcquireError> {
        if self.closed {
            return Some(AcquireError::Closed);
        }
        let is_closing = ws.is_some_and(|ws| self.workspace(ws).closers > 0);
        is_closing.then(|| AcquireError::WorkspaceClosing { target: target.clone() })
    }

    /// Discards a leased connection that proved broken before its caller saw it, and asks again for
    /// another one at the front of the queue (law L3). A new connection that follows another broken one counts as a
    /// failed open, of which `error` tells why (law O3). Where the server said nothing, the target's other connections that
    /// have been idle for as long are closed, too: each would cost its caller the same wait.
    pub fn replace(
        &mut self,
        debt: LeaseDebt,
        conn: C,
        error: Arc<DriverError>,
        now: Instant,
    ) -> (Acquire<C>, Effects<C>) {
        if let Some(target) = self.forget_cut(&debt) {
            return (self.acquire_at(&target, QueueEnd::Front, now), Effects::dead(conn));
        }
        let Conn { workspace: ws, is_new, pause_before, .. } = self.conns[debt.id.index() as usize];
        let target = self.workspace(ws).target.clone();
        // The discard comes first so that the slot on its way out is seen, but it must not feed the
        // queue before this caller is back in it.
        let mut effects = Effects::default();
        if error.kind.may_concern_all() {
            self.note_breakage(now);
        } else {
            self.workspace_mut(ws).broken_at = Some(now);
        }
        if error.kind == DriverErrorKind::TimedOut {
            self.retire_the_silent(&debt, now, &mut effects);
        }
        self.retire_leased(debt, conn, CloseReason::Broken, now, &mut effects);
        if is_new {
            self.new_one_is_broken(&target, pause_before, error, now, &mut effects);
        }
        let again = self.acquire_at(&target, QueueEnd::Front, now);
        self.settle(ws, now, &mut effects);
        (again, effects)
    }

    /// Closes what was idle already when the connection behind `debt` was leased.
    fn retire_the_silent(&mut self, debt: &LeaseDebt, now: Instant, effects: &mut Effects<C>) {
        let Conn { workspace: ws, state: ConnState::InUse { since: leased }, .. } =
            self.conns[debt.id.index() as usize]
        else {
            return;
        };
        // The one at the front has been idle longest.
        while let Some(id) = self.workspace(ws).idle.front() {
            let entry = &self.conns[id as usize];
            if matches!(entry.state, ConnState::Idle { since, .. } if since > leased) {
                return;
            }
            effects.closes.push(self.retire_idle(entry.id, CloseReason::Broken, now));
        }
    }

    /// Fetches the answer to a ticket, or leaves `waker` to be told of it. A waker left before comes back
    /// in `waker`, to be dropped outside the lock. A grant that is fetched late is checked first, like a connection
    /// that was idle meanwhile.
    pub fn claim(&mut self, ticket: Ticket, waker: &mut Option<Waker>, now: Instant) -> Claim<C> {
        let waiter = &mut self.waiters[ticket.waiter as usize];
        if let WaiterState::Queued = waiter.state {
            std::mem::swap(&mut waiter.waker, waker);
            return Claim::Waiting(ticket);
        }
        let Waiter { workspace, state, .. } = self.waiters.remove(ticket.waiter as usize);
        let claim = match state {
            WaiterState::Granted { mut leased, since } => {
                leased.check_first = self.needs_check(workspace, since, now);
                if !leased.check_first {
                    self.count_in(workspace, |answers| answers.add_lease(false));
                }
                Claim::Leased(leased)
            }
            WaiterState::Failed(error) => {
                self.count_in(workspace, |answers| answers.errors += 1);
                Claim::Failed(error)
            }
            WaiterState::Queued => Claim::Waiting(ticket),
        };
        self.one_less(workspace, |ws| &mut ws.unclaimed);
        self.forget_if_spent(workspace);
        claim
    }

    /// Gives up a place in the queue. It leaves no trace, and a grant that met it goes to the next
    /// (law W4).
    pub fn cancel_wait(&mut self, ticket: Ticket, now: Instant) -> CancelledWait<C> {
        let ws = self.waiters[ticket.waiter as usize].workspace;
        let mut cancelled = CancelledWait {
            waiting_for: self.stage(ws),
            pressure: self.pressure(Some(self.workspace(ws))),
            last_failure: self.last_failure(&self.workspace(ws).target),
            effects: Effects::default(),
            waker: None,
        };
        self.count_in(ws, |answers| answers.given_up += 1);
        let id = ticket.waiter;
        let waiter = self.waiters.remove(id as usize);
        cancelled.waker = waiter.waker;
        match waiter.state {
            WaiterState::Queued => self.unqueue(ws, id),
            WaiterState::Granted { leased, .. } => {
                self.one_less(ws, |ws| &mut ws.unclaimed);
                self.take_back(leased.debt, leased.conn, now, &mut cancelled.effects);
            }
            WaiterState::Failed(_) => self.one_less(ws, |ws| &mut ws.unclaimed),
        }
        self.settle(ws, now, &mut cancelled.effects);
        cancelled
    }

    /// The most recently used idle connection of `ws`: the one most likely to be warm and alive.
    fn lease_idle(&mut self, ws: u32, now: Instant) -> Option<Leased<C>> {
        let id = {
            let workspace = &mut self.workspaces[ws as usize];
            workspace.idle.pop_back(&mut self.idle_links)?
        };
        self.charge(ws, now);
        self.workspace_mut(ws).in_use += 1;
        let id = self.conns[id as usize].id;
        self.no_candidate(id);
        let entry = &mut self.conns[id.index() as usize];
        let in_use = ConnState::InUse { since: now };
        let ConnState::Idle { conn, since } = std::mem::replace(&mut entry.state, in_use) else {
            unreachable!("only idle connections are in an idle list")
        };
        self.budget.shift(&mut entry.slot, SlotState::InUse);
        let check_first = self.needs_check(ws, since, now);
        if !check_first {
            self.count_in(ws, |answers| answers.add_lease(true));
        }
        let debt = LeaseDebt { id };
        Some(Leased { conn, debt, check_first, waited: None })
    }

    /// Whether a connection of `ws` that nobody has used since `since` is to be checked first.
    fn needs_check(&self, ws: u32, since: Instant, now: Instant) -> bool {
        let stale = now.saturating_duration_since(since) > self.config.check_after;
        stale || self.broken_at.max(self.workspace(ws).broken_at).is_some_and(|broken| since <= broken)
    }

    fn queue(&mut self, target: &Target, end: QueueEnd, now: Instant) -> Acquire<C> {
        if let Some(refusal) = self.refusal(target, now) {
            return Acquire::Refused(refusal);
        }
        let ws = self.entry(target);
        let (waiting, limit) = (self.workspace(ws).waiters.len(), self.config.waiting_per_target);
        // Who was served already does not wait behind the bound.
        if waiting >= limit && matches!(end, QueueEnd::Back) {
            return Acquire::Refused(AcquireError::QueueFull { target: target.clone(), waiting, limit });
        }
        let waiter = Waiter { workspace: ws, since: now, waker: None, state: WaiterState::Queued };
        let id = u32_of(self.waiters.insert(waiter));
        let queue = &mut self.workspaces[ws as usize].waiters;
        match end {
            QueueEnd::Back => queue.push_back(&mut self.waiter_links, id),
            QueueEnd::Front => queue.push_front(&mut self.waiter_links, id),
        }
        let mut effects = Effects::default();
        self.settle(ws, now, &mut effects);
        Acquire::Queued(Ticket { waiter: id }, effects)
    }

    /// While a target backs off, or is held back because its opens hang, only its connections in use could serve a
    /// waiter; with none of them, the caller is told at once (laws O3 to O5). So it is while the server is
    /// lost.
    fn refusal(&self, target: &Target, now: Instant) -> Option<AcquireError> {
        let workspace = self.entry_of(target);
        if workspace.is_some_and(|ws| ws.in_use > 0) {
            return None;
        }
        if let Some(refusal) = self.outage_error(target) {
            return Some(refusal);
        }
        if workspace.is_some_and(|ws| ws.opens.under_way > 0) {
            return None;
        }
        let failure = self.failures.get(target)?;
        let pause = failure.retry_at.saturating_duration_since(now);
        if self.is_held_back(target) {
            return Some(open_error(target, &failure.error, pause.max(self.config.backoff_first)));
        }
        (!pause.is_zero()).then(|| open_error(target, &failure.error, pause))
    }

    fn stage(&self, ws: u32) -> Stage {
        let ws = self.workspace(ws);
        if ws.opens.under_way > 0 {
            Stage::Opening
        } else if ws.counted() >= ws.ceiling {
            Stage::WorkspaceCeiling
        } else if self.budget.is_full() {
            Stage::Budget
        } else {
            Stage::Opening
        }
    }

    /// How full things are, for a caller that asked for `target`.
    pub fn pressure_on(&self, target: &Target) -> Pressure {
        self.pressure(self.entry_of(target))
    }

    fn pressure(&self, workspace: Option<&Workspace>) -> Pressure {
        Pressure {
            in_use: self.budget.count(SlotState::InUse),
            counted: self.budget.counted(),
            limit: self.config.limit,
            target_counted: workspace.map_or(0, Workspace::counted),
            target_limit: workspace.map_or(self.config.per_target, |ws| ws.ceiling),
            waiting: self.waiting(),
        }
    }
}
