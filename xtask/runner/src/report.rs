//! The summary: what happened to each chosen case, per suite, and what the run left behind on the server.
//!
//! Pure: results, records and the sampler's answer go in, text and a verdict come out. A leak counts as a failure of its
//! case, and as one more failure when nobody knows the case, so the numbers of the last line never contradict the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use pool_testkit::run::{Figure, LeftConnection, LeftDatabase, Record, Replaced, Sampled, in_tag};
use xtask::choices::Adapter;
use xtask::choices::Planted;

use crate::case_result::{CaseResult, Ending};
use crate::plan::Case;
use crate::repeat::Tries;
use crate::secrets::Searched;

/// Everything that the summary is made from.
#[derive(Debug, Default)]
pub struct Run {
    /// The mark of everything that the run did on the server.
    pub id: String,
    /// The server, for people.
    pub server: String,
    /// The seed of the first round.
    pub seed: u64,
    /// One result for every chosen case.
    pub results: Vec<CaseResult>,
    /// How each ended in each round.
    pub tries: Tries,
    /// What the pools of the tests counted themselves.
    pub records: Vec<Record>,
    /// What the tests have measured.
    pub figures: Vec<Figure>,
    /// What the server counted; nothing where there is none.
    pub sampled: Sampled,
    /// Cases that show something else, since their adapter has nothing of that kind.
    pub replaced: Vec<Replaced>,
    /// Files that cases without a server have left.
    pub left_files: Vec<PathBuf>,
    /// When it began.
    pub began: Option<SystemTime>,
    /// How long the whole run took.
    pub elapsed: Duration,
    /// What the test server's password is looked for in, and where it was found.
    pub searched: Searched,
    /// What could not be checked, so that the numbers prove less than they seem to.
    pub unchecked: Option<String>,
}

/// The numbers of the last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Cases that passed and left nothing behind.
    pub passed: usize,
    /// Cases that failed or leaked, and leaks of no known case.
    pub failed: usize,
    /// Cases that did not run.
    pub skipped: usize,
}

/// One row of the table.
#[derive(Debug, Default, Clone)]
struct Row {
    passed: usize,
    failed: usize,
    skipped: usize,
    time: Duration,
    opened: u64,
    peak: Option<u32>,
    leaked: u32,
}

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const ODD: Style = AnsiColor::Yellow.on_default();
const HEAD: Style = Style::new().bold();

const COLUMNS: [&str; 7] = ["passed", "failed", "skipped", "time", "opened", "peak", "leaked"];

impl Run {
    /// A run with these results of which nothing else is known yet.
    pub fn new(results: Vec<CaseResult>) -> Self {
        Self { results, ..Self::default() }
    }

    /// Takes in what the server counted. A tag has no room for a long name, so the cases are given theirs back.
    pub fn take_sampled(&mut self, mut sampled: Sampled) {
        let full = |suite: &mut String, case: &mut String| {
            let tagged = format!("{suite}::{case}");
            if let Some(result) = self.results.iter().find(|result| in_tag(&result.case.path) == tagged) {
                (*suite, *case) = (result.case.suite.clone(), result.case.name.clone());
            }
        };
        for left in &mut sampled.left_connections {
            full(&mut left.suite, &mut left.case);
        }
        for (suite, case) in sampled.left_databases.iter_mut().filter_map(|left| left.test.as_mut()) {
            full(suite, case);
        }
        self.sampled = sampled;
    }

    /// Takes in what one of the checks after the cases says, or notes that it could not be made.
    pub fn note<T, E: std::fmt::Display>(&mut self, checked: Result<T, E>, take: impl FnOnce(&mut Self, T)) {
        match checked {
            Ok(value) => take(self, value),
            Err(why) => {
                self.unchecked.get_or_insert_with(|| why.to_string());
            }
        }
    }

