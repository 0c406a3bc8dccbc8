//! Who gets the next slot, and for how long. [`Registry::settle`] ends each transition that changes what one target wants or holds: it
//! puts the target where it is to stand, hands out what is free, and makes room where that is worth its price. Transitions about all
//! targets, permits or promised moments end in [`Registry::start_opens`]; those that only begin closes leave it to `closed`.
//!
//! - A target *wants* a slot while it has more waiters than opens under way and may have another connection.
//! - It takes a free slot at once (law W3). A connection of another target is closed for it only when it is *ready*: its
//!   patience is over, and its database is known to exist.
//! - Among those that stand ready, the one that has had the least slot-time is next (`fair`). A connection yields to it
//!   after a quantum (law W5), and an idle one at once, unless its target usually comes back at once.
//! - *Patience*: waiting for a connection of one's own is cheaper than a switch while the queue ahead is shorter than a
//!   switch. It ends when somebody has waited without a break for as long as the switch takes, so waiting costs at most
//!   twice the best choice (the ski rental problem; Karlin, Manasse, Rudolph and Sleator 1988).

use std::time::{Duration, Instant};

use super::fair::Wish;
use super::{ConnState, Existence, Registry, Workspace};
use crate::budget::SlotState;
use crate::events::CloseReason;
use crate::ids::{ConnectionId, Target};
use crate::token::{Effects, OpenWork};

impl<C, S> Registry<C, S> {
    /// Brings the order of the targets up to date after something about `ws` changed.
    pub(super) fn settle(&mut self, ws: u32, now: Instant, effects: &mut Effects<C>) {
        if self.nothing_is_wanted(ws) {
            return self.forget_if_spent(ws);
        }
        self.fail_the_hopeless(ws, now, effects);
        self.review(ws, now);
        self.start_opens(now, effects);
        self.ask_whether_it_exists(ws, effects);
        self.owe_retry(ws, now, effects);
        let workspace = self.workspace_mut(ws);
        workspace.ceiling_allowed = workspace.ceiling_allowed.min(workspace.counted()).max(workspace.ceiling);
        let workspace = self.workspace(ws);
        let drained = workspace.closers > 0
            && workspace.counted() == workspace.in_use
            && self.lost.of(&workspace.target) == 0
            || self.has_only_leases_left();
        effects.drained |= drained;
        self.forget_if_spent(ws);
    }

    /// Whether everything is being closed, and no connection is left but those in use.
    pub(super) fn has_only_leases_left(&self) -> bool {
        self.closed && self.budget.counted() == self.budget.count(SlotState::InUse)
    }

    /// The warm path: `ws` wants nothing that others have, nobody stands anywhere, nothing is being closed on purpose, and no
    /// limit was lowered.
    fn nothing_is_wanted(&self, ws: u32) -> bool {
        let workspace = self.workspace(ws);
        (workspace.waiters.is_empty() && workspace.patience_ends.is_none()
            || self.waits_for_its_own(workspace))
            && workspace.closers == 0
            && workspace.ceiling_allowed == workspace.ceiling
            && self.fair.is_empty()
            && !self.closed
            && self.lingering.is_empty()
            && self.budget.allowed() == self.budget.limit()
    }

    /// Whether the workspace has been reviewed since somebody waits for it, has all the connections that it may have, and
    /// nothing has failed.
    fn waits_for_its_own(&self, workspace: &Workspace) -> bool {
        !workspace.waiters.is_empty()
            && workspace.patience_ends.is_some()
            && workspace.counted() >= workspace.ceiling
            && self.failures.is_empty()
            && self.outage.is_none()
    }

    /// A promised moment has come: patience that has ended makes its target ready, and what was kept for a target that
    /// did not come back may be closed. To be called at [`Effects::due_at`]; late or twice does no harm, and a call that
    /// comes early has the moment promised again.
    pub fn due(&mut self, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        let Some(promised) = self.promised else { return effects };
        if promised > now {
            effects.due_at = Some(promised);
            return effects;
        }
        self.promised = None;
        while let Some((at, ws)) = self.moments.first().copied().filter(|(at, _)| *at <= now) {
            self.moments.remove(&(at, ws));
            self.workspace_mut(ws).patient_until = None;
            self.review(ws, now);
        }
        self.start_opens(now, &mut effects);
        effects
    }

    /// Puts `ws` where it is to stand.
    pub(super) fn review(&mut self, ws: u32, now: Instant) {
        self.charge(ws, now);
        let wish = self.wish(ws, now);
        let turn = self.turn();
        let Self { fair, workspaces, .. } = self;
        let workspace = &mut workspaces[ws as usize];
        let has_nothing = workspace.in_use + workspace.opens.under_way + workspace.closing == 0;
        let account = &mut workspace.account;
        fair.stand(ws, account, wish, turn, has_nothing, now);
        fair.reorder(ws, account);
    }

