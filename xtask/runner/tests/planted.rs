//! The runner bites: what is planted for it is found and named, on a real server, with the exit code that scripts read.

use std::process::Command;

use rstest::rstest;

#[test]
fn a_case_that_leaks_on_purpose_is_named_with_its_session_and_its_database() {
    let run = Command::new(env!("CARGO_BIN_EXE_suite-runner"))
        .args(["test-pools", "--planted", "leak", "--leak-check", "--seed", "42"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    let context = format!("{told}\n{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.status.code(), Some(1), "{context}");
    let case = "planted::leaks_a_session_and_a_database";
    for expected in [
        format!("ok     {case}"),
        format!("  {case} (passed, but leaked)"),
        format!("  {case}: connections not closed: 1, databases not dropped: 1"),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in\n{context}");
    }
    let session = told.lines().find(|line| line.trim_start().starts_with("pid ")).unwrap_or_default();
    assert!(session.contains(", active, last query: select pg_sleep(60)"), "{context}");
    assert!(told.lines().any(|line| line.starts_with("    database `t")), "{context}");
    assert!(
        told.contains(&format!("again: cargo xtask test-pools --planted leak --case {case} --leak-check")),
        "{context}"
    );
    assert_eq!(told.lines().last(), Some("0 passed, 1 failed, 0 skipped"), "{context}");
}

#[rstest]
#[case::w3_an_answered_waiter_that_is_not_woken("lost-wake-up", "law W3 is broken")]
#[case::w4_a_grant_that_a_cancelled_caller_takes_along("lost-grant", "law W4 is broken")]
fn a_race_planted_in_the_registry_is_found_with_its_schedule(#[case] bug: &str, #[case] law: &str) {
    let run = Command::new(env!("CARGO_BIN_EXE_suite-runner"))
        .args(["test-pools", "--race", "--planted", bug])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{told}");
    assert!(told.contains(law) && told.contains("   1. caller "), "{told}");
    assert!(told.contains("FAILED: every schedule of small worlds"), "{told}");
}
