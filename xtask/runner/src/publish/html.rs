//! `report.html`: one page that needs nothing but itself. Whatever comes from outside is escaped on its way in.

use std::fmt::Write as _;

use super::escape::escape;
use super::{CaseReport, Report, charts};

const STYLE: &str = include_str!("style.css");

/// The text of the page.
pub fn page(report: &Report) -> String {
    let mut suites: Vec<&str> = report.cases.iter().map(|case| case.suite.as_str()).collect();
    suites.extend(report.connections.peak_by_suite.keys().map(String::as_str));
    suites.sort_unstable();
    suites.dedup();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>test-pools, run {}</title>\n<style>\n{STYLE}</style></head><body><main>\n",
        escape(&report.run)
    );
    head(&mut page, report);
    tiles(&mut page, report);
    failures(&mut page, report);
    unsteady(&mut page, report);
    connections(&mut page, report, &suites);
    cases(&mut page, report, &suites);
    figures(&mut page, report);
    page.push_str("</main></body></html>\n");
    page
}

fn head(page: &mut String, report: &Report) {
    let (class, word) = match (report.good, &report.unchecked) {
        (true, _) => ("good", "PASSED"),
        (false, Some(_)) if report.failed == 0 => ("bad", "NOT PROVEN"),
        (false, _) => ("bad", "FAILED"),
    };
    let _ = writeln!(
        page,
        "<h1>Connection pool suites <span class=\"badge {class}\">{word}</span></h1>\n<p>Run <code>{}</code>, seed <code>{}</code>, on {}</p>",
        escape(&report.run),
        report.seed,
        escape(&report.server)
    );
    if let Some(why) = &report.unchecked {
        let _ = writeln!(page, "<p class=\"told-bad\">Not everything could be checked: {}</p>", escape(why));
    }
}

fn tiles(page: &mut String, report: &Report) {
    let counted = |bad: usize| if bad > 0 { "bad" } else { "" };
    let connections = &report.connections;
    let elapsed = charts::time(u32::try_from(report.elapsed_ms).ok().map(f64::from));
    let opened: u64 = report.cases.iter().map(|case| case.opened).sum();
    page.push_str("<div class=\"tiles\">");
    for (class, value, label) in [
        (if report.good { "good" } else { "" }, report.passed.to_string(), "passed"),
        (counted(report.failed), report.failed.to_string(), "failed"),
        ("", report.skipped.to_string(), "skipped"),
        ("", elapsed, "in all"),
        ("", format!("{} / {}", connections.peak, connections.budget), "peak / budget"),
        ("", opened.to_string(), "opened"),
        (counted(report.left.len()), report.left.len().to_string(), "left behind"),
    ] {
        let _ = write!(page, "<div class=\"tile {class}\"><b>{value}</b><span>{label}</span></div>");
    }
    page.push_str("</div>\n");
}

fn failures(page: &mut String, report: &Report) {
    let failed: Vec<&CaseReport> = report.cases.iter().filter(|case| case.outcome == "failed").collect();
    if failed.is_empty() && report.left.is_empty() {
        return;
    }
    page.push_str("<section><h2>What failed</h2>\n");
    for case in failed {
        let path = escape(&case.path());
        let seed = case.rounds.iter().find(|one| !one.passed).map_or(report.seed, |one| one.seed);
        let _ = writeln!(
            page,
            "<details open><summary class=\"failed\">{path}</summary><p>Again: <code>cargo xtask test-pools --case {path} --seed {seed} -v</code></p>"
        );
        if let Some(output) = case.output.as_deref().filter(|output| !output.trim().is_empty()) {
            let _ = writeln!(page, "<pre>{}</pre>", escape(output.trim_end()));
        }
        page.push_str("</details>\n");
    }
    if !report.left.is_empty() {
        page.push_str("<h3>Left behind on the server</h3><table><tr><th>case</th><th>what</th></tr>\n");
        for left in &report.left {
            let case = left.case.as_deref().unwrap_or("nobody's");
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td><code>{}</code></td></tr>",
                escape(case),
                escape(&left.line())
            );
        }
        page.push_str("</table>\n");
    }
    page.push_str("</section>\n");
}