    fn wish(&mut self, ws: u32, now: Instant) -> Wish {
        let patience = now + self.costs.switch();
        let workspace = self.workspace_mut(ws);
        let has_waiters = !workspace.waiters.is_empty();
        workspace.patience_ends = workspace.patience_ends.or(Some(patience)).filter(|_| has_waiters);
        let wants = self.wants(ws, now);
        let patient_until = if wants { self.patient_until(ws, now) } else { None };
        self.promise_patience(ws, patient_until);
        if !wants {
            Wish::None
        } else if patient_until.is_some() || !self.is_known_to_exist(ws) {
            Wish::Later
        } else {
            Wish::Ready
        }
    }

    /// Whether `ws` may have another connection, and has a waiter for it. Before its first success one open at a time
    /// shows whether there is anything to connect to.
    pub(super) fn wants(&self, ws: u32, now: Instant) -> bool {
        let workspace = self.workspace(ws);
        let opens = &workspace.opens;
        workspace.waiters.len() > opens.under_way
            && (opens.under_way == 0 || opens.has_succeeded)
            && workspace.counted() < workspace.ceiling
            && workspace.closers == 0
            && !self.closed
            && self.outage.is_none()
            && !self.is_backing_off(&workspace.target, now)
            && !self.is_held_back(&workspace.target)
    }

    /// Until when the waiters of `ws` rather wait for its own connections than have another one closed.
    fn patient_until(&self, ws: u32, now: Instant) -> Option<Instant> {
        let workspace = self.workspace(ws);
        let servers = workspace.in_use + workspace.opens.under_way;
        let switch = self.costs.switch();
        if servers == 0 || self.costs.lease() * workspace.waiters.len() > switch * servers {
            return None;
        }
        workspace.patience_ends.filter(|until| *until > now)
    }

    fn promise_patience(&mut self, ws: u32, until: Option<Instant>) {
        let before = std::mem::replace(&mut self.workspaces[ws as usize].patient_until, until);
        if before == until {
            return;
        }
        if let Some(before) = before {
            self.moments.remove(&(before, ws));
        }
        if let Some(until) = until {
            self.moments.insert((until, ws));
        }
    }

    /// Asks to be called at the next moment at which something may have to be done, unless that is promised already.
    fn promise(&mut self, effects: &mut Effects<C>) {
        let Some(next) = self.next_moment() else { return };
        if self.promised.is_none_or(|promised| next < promised) {
            self.promised = Some(next);
            effects.due_at = Some(next);
        }
    }

