//! Which cases to run: a pure function of what the test binary lists and what the command line asks for.
//!
//! The list comes from the binary and not from a table in here, so a case cannot exist without being found, and a
//! mistyped name is refused with the names that do exist instead of quietly running nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use xtask::choices::Adapter;

/// Where the tests live that are in no module of their own; a suite is a module of the test binary.
const ROOT_SUITE: &str = "main";

/// The suites, of which each must have a case that runs.
const SUITES: [&str; 5] = ["lifecycle", "concurrency", "limits", "failure", LONG_SUITE];

/// The suite that `--short` leaves out.
const LONG_SUITE: &str = "performance";

/// How alike a name must be before it is suggested (Jaro-Winkler, 1 is equal).
const ALIKE: f64 = 0.75;

/// Where the tests live that show the same on every adapter: in a module for each.
const ADAPTERS: &str = "adapters";

/// One case of one suite.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// What it runs on.
    pub adapter: Adapter,
    /// The suite, which is the first segment of the test's path; on an embedded adapter, `sqlite::lifecycle` or the like.
    pub suite: String,
    /// The rest of the path, such as `pool_initialization` or `edge_cases::case_1_empty`.
    pub name: String,
    /// The path as the test binary knows it.
    pub path: String,
    /// Marked `#[ignore]`: it is listed, and reported as skipped.
    pub ignored: bool,
}

impl Case {
    /// None for a case that only repeats on PostgreSQL what the suites show there.
    fn new(path: &str, ignored: bool) -> Option<Self> {
        let below = path.strip_prefix(ADAPTERS).and_then(|rest| rest.strip_prefix("::"));
        let (adapter, suite, name) = if let Some(below) = below {
            let is_its = |adapter: &Adapter| {
                below.strip_prefix(adapter.name()).is_some_and(|rest| rest.starts_with("::"))
            };
            let (suite, name) = below.rsplit_once("::")?;
            (Adapter::EMBEDDED.into_iter().find(is_its)?, suite, name)
        } else {
            let (suite, name) = path.split_once("::").unwrap_or((ROOT_SUITE, path));
            (Adapter::Postgres, suite, name)
        };
        let (suite, name, path) = (suite.to_owned(), name.to_owned(), path.to_owned());
        Some(Self { adapter, suite, name, path, ignored })
    }

    /// Whether `asked` means this case: its path, its bare name, or a name above it (as all rows of a table test).
    fn answers_to(&self, asked: &str) -> bool {
        let below = |whole: &str| {
            whole.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let bare = format!("{}::{}", self.bare_suite(), self.name);
        below(&self.name) || (asked.contains("::") && (below(&self.listed()) || asked == bare))
    }

    /// The name of its suite, which is the same on every adapter.
    fn bare_suite(&self) -> &str {
        self.suite.rsplit_once("::").map_or(&self.suite, |(_, bare)| bare)
    }

    /// Whether `asked` means its suite.
    fn is_in(&self, asked: &str) -> bool {
        asked == self.suite || asked == self.bare_suite()
    }

    /// Whether `--short` leaves it out.
    pub fn is_long(&self) -> bool {
        self.bare_suite() == LONG_SUITE
    }

    /// The name that is shown and may be typed; it is the path, but for a case outside of all suites.
    pub fn listed(&self) -> String {
        format!("{}::{}", self.suite, self.name)
    }
}

/// Every case that the test binary holds, in the order of their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    cases: Vec<Case>,
}

/// What the command line asks for; empty means everything.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Names given by `--suite`.
    pub suites: Vec<String>,
    /// Names given by `--case`.
    pub cases: Vec<String>,
}

/// A name on the command line that means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanError {
    /// No such suite.
    UnknownSuite {
        /// The name as typed.
        asked: String,
        /// A valid name that looks like it.
        nearest: Option<String>,
        /// All valid names.
        valid: Vec<String>,
    },
    /// No such case in the suites that were chosen.
    UnknownCase {
        /// The name as typed.
        asked: String,
        /// A valid name that looks like it, perhaps in a suite that was not chosen.
        nearest: Option<String>,
        /// All valid names in the chosen suites, by suite.
        valid: BTreeMap<String, Vec<String>>,
    },
}

