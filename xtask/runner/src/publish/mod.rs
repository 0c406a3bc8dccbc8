//! `--report DIR`: what is known of a run, for machines (`report.json`, `junit.xml`) and in one page for people
//! (`report.html`).
//!
//! All three are made from one [`Report`], which is `report.json` itself, so they cannot contradict each other.

pub mod charts;
pub mod escape;
mod html;
mod junit;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use pool_testkit::run::{Figure, Point, in_tag};
use serde::Serialize;
use xtask::failure::Failure;

use crate::case_result::{CaseResult, Ending};
use crate::repeat::{Try, Unsteady};
use crate::report::Run;

/// The whole of `report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The mark of everything that the run did on the server.
    pub run: String,
    /// The seed of the first round.
    pub seed: u64,
    /// The server, for people.
    pub server: String,
    /// Milliseconds since 1970.
    pub began_unix_ms: u128,
    /// How long it all took.
    pub elapsed_ms: u128,
    /// Whether the run proves something and found nothing.
    pub good: bool,
    /// What could not be checked.
    pub unchecked: Option<String>,
    /// Cases that passed and left nothing behind.
    pub passed: usize,
    /// Cases that failed or leaked, and leaks of no known case.
    pub failed: usize,
    /// Cases that did not run.
    pub skipped: usize,
    /// What the server counted.
    pub connections: Connections,
    /// Every chosen case.
    pub cases: Vec<CaseReport>,
    /// Cases that passed in some rounds only.
    pub flaky: Vec<Unsteady>,
    /// What was left on the server, one line each.
    pub left: Vec<Left>,
    /// What the cases have measured.
    pub figures: Vec<Figure>,
    /// Sessions by suite over time.
    pub timeline: Vec<Point>,
}

/// What the server counted.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// What tests may use together.
    pub budget: u32,
    /// The most at a time.
    pub peak: u32,
    /// The most at a time of each suite.
    pub peak_by_suite: BTreeMap<String, u32>,
    /// How often the server was asked.
    pub samples: u64,
}

/// One chosen case.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    /// Its suite.
    pub suite: String,
    /// Its name in there.
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub outcome: &'static str,
    /// Why it was skipped.
    pub reason: Option<String>,
    /// How long it took, in all rounds together.
    pub time_ms: Option<f64>,
    /// Connections that its pools have opened.
    pub opened: u64,
    /// The most sessions at a time, as the server or one of its pools counted them.
    pub peak: u32,
    /// Connections and databases that it left.
    pub leaked: u32,
    /// How it ended in each round.
    pub rounds: Vec<Try>,
    /// What it wrote, if it failed.
    pub output: Option<String>,
}

/// Something that was left on the server.
#[derive(Debug, Serialize)]
pub struct Left {
    /// The test that left it, if anybody knows.
    pub case: Option<String>,
    /// The process id of the backend, for a connection.
    pub pid: Option<i32>,
    /// Its state, for a connection.
    pub state: Option<String>,
    /// Its last statement, for a connection.
    pub last_query: Option<String>,
    /// Its name, for a database.
    pub database: Option<String>,
}

/// Leaves the three files, and tells where the page is.
///
/// # Errors
/// [`Failure::Infrastructure`] when one cannot be written.
pub fn publish(run: &Run, dir: &Path) -> Result<PathBuf, Failure> {
    let report = Report::of(run);
    let doing = |why: &dyn std::fmt::Display| {
        Failure::while_doing(&format!("leave the report in {}", dir.display()), why)
    };
    fs::create_dir_all(dir).map_err(|why| doing(&why))?;
    let json = serde_json::to_string_pretty(&report).map_err(|why| doing(&why))?;
    let junit = junit::xml(&report).map_err(|why| doing(&why))?;
    let page = dir.join("report.html");
    for (path, text) in
        [(dir.join("report.json"), json), (dir.join("junit.xml"), junit), (page.clone(), html::page(&report))]
    {
        fs::write(&path, text).map_err(|why| doing(&why))?;
    }
    Ok(page)
}

