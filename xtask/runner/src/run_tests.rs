//! What becomes of a runner's lines, and the command lines that are built; the processes themselves are tried in `process`.

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use pool_testkit::run::RunId;

use super::{Collector, Job, Planted, Runner, has_run_them};
use crate::case_result::{CaseResult, Ending};
use crate::plan::{Case, Catalogue, Selection};
use crate::progress::Progress;

const TERSE: &str =
    "limits::aborts: test\nlimits::full_cleanup: test\nlifecycle::pool_initialization: test\n";

fn cases() -> Vec<Case> {
    Catalogue::from_terse(TERSE, "").choose(&Selection::default()).unwrap()
}

fn job<'a>(runner: Runner, cases: &'a [Case], run: &'a RunId) -> Job<'a> {
    Job {
        runner,
        cases: cases.iter().collect(),
        run,
        records: Path::new("/tmp/records"),
        scratch: None,
        seed: 42,
        planted: None,
        verbose: false,
    }
}

/// The results of a run that printed these lines.
fn results(runner: Runner, out: &str, err: &str) -> Vec<CaseResult> {
    let (cases, run) = (cases(), RunId::fresh());
    let job = job(runner, &cases, &run);
    let mut collector = Collector::new(&job, Progress::silent(), &|_| (), Box::new(std::io::sink()));
    out.lines().for_each(|line| collector.out(line));
    err.lines().for_each(|line| collector.err(line.to_owned()));
    collector.into_results(&job, ExitStatus::from_raw(101 << 8))
}

#[test]
fn nextest_results_are_those_of_the_chosen_cases() {
    let results = results(
        Runner::Nextest,
        include_str!("../fixtures/nextest.jsonl"),
        include_str!("../fixtures/nextest.stderr"),
    );
    let told: Vec<(&str, bool)> =
        results.iter().map(|result| (result.case.path.as_str(), result.ending == Ending::Passed)).collect();
    let expected = [
        ("lifecycle::pool_initialization", true),
        ("limits::aborts", false),
        ("limits::full_cleanup", false),
    ];
    assert_eq!(told, expected);
    assert_eq!(results[1].output, "ended by SIGABRT\n");
    assert!(results.iter().all(|result| result.time.is_some()));
}

#[test]
fn a_case_that_told_nothing_has_failed_and_says_so() {
    let results =
        results(Runner::Cargo, "running 3 tests\ntest limits::full_cleanup ... ok\n", "signal: 6, SIGABRT\n");
    assert_eq!(results[2].ending, Ending::Passed);
    for lost in &results[..2] {
        assert_eq!(lost.ending, Ending::Failed);
        assert!(
            lost.output.starts_with("no result: the test process ended (exit status: 101)"),
            "{}",
            lost.output
        );
    }
    assert!(results[0].output.contains("signal: 6, SIGABRT"), "{}", results[0].output);
    assert!(!results[1].output.contains("signal"), "the same words are told once: {}", results[1].output);
}

#[test]
fn both_runners_are_told_the_exact_cases_and_where_to_leave_records() {
    let (cases, run) = (cases(), RunId::fresh());
    for runner in [Runner::Nextest, Runner::Cargo] {
        let command = job(runner, &cases, &run).command();
        let arguments: Vec<&str> = command.get_args().filter_map(|argument| argument.to_str()).collect();
        let exact = arguments.iter().position(|argument| *argument == "--exact").unwrap();
        assert!(arguments[..exact].contains(&"--"), "the names are for the test binary: {arguments:?}");
        assert_eq!(
            arguments[exact + 1..],
            ["lifecycle::pool_initialization", "limits::aborts", "limits::full_cleanup"]
        );
        let set: Vec<&str> = command.get_envs().filter_map(|(name, _)| name.to_str()).collect();
        assert!(set.contains(&"POOL_TEST_RUN") && set.contains(&"POOL_TEST_RECORDS"), "{set:?}");
        let seed = command.get_envs().find(|(name, _)| *name == "POOL_TEST_SEED");
        assert_eq!(seed.and_then(|(_, seed)| seed?.to_str()), Some("42"));
    }
}

#[test]
fn a_case_is_over_when_the_runner_says_so_and_once() {
    let (cases, run) = (cases(), RunId::fresh());
    let over = RefCell::new(Vec::new());
    let tell = |path: &str| over.borrow_mut().push(path.to_owned());
    let mut collector = Collector::new(
        &job(Runner::Cargo, &cases, &run),
        Progress::silent(),
        &tell,
        Box::new(std::io::sink()),
    );
    for line in ["running 3 tests", "test limits::aborts ... ok", "test other::case ... ok", "failures:"] {
        collector.out(line);
    }
    assert_eq!(*over.borrow(), ["limits::aborts"], "a case that was not chosen is nobody's business");
}

#[test]
fn what_is_planted_is_built_by_whoever_runs_it() {
    let (cases, run) = (cases(), RunId::fresh());
    for runner in [Runner::Nextest, Runner::Cargo] {
        let planted = Job { planted: Some(Planted::Leak), ..job(runner, &cases, &run) };
        let has = |command: std::process::Command| {
            command.get_args().any(|argument| argument == "pool-suites/planted-leak")
        };
        assert!(has(planted.command()));
        assert!(!has(job(runner, &cases, &run).command()));
    }
}

#[test]
fn only_codes_that_mean_the_cases_ran_are_believed() {
    let code = |code: i32| ExitStatus::from_raw(code << 8);
    assert!(has_run_them(Runner::Nextest, code(0)) && has_run_them(Runner::Nextest, code(100)));
    assert!(has_run_them(Runner::Cargo, code(0)) && has_run_them(Runner::Cargo, code(101)));
    assert!(!has_run_them(Runner::Nextest, code(95)), "nextest without its experimental flag ran nothing");
    assert!(!has_run_them(Runner::Nextest, ExitStatus::from_raw(9)), "killed");
    assert!(!has_run_them(Runner::Cargo, code(1)));
}
