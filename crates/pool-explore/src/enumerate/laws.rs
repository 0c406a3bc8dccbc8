//! The laws as an outsider sees them: by what the registry asks of the world, who is served with what, and in which
//! order. The registry's own counts are not believed, but compared.

use std::time::Instant;

use pool_core::{AcquireError, Broken, CloseReason, ConnectionId, Target, View, WorkspaceView};

use super::Step;
use super::parts::{Caller, Conn, Live};
use super::world::{QUANTUM, World};

fn broken<T>(law: &'static str, what: String) -> Result<T, Broken> {
    Err(Broken { law, what })
}

impl World {
    /// Takes a step, and checks every law afterwards.
    pub(super) fn take(&mut self, step: Step) -> Result<(), Broken> {
        let before = self.registry.view(self.now);
        let must_yield = self.must_yield(step, &before);
        self.step(step)?;
        self.registry.check(self.now)?;
        let counted = self.counted(None);
        self.allowed = self.budget.max(self.allowed.min(u32::try_from(counted).unwrap_or(u32::MAX)));
        self.check_budget()?;
        self.check_count()?;
        self.check_queues()?;
        self.check_turns(&before)?;
        if must_yield && self.closes.is_empty() {
            return broken(
                "W2",
                "another workspace's turn had come, and nothing was closed for it".to_owned(),
            );
        }
        Ok(())
    }

    /// The laws that hold where a world that means well comes to its end: everybody was served, everything is back.
    pub(super) fn check_the_end(&self) -> Result<(), Broken> {
        if let Some(c) = self.callers.iter().position(|caller| matches!(caller, Caller::Waiting { .. })) {
            return broken("W3", format!("nothing can happen any more, and caller {c} waits"));
        }
        if !self.dead.is_empty() {
            return broken("C1", "a connection that was cut has not come out".to_owned());
        }
        let counts = self.registry.stats().connections;
        if counts.in_use > 0 {
            return broken(
                "W4",
                format!("{} connections count as in use, and nobody holds them", counts.in_use),
            );
        }
        // An open that was given up may never end.
        if counts.total() as usize != self.live.len() + self.opens.len() {
            let (counted, live) = (counts.total(), self.live.len());
            return broken("S1", format!("{counted} connections are counted, {live} are open"));
        }
        if !self.closers.is_empty() {
            return broken("C1", "nothing can happen any more, and a close waits".to_owned());
        }
        if self.history.all_closed && !self.live.is_empty() {
            return broken(
                "C2",
                format!("everything is closed, and {} connections are open", self.live.len()),
            );
        }
        Ok(())
    }

    /// B1, B2: what the server counts.
    fn check_budget(&self) -> Result<(), Broken> {
        let (counted, allowed) = (self.counted(None), self.allowed as usize);
        if counted > allowed {
            return broken("B1", format!("the server may see {counted} connections of {allowed}"));
        }
        let ceiling = self.scenario.per_workspace as usize;
        for target in self.targets.iter() {
            // A lost open is none of its workspace's (law O5).
            let lost = self.opens.iter().filter(|open| open.is_lost() && open.target() == target).count();
            let counted = self.counted(Some(target)) - lost;
            if counted > ceiling {
                return broken(
                    "B2",
                    format!("the server may see {counted} connections of {target}, of {ceiling}"),
                );
            }
        }
        Ok(())
    }

    /// S1: what the registry counts is what the server may see.
    fn check_count(&self) -> Result<(), Broken> {
        let (counts, counted) = (self.registry.stats().connections, self.counted(None));
        if counts.total() as usize == counted {
            return Ok(());
        }
        broken("S1", format!("{} connections are counted, the server may see {counted}", counts.total()))
    }

    fn counted(&self, target: Option<&Target>) -> usize {
        let is_its = |other: &Target| target.is_none_or(|target| target == other);
        self.live.iter().filter(|live| is_its(&live.target)).count()
            + self.opens.iter().filter(|open| is_its(open.target())).count()
    }

    /// W4: as many stand in the queues as wait.
    fn check_queues(&self) -> Result<(), Broken> {
        let waiting = self.callers.iter().filter(|caller| matches!(caller, Caller::Waiting { .. })).count();
        let queued = self.registry.stats().waiting as usize;
        if queued == waiting {
            return Ok(());
        }
        broken("W4", format!("{queued} stand in the queues, {waiting} callers wait"))
    }