    /// Counts what the last line says.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { passed: 0, failed: self.failed_as_a_whole(), skipped: 0 };
        for result in &self.results {
            match self.verdict(result) {
                Ending::Passed => counts.passed += 1,
                Ending::Failed => counts.failed += 1,
                Ending::Skipped(_) => counts.skipped += 1,
            }
        }
        counts
    }

    /// What fails the run and no case of it.
    fn failed_as_a_whole(&self) -> usize {
        usize::from(self.has_orphans())
            + usize::from(!self.searched.hits.is_empty())
            + usize::from(!self.left_files.is_empty())
    }

    /// The text that ends a run, all but its last line.
    pub fn summary(&self) -> String {
        let mut text = self.table();
        self.write_skipped(&mut text);
        self.write_replaced(&mut text);
        self.write_repeats(&mut text);
        self.write_failed(&mut text);
        self.write_leaked(&mut text);
        write_section(&mut text, BAD, "the password of the test server was written", &self.searched.hits);
        self.write_verdict(&mut text);
        text
    }

    /// The ending of a case once its leaks are known.
    pub fn verdict(&self, result: &CaseResult) -> Ending {
        match &result.ending {
            Ending::Passed if self.leaked(&result.case.suite, &result.case.name) > 0 => Ending::Failed,
            ending => ending.clone(),
        }
    }

    /// What a case left behind: databases, and connections as its pools or the server noticed them, which often both
    /// notice the same one.
    pub fn leaked(&self, suite: &str, case: &str) -> u32 {
        let databases = self.left_databases(suite, case).count();
        self.connections_leaked(suite, case) + u32::try_from(databases).unwrap_or(u32::MAX)
    }

    fn connections_leaked(&self, suite: &str, case: &str) -> u32 {
        let noticed: u32 = self.records_of(suite, case).map(|record| record.leaked).sum();
        let left = self.left_connections(suite, case).count();
        noticed.max(u32::try_from(left).unwrap_or(u32::MAX))
    }

    /// What the pools of a case counted.
    pub fn records_of(&self, suite: &str, case: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.suite == suite && record.case == case)
    }

    /// The connections that a case left.
    pub fn left_connections(&self, suite: &str, case: &str) -> impl Iterator<Item = &LeftConnection> {
        self.sampled.left_connections.iter().filter(move |left| left.suite == suite && left.case == case)
    }

    /// The databases that a case left.
    pub fn left_databases(&self, suite: &str, case: &str) -> impl Iterator<Item = &LeftDatabase> {
        let is_its = move |(of, name): &(String, String)| of == suite && name == case;
        self.sampled.left_databases.iter().filter(move |left| left.test.as_ref().is_some_and(is_its))
    }

    /// The suite and case of everything that left something behind.
    fn leaking(&self) -> BTreeSet<(&str, &str)> {
        let noticed =
            self.records.iter().filter(|r| r.leaked > 0).map(|r| (r.suite.as_str(), r.case.as_str()));
        let left = self.sampled.left_connections.iter().map(|l| (l.suite.as_str(), l.case.as_str()));
        let tests = self.sampled.left_databases.iter().filter_map(|left| left.test.as_ref());
        let databases = tests.map(|(suite, case)| (suite.as_str(), case.as_str()));
        noticed.chain(left).chain(databases).collect()
    }

    /// Whether something was left behind that no case of this run answers for.
    fn has_orphans(&self) -> bool {
        let answered = |(suite, name): &(&str, &str)| {
            self.results.iter().any(|r| {
                r.case.suite == *suite && r.case.name == *name && !matches!(r.ending, Ending::Skipped(_))
            })
        };
        let nobodys = self.sampled.left_databases.iter().any(|left| left.test.is_none());
        nobodys || !self.leaking().iter().all(answered)
    }

    fn rows(&self) -> BTreeMap<&str, Row> {
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        for result in &self.results {
            let row = rows.entry(&result.case.suite).or_default();
            match self.verdict(result) {
                Ending::Passed => row.passed += 1,
                Ending::Failed => row.failed += 1,
                Ending::Skipped(_) => row.skipped += 1,
            }
            row.time += result.time.unwrap_or_else(|| self.recorded_time(&result.case));
        }
        for (suite, row) in &mut rows {
            row.opened = self.records.iter().filter(|r| r.suite == *suite).map(|r| r.opened).sum();
            row.peak = if self.on_server() {
                self.sampled.peak_by_suite.get(*suite).copied()
            } else {
                self.records.iter().filter(|r| r.suite == *suite).map(|r| r.peak).max()
            };
            row.leaked = self
                .leaking()
                .iter()
                .filter(|(of, _)| of == suite)
                .map(|(of, case)| self.leaked(of, case))
                .sum();
        }
        rows
    }

    /// Under `cargo test` no case has a time, but its longest-lived pool has one.
    pub fn recorded_time(&self, case: &Case) -> Duration {
        Duration::from_millis(
            self.records_of(&case.suite, &case.name).map(|r| r.duration_ms).max().unwrap_or_default(),
        )
    }

    fn table(&self) -> String {
        let rows = self.rows();
        let width = rows.keys().map(|name| name.len()).chain(["suite".len()]).max().unwrap_or_default();
        let mut text = format!("{HEAD}{:width$}", "suite");
        for column in COLUMNS {
            let _ = write!(text, "  {column:>7}");
        }
        let _ = writeln!(text, "{HEAD:#}");
        let peak = self.on_server().then_some(self.sampled.peak);
        let mut total = Row { peak, ..Row::default() };
        for (suite, row) in &rows {
            write_row(&mut text, suite, width, row);
            total.add(row);
        }
        if rows.len() > 1 {
            write_row(&mut text, "all", width, &total);
        }
        let (samples, seconds) = (self.sampled.samples, self.elapsed.as_secs_f64());
        if !self.on_server() {
            let _ = writeln!(
                text,
                "{seconds:.1} s in all (cases run side by side); each case counted the connections of its own world"
            );
            return text;
        }
        let _ = writeln!(
            text,
            "{seconds:.1} s in all (cases run side by side); at most {} connections at a time of {} that tests may use, as the server said in {samples} samples",
            self.sampled.peak, self.sampled.budget
        );
        let _ = writeln!(text, "{}", self.searched.line());
        text
    }

    /// One line for each case, or for all of a suite that are skipped for the same reason.
    fn write_skipped(&self, text: &mut String) {
        let mut together: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for result in &self.results {
            if let Ending::Skipped(reason) = &result.ending {
                together.entry((&result.case.suite, reason)).or_default().push(&result.case.path);
            }
        }
        let lines: Vec<String> = together
            .into_iter()
            .map(|((suite, reason), paths)| match paths.as_slice() {
                [path] => format!("  {path}: {reason}"),
                paths => format!("  {suite}, {} cases: {reason}", paths.len()),
            })
            .collect();
        write_section(text, ODD, "skipped", &lines);
    }

    /// Whether its cases ran on a server.
    fn on_server(&self) -> bool {
        self.results.iter().any(|result| result.case.adapter == Adapter::Postgres)
    }

    /// One line for each case that shows something else.
    fn write_replaced(&self, text: &mut String) {
        let cases: BTreeSet<_> = self.replaced.iter().map(|r| (&r.suite, &r.case)).collect();
        let title = format!(
            "replaced: {} of {} cases show what holds there instead",
            cases.len(),
            self.results.len()
        );
        let lines: Vec<String> =
            self.replaced.iter().map(|r| format!("  {}::{}: {}", r.suite, r.case, r.by)).collect();
        write_section(text, ODD, &title, &lines);
    }

    fn write_repeats(&self, text: &mut String) {
        write_section(text, HEAD, "passed in how many rounds", &self.tries.rates());
        write_section(text, ODD, "flaky", &self.tries.flaky_lines());
    }

    fn write_failed(&self, text: &mut String) {
        let failed = self.results.iter().filter(|result| self.verdict(result) == Ending::Failed);
        let lines: Vec<String> = failed
            .map(|result| {
                let path = result.case.listed();
                let leaked = result.ending == Ending::Passed;
                let why = if leaked { " (passed, but leaked)" } else { "" };
                let check = if leaked { " --leak-check" } else { "" };
                let plant = if result.case.suite == Planted::SUITE { " --planted leak" } else { "" };
                let on = match result.case.adapter {
                    Adapter::Postgres => String::new(),
                    adapter => format!(" --adapter {}", adapter.name()),
                };
                let seed = self.tries.failing_seed(&result.case.path).unwrap_or(self.seed);
                format!("  {path}{why}\n    again: cargo xtask test-pools{on}{plant} --case {path}{check} --seed {seed} -v")
            })
            .collect();
        write_section(text, BAD, "failed", &lines);
    }

    fn write_leaked(&self, text: &mut String) {
        let mut lines = Vec::new();
        for (suite, case) in self.leaking() {
            let connections = self.connections_leaked(suite, case);
            let databases = self.left_databases(suite, case).count();
            lines.push(format!(
                "  {suite}::{case}: connections not closed: {connections}, databases not dropped: {databases}"
            ));
            lines.extend(self.left_connections(suite, case).map(describe_left));
            lines
                .extend(self.left_databases(suite, case).map(|left| format!("    database `{}`", left.name)));
        }
        let nobodys = self.sampled.left_databases.iter().filter(|left| left.test.is_none());
        lines.extend(nobodys.map(|left| format!("  database `{}` was not dropped", left.name)));
        write_section(text, BAD, "left behind on the server", &lines);
        let files: Vec<String> = self.left_files.iter().map(|file| format!("  {}", file.display())).collect();
        write_section(text, BAD, "left behind in the temporary directory", &files);
    }

    fn write_verdict(&self, text: &mut String) {
        let counts = self.counts();
        text.push('\n');
        let _ = if counts.failed > 0 {
            writeln!(text, "{BAD}FAILED{BAD:#}: {} of {}", counts.failed, counts.failed + counts.passed)
        } else if counts.passed == 0 {
            let advice = "every chosen case is skipped, and a run that proves nothing does not pass";
            writeln!(text, "{BAD}FAILED{BAD:#}: no case ran; {advice}")
        } else if let Some(why) = &self.unchecked {
            writeln!(text, "{BAD}NOT PROVEN{BAD:#}: {why}")
        } else {
            let place = if self.on_server() { " on the server" } else { "" };
            writeln!(text, "{GOOD}PASSED{GOOD:#}: nothing failed, and nothing was left behind{place}")
        };
    }
}

