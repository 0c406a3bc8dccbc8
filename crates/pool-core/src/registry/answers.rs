//! What callers were answered, target by target. A target is counted in its entry while it has one, which costs the warm
//! path one addition; what it was counted with outlives the entry here, for so many targets as are remembered.

use std::collections::HashMap;

use super::{Registry, Workspace};
use crate::ids::Target;
use crate::stats::{Answers, TargetStats};

/// Targets without an entry that are remembered, at most; half as many at least, before one is forgotten.
pub const ANSWERS_KEPT: usize = 10_000;

/// The counts of targets that have no entry, in two generations: the older one is forgotten as a whole when the younger one is
/// full, so that remembering costs O(1) whatever comes.
#[derive(Default)]
pub(super) struct Remembered {
    young: HashMap<Target, Answers>,
    old: HashMap<Target, Answers>,
    /// The sum of those that have been forgotten.
    forgotten: Answers,
}

impl Remembered {
    /// Takes out what is known of `target`.
    pub(super) fn take(&mut self, target: &Target) -> Answers {
        self.young.remove(target).or_else(|| self.old.remove(target)).unwrap_or_default()
    }

    /// Keeps what `target`, of which nothing is kept, was counted with.
    pub(super) fn keep(&mut self, target: Target, answers: Answers) {
        if answers == Answers::default() {
            return;
        }
        self.young.insert(target, answers);
        if self.young.len() >= ANSWERS_KEPT / 2 {
            let oldest = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.forgotten = oldest.into_values().fold(self.forgotten, |sum, answers| sum + answers);
        }
    }

    fn get(&self, target: &Target) -> Answers {
        self.young.get(target).or_else(|| self.old.get(target)).copied().unwrap_or_default()
    }

    fn iter(&self) -> impl Iterator<Item = (&Target, &Answers)> {
        self.young.iter().chain(&self.old)
    }
}

impl<C, S> Registry<C, S> {
    /// What callers of `target` were answered, and its connections. Cost: O(1).
    pub fn target_stats(&self, target: &Target) -> TargetStats {
        self.stats_of(target, self.entry_of(target))
    }

    /// The same for all targets that are remembered, in no particular order, and what those were answered that have been
    /// forgotten. Cost: O(targets).
    pub fn all_target_stats(&self) -> (Vec<(Target, TargetStats)>, Answers) {
        let entries = self.workspaces.iter().map(|(_, ws)| (&ws.target, Some(ws)));
        let remembered = self.remembered.iter().map(|(target, _)| (target, None));
        let all = entries.chain(remembered).map(|(target, ws)| (target.clone(), self.stats_of(target, ws)));
        (all.collect(), self.remembered.forgotten)
    }

    fn stats_of(&self, target: &Target, entry: Option<&Workspace>) -> TargetStats {
        TargetStats {
            connections: self.counts_of(target, entry),
            waiting: entry.map_or(0, |ws| ws.waiters.len()),
            answers: entry.map_or_else(|| self.remembered.get(target), |ws| ws.answers),
        }
    }

    /// The sum over all targets, recounted.
    pub(super) fn recounted_answers(&self) -> Answers {
        let entries = self.workspaces.iter().map(|(_, ws)| ws.answers);
        let remembered = self.remembered.iter().map(|(_, answers)| *answers);
        entries.chain(remembered).fold(self.remembered.forgotten, |sum, answers| sum + answers)
    }

    /// The check of a connection has come to a good end, so that the caller of `target` has a lease; one whose check goes
    /// on is not counted. `was_hit` says whether it was served at once.
    pub fn checked(&mut self, target: &Target, was_hit: bool) {
        self.count(target, |answers| answers.add_lease(was_hit));
    }

    /// A connection that was counted as a lease is to be checked after all, before its caller sees it.
    pub fn not_served(&mut self, target: &Target, was_hit: bool) {
        self.count(target, |answers| answers.take_lease(was_hit));
    }

    /// A caller of `target` went away, or its time was over, while its connection was checked.
    pub fn check_given_up(&mut self, target: &Target) {
        self.count(target, |answers| answers.given_up += 1);
    }

    /// The error that a caller of `target` was answered with is not passed on, because it asks again.
    pub fn asks_again(&mut self, target: &Target) {
        self.count(target, |answers| answers.errors = answers.errors.saturating_sub(1));
    }

    /// Counts an answer of `target`, wherever it is counted.
    pub(super) fn count(&mut self, target: &Target, change: impl Fn(&mut Answers)) {
        change(&mut self.totals.answers);
        if let Some(ws) = self.by_target.get(target) {
            return change(&mut self.workspaces[*ws as usize].answers);
        }
        let mut answers = self.remembered.take(target);
        change(&mut answers);
        self.remembered.keep(target.clone(), answers);
    }

    /// The same where the entry is at hand.
    pub(super) fn count_in(&mut self, ws: u32, change: impl Fn(&mut Answers)) {
        change(&mut self.totals.answers);
        change(&mut self.workspace_mut(ws).answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WorkspaceId;

    fn target(number: usize) -> Target {
        Target::Workspace(WorkspaceId::new(format!("w{number}")).unwrap())
    }

    fn leases(count: u64) -> Answers {
        Answers { acquired: count, ..Answers::default() }
    }

    #[test]
    fn s3_a_target_that_was_never_answered_is_not_remembered() {
        let mut remembered = Remembered::default();
        remembered.keep(target(0), Answers::default());
        assert_eq!(remembered.iter().count(), 0);
    }

    #[test]
    fn s3_so_many_targets_are_remembered_and_the_sum_of_the_others() {
        let mut remembered = Remembered::default();
        for number in 0..ANSWERS_KEPT - 1 {
            remembered.keep(target(number), leases(1));
        }
        assert_eq!((remembered.iter().count(), remembered.forgotten), (ANSWERS_KEPT - 1, leases(0)));
        assert_eq!(remembered.take(&target(0)), leases(1));
        assert_eq!(remembered.take(&target(0)), leases(0), "it is taken along");
        remembered.keep(target(0), leases(7));
        // The older half goes, without the one that came back.
        let half = ANSWERS_KEPT / 2;
        assert_eq!((remembered.iter().count(), remembered.forgotten), (half, leases(half as u64 - 1)));
        assert_eq!((remembered.get(&target(0)), remembered.get(&target(1))), (leases(7), leases(0)));
    }
}