    /// W2: no target that stood ready, and had nothing, was passed by one behind it. (What a target has meanwhile may put
    /// others before it.)
    fn check_turns(&self, before: &View) -> Result<(), Broken> {
        let after = self.registry.view(self.now);
        let has_nothing = |target: &Target| {
            let its = before.workspaces.iter().find(|ws| ws.target == *target);
            its.is_some_and(|ws| ws.in_use + ws.opening + ws.closing == 0)
        };
        let mut passed: Option<&Target> = None;
        for target in &before.ready {
            match passed {
                _ if after.ready.contains(target) => {
                    passed = passed.or(has_nothing(target).then_some(target));
                }
                Some(waiting) if self.started.contains(target) => {
                    return broken(
                        "W2",
                        format!("{target} may open, and {waiting}, which stood before it, waits"),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// W2, the simple case: a connection that has served for a quantum comes back to a workspace whose callers wait, no
    /// other workspace has ever been served, the budget is spent, no slot is on its way, and another workspace stands ready,
    /// while its own does not. (Where its own stands ready, too, the turns that it was given for the connections that it has
    /// put a newcomer up to as many turns behind it. So does an open that was lost, with whose slot its own stood ready.)
    fn must_yield(&self, step: Step, before: &View) -> bool {
        let Step::Release(c) = step else { return false };
        let Caller::Holding { conn, .. } = &self.callers[c] else { return false };
        if self.dead.contains(conn) {
            return false;
        }
        let opened = self.live.iter().find(|live| live.conn == *conn).map(|live| live.opened);
        let target = self.target(self.wants(c));
        let its_callers_wait = before.workspaces.iter().any(|ws| ws.target == target && ws.waiting > 0);
        its_callers_wait
            && opened.is_some_and(|opened| self.now.saturating_duration_since(opened) >= QUANTUM)
            && self.history.served == self.bit_of(&target)
            && self.history.lost == 0
            && self.closes.is_empty()
            && self.counted(None) == self.budget as usize
            && before.opens.0 < self.scenario.opens
            && !before.ready.is_empty()
            && !before.ready.contains(&target)
    }

    /// W1: nobody who came earlier for the same workspace is still unanswered.
    pub(super) fn check_order(&self, c: usize, asked: i64) -> Result<(), Broken> {
        for (other, caller) in self.callers.iter().enumerate() {
            if let Caller::Waiting { woken, asked: earlier, .. } = caller
                && *earlier < asked
                && self.wants(other) == self.wants(c)
                && !woken.is_up()
            {
                return broken("W1", format!("caller {c} was served before caller {other}, who came first"));
            }
        }
        Ok(())
    }

    /// I2, E1: a lease is for the right database, and for nobody else.
    pub(super) fn check_lease(&self, c: usize, conn: Conn) -> Result<(), Broken> {
        let target = self.target(self.wants(c));
        if !self.live.iter().any(|live| live.conn == conn && live.target == target) {
            return broken("I2", format!("caller {c} got a connection of another database"));
        }
        if self.is_held(conn) {
            return broken("E1", format!("caller {c} got a connection that another holds"));
        }
        if self.closes.iter().any(|close| close.conn == conn) {
            return broken("E1", format!("caller {c} got a connection that is being closed"));
        }
        Ok(())
    }

    /// E1, E2, E3: a connection is closed for a reason, and never under its holder.
    pub(super) fn check_close(&self, conn: Conn, reason: CloseReason) -> Result<(), Broken> {
        if self.is_held(conn) {
            return broken("E1", "a connection is closed under its holder".to_owned());
        }
        let Some(live) = self.live.iter().find(|live| live.conn == conn) else {
            return broken("S2", "a connection is closed twice".to_owned());
        };
        let is_right = match reason {
            CloseReason::Evicted => {
                self.check_victim(&live.target, live.returned)?;
                self.is_budget_spent()
            }
            CloseReason::Yielded => {
                if self.now.saturating_duration_since(live.opened) < QUANTUM {
                    return broken("W5", format!("a connection of {} yields too early", live.target));
                }
                self.is_budget_spent()
            }
            CloseReason::LimitLowered => self.history.limit_lowered,
            CloseReason::IdleTimeout => self.during == Step::IdleTimeout,
            CloseReason::Lifetime => self.cut.contains(&live.id),
            CloseReason::Discarded => matches!(self.during, Step::Discard(_)),
            CloseReason::Broken => {
                matches!(self.during, Step::Break(_) | Step::CheckFails(_) | Step::VanishedIsTold)
            }
            CloseReason::WorkspaceClosed => self.history.closed & self.bit_of(&live.target) != 0,
            CloseReason::PoolClosed => self.history.all_closed,
            // A reason that is new to this world must be taught to it.
            _ => false,
        };
        if is_right {
            return Ok(());
        }
        let law = if reason == CloseReason::Lifetime { "E1" } else { "E3" };
        broken(law, format!("a connection of {} is closed without need ({reason:?})", live.target))
    }

    /// E1: only leases that a closer has listed are cut, and none that has come back.
    pub(super) fn check_cut(&self, id: ConnectionId) -> Result<(), Broken> {
        let is_its = |live: &Live| live.id == id && !self.closes.iter().any(|close| close.conn == live.conn);
        if self.cut.contains(&id) && self.live.iter().any(is_its) && !self.registry.idle().contains(&id) {
            return Ok(());
        }
        broken("E1", "a connection is taken for one that was cut".to_owned())
    }

    /// S1: only what is gone is dropped without a close, and nobody holds it.
    pub(super) fn check_dead(&self, conn: Conn) -> Result<(), Broken> {
        if self.is_held(conn) {
            return broken("E1", "a connection is dropped under its holder".to_owned());
        }
        if self.dead.contains(&conn) {
            return Ok(());
        }
        broken("S1", "a connection is dropped whose session is there".to_owned())
    }

    fn is_budget_spent(&self) -> bool {
        self.counted(None) >= self.budget as usize
    }

    /// E2: the victim is of a workspace that keeps another connection, if there is such a one; and of all like it, the one
    /// that came back first.
    fn check_victim(&self, target: &Target, returned: Instant) -> Result<(), Broken> {
        let age = (self.now - returned).as_nanos();
        let view = self.registry.view(self.now);
        let keeps = |ws: &WorkspaceView| ws.in_use as usize + ws.idle_nanos.len() + ws.lingering as usize;
        let spare = view.workspaces.iter().filter(|ws| keeps(ws) > 1).flat_map(|ws| &ws.idle_nanos).max();
        let any = view.workspaces.iter().flat_map(|ws| &ws.idle_nanos).max();
        let was_spare = view.workspaces.iter().any(|ws| ws.target == *target && keeps(ws) > 0);
        match (was_spare, spare, any) {
            (false, Some(_), _) => {
                broken("E2", "the last connection of a workspace is evicted, and another has two".to_owned())
            }
            (true, Some(left), _) | (false, None, Some(left)) if *left > age => {
                broken("E2", "a connection is evicted that was not idle longest".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// O3, C1: who is told why there is no connection is told the truth.
    pub(super) fn check_failure(&self, c: usize, error: &AcquireError) -> Result<(), Broken> {
        let its = self.bit(self.wants(c));
        let (law, is_true) = match error {
            AcquireError::OpenFailed { .. } => ("O3", self.history.failed & its != 0 || self.history.outage),
            AcquireError::WorkspaceClosing { .. } => ("C1", self.history.closed & its != 0),
            AcquireError::Closed => ("C1", self.history.all_closed),
            _ => ("W3", false),
        };
        if is_true { Ok(()) } else { broken(law, format!("caller {c} is told what did not happen: {error}")) }
    }

    /// C1: what is being closed takes no new work.
    pub(super) fn check_is_open(&self, c: usize) -> Result<(), Broken> {
        let target = self.target(self.wants(c));
        let is_its = |other: &Option<Target>| other.as_ref().is_none_or(|other| *other == target);
        if self.history.all_closed || self.closers.iter().any(|closer| is_its(&closer.target)) {
            return broken("C1", format!("caller {c} may wait for {target}, which is being closed"));
        }
        Ok(())
    }

    /// E1: a close cuts only leases of what it closes.
    pub(super) fn check_listed(
        &self,
        target: Option<&Target>,
        listed: &[ConnectionId],
    ) -> Result<(), Broken> {
        let is_its = |id: &ConnectionId| {
            let live = self.live.iter().find(|live| live.id == *id);
            live.is_some_and(|live| target.is_none_or(|target| live.target == *target))
        };
        if listed.iter().all(is_its) {
            return Ok(());
        }
        broken("E1", "a close is going to cut a lease of another workspace".to_owned())
    }

    fn is_held(&self, conn: Conn) -> bool {
        let holds = |caller: &Caller| matches!(caller, Caller::Holding { conn: held, .. } if *held == conn);
        self.callers.iter().any(holds)
    }
}