impl Catalogue {
    /// Reads the answers of `--list --format terse` and of the same with `--ignored`.
    pub fn from_terse(all: &str, ignored: &str) -> Self {
        let ignored: BTreeSet<&str> = test_paths(ignored).collect();
        let mut cases: Vec<Case> =
            test_paths(all).filter_map(|path| Case::new(path, ignored.contains(path))).collect();
        cases.sort();
        Self { cases }
    }

    /// The cases of these adapters alone.
    pub fn on(self, adapters: &[Adapter]) -> Self {
        let cases = self.cases.into_iter().filter(|case| adapters.contains(&case.adapter)).collect();
        Self { cases }
    }

    /// The names of the suites.
    pub fn suites(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.cases.iter().map(|case| &case.suite).collect();
        names.into_iter().cloned().collect()
    }

    /// The suites that would run no case: all of theirs are gone, or ignored.
    pub fn empty_suites(&self) -> Vec<&'static str> {
        let runs = |suite: &str| self.cases.iter().any(|case| case.bare_suite() == suite && !case.ignored);
        SUITES.into_iter().filter(|suite| !runs(suite)).collect()
    }

    /// The chosen cases: those named, within the suites named.
    ///
    /// # Errors
    /// [`PlanError`] for the first name that means nothing here.
    pub fn choose(&self, selection: &Selection) -> Result<Vec<Case>, PlanError> {
        for asked in &selection.suites {
            self.known_suite(asked)?;
        }
        let in_suites: Vec<&Case> = self
            .cases
            .iter()
            .filter(|case| {
                selection.suites.is_empty() || selection.suites.iter().any(|asked| case.is_in(asked))
            })
            .collect();
        for asked in &selection.cases {
            self.known_case(asked, &in_suites)?;
        }
        let wanted = |case: &Case| {
            selection.cases.is_empty() || selection.cases.iter().any(|asked| case.answers_to(asked))
        };
        Ok(in_suites.into_iter().filter(|case| wanted(case)).cloned().collect())
    }

    fn known_suite(&self, asked: &str) -> Result<(), PlanError> {
        let valid = self.suites();
        if self.cases.iter().any(|case| case.is_in(asked)) {
            return Ok(());
        }
        let nearest = nearest(asked, valid.iter().map(String::as_str));
        Err(PlanError::UnknownSuite { asked: asked.to_owned(), nearest, valid })
    }

    fn known_case(&self, asked: &str, in_suites: &[&Case]) -> Result<(), PlanError> {
        if in_suites.iter().any(|case| case.answers_to(asked)) {
            return Ok(());
        }
        let mut valid: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for case in in_suites {
            valid.entry(case.suite.clone()).or_default().push(case.name.clone());
        }
        Err(PlanError::UnknownCase { asked: asked.to_owned(), nearest: self.nearest_case(asked), valid })
    }

    /// What was probably meant, looked for in every suite.
    fn nearest_case(&self, asked: &str) -> Option<String> {
        if self.cases.iter().any(|case| case.is_in(asked)) {
            return Some(format!("--suite {asked}"));
        }
        if let Some(elsewhere) = self.cases.iter().find(|case| case.answers_to(asked)) {
            return Some(elsewhere.listed());
        }
        let spelled: Vec<(String, String)> = self
            .cases
            .iter()
            .flat_map(|case| [(case.name.clone(), case.listed()), (case.listed(), case.listed())])
            .collect();
        let name = nearest(asked, spelled.iter().map(|(name, _)| name.as_str()))?;
        spelled.into_iter().find(|(spelling, _)| *spelling == name).map(|(_, listed)| listed)
    }
}

