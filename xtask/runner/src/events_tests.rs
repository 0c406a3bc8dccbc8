//! What both runners really printed, captured with nextest 0.9.143 and rustc 1.95, and what must be read from it.

use std::collections::BTreeMap;

use rstest::rstest;

use super::{Event, Libtest, Nextest, Parser, nextest_ending};

const NEXTEST: &str = include_str!("../fixtures/nextest.jsonl");
const NEXTEST_STDERR: &str = include_str!("../fixtures/nextest.stderr");
const LIBTEST: &str = include_str!("../fixtures/libtest.txt");

fn read(mut parser: impl Parser, text: &str) -> Vec<Event> {
    text.lines().flat_map(|line| parser.line(line)).collect()
}

/// The path of every case that ended, with how.
fn endings(events: &[Event]) -> BTreeMap<&str, bool> {
    let ending = |event| match event {
        &Event::Finished { ref path, passed, .. } => Some((path.as_str(), passed)),
        _ => None,
    };
    events.iter().filter_map(ending).collect()
}

fn output_of<'a>(events: &'a [Event], wanted: &str) -> Option<&'a str> {
    events.iter().find_map(|event| match event {
        Event::Finished { path, output: Some(output), .. } | Event::Wrote { path, output }
            if path == wanted =>
        {
            Some(output.as_str())
        }
        _ => None,
    })
}

#[test]
fn nextest_tells_every_ending_time_and_output() {
    let events = read(Nextest, NEXTEST);
    let expected = [
        ("concurrency::concurrent_same_workspace_access", false),
        ("concurrency::concurrent_workspace_creation", false), // the time limit, told last, is the later try
        ("lifecycle::edge_cases::case_1_empty", true),
        ("lifecycle::edge_cases::case_2_long", true),
        ("lifecycle::full_cleanup", false),
        ("lifecycle::panics_as_it_should", true),
        ("lifecycle::pool_initialization", true),
        ("limits::aborts", false),
        ("limits::full_cleanup", false),
    ];
    assert_eq!(endings(&events), BTreeMap::from(expected));
    let output = output_of(&events, "lifecycle::full_cleanup").unwrap();
    assert!(
        output.starts_with("out line\nerr line\n") && output.contains("asked to fail\nsecond line\n"),
        "{output}"
    );
    assert_eq!(
        output_of(&events, "concurrency::concurrent_workspace_creation"),
        Some("time limit exceeded\n")
    );
    assert_eq!(output_of(&events, "limits::aborts"), None, "JSON has no word of the signal");
    let timed = |event: &Event| !matches!(event, Event::Finished { time: None, .. });
    assert!(events.iter().all(timed), "every ending has its time");
    let began = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    let ignored = events.iter().filter(|event| matches!(event, Event::Ignored { .. })).count();
    assert_eq!((began, ignored), (11, 2));
}

#[test]
fn nextest_tells_the_signal_only_to_humans() {
    let endings: Vec<(&str, &str)> = NEXTEST_STDERR.lines().filter_map(nextest_ending).collect();
    let expected =
        [("concurrency::concurrent_same_workspace_access", "SIGABRT"), ("limits::aborts", "SIGABRT")];
    assert_eq!(endings, expected);
}

#[rstest]
#[case::a_second_try(
    r#"{"type":"test","event":"ok","name":"p::suites$a::b#2","exec_time":0.1}"#,
    Some("a::b")
)]
#[case::a_new_field(
    r#"{"type":"test","event":"ok","name":"p::suites$a::b","exec_time":0.1,"x":{}}"#,
    Some("a::b")
)]
#[case::a_time_that_is_none(
    r#"{"type":"test","event":"ok","name":"p::suites$a::b","exec_time":-1}"#,
    Some("a::b")
)]
#[case::a_new_event(r#"{"type":"test","event":"napping","name":"p::suites$a::b"}"#, None)]
#[case::the_end_of_a_suite(r#"{"type":"suite","event":"ok","passed":5}"#, None)]
#[case::a_line_that_is_cut(r#"{"type":"test","event":"ok","na"#, None)]
#[case::no_json("hello", None)]
#[case::nothing("", None)]
fn nextest_lines_are_read_or_passed_over(#[case] line: &str, #[case] path: Option<&str>) {
    let events = Nextest.line(line);
    assert_eq!(endings(&events).into_keys().next(), path);
}

#[test]
fn libtest_tells_endings_reasons_and_output() {
    let events = read(Libtest::default(), LIBTEST);
    let expected = [
        ("lifecycle::full_cleanup", false),
        ("lifecycle::panics_as_it_should", true),
        ("lifecycle::pool_initialization", true),
        ("limits::full_cleanup", false),
    ];
    assert_eq!(endings(&events), BTreeMap::from(expected));
    let reasons: Vec<(&str, Option<&str>)> = events
        .iter()
        .filter_map(|event| match event {
            Event::Ignored { path, reason } => Some((path.as_str(), reason.as_deref())),
            _ => None,
        })
        .collect();
    let needed = Some("needs a second server, see docs/testing.md");
    assert_eq!(reasons, [("lifecycle::failover", needed), ("lifecycle::no_reason", None)]);
    assert_eq!(
        output_of(&events, "lifecycle::pool_initialization"),
        Some("hello from pool_initialization\n")
    );
    let output = output_of(&events, "lifecycle::full_cleanup").unwrap();
    assert!(output.starts_with("out line\nerr line\n") && output.contains("second line\n"), "{output}");
    assert!(
        output_of(&events, "limits::full_cleanup").unwrap().contains("\"no\""),
        "the last block ends as well"
    );
}

#[rstest]
#[case::whole("test a::b ... ok", Some(true))]
#[case::broken_in_two("test a::b ... something written past the harness\nok", Some(true))]
#[case::broken_and_failed("test a::b ... \nFAILED", Some(false))]
#[case::never_told("test a::b ... written, and then the process died", None)]
#[case::a_verdict_for_nobody("ok", None)]
#[case::slow("test a::b has been running for over 60 seconds", None)]
#[case::the_result("test result: ok. 1 passed; 0 failed", None)]
fn libtest_verdicts_survive_what_tests_write(#[case] text: &str, #[case] passed: Option<bool>) {
    let events = read(Libtest::default(), text);
    assert_eq!(endings(&events).into_values().next(), passed, "{events:?}");
}