impl Report {
    /// What is known of a run.
    pub fn of(run: &Run) -> Self {
        let counts = run.counts();
        let began = run.began.and_then(|began| began.duration_since(UNIX_EPOCH).ok());
        let sampled = &run.sampled;
        Self {
            run: run.id.clone(),
            seed: run.seed,
            server: run.server.clone(),
            began_unix_ms: began.unwrap_or_default().as_millis(),
            elapsed_ms: run.elapsed.as_millis(),
            good: counts.are_good() && run.unchecked.is_none(),
            unchecked: run.unchecked.clone(),
            passed: counts.passed,
            failed: counts.failed,
            skipped: counts.skipped,
            connections: Connections {
                budget: sampled.budget,
                peak: sampled.peak,
                peak_by_suite: sampled.peak_by_suite.clone(),
                samples: sampled.samples,
            },
            cases: run.results.iter().map(|result| CaseReport::of(run, result)).collect(),
            flaky: run.tries.flaky(),
            left: left(run),
            figures: run.figures.clone(),
            timeline: sampled.timeline.points().to_vec(),
        }
    }
}

/// What a case has shown instead, if it has.
fn replaced_by(run: &Run, result: &CaseResult) -> Option<String> {
    let case = &result.case;
    let replaced = run.replaced.iter().find(|r| r.suite == case.suite && r.case == case.name)?;
    Some(format!("shows instead: {}", replaced.by))
}

impl CaseReport {
    fn of(run: &Run, result: &CaseResult) -> Self {
        let case = &result.case;
        let (outcome, reason) = match run.verdict(result) {
            Ending::Passed => ("passed", replaced_by(run, result)),
            Ending::Failed => ("failed", None),
            Ending::Skipped(reason) => ("skipped", Some(reason)),
        };
        let time = result.time.unwrap_or_else(|| run.recorded_time(case));
        let records = || run.records_of(&case.suite, &case.name);
        let tagged = in_tag(&case.path);
        let tagged = tagged.split_once("::").map(|(suite, case)| (suite.to_owned(), case.to_owned()));
        let seen = tagged.and_then(|tag| run.sampled.peak_by_case.get(&tag).copied()).unwrap_or_default();
        Self {
            suite: case.suite.clone(),
            name: case.name.clone(),
            outcome,
            reason,
            time_ms: (time > Duration::ZERO).then_some(time.as_secs_f64() * 1000.0),
            opened: records().map(|record| record.opened).sum(),
            peak: records().map(|record| record.peak).max().unwrap_or_default().max(seen),
            leaked: run.leaked(&case.suite, &case.name),
            rounds: run.tries.of(&case.path).to_vec(),
            output: (outcome == "failed").then(|| anstream::adapter::strip_str(&result.output).to_string()),
        }
    }

    /// The name that `--case` takes.
    pub fn path(&self) -> String {
        format!("{}::{}", self.suite, self.name)
    }
}

fn left(run: &Run) -> Vec<Left> {
    let connections = run.sampled.left_connections.iter().map(|left| Left {
        case: Some(format!("{}::{}", left.suite, left.case)),
        pid: Some(left.pid),
        state: Some(left.state.clone()),
        last_query: Some(left.last_query.clone()),
        database: None,
    });
    let databases = run.sampled.left_databases.iter().map(|left| Left {
        case: left.test.as_ref().map(|(suite, case)| format!("{suite}::{case}")),
        pid: None,
        state: None,
        last_query: None,
        database: Some(left.name.clone()),
    });
    connections.chain(databases).collect()
}

impl Left {
    /// What it is, in a line.
    pub fn line(&self) -> String {
        match (self.pid, &self.database) {
            (Some(pid), _) => {
                let (state, query) = (self.state.as_deref(), self.last_query.as_deref());
                format!(
                    "connection of pid {pid}, {}, last query: {}",
                    state.unwrap_or_default(),
                    query.unwrap_or_default()
                )
            }
            (None, database) => format!("database {}", database.as_deref().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