/// The paths in a terse list, which has lines like `lifecycle::full_cleanup: test`.
fn test_paths(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.trim_end().strip_suffix(": test"))
}

fn nearest<'a>(asked: &str, valid: impl Iterator<Item = &'a str>) -> Option<String> {
    let asked = asked.to_lowercase().replace('-', "_");
    let scored = valid.map(|name| (strsim::jaro_winkler(&asked, name), name));
    let best = scored
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)));
    best.map(|(_, name)| name.to_owned())
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSuite { asked, nearest, valid } => {
                write!(f, "there is no suite `{asked}`")?;
                suggest(f, nearest.as_deref())?;
                write!(f, "\nthe suites are: {}", valid.join(", "))
            }
            Self::UnknownCase { asked, nearest, valid } => {
                let suites: Vec<&str> = valid.keys().map(String::as_str).collect();
                write!(f, "there is no case `{asked}` in {}", suites.join(", "))?;
                suggest(f, nearest.as_deref())?;
                write!(f, "\nthe cases are:")?;
                for (suite, names) in valid {
                    for name in names {
                        write!(f, "\n  {suite}::{name}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for PlanError {}

fn suggest(f: &mut fmt::Formatter<'_>, nearest: Option<&str>) -> fmt::Result {
    nearest.map_or(Ok(()), |name| write!(f, "; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{Adapter, Catalogue, PlanError, Selection};

    const ALL: &str = "concurrency::concurrent_workspace_creation: test\n\
        concurrency::full_cleanup: test\n\
        lifecycle::edge_cases::case_1_empty: test\n\
        lifecycle::edge_cases::case_2_long: test\n\
        lifecycle::failover: test\n\
        lifecycle::full_cleanup: test\n\
        lifecycle::pool_initialization: test\n\
        at_the_root: test\n\
        adapters::sqlite::lifecycle::full_cleanup: test\n\
        adapters::memory::lifecycle::full_cleanup: test\n\
        adapters::postgres::lifecycle::full_cleanup: test\n\
        some::bench: benchmark\n";

    fn everything() -> Catalogue {
        Catalogue::from_terse(ALL, "lifecycle::failover: test\n")
    }

    fn catalogue() -> Catalogue {
        everything().on(&[Adapter::Postgres])
    }

    fn selection(suites: &[&str], cases: &[&str]) -> Selection {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Selection { suites: owned(suites), cases: owned(cases) }
    }

    #[test]
    fn the_list_names_suites_cases_and_what_is_ignored() {
        let catalogue = catalogue();
        assert_eq!(catalogue.suites(), ["concurrency", "lifecycle", "main"]);
        assert_eq!(catalogue.cases.len(), 8, "a benchmark is no case");
        let ignored: Vec<&str> =
            catalogue.cases.iter().filter(|c| c.ignored).map(|c| c.name.as_str()).collect();
        assert_eq!(ignored, ["failover"]);
    }

    #[rstest]
    #[case::by_its_suite(&["lifecycle"], &[])]
    #[case::by_the_suite_as_listed(&["sqlite::lifecycle"], &[])]
    #[case::by_its_bare_name(&[], &["full_cleanup"])]
    #[case::by_its_name_on_a_server(&[], &["lifecycle::full_cleanup"])]
    #[case::by_its_name_as_listed(&[], &["sqlite::lifecycle::full_cleanup"])]
    fn a_case_on_an_embedded_adapter_is_found(#[case] suites: &[&str], #[case] cases: &[&str]) {
        let chosen = everything().on(&[Adapter::Sqlite]).choose(&selection(suites, cases)).unwrap();
        let [case] = &chosen[..] else { panic!("{chosen:?}") };
        assert_eq!((case.suite.as_str(), case.name.as_str()), ("sqlite::lifecycle", "full_cleanup"));
        assert_eq!(case.path, "adapters::sqlite::lifecycle::full_cleanup");
    }

    #[test]
    fn what_repeats_a_case_on_the_server_is_not_listed() {
        let count = |adapters: &[Adapter]| everything().on(adapters).cases.len();
        assert_eq!((count(&[Adapter::Postgres]), count(&Adapter::EMBEDDED)), (8, 2));
    }

    #[test]
    fn a_suite_whose_cases_are_gone_or_all_ignored_is_empty() {
        let all = "limits::a: test\nlifecycle::b: test\nfailure::c: test\nperformance::d: test\n";
        let catalogue = Catalogue::from_terse(all, "failure::c: test\n");
        assert_eq!(catalogue.empty_suites(), ["concurrency", "failure"]);
    }

    #[rstest]
    #[case::everything(&[], &[], 8)]
    #[case::one_suite(&["lifecycle"], &[], 5)]
    #[case::two_suites(&["lifecycle", "concurrency"], &[], 7)]
    #[case::the_root(&["main"], &[], 1)]
    #[case::bare_name_in_two_suites(&[], &["full_cleanup"], 2)]
    #[case::bare_name_in_one_suite(&["lifecycle"], &["full_cleanup"], 1)]
    #[case::whole_path(&[], &["lifecycle::full_cleanup"], 1)]
    #[case::table_as_a_whole(&[], &["edge_cases"], 2)]
    #[case::table_by_path(&[], &["lifecycle::edge_cases"], 2)]
    #[case::row_of_a_table(&[], &["edge_cases::case_2_long"], 1)]
    #[case::outside_of_all_suites(&[], &["main::at_the_root"], 1)]
    #[case::several(&[], &["edge_cases", "pool_initialization"], 3)]
    #[case::repeated(&["lifecycle", "lifecycle"], &["failover", "failover"], 1)]
    fn names_choose(#[case] suites: &[&str], #[case] cases: &[&str], #[case] count: usize) {
        let chosen = catalogue().choose(&selection(suites, cases)).unwrap();
        assert_eq!(chosen.len(), count, "{chosen:?}");
    }

    #[rstest]
    #[case::typo("lifecycel", Some("lifecycle"))]
    #[case::capitals("Lifecycle", Some("lifecycle"))]
    #[case::nothing_alike("zzz", None)]
    fn an_unknown_suite_is_refused(#[case] asked: &str, #[case] expected: Option<&str>) {
        let error = catalogue().choose(&selection(&[asked], &[])).unwrap_err();
        let PlanError::UnknownSuite { nearest, valid, .. } = &error else { panic!("{error}") };
        assert_eq!(nearest.as_deref(), expected);
        assert_eq!(valid.len(), 3);
        assert!(error.to_string().ends_with("the suites are: concurrency, lifecycle, main"), "{error}");
    }

    #[rstest]
    #[case::typo(&[], "pool_initialisation", Some("lifecycle::pool_initialization"))]
    #[case::hyphens(&[], "pool-initialization", Some("lifecycle::pool_initialization"))]
    #[case::typo_in_the_path(&[], "lifecycle::full_clean", Some("lifecycle::full_cleanup"))]
    #[case::suite_as_a_case(&[], "lifecycle", Some("--suite lifecycle"))]
    #[case::part_of_a_name(&[], "edge", Some("lifecycle::edge_cases::case_2_long"))]
    #[case::in_another_suite(&["concurrency"], "pool_initialization", Some("lifecycle::pool_initialization"))]
    #[case::empty(&[], "", None)]
    fn an_unknown_case_is_refused(
        #[case] suites: &[&str],
        #[case] asked: &str,
        #[case] expected: Option<&str>,
    ) {
        let error = catalogue().choose(&selection(suites, &[asked])).unwrap_err();
        let PlanError::UnknownCase { nearest, .. } = &error else { panic!("{error}") };
        assert_eq!(nearest.as_deref(), expected, "{error}");
        assert!(error.to_string().contains("concurrency::full_cleanup"), "valid cases are listed: {error}");
    }
}
