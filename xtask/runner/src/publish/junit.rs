//! `junit.xml`, which CI systems show: a suite for each suite, and the output of what failed.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Junit, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::{CaseReport, Report};

/// The text of the file.
///
/// # Errors
/// When it cannot be written as XML.
pub fn xml(report: &Report) -> Result<String, SerializeError> {
    let mut junit = Junit::new("test-pools");
    junit.set_time(Duration::from_millis(u64::try_from(report.elapsed_ms).unwrap_or(u64::MAX)));
    let mut suites: Vec<&str> = report.cases.iter().map(|case| case.suite.as_str()).collect();
    suites.sort_unstable();
    suites.dedup();
    for name in suites {
        let mut suite = TestSuite::new(name);
        suite.add_test_cases(
            report.cases.iter().filter(|case| case.suite == name).map(|case| test_case(report, case)),
        );
        junit.add_test_suite(suite);
    }
    junit.to_string()
}

fn test_case(report: &Report, case: &CaseReport) -> TestCase {
    let status = match case.outcome {
        "passed" => TestCaseStatus::success(),
        "skipped" => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(case.reason.clone().unwrap_or_default());
            status
        }
        _ => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(message(report, case));
            status
        }
    };
    let mut test = TestCase::new(case.name.as_str(), status);
    test.set_classname(case.suite.as_str());
    if let Some(Ok(time)) = case.time_ms.map(|ms| Duration::try_from_secs_f64(ms / 1000.0)) {
        test.set_time(time);
    }
    if let Some(output) = &case.output {
        test.set_system_out(output.as_str());
    }
    test
}

/// Why a case failed, as far as it is not in what it wrote.
fn message(report: &Report, case: &CaseReport) -> String {
    let path = case.path();
    let left: Vec<String> =
        report.left.iter().filter(|left| left.case.as_ref() == Some(&path)).map(super::Left::line).collect();
    let failed = case.rounds.iter().filter(|one| !one.passed).count();
    match (failed, left.is_empty()) {
        (0, _) => format!("left behind on the server: {}", left.join("; ")),
        (_, true) if case.rounds.len() > 1 => format!("failed in {failed} of {} rounds", case.rounds.len()),
        (_, true) => "failed".to_owned(),
        (_, false) => format!("failed, and left behind on the server: {}", left.join("; ")),
    }
}
