//! What may change while running: the limits of the share, and the terms of single targets.

use std::time::Instant;

use super::{Registry, RegistryConfig};
use crate::events::CloseReason;
use crate::ids::Target;
use crate::token::Effects;

/// What one target may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its part of the slots where they do not suffice, relative to the others'. At least 1; 1 unless set.
    pub weight: u32,
    /// The most connections it may have, if not what all targets may have.
    pub ceiling: Option<u32>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { weight: 1, ceiling: None }
    }
}

impl Terms {
    pub(super) fn ceiling(self, per_target: u32) -> u32 {
        self.ceiling.unwrap_or(per_target)
    }
}

impl<C, S> Registry<C, S> {
    /// Sets the limits of the share: `limit`, `per_target`, `opens` and `waiting_per_target` of `config`. Growing starts
    /// opens; shrinking closes idle connections until the count is below the new limit, and the others as they come back.
    /// No lease is cut, and nothing opens until there is room (law B1).
    pub fn set_limits(&mut self, config: &RegistryConfig, now: Instant) -> Effects<C> {
        let RegistryConfig { limit, per_target, opens, waiting_per_target, .. } = *config;
        let mut effects = Effects::default();
        if self.config == (RegistryConfig { limit, per_target, opens, waiting_per_target, ..self.config }) {
            return effects;
        }
        self.config = RegistryConfig { limit, per_target, opens, waiting_per_target, ..self.config };
        self.budget.set_limit(limit);
        for ws in self.all_workspaces() {
            let terms = self.terms_of(&self.workspace(ws).target);
            self.set_ceiling(ws, terms.ceiling(per_target), now, &mut effects);
            self.settle(ws, now, &mut effects);
        }
        self.hold_back_the_hung(now, &mut effects);
        effects
    }

    /// The most that the share may count now: its limit, or more while connections of a higher one are left.
    pub fn allowed(&self) -> u32 {
        self.budget.allowed()
    }

    /// Sets what `target` may have. A weight of 0 counts as 1. Above a ceiling that was lowered, idle connections are
    /// closed now, and others as they come back.
    pub fn set_terms(&mut self, target: &Target, terms: Terms, now: Instant) -> Effects<C> {
        let terms = Terms { weight: terms.weight.max(1), ..terms };
        if terms == Terms::default() {
            self.terms.remove(target);
        } else {
            self.terms.insert(target.clone(), terms);
        }
        let mut effects = Effects::default();
        if let Some(ws) = self.by_target.get(target).copied() {
            self.charge(ws, now);
            let per_target = self.config.per_target;
            self.workspace_mut(ws).account.set_weight(terms.weight);
            self.set_ceiling(ws, terms.ceiling(per_target), now, &mut effects);
            self.settle(ws, now, &mut effects);
        }
        effects
    }

    fn set_ceiling(&mut self, ws: u32, ceiling: u32, now: Instant, effects: &mut Effects<C>) {
        self.workspace_mut(ws).set_ceiling(ceiling);
        while self.is_above_its_ceiling(ws)
            && let Some(id) = self.workspace(ws).idle.front()
        {
            effects.closes.push(self.retire_idle(self.conns[id as usize].id, CloseReason::LimitLowered, now));
        }
    }

    pub(super) fn terms_of(&self, target: &Target) -> Terms {
        if self.terms.is_empty() {
            Terms::default()
        } else {
            self.terms.get(target).copied().unwrap_or_default()
        }
    }
}
