//! What a test runner tells, turned into events: nextest's JSON lines, and libtest's lines for humans.
//!
//! Both are read line by line, so that progress can be shown while the tests run. A line that means nothing to us is
//! passed over: a test may write to standard output behind the harness's back, and runners learn new words. Nothing is
//! lost by that, since a case without a result counts as failed.

use std::time::Duration;

use serde::Deserialize;

/// Something that a runner told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A case has begun; only nextest says so.
    Started {
        /// The path of the case.
        path: String,
    },
    /// A case has ended.
    Finished {
        /// The path of the case.
        path: String,
        /// How it ended; an ignored case has no end, it is known from the list.
        passed: bool,
        /// How long it took, where the runner says so.
        time: Option<Duration>,
        /// What it wrote, where the runner tells it together with the end.
        output: Option<String>,
    },
    /// What a case wrote, told after its end; only libtest does that.
    Wrote {
        /// The path of the case.
        path: String,
        /// All of its output.
        output: String,
    },
    /// A case is marked `#[ignore]`.
    Ignored {
        /// The path of the case.
        path: String,
        /// The text of `#[ignore = "…"]`.
        reason: Option<String>,
    },
}

/// A reader of one runner's lines.
pub trait Parser {
    /// Takes the next line, without its end, and gives what it completes.
    fn line(&mut self, line: &str) -> Vec<Event>;
}

/// Reads `--message-format libtest-json-plus`, where every line stands for itself.
#[derive(Debug, Default)]
pub struct Nextest;

/// The fields that we use; nextest adds others.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "type")]
    of: String,
    event: String,
    name: Option<String>,
    exec_time: Option<f64>,
    stdout: Option<String>,
    reason: Option<String>,
}

impl Parser for Nextest {
    fn line(&mut self, line: &str) -> Vec<Event> {
        let Ok(message) = serde_json::from_str::<Message>(line) else { return Vec::new() };
        let path = message.name.as_deref().map(nextest_path).unwrap_or_default();
        let event = match (message.of.as_str(), message.event.as_str()) {
            ("test", "started") => Event::Started { path },
            ("test", "ok" | "failed" | "timeout") => message.finished(path),
            ("test", "ignored") => Event::Ignored { path, reason: None },
            // nextest splits a binary into several "suites", whose numbers tell nothing about the whole.
            _ => return Vec::new(),
        };
        vec![event]
    }
}

impl Message {
    fn finished(self, path: String) -> Event {
        let parts = [self.stdout, self.reason.map(|reason| format!("{reason}\n"))];
        let output: String = parts.into_iter().flatten().collect();
        Event::Finished {
            path,
            passed: self.event == "ok",
            time: self.exec_time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            output: (!output.is_empty()).then_some(output),
        }
    }
}

/// `package::binary$suite::case#2` is the second try of `suite::case`.
fn nextest_path(name: &str) -> String {
    let path = name.split_once('$').map_or(name, |(_, path)| path);
    path.split_once('#').map_or(path, |(path, _)| path).to_owned()
}

/// How a case ended that wrote nothing about it, from nextest's line for humans: a killed test leaves no word in JSON.
///
/// `     SIGABRT [   0.006s] (1/8) pool-suites::suites lifecycle::full_cleanup` gives the path and `SIGABRT`.
pub fn nextest_ending(line: &str) -> Option<(&str, &str)> {
    let (how, rest) = line.trim_start().split_once(" [")?;
    let all_caps =
        how.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, ' ' | '+' | '-'));
    let path = rest.rsplit(' ').next()?;
    (all_caps && !matches!(how, "PASS" | "FAIL" | "SLOW" | "TERMINATING") && path.contains("::"))
        .then_some((path, how))
}

/// Reads what `cargo test` prints for humans, the only format that a stable libtest has.
#[derive(Debug, Default)]
pub struct Libtest {
    /// A `test x ... ` whose verdict has not come yet, because the test wrote behind it.
    pending: Option<String>,
    /// The case whose output is being told, and what has come of it.
    telling: Option<(String, String)>,
}

impl Parser for Libtest {
    fn line(&mut self, line: &str) -> Vec<Event> {
        if let Some(path) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            let before = self.told();
            self.telling = Some((path.to_owned(), String::new()));
            return before.into_iter().collect();
        }
        if line == "failures:" || line == "successes:" || line.starts_with("test result: ") {
            return self.told().into_iter().collect();
        }
        if let Some((_, output)) = &mut self.telling {
            output.push_str(line);
            output.push('\n');
            return Vec::new();
        }
        self.verdict(line).into_iter().collect()
    }
}

impl Libtest {
    /// The output that was being told, which has come to its end.
    fn told(&mut self) -> Option<Event> {
        let (path, output) = self.telling.take()?;
        Some(Event::Wrote { path, output: format!("{}\n", output.trim_matches('\n')) })
    }

    /// The event of a line like `test lifecycle::failover ... ignored, needs a second server`.
    fn verdict(&mut self, line: &str) -> Option<Event> {
        let Some((test, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        else {
            return self.late_verdict(line);
        };
        let path = test.strip_suffix(" - should panic").unwrap_or(test).to_owned();
        if let Some(reason) = verdict.strip_prefix("ignored") {
            return Some(Event::Ignored { path, reason: reason.strip_prefix(", ").map(str::to_owned) });
        }
        let passed = passed(verdict);
        if passed.is_none() {
            self.pending = Some(path.clone()); // what stands here is the test's own
        }
        Some(Event::Finished { path, passed: passed?, time: None, output: None })
    }

    /// The end of a line that a test's own writing has broken in two.
    fn late_verdict(&mut self, line: &str) -> Option<Event> {
        let passed = passed(line.trim_end())?;
        Some(Event::Finished { path: self.pending.take()?, passed, time: None, output: None })
    }
}

fn passed(verdict: &str) -> Option<bool> {
    match verdict {
        "ok" => Some(true),
        "FAILED" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
