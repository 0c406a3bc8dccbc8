//! The summary as a person reads it, and the numbers as a program reads them.

use std::time::Duration;

use pool_testkit::run::{LeftConnection, LeftDatabase, Record, Replaced, in_tag};
use rstest::rstest;

use super::{Counts, Run};
use crate::case_result::{CaseResult, Ending};
use crate::plan::{Case, Catalogue, Selection};

fn case(path: &str) -> Case {
    let catalogue = Catalogue::from_terse(&format!("{path}: test"), "");
    catalogue.choose(&Selection::default()).unwrap().remove(0)
}

fn result(path: &str, ending: Ending, millis: u64) -> CaseResult {
    let time = (millis > 0).then(|| Duration::from_millis(millis));
    CaseResult { case: case(path), ending, time, output: String::new() }
}

fn record(suite: &str, case: &str, opened: u64, leaked: u32) -> Record {
    let (suite, case) = (suite.to_owned(), case.to_owned());
    Record { suite, case, opened, closed: opened - u64::from(leaked), peak: 3, leaked, duration_ms: 1500 }
}

fn left(suite: &str, case: &str) -> LeftConnection {
    LeftConnection {
        pid: 4711,
        suite: suite.to_owned(),
        case: case.to_owned(),
        state: "idle in transaction".to_owned(),
        last_query: "select\n1".to_owned(),
    }
}

fn database(name: &str, test: Option<(&str, &str)>) -> LeftDatabase {
    let test = test.map(|(suite, case)| (suite.to_owned(), case.to_owned()));
    LeftDatabase { name: name.to_owned(), test }
}

/// Two suites with a case of each kind, and nothing left behind.
fn run() -> Run {
    let mut run = Run::new(vec![
        result("concurrency::concurrent_workspace_creation", Ending::Passed, 310),
        result("lifecycle::failover", Ending::Skipped("needs a second server".to_owned()), 0),
        result("lifecycle::full_cleanup", Ending::Failed, 90),
        result("lifecycle::pool_initialization", Ending::Passed, 40),
    ]);
    run.records = vec![
        record("concurrency", "concurrent_workspace_creation", 50, 0),
        record("lifecycle", "full_cleanup", 4, 0),
        record("lifecycle", "pool_initialization", 2, 0),
    ];
    run.sampled.peak = 23;
    run.sampled.budget = 90;
    run.seed = 7;
    run.sampled.samples = 120;
    run.sampled.peak_by_suite.insert("concurrency".to_owned(), 20);
    run.elapsed = Duration::from_millis(2340);
    run
}

fn plain(run: &Run) -> String {
    anstream::adapter::strip_str(&run.summary()).to_string()
}