fn unsteady(page: &mut String, report: &Report) {
    if report.flaky.is_empty() {
        return;
    }
    page.push_str("<section><h2>Flaky</h2><p>Passed in some rounds and failed in others.</p><table><tr><th>case</th><th class=\"number\">passed</th><th>seeds with which it failed</th></tr>\n");
    for case in &report.flaky {
        let seeds: Vec<String> = case.failing_seeds.iter().map(u64::to_string).collect();
        let _ = writeln!(
            page,
            "<tr><td class=\"told-odd\">{}</td><td class=\"number\">{} of {}</td><td><code>{}</code></td></tr>",
            escape(&case.case),
            case.passed,
            case.rounds,
            seeds.join(" ")
        );
    }
    page.push_str("</table></section>\n");
}

fn connections(page: &mut String, report: &Report, suites: &[&str]) {
    let counted = &report.connections;
    let _ = writeln!(
        page,
        "<section><h2>Connections by suite</h2><p>As the server counted them in {} samples, one upon the other; never more than {} at a time.</p>",
        counted.samples, counted.peak
    );
    page.push_str(&charts::timeline(report, suites));
    page.push_str("<ul class=\"legend\">");
    for suite in suites {
        let peak = counted.peak_by_suite.get(*suite).copied().unwrap_or_default();
        let _ = write!(
            page,
            "<li><span class=\"key s{}\"></span>{}: {peak} at most</li>",
            charts::colour(suites, suite),
            escape(suite)
        );
    }
    page.push_str("</ul></section>\n");
}

fn cases(page: &mut String, report: &Report, suites: &[&str]) {
    let longest = report.cases.iter().filter_map(|case| case.time_ms).fold(0.0, f64::max);
    page.push_str("<section><h2>Time of each case</h2><p>Cases run side by side and wait for room on the server, which counts.</p>\n");
    for suite in suites {
        let mut its: Vec<&CaseReport> = report.cases.iter().filter(|case| case.suite == *suite).collect();
        if its.is_empty() {
            continue;
        }
        its.sort_by(|a, b| b.time_ms.unwrap_or(-1.0).total_cmp(&a.time_ms.unwrap_or(-1.0)));
        let colour = charts::colour(suites, suite);
        let passed = its.iter().filter(|case| case.outcome == "passed").count();
        let _ = writeln!(
            page,
            "<h3><span class=\"key s{colour}\"></span>{}: {passed} of {} passed</h3>{}",
            escape(suite),
            its.len(),
            charts::bars(&its, colour, longest)
        );
    }
    page.push_str("</section>\n");
}

fn figures(page: &mut String, report: &Report) {
    if report.figures.is_empty() {
        return;
    }
    page.push_str("<section><h2>Figures</h2><p>What the cases have measured.</p><div class=\"plots\">\n");
    for figure in report.figures.iter().filter(|figure| figure.series.len() > 1) {
        let _ = writeln!(
            page,
            "<figure><figcaption>{} <span>in {}, {}</span></figcaption>{}</figure>",
            escape(&figure.name),
            escape(&figure.unit),
            escape(&figure.case),
            charts::plot(figure)
        );
    }
    page.push_str(
        "</div><table><tr><th>figure</th><th class=\"number\">value</th><th>unit</th><th>case</th></tr>\n",
    );
    for figure in report.figures.iter().filter(|figure| figure.series.len() < 2) {
        let value = figure.value.map_or_else(|| "-".to_owned(), charts::short);
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"number\">{value}</td><td>{}</td><td>{}::{}</td></tr>",
            escape(&figure.name),
            escape(&figure.unit),
            escape(&figure.suite),
            escape(&figure.case)
        );
    }
    page.push_str("</table></section>\n");
}
