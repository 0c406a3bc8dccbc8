//! Closing one target, or everything: no new work, waiters told, idle connections closed now and the
//! others as they come back.

use std::time::Instant;

use super::Registry;
use crate::error::AcquireError;
use crate::events::CloseReason;
use crate::ids::Target;
use crate::token::Effects;

impl<C, S> Registry<C, S> {
    /// Begins to close `target`: it takes no new work until as many `end_close` have come. Wait for
    /// `is_drained`.
    pub fn begin_close(&mut self, target: &Target, now: Instant) -> Effects<C> {
        let ws = self.entry(target);
        self.workspace_mut(ws).closers += 1;
        let mut effects = Effects::default();
        let refusal = AcquireError::WorkspaceClosing { target: target.clone() };
        self.fail_waiters(ws, &refusal, &mut effects);
        self.retire_all_idle(ws, CloseReason::WorkspaceClosed, now, &mut effects);
        self.settle(ws, now, &mut effects);
        effects
    }

    /// Ends one close of `target`, finished or not: with the last one, it takes work again.
    pub fn end_close(&mut self, target: &Target, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        if let Some(ws) = self.by_target.get(target).copied() {
            let workspace = self.workspace_mut(ws);
            workspace.closers = workspace.closers.saturating_sub(1);
            self.settle(ws, now, &mut effects);
        }
        effects
    }

    /// Begins to close everything, for good (law C1). Wait for `is_empty`. Calling it again does nothing.
    pub fn close_all(&mut self, now: Instant) -> Effects<C> {
        self.closed = true;
        let mut effects = Effects { drained: self.is_empty(), ..Effects::default() };
        for ws in self.all_workspaces() {
            self.fail_waiters(ws, &AcquireError::Closed, &mut effects);
            self.retire_all_idle(ws, CloseReason::PoolClosed, now, &mut effects);
            self.settle(ws, now, &mut effects);
        }
        effects
    }

    fn retire_all_idle(&mut self, ws: u32, reason: CloseReason, now: Instant, effects: &mut Effects<C>) {
        while let Some(id) = self.workspace(ws).idle.front() {
            effects.closes.push(self.retire_idle(self.conns[id as usize].id, reason, now));
        }
    }
}