impl Counts {
    /// Whether the run proves something and found nothing.
    pub fn are_good(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// The last line of a run, which other programs read: keep its form.
    pub fn last_line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Row {
    /// Adds up everything but the peak: suites do not have theirs at the same moment.
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.time += other.time;
        self.opened += other.opened;
        self.leaked += other.leaked;
    }
}

fn write_row(text: &mut String, name: &str, width: usize, row: &Row) {
    let bad = |count: usize| if count > 0 { BAD } else { Style::new() };
    let (failed, leaked) = (bad(row.failed), bad(row.leaked as usize));
    let peak = row.peak.map_or_else(|| "-".to_owned(), |peak| peak.to_string());
    let time = if row.time.is_zero() { "-".to_owned() } else { format!("{:.2}s", row.time.as_secs_f64()) };
    let _ = writeln!(
        text,
        "{name:width$}  {:>7}  {failed}{:>7}{failed:#}  {:>7}  {time:>7}  {:>7}  {peak:>7}  {leaked}{:>7}{leaked:#}",
        row.passed, row.failed, row.skipped, row.opened, row.leaked
    );
}

fn write_section(text: &mut String, style: Style, title: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = writeln!(text, "\n{style}{title}{style:#}\n{}", lines.join("\n"));
    }
}

fn describe_left(left: &LeftConnection) -> String {
    format!("    pid {}, {}, last query: {}", left.pid, left.state, left.last_query.replace('\n', " "))
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
