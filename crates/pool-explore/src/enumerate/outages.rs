//! Steps about all at once: the server that is lost and answers again, whoever does what is asked, and databases that are made.

use std::time::Duration;

use pool_core::{Broken, Target};

use super::parts::Open;
use super::world::{World, unreachable_server};

impl World {
    pub(super) fn server_is_lost(&mut self) -> Result<(), Broken> {
        (self.is_dark, self.history.outage) = (true, true);
        let effects =
            self.registry.server_is_lost(unreachable_server(), Duration::from_millis(500), self.now);
        self.perform(effects)
    }

    pub(super) fn server_answers(&mut self) -> Result<(), Broken> {
        self.is_dark = false;
        for open in &mut self.opens {
            if let Open::UnderWay { outlived, .. } = open {
                *outlived = true;
            }
        }
        let effects = self.registry.server_answers(self.now);
        self.perform(effects)
    }

    pub(super) fn outdate_opens(&mut self, whose: &Target) {
        for open in self.opens.iter_mut().filter(|open| open.target() == whose) {
            if let Open::UnderWay { outdated, .. } = open {
                *outdated = true;
            }
        }
    }

    /// Those who wait are told that nobody is left, and what they do about it is their own affair.
    pub(super) fn runtime_ends(&mut self) -> Result<(), Broken> {
        (self.is_stranded, self.history.outage) = (true, true);
        let effects = self.registry.nobody_is_left(&unreachable_server(), self.now);
        self.perform(effects)
    }

    /// What had been asked, and not done yet, was asked of nobody.
    pub(super) fn another_begins(&mut self) -> Result<(), Broken> {
        (self.is_stranded, self.is_dark) = (false, false);
        self.retries.clear();
        self.look_ups.clear();
        self.due_at = None;
        let effects = self.registry.begin_again(self.now);
        self.perform(effects)
    }
}
