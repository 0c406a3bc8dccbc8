//! Which steps a small world can take, and what they count as.

use std::collections::BTreeSet;

use super::Step;
use super::parts::{Caller, Close};
use super::world::World;

impl World {
    /// Every step that can be taken now. Of steps that differ only in which of two equals they are about, one.
    pub(super) fn possible(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        self.steps_of_callers(&mut steps);
        self.steps_of_connections(&mut steps);
        self.steps_of_closers(&mut steps);
        let somebody_is_there = !self.is_stranded;
        steps.extend((0..self.retries.len()).filter(|_| somebody_is_there).map(Step::RetryIsDue));
        steps.extend(self.due_at.filter(|_| somebody_is_there).map(|_| Step::DueComes));
        for i in (0..self.look_ups.len()).filter(|_| somebody_is_there) {
            steps.push(Step::IsFound(i));
            steps.extend((self.mishaps_left > 0).then_some(Step::IsMissing(i)));
        }
        if self.quanta_left > 0 && self.is_anybody_waiting() {
            steps.push(Step::QuantumPasses);
        }
        steps
    }

    fn steps_of_callers(&self, steps: &mut Vec<Step>) {
        let mut asking = 0_u8;
        for (c, caller) in self.callers.iter().enumerate() {
            match caller {
                // Callers of a workspace are alike until they have asked.
                Caller::New if asking & self.bit(self.wants(c)) == 0 => {
                    asking |= self.bit(self.wants(c));
                    steps.push(Step::Ask(c));
                }
                Caller::Waiting { woken, .. } => {
                    steps.push(Step::GiveUp(c));
                    if woken.is_up() {
                        steps.push(Step::Fetch(c));
                    }
                }
                Caller::Holding { fresh, .. } => {
                    steps.push(Step::Release(c));
                    if self.mishaps_left > 0 {
                        steps.extend([Step::Break(c), Step::Discard(c)]);
                        steps.extend(fresh.then_some(Step::CheckFails(c)));
                    }
                }
                Caller::New | Caller::Done => {}
            }
        }
    }

    fn steps_of_connections(&self, steps: &mut Vec<Step>) {
        for (i, open) in self.opens.iter().enumerate() {
            steps.push(Step::OpenSucceeds(i));
            if open.is_lost() || self.mishaps_left > 0 {
                steps.push(Step::OpenFails(i));
            }
            if !open.is_slow() && !open.is_lost() && self.mishaps_left > 0 {
                steps.push(Step::OpenIsSlow(i));
            }
            steps.extend(open.is_outlived().then_some(Step::OpenIsOvertaken(i)));
            if open.is_slow() {
                steps.push(Step::OpenIsGivenUp(i));
            }
        }
        for (i, close) in self.closes.iter().enumerate() {
            let alike =
                |other: &Close| other.slow == close.slow && other.debt.target() == close.debt.target();
            if self.closes[..i].iter().any(alike) {
                continue;
            }
            steps.push(Step::CloseIsConfirmed(i));
            if !close.slow && self.mishaps_left > 0 {
                steps.push(Step::CloseIsSlow(i));
            }
        }
        if self.mishaps_left > 0 && self.scenario.limits {
            let limits = [1, self.scenario.budget, self.scenario.budget + 1];
            let others = limits.into_iter().filter(|limit| *limit != self.budget);
            steps.extend(others.collect::<BTreeSet<u32>>().into_iter().map(Step::LimitIs));
        }
        if self.mishaps_left > 0 && self.registry.stats().connections.idle > 0 {
            steps.push(Step::IdleTimeout);
            if self.vanished.is_none() {
                steps.extend((0..self.registry.idle().len()).map(Step::SessionVanishes));
            }
        }
        steps.extend(self.vanished.map(|_| Step::VanishedIsTold));
        if self.is_dark {
            steps.push(Step::ServerAnswers);
        } else if self.scenario.outages && self.mishaps_left > 0 {
            steps.push(Step::ServerIsLost);
        }
        if self.is_stranded {
            steps.push(Step::AnotherBegins);
        } else if self.scenario.outages && self.mishaps_left > 0 {
            steps.push(Step::RuntimeEnds);
        }
    }

    fn steps_of_closers(&self, steps: &mut Vec<Step>) {
        for (k, closer) in self.closers.iter().enumerate() {
            steps.extend(closer.told.then_some(Step::CloserLooks(k)));
            steps.push(Step::CloserGoes(k));
            match &closer.listed {
                None if self.registry.stats().connections.in_use > 0 => steps.push(Step::Deadline(k)),
                Some(_) if !closer.has_cut => steps.push(Step::Cut(k)),
                Some(_) if !closer.is_confirmed => steps.push(Step::CutIsConfirmed(k)),
                _ => {}
            }
        }
        if self.mishaps_left > 0 && !self.registry.is_closed() {
            steps.push(Step::CloseAll);
            for w in 0..self.scenario.workspaces {
                steps.push(Step::BeginClose(w));
                // It matters to an open that began before, and to a failure that is remembered.
                if self.history.failed & self.bit(w) != 0
                    || self.opens.iter().any(|open| *open.target() == self.target(w))
                {
                    steps.push(Step::DatabaseIsMade(w));
                }
            }
        }
    }

    /// Whether a step is one of a world that means well: what is asked for happens, what was begun ends. Such steps
    /// alone must serve everybody.
    pub(super) fn is_friendly(&self, step: Step) -> bool {
        match step {
            Step::Fetch(_)
            | Step::Release(_)
            | Step::OpenSucceeds(_)
            | Step::CloseIsConfirmed(_)
            | Step::RetryIsDue(_)
            | Step::DueComes
            | Step::IsFound(_)
            | Step::VanishedIsTold
            | Step::OpenIsOvertaken(_)
            | Step::ServerAnswers
            | Step::AnotherBegins
            | Step::CutIsConfirmed(_)
            | Step::CloserLooks(_) => true,
            // The server lets go of a lost open in the end.
            Step::OpenFails(i) => self.opens[i].is_lost(),
            _ => false,
        }
    }

    pub(super) fn costs_a_mishap(&self, step: Step) -> bool {
        match step {
            Step::Break(_)
            | Step::LimitIs(_)
            | Step::Discard(_)
            | Step::CheckFails(_)
            | Step::OpenIsSlow(_)
            | Step::CloseIsSlow(_)
            | Step::IdleTimeout
            | Step::IsMissing(_)
            | Step::SessionVanishes(_)
            | Step::ServerIsLost
            | Step::RuntimeEnds
            | Step::DatabaseIsMade(_)
            | Step::BeginClose(_)
            | Step::CloseAll => true,
            Step::OpenFails(i) => !self.opens[i].is_lost(),
            _ => false,
        }
    }

    fn is_anybody_waiting(&self) -> bool {
        self.callers.iter().any(|caller| matches!(caller, Caller::Waiting { .. }))
    }
}