#[test]
fn a_run_with_a_failure_reads_like_this() {
    insta::assert_snapshot!(plain(&run()), @r"
    suite         passed   failed  skipped     time   opened     peak   leaked
    concurrency        1        0        0    0.31s       50       20        0
    lifecycle          1        1        1    0.13s        6        -        0
    all                2        1        1    0.44s       56       23        0
    2.3 s in all (cases run side by side); at most 23 connections at a time of 90 that tests may use, as the server said in 120 samples
    not searched for the password: it has fewer than 12 characters, or there is none

    skipped
      lifecycle::failover: needs a second server

    failed
      lifecycle::full_cleanup
        again: cargo xtask test-pools --case lifecycle::full_cleanup --seed 7 -v

    FAILED: 1 of 3
    ");
    assert_eq!(run().counts(), Counts { passed: 2, failed: 1, skipped: 1 });
    assert_eq!(run().counts().last_line(), "2 passed, 1 failed, 1 skipped");
}

#[test]
fn a_run_with_leaks_reads_like_this() {
    let mut run = run();
    run.results.remove(2);
    run.sampled.left_connections.push(left("lifecycle", "pool_initialization"));
    run.sampled.left_databases.push(database("pk_ab12cd_1", None));
    let its = Some(("lifecycle", "pool_initialization"));
    run.sampled.left_databases.push(database("tab12cd_0000001_ws_x", its));
    insta::assert_snapshot!(plain(&run), @r"
    suite         passed   failed  skipped     time   opened     peak   leaked
    concurrency        1        0        0    0.31s       50       20        0
    lifecycle          0        1        1    0.04s        6        -        2
    all                1        1        1    0.35s       56       23        2
    2.3 s in all (cases run side by side); at most 23 connections at a time of 90 that tests may use, as the server said in 120 samples
    not searched for the password: it has fewer than 12 characters, or there is none

    skipped
      lifecycle::failover: needs a second server

    failed
      lifecycle::pool_initialization (passed, but leaked)
        again: cargo xtask test-pools --case lifecycle::pool_initialization --leak-check --seed 7 -v

    left behind on the server
      lifecycle::pool_initialization: connections not closed: 1, databases not dropped: 1
        pid 4711, idle in transaction, last query: select 1
        database `tab12cd_0000001_ws_x`
      database `pk_ab12cd_1` was not dropped

    FAILED: 2 of 3
    ");
    assert_eq!(
        run.counts(),
        Counts { passed: 1, failed: 2, skipped: 1 },
        "the case, and the database of nobody"
    );
}

#[test]
fn a_run_without_failures_passes() {
    let mut run = run();
    run.results.remove(2);
    assert!(plain(&run).ends_with("\nPASSED: nothing failed, and nothing was left behind on the server\n"));
    assert!(run.counts().are_good());
}

#[test]
fn a_run_in_which_nothing_ran_does_not_pass() {
    for results in [Vec::new(), vec![result("lifecycle::failover", Ending::Skipped(String::new()), 0)]] {
        let run = Run::new(results);
        assert!(plain(&run).contains("FAILED: no case ran"), "{}", plain(&run));
        assert!(!run.counts().are_good());
    }
}

#[test]
fn a_check_that_could_not_be_made_is_not_called_a_pass() {
    let mut run = run();
    run.results.remove(2);
    run.note(Err::<(), _>("the server went away"), |_, ()| ());
    run.note(Err::<(), _>("and more"), |_, ()| ());
    assert!(plain(&run).ends_with("\nNOT PROVEN: the server went away\n"), "{}", plain(&run));
}

/// The pools and the server often notice the same leaked connection; it is one leak of one case.
#[rstest]
#[case::noticed_by_the_pool(1, 0, 1)]
#[case::noticed_by_the_server(0, 1, 1)]
#[case::noticed_by_both(1, 1, 1)]
#[case::more_on_the_server(1, 2, 2)]
fn a_leak_fails_its_case_once(#[case] recorded: u32, #[case] on_server: usize, #[case] leaked: u32) {
    let mut run = Run::new(vec![result("limits::budget", Ending::Passed, 10)]);
    run.records.push(record("limits", "budget", 5, recorded));
    run.sampled.left_connections.extend((0..on_server).map(|_| left("limits", "budget")));
    assert_eq!(run.leaked("limits", "budget"), leaked);
    assert_eq!(run.counts(), Counts { passed: 0, failed: 1, skipped: 0 });
    assert!(plain(&run).contains("limits::budget (passed, but leaked)"), "{}", plain(&run));
}

#[test]
fn a_leak_of_an_unknown_case_is_one_more_failure() {
    let mut run = Run::new(vec![result("limits::budget", Ending::Passed, 10)]);
    run.sampled.left_connections.push(left("elsewhere", "unknown"));
    assert_eq!(run.counts(), Counts { passed: 1, failed: 1, skipped: 0 });
    assert!(plain(&run).contains("pid 4711, idle in transaction, last query: select 1"), "{}", plain(&run));
}

#[test]
fn a_case_without_a_time_shows_how_long_its_pools_lived() {
    let mut run = Run::new(vec![result("limits::budget", Ending::Passed, 0)]);
    run.records.push(record("limits", "budget", 5, 0));
    assert!(plain(&run).contains("1.50s"), "{}", plain(&run));
}

#[test]
fn a_leak_of_a_case_whose_name_did_not_fit_into_a_tag_is_still_that_cases() {
    let path = format!("limits::{}", "long_".repeat(12));
    let (suite, cut) = in_tag(&path).split_once("::").map(|(s, c)| (s.to_owned(), c.to_owned())).unwrap();
    let mut run = Run::new(vec![result(&path, Ending::Passed, 10)]);
    let mut sampled = run.sampled.clone();
    sampled.left_connections.push(left(&suite, &cut));
    sampled.left_databases.push(database("t", Some((&suite, &cut))));
    run.take_sampled(sampled);
    assert_eq!(run.leaked("limits", &run.results[0].case.name), 2);
    assert_eq!(run.counts(), Counts { passed: 0, failed: 1, skipped: 0 });
}

#[test]
fn a_suite_that_is_left_out_is_told_in_one_line() {
    let reason = "left out by --short";
    let out = |path: &str| result(path, Ending::Skipped(reason.to_owned()), 0);
    let run =
        Run::new(vec![out("performance::a"), out("performance::b"), result("limits::c", Ending::Passed, 1)]);
    assert!(
        plain(&run).contains("skipped\n  performance, 2 cases: left out by --short\n"),
        "{}",
        plain(&run)
    );
    assert!(run.counts().are_good());
}

#[test]
fn a_run_without_a_server_reads_like_this() {
    let mut run = Run::new(vec![
        result("adapters::sqlite::lifecycle::full_cleanup", Ending::Passed, 40),
        result("adapters::sqlite::limits::connection_reuse", Ending::Failed, 90),
    ]);
    run.records = vec![record("sqlite::lifecycle", "full_cleanup", 4, 0)];
    let (suite, case) = ("sqlite::lifecycle".to_owned(), "full_cleanup".to_owned());
    run.replaced = vec![Replaced { suite, case, by: "what holds".to_owned() }];
    run.left_files = vec!["scratch/left.sqlite".into()];
    run.seed = 7;
    insta::assert_snapshot!(plain(&run), @r"
    suite               passed   failed  skipped     time   opened     peak   leaked
    sqlite::lifecycle        1        0        0    0.04s        4        3        0
    sqlite::limits           0        1        0    0.09s        0        -        0
    all                      1        1        0    0.13s        4        -        0
    0.0 s in all (cases run side by side); each case counted the connections of its own world

    replaced: 1 of 2 cases show what holds there instead
      sqlite::lifecycle::full_cleanup: what holds

    failed
      sqlite::limits::connection_reuse
        again: cargo xtask test-pools --adapter sqlite --case sqlite::limits::connection_reuse --seed 7 -v

    left behind in the temporary directory
      scratch/left.sqlite

    FAILED: 2 of 3
    ");
    assert_eq!(run.counts(), Counts { passed: 1, failed: 2, skipped: 0 }, "the file is one more failure");
}