    /// The next moment at which something may have to be done although nothing has happened.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        let patience = self.moments.first().map(|(at, _)| *at);
        let lingering = self.lingering.front().and_then(|id| self.conns[id as usize].lingers_until);
        patience.into_iter().chain(lingering).min()
    }

    /// Starts opens while there is room, then makes room for the opens that could start at once if there
    /// were some. Room is made only when there is none (law E3), and only as much as is wanted, so that a
    /// queue of misses does not empty the idle set.
    pub(super) fn start_opens(&mut self, now: Instant, effects: &mut Effects<C>) {
        while self.permits_taken < self.config.opens
            && let Some(ws) = self.next(now)
            && let Some(slot) = self.budget.reserve()
        {
            self.charge(ws, now);
            let turn = self.turn();
            let limit = self.budget.limit();
            let Self { fair, workspaces, .. } = self;
            let workspace = &mut workspaces[ws as usize];
            fair.serve(ws, &mut workspace.account, turn, limit, now);
            workspace.opens.under_way += 1;
            let target = workspace.target.clone();
            self.permits_taken += 1;
            self.next_open += 1;
            self.totals.peak = self.totals.peak.max(self.budget.counted());
            effects.opens.push(OpenWork {
                target,
                workspace: ws,
                slot,
                holds_permit: true,
                number: self.next_open,
                began: now,
                turn,
            });
            self.review(ws, now);
        }
        self.end_lingering(now);
        while self.is_wanted_elsewhere()
            && let Some(victim) = self.victim()
        {
            let mut close = self.retire_idle(victim, CloseReason::Evicted, now);
            close.debt.for_whom = self.first_in_line(close.target());
            effects.closes.push(close);
        }
        // After the limit was lowered, what is idle goes until the count is below it.
        while self.budget.counted().saturating_sub(self.slots_coming()) > self.budget.limit()
            && let Some(victim) = self.victim()
        {
            effects.closes.push(self.retire_idle(victim, CloseReason::LimitLowered, now));
        }
        self.promise(effects);
    }

    /// The target for which a connection of `own` makes room: the first of those that stand ready, as the order is at this moment.
    pub(super) fn first_in_line(&self, own: &Target) -> Option<Target> {
        self.fair.ready().map(|ws| &self.workspace(ws).target).find(|target| *target != own).cloned()
    }

    /// The target that gets the next free slot. Those that stand ready go first: a slot may have been made for them.
    fn next(&mut self, now: Instant) -> Option<u32> {
        while let Some(ws) = self.fair.first_ready() {
            // Its key is from when it came to stand; what it has had since may put others before it.
            self.charge(ws, now);
            let Self { fair, workspaces, .. } = self;
            fair.reorder(ws, &mut workspaces[ws as usize].account);
            if fair.first_ready() == Some(ws) {
                return Some(ws);
            }
        }
        self.fair.first_later()
    }

    /// Idle connections of a target that keeps another one go first, then the policy's choice (law E2).
    fn victim(&mut self) -> Option<ConnectionId> {
        let Self { policy, conns, workspaces, .. } = self;
        let may_go = |id: ConnectionId| conns[id.index() as usize].lingers_until.is_none();
        let is_spare = |id: ConnectionId| {
            let workspace = &workspaces[conns[id.index() as usize].workspace as usize];
            workspace.in_use + workspace.idle.len() > 1 && may_go(id)
        };
        policy.victim(&is_spare).or_else(|| policy.victim(&may_go))
    }

    /// How many opens would start now if there were slots.
    pub(super) fn opens_wanted(&self) -> u32 {
        self.fair.ready_len().min(self.config.opens.saturating_sub(self.permits_taken))
    }

    /// Slots that will be free in a moment.
    pub(super) fn slots_coming(&self) -> u32 {
        let closing = self.budget.count(SlotState::Closing);
        debug_assert!(self.slow_closes <= closing, "{} slow closes of {closing}", self.slow_closes);
        closing.saturating_sub(self.slow_closes)
    }

    /// Whether a target stands ready for which no slot is free, nor on its way.
    fn is_wanted_elsewhere(&self) -> bool {
        self.budget.is_full() && self.slots_coming() < self.opens_wanted()
    }

    /// Whether a connection of `ws` that came back must be closed for another target although callers of
    /// `ws` wait for it (laws W2, W5 and W6).
    pub(super) fn must_yield(&mut self, ws: u32, id: ConnectionId, now: Instant) -> bool {
        let opened_at = self.conns[id.index() as usize].opened_at;
        if self.workspace(ws).waiters.is_empty()
            || !self.budget.is_full()
            || !self.has_had_its_turn(ws, opened_at, now)
        {
            return false;
        }
        let wanted = self.opens_wanted_soon().saturating_sub(self.slots_coming());
        self.is_first_to_yield(id, opened_at, wanted, now)
    }

    /// Where permits are short, not every connection that has had its turn can yield. Those that have served longest do:
    /// as many as are wanted, and as many more as it takes for one of them to come back before the next permit is free.
    /// One whose lease takes long is not waited for.
    fn is_first_to_yield(&mut self, id: ConnectionId, opened_at: Instant, wanted: u32, now: Instant) -> bool {
        self.overdue.insert((opened_at, id.index()));
        if wanted == 0 {
            return false;
        }
        let (open, lease) = (self.costs.open().as_nanos().max(1), self.costs.lease());
        let spread = (lease.as_nanos() * u128::from(self.opens_that_pay())).div_ceil(open);
        let mut places = wanted.saturating_add(u32::try_from(spread).unwrap_or(u32::MAX));
        let mut late = Vec::new();
        let mut is_first = false;
        for entry @ (_, other) in &self.overdue {
            if places == 0 {
                break;
            }
            if *other == id.index() {
                is_first = true;
                break;
            }
            match self.conns[*other as usize].state {
                ConnState::InUse { since } if since + lease * 2 >= now => places -= 1,
                _ => late.push(*entry),
            }
        }
        for entry in late {
            self.overdue.remove(&entry);
        }
        is_first
    }

    /// How many opens would start if there were slots by the time that a close is over: some permits are free then.
    fn opens_wanted_soon(&self) -> u32 {
        let (open, close) = (self.costs.open().as_nanos().max(1), self.costs.close().as_nanos());
        let freed = (u128::from(self.permits_taken) * close.min(open)).div_ceil(open);
        let permits =
            self.opens_that_pay().saturating_sub(self.permits_taken) + u32::try_from(freed).unwrap_or(0);
        self.fair.ready_len().min(permits)
    }

    /// How many opens at a time connections yield for: where opens hold each other up, more of them only make every switch
    /// take longer, and with it every quantum and the wait of whoever comes next.
    fn opens_that_pay(&self) -> u32 {
        self.costs.opens_that_pay(self.config.opens)
    }

    /// Whether a connection of `ws` has served it for a quantum, and another target has had no more than `ws` has. The
    /// slots already on their way serve the first that stand ready; the first one that they do not reach decides.
    fn has_had_its_turn(&mut self, ws: u32, opened_at: Instant, now: Instant) -> bool {
        let quantum = self.costs.quantum(self.config.quantum);
        if now.saturating_duration_since(opened_at) < quantum {
            return false;
        }
        let coming = self.slots_coming() as usize;
        let next = self.fair.ready().skip(coming).find(|other| *other != ws);
        let Some(next) = next else { return false };
        self.charge(next, now);
        self.charge(ws, now);
        self.workspace(next).account.had() <= self.workspace(ws).account.used()
    }

    /// Until when a connection that came back to `ws`, and that another target wants, is kept for `ws`: it has not had
    /// its turn, and the last time `ws` asked again at once. (Anticipation; Iyer and Druschel 2001.)
    pub(super) fn lingers_until(&mut self, ws: u32, opened_at: Instant, now: Instant) -> Option<Instant> {
        if !self.is_wanted_elsewhere() {
            return None;
        }
        self.workspace_mut(ws).went_idle_at = Some(now);
        let keeps = self.workspace(ws).comes_back && !self.has_had_its_turn(ws, opened_at, now);
        keeps.then(|| now + self.linger())
    }

    /// Learns whether a target whose connection another one wanted comes back soon enough to have been worth waiting for.
    pub(super) fn learn_habit(&mut self, ws: u32, now: Instant) {
        if let Some(at) = self.workspace(ws).went_idle_at {
            let comes_back = now.saturating_duration_since(at) <= self.linger();
            let workspace = self.workspace_mut(ws);
            (workspace.went_idle_at, workspace.comes_back) = (None, comes_back);
        }
    }

    fn linger(&self) -> Duration {
        self.costs.switch() / 2
    }

    /// What was kept long enough may be chosen like any other.
    fn end_lingering(&mut self, now: Instant) {
        while let Some(id) = self.lingering.front() {
            let entry = &mut self.conns[id as usize];
            if entry.lingers_until.is_some_and(|until| until > now) {
                return;
            }
            entry.lingers_until = None;
            self.lingering.remove(&mut self.lingering_links, id);
        }
    }

    /// Takes an idle connection out of the candidates, and of those that are kept.
    pub(super) fn no_candidate(&mut self, id: ConnectionId) {
        let entry = &mut self.conns[id.index() as usize];
        debug_assert!(matches!(entry.state, ConnState::Idle { .. }), "only idle connections are candidates");
        if entry.lingers_until.is_some() {
            entry.lingers_until = None;
            self.lingering.remove(&mut self.lingering_links, id.index());
        }
        self.policy.removed(id);
    }

    /// Charges `ws` for its slots in use, opening and closing up to now. An idle one is not charged: while somebody stands ready it is
    /// closed, or kept for a moment only.
    #[inline]
    pub(super) fn charge(&mut self, ws: u32, now: Instant) {
        self.fair.tick(now);
        let workspace = &mut self.workspaces[ws as usize];
        let serving = workspace.in_use + workspace.opens.under_way;
        self.fair.charge(&mut workspace.account, serving, workspace.closing);
    }

    /// What a turn costs in slot-time: the quantum, or a lease where that lasts longer, and the switch to it. Where permits
    /// are short, slots take turns only as fast as permits do.
    pub(super) fn turn(&self) -> Duration {
        let rounds = f64::from(self.budget.limit()) / f64::from(self.opens_that_pay().max(1));
        let by_permits = self.costs.open().mul_f64(rounds);
        let serves = self.costs.quantum(self.config.quantum).max(self.costs.lease());
        serves + self.costs.switch().max(by_permits)
    }

    /// An open that must close a connection of another target asks first whether there is anything to connect to.
    pub(super) fn ask_whether_it_exists(&mut self, ws: u32, effects: &mut Effects<C>) {
        let workspace = self.workspace_mut(ws);
        if workspace.account.stands() && workspace.existence == Existence::Unknown {
            workspace.existence = Existence::Asked;
            effects.look_ups.push(workspace.target.clone());
        }
    }

    fn is_known_to_exist(&self, ws: u32) -> bool {
        self.workspace(ws).existence == Existence::Known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lru::Lru;
    use crate::registry::RegistryConfig;

    #[test]
    fn a_turn_takes_as_long_as_permits_do_where_they_are_short() {
        let turn = |opens| {
            let quantum = Some(Duration::from_millis(3));
            let config = RegistryConfig { opens, quantum, ..RegistryConfig::new(8, 8) };
            Registry::<u32>::new(config, Box::new(Lru::default())).turn()
        };
        // An open takes 4 ms, and a close one.
        assert_eq!(turn(8), Duration::from_millis(3 + 5));
        assert_eq!(turn(1), Duration::from_millis(3 + 8 * 4));
    }
}
