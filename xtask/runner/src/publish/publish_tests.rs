//! The report of a run with one of each kind: a pass, a failure, a skip, a leak, a flaky case, figures.

use std::collections::BTreeMap;
use std::time::Duration;

use pool_testkit::run::{Figure, LeftConnection, LeftDatabase, Point, Record, Timeline};

use super::{Report, html, junit, publish};
use crate::case_result::{CaseResult, Ending};
use crate::plan::{Catalogue, Selection};
use crate::repeat::merge;
use crate::report::Run;

const HOSTILE: &str = "</script><b a=\"1\">'&\u{1b}[31m\u{7}";

fn result(path: &str, ending: Ending) -> CaseResult {
    let catalogue = Catalogue::from_terse(&format!("{path}: test"), "");
    let case = catalogue.choose(&Selection::default()).unwrap().remove(0);
    let output = if ending == Ending::Failed { HOSTILE.to_owned() } else { String::new() };
    CaseResult { case, ending, time: Some(Duration::from_millis(1250)), output }
}

fn round(seed: u64, flaky: Ending) -> (u64, Vec<CaseResult>) {
    let results = vec![
        result("limits::leaks", Ending::Passed),
        result("limits::sometimes", flaky),
        result("performance::scales", Ending::Passed),
    ];
    (seed, results)
}

fn timeline() -> Timeline {
    let mut timeline = Timeline::default();
    for (at_ms, limits, performance) in [(0, 0, 0), (10, 4, 10), (20, 30, 10), (30, 0, 2)] {
        let by_suite =
            BTreeMap::from([("limits".to_owned(), limits), ("performance".to_owned(), performance)]);
        timeline.push(Point { at_ms, by_suite });
    }
    timeline
}

fn figure(name: &str, series: &[(f64, f64)]) -> Figure {
    Figure {
        suite: "performance".into(),
        case: "scales".into(),
        name: name.into(),
        value: Some(812.5),
        unit: "ops/sec".into(),
        x_unit: "workspaces".into(),
        series: series.to_vec(),
    }
}

fn run() -> Run {
    let (mut results, tries) = merge(vec![round(1, Ending::Passed), round(2, Ending::Failed)]);
    results.push(CaseResult {
        time: None,
        ..result("lifecycle::failover", Ending::Skipped("needs a \"second\" server".to_owned()))
    });
    let mut run =
        Run { tries, id: "ab12cd".into(), seed: 1, server: "PostgreSQL <15>".into(), ..Run::new(results) };
    run.elapsed = Duration::from_millis(5230);
    run.records = vec![Record {
        suite: "limits".into(),
        case: "leaks".into(),
        opened: 31,
        closed: 30,
        peak: 20,
        leaked: 0,
        duration_ms: 1200,
    }];
    run.figures = vec![figure("throughput", &[]), figure("time", &[(10.0, 1.0), (20.0, 2.1), (40.0, 4.3)])];
    run.sampled.budget = 90;
    run.sampled.peak = 40;
    run.sampled.samples = 4;
    run.sampled.timeline = timeline();
    run.sampled.peak_by_suite = BTreeMap::from([("limits".to_owned(), 30), ("performance".to_owned(), 10)]);
    run.sampled.left_connections.push(LeftConnection {
        pid: 4711,
        suite: "limits".into(),
        case: "leaks".into(),
        state: "active".into(),
        last_query: "select '<'".into(),
    });
    run.sampled.left_databases.push(LeftDatabase {
        name: "tab12cd_0000001_ws_x".into(),
        test: Some(("limits".into(), "leaks".into())),
    });
    run
}

#[test]
fn junit_reads_like_this() {
    let xml = junit::xml(&Report::of(&run())).unwrap();
    let without_time = xml.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(without_time);
}

#[test]
fn json_reads_like_this() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&Report::of(&run())).unwrap());
}

#[test]
fn the_body_of_the_page_reads_like_this() {
    let page = html::page(&Report::of(&run()));
    let (_, body) = page.split_once("<body>").unwrap();
    insta::assert_snapshot!(body.replace("><", ">\n<"));
}

#[test]
fn nothing_on_the_page_comes_from_elsewhere_and_nothing_hostile_gets_in() {
    let mut run = run();
    run.server = HOSTILE.to_owned();
    run.unchecked = Some(HOSTILE.to_owned());
    run.sampled.left_connections[0].last_query = HOSTILE.to_owned();
    for figure in &mut run.figures {
        (figure.name, figure.unit, figure.x_unit) =
            (HOSTILE.to_owned(), HOSTILE.to_owned(), HOSTILE.to_owned());
    }
    let page = html::page(&Report::of(&run));
    for forbidden in
        ["<script", "</script", "<b a", "http:", "https:", "src=", "@import", "url(", "\u{1b}", "\u{7}"]
    {
        assert!(!page.contains(forbidden), "the page holds {forbidden:?}");
    }
    assert!(page.contains("&lt;/script&gt;&lt;b a=&quot;1&quot;&gt;&#39;&amp;"));
    let xml = junit::xml(&Report::of(&run)).unwrap();
    assert!(!xml.contains("</script>") && !xml.contains('\u{7}'), "{xml}");
}

#[test]
fn a_run_of_which_nothing_is_known_has_a_page_too() {
    let page = html::page(&Report::of(&Run::new(Vec::new())));
    assert!(page.contains("FAILED") && !page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn three_files_are_left_also_in_a_directory_that_was_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let page = publish(&run(), &dir.path().join("new/report")).unwrap();
    for name in ["report.html", "report.json", "junit.xml"] {
        assert!(page.with_file_name(name).is_file(), "{name}");
    }
}
