//! Rounds: the same cases again with other seeds, and what their results together say about each case.
//!
//! Pure. The seed of the first round is the one that was asked for, so a round that failed is repeated by giving its
//! seed to `--seed`, without `--repeat`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::case_result::{CaseResult, Ending};

/// How one case ended in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Try {
    /// The seed of the round.
    pub seed: u64,
    /// Whether the case passed.
    pub passed: bool,
}

/// How each case ended in each round, by its path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tries {
    by_case: BTreeMap<String, Vec<Try>>,
}

/// A case that sometimes passed and sometimes did not, or never did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unsteady {
    /// The path of the case.
    pub case: String,
    /// In how many rounds it passed.
    pub passed: usize,
    /// How many rounds there were.
    pub rounds: usize,
    /// The seeds of the rounds in which it did not.
    pub failing_seeds: Vec<u64>,
}

/// The seed of a round, counted from 0.
pub fn seed_of(base: u64, round: u32) -> u64 {
    if round == 0 {
        return base;
    }
    // The finalizer of splitmix64: neighbouring rounds get seeds that have nothing to do with each other.
    let mut mixed = base.wrapping_add(u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Makes one result of each case from those of all rounds: it passed if it always did, and took the time of all
/// together. Of several failures the outputs are told one after another, each with its seed.
pub fn merge(rounds: Vec<(u64, Vec<CaseResult>)>) -> (Vec<CaseResult>, Tries) {
    let many = rounds.len() > 1;
    let mut merged: BTreeMap<String, CaseResult> = BTreeMap::new();
    let mut tries = Tries::default();
    for (seed, results) in rounds {
        for mut result in results {
            let passed = result.ending == Ending::Passed;
            tries.by_case.entry(result.case.path.clone()).or_default().push(Try { seed, passed });
            if many && !result.output.trim().is_empty() {
                result.output = format!("(with seed {seed})\n{}", result.output);
            }
            match merged.get_mut(&result.case.path) {
                None => {
                    merged.insert(result.case.path.clone(), result);
                }
                Some(before) => before.join(result),
            }
        }
    }
    (merged.into_values().collect(), tries)
}

impl CaseResult {
    fn join(&mut self, next: Self) {
        let time = self.time.unwrap_or_default() + next.time.unwrap_or_default();
        self.time = (time > Duration::ZERO).then_some(time);
        // What it wrote when it passed says nothing about why it failed.
        match (self.ending == Ending::Passed, next.ending == Ending::Passed) {
            (true, false) => (self.ending, self.output) = (next.ending, next.output),
            (false, true) => {}
            _ => self.output.push_str(&next.output),
        }
    }
}

impl Tries {
    /// How a case ended in each round.
    pub fn of(&self, path: &str) -> &[Try] {
        self.by_case.get(path).map_or(&[], Vec::as_slice)
    }

    /// The first seed with which a case failed.
    pub fn failing_seed(&self, path: &str) -> Option<u64> {
        self.of(path).iter().find(|one| !one.passed).map(|one| one.seed)
    }

    /// The cases that passed in some rounds and failed in others.
    pub fn flaky(&self) -> Vec<Unsteady> {
        self.unsteady().filter(|case| case.passed > 0).collect()
    }

    fn unsteady(&self) -> impl Iterator<Item = Unsteady> {
        self.by_case.iter().filter_map(|(case, tries)| {
            let failing_seeds: Vec<u64> =
                tries.iter().filter(|one| !one.passed).map(|one| one.seed).collect();
            let (rounds, case) = (tries.len(), case.clone());
            let passed = rounds - failing_seeds.len();
            (!failing_seeds.is_empty()).then_some(Unsteady { case, passed, rounds, failing_seeds })
        })
    }

    /// The pass rate of each case, for the summary; nothing after a single round.
    pub fn rates(&self) -> Vec<String> {
        let rounds = self.by_case.values().map(Vec::len).max().unwrap_or_default();
        if rounds < 2 {
            return Vec::new();
        }
        let width = rounds.to_string().len();
        let rate = |(path, tries): (&String, &Vec<Try>)| {
            let passed = tries.iter().filter(|one| one.passed).count();
            let mut line = format!("  {passed:>width$}/{}  {path}", tries.len());
            if passed < tries.len() {
                line.push_str(if passed > 0 { "  flaky" } else { "  always fails" });
            }
            line
        };
        self.by_case.iter().map(rate).collect()
    }

    /// What is said of the cases that are flaky.
    pub fn flaky_lines(&self) -> Vec<String> {
        let line = |case: Unsteady| {
            let Unsteady { case, passed, rounds, failing_seeds } = case;
            let mut line = format!("  {case} passed {passed} of {rounds}; it failed with");
            for seed in failing_seeds {
                let _ = write!(line, " --seed {seed}");
            }
            line
        };
        self.flaky().into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::{merge, seed_of};
    use crate::case_result::{CaseResult, Ending};
    use crate::plan::{Catalogue, Selection};

    fn result(path: &str, passed: bool) -> CaseResult {
        let catalogue = Catalogue::from_terse(&format!("{path}: test"), "");
        let case = catalogue.choose(&Selection::default()).unwrap().remove(0);
        let ending = if passed { Ending::Passed } else { Ending::Failed };
        let output = format!("{}\n", if passed { "fine" } else { "broken" });
        CaseResult { case, ending, time: Some(Duration::from_secs(1)), output }
    }

    fn round(seed: u64, ends: &[(&str, bool)]) -> (u64, Vec<CaseResult>) {
        (seed, ends.iter().map(|(path, passed)| result(path, *passed)).collect())
    }

    #[test]
    fn the_first_round_has_the_seed_that_was_asked_for_and_no_two_agree() {
        assert_eq!(seed_of(42, 0), 42);
        let seeds: BTreeSet<u64> =
            (0..1000).flat_map(|round| [seed_of(42, round), seed_of(43, round)]).collect();
        assert_eq!(seeds.len(), 2000);
        assert_eq!(seed_of(u64::MAX, 7), seed_of(u64::MAX, 7));
    }

    #[test]
    fn a_case_that_failed_once_has_failed_and_is_flaky() {
        let (results, tries) = merge(vec![
            round(1, &[("limits::a", true), ("limits::b", false), ("limits::c", true)]),
            round(2, &[("limits::a", false), ("limits::b", false), ("limits::c", true)]),
            round(3, &[("limits::a", true), ("limits::b", false), ("limits::c", true)]),
        ]);
        let ends: Vec<&Ending> = results.iter().map(|result| &result.ending).collect();
        assert_eq!(ends, [&Ending::Failed, &Ending::Failed, &Ending::Passed]);
        assert_eq!(results[0].time, Some(Duration::from_secs(3)));
        assert_eq!(results[0].output, "(with seed 2)\nbroken\n", "only what tells why it failed");
        assert_eq!(results[1].output.matches("broken").count(), 3);
        insta::assert_snapshot!(tries.rates().join("\n"), @r"
          2/3  limits::a  flaky
          0/3  limits::b  always fails
          3/3  limits::c
        ");
        assert_eq!(tries.flaky_lines(), ["  limits::a passed 2 of 3; it failed with --seed 2"]);
        assert_eq!(tries.failing_seed("limits::b"), Some(1));
    }

    #[test]
    fn a_single_round_has_no_rates_and_nothing_is_flaky() {
        let (results, tries) = merge(vec![round(1, &[("limits::a", false)])]);
        assert_eq!(results[0].output, "broken\n");
        assert!(tries.rates().is_empty() && tries.flaky_lines().is_empty());
    }
}
