//! The processes behind a run: building the test binary, asking it for its cases, and running the chosen ones.
//!
//! The list always comes from the binary itself, so both runners run the same cases. nextest gives each case a process of
//! its own, which is what makes a crash the failure of one case; `cargo test` is there for machines without it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use pool_testkit::run::{RECORDS_ENV, RUN_ENV, RunId, SEED_ENV};
use xtask::artifact::{self, Missing};
use xtask::choices::{Planted, Runner};
use xtask::failure::Failure;
use xtask::process::{Interrupts, Running, cargo, has_subcommand};

use crate::case_result::{CaseResult, Ending};
use crate::events::{Event, Libtest, Nextest, Parser, nextest_ending};
use crate::plan::{Case, Catalogue};
use crate::progress::Progress;

/// The test target that holds the suites, which is in package `pool-suites`. Chosen from the whole workspace, it is built
/// with the features that `cargo test --workspace` uses, so that neither of the two builds what the other has built.
const TARGET: [&str; 3] = ["--workspace", "--test", "suites"];

/// Lines of a runner's standard error that are kept to explain a failure of its own.
const TAIL_LINES: usize = 40;

/// How long to wait for more output once the runner is gone: something it started may hold its pipes open for ever.
const DRAIN: Duration = Duration::from_secs(2);

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// By whom.
    pub runner: Runner,
    /// The cases that can run, none of them ignored.
    pub cases: Vec<&'a Case>,
    /// Marks what the tests do on the server.
    pub run: &'a RunId,
    /// Where the tests' pools leave their records.
    pub records: &'a Path,
    /// Where they make their temporary files, if not in the usual place.
    pub scratch: Option<&'a Path>,
    /// What the tests that choose at random begin with.
    pub seed: u64,
    /// What is built into the tests on purpose.
    pub planted: Option<Planted>,
    /// Let the output of passed cases be seen too.
    pub verbose: bool,
}

/// The best runner that is installed.
pub fn best_installed() -> Runner {
    if has_subcommand("nextest") { Runner::Nextest } else { Runner::Cargo }
}

impl Job<'_> {
    fn command(&self) -> Command {
        let mut command = cargo();
        match self.runner {
            Runner::Nextest => nextest_arguments(&mut command, self),
            Runner::Cargo => {
                command
                    .arg("test")
                    .args(TARGET)
                    .args(features(self.planted))
                    .env("CARGO_TERM_QUIET", "false"); // quiet would turn lines into dots
                command.args(["--", "--color", "never"]).args(self.verbose.then_some("--show-output"));
            }
        }
        command.arg("--exact").args(self.cases.iter().map(|case| &case.path));
        command.env(RUN_ENV, self.run.to_string()).env(RECORDS_ENV, self.records);
        command.env(SEED_ENV, self.seed.to_string());
        if let Some(scratch) = self.scratch {
            command.env("TMPDIR", scratch);
        }
        command
    }
}

/// Exit codes of a runner that mean "the cases have run", well or not.
fn has_run_them(runner: Runner, status: ExitStatus) -> bool {
    match runner {
        Runner::Nextest => matches!(status.code(), Some(0 | 100)),
        Runner::Cargo => matches!(status.code(), Some(0 | 101)),
    }
}

fn parser(runner: Runner) -> Box<dyn Parser> {
    match runner {
        Runner::Nextest => Box::new(Nextest),
        Runner::Cargo => Box::new(Libtest::default()),
    }
}

/// What cargo is told to build a fault in.
fn features(planted: Option<Planted>) -> &'static [&'static str] {
    match planted {
        Some(Planted::Leak) => &["--features", "pool-suites/planted-leak"],
        Some(Planted::LostWakeUp | Planted::LostGrant) | None => &[],
    }
}

/// JSON on standard output for us; on standard error only what JSON does not tell (the signal that killed a case, and the
/// output of passed cases).
fn nextest_arguments(command: &mut Command, job: &Job<'_>) {
    command.args(["nextest", "run"]).args(TARGET).args(features(job.planted)).args([
        "--no-fail-fast",
        "--cargo-quiet",
        "--color",
        "never",
    ]);
    command.args(["--message-format", "libtest-json-plus"]).env("NEXTEST_EXPERIMENTAL_LIBTEST_JSON", "1");
    let status = if job.verbose { "pass" } else { "fail" };
    command.args(["--status-level", status, "--final-status-level", "none"]);
    // The output of passed cases is not shown unless wished, and is searched for the password all the same.
    command.args(["--success-output", "immediate", "--failure-output", "never", "--"]);
}

/// Builds the test binary and says where it is. Cargo's progress and errors are shown as they come.
///
/// # Errors
/// [`Failure::Infrastructure`] when cargo fails, [`Failure::Interrupted`].
pub fn build(planted: Option<Planted>, interrupts: &Interrupts) -> Result<PathBuf, Failure> {
    let mut command = cargo();
    command.arg("test").args(TARGET).args(features(planted)).arg("--no-run");
    artifact::build(&mut command, "suites", interrupts)?.map_err(|missing| {
        Failure::Infrastructure(match missing {
            Missing::NotBuilt => "the suites do not build; cargo's message is above, and `cargo test --workspace --test suites --no-run` repeats it".into(),
            Missing::NotThere => "cargo built no test named `suites` in package `pool-suites`; is it still in tests/?".into(),
        })
    })
}

/// Asks the test binary for its cases.
///
/// # Errors
/// [`Failure::Infrastructure`] when it cannot be asked.
pub fn catalogue(binary: &Path) -> Result<Catalogue, Failure> {
    let all = ask(binary, &["--list", "--format", "terse"])?;
    let ignored = ask(binary, &["--list", "--format", "terse", "--ignored"])?;
    Ok(Catalogue::from_terse(&all, &ignored))
}

/// Asks the test binary why cases are ignored: told to run exactly those, it runs none of them and gives the reasons.
///
/// # Errors
/// [`Failure::Infrastructure`] when it cannot be asked.
pub fn reasons(binary: &Path, cases: &[Case]) -> Result<BTreeMap<String, String>, Failure> {
    let ignored: Vec<&str> =
        cases.iter().filter(|case| case.ignored).map(|case| case.path.as_str()).collect();
    if ignored.is_empty() {
        return Ok(BTreeMap::new());
    }
    let told = ask(binary, &[&["--color", "never", "--exact"], ignored.as_slice()].concat())?;
    let mut parser = Libtest::default();
    let events = told.lines().flat_map(|line| parser.line(line));
    Ok(events
        .filter_map(|event| match event {
            Event::Ignored { path, reason } => Some((path, reason?)),
            _ => None,
        })
        .collect())
}

fn ask(binary: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let what = || format!("ask {} for its cases", binary.display());
    let answer = Command::new(binary).args(arguments).stdin(Stdio::null()).output();
    let answer = answer.map_err(|why| Failure::while_doing(&what(), why))?;
    if !answer.status.success() {
        return Err(Failure::while_doing(&what(), String::from_utf8_lossy(&answer.stderr)));
    }
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

/// Runs the cases of a job, and gives a result for each. `over` hears of each case when it is over.
///
/// # Errors
/// [`Failure::Infrastructure`] when the runner did not do its work, [`Failure::Interrupted`].
pub fn execute(
    job: &Job<'_>,
    interrupts: &Interrupts,
    over: &dyn Fn(&str),
) -> Result<Vec<CaseResult>, Failure> {
    let mut command = job.command();
    let mut running = interrupts.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let transcript = File::create(job.records.join(format!("transcript-{}.txt", job.seed)));
    let transcript = transcript.map_err(|why| Failure::while_doing("keep what the cases write", why))?;
    let transcript = Box::new(BufWriter::new(transcript));
    let mut collector = Collector::new(job, Progress::start(job.cases.len()), over, transcript);
    let status = pump(&mut running, &mut collector)?;
    interrupts.check()?;
    if has_run_them(job.runner, status) {
        return Ok(collector.into_results(job, status));
    }
    let (name, tail) = (job.runner.name(), collector.tail());
    Err(Failure::Infrastructure(format!(
        "`{name}` did not run the cases ({status}); its last words:\n{tail}"
    )))
}

/// A line of a runner.
enum Line {
    Out(String),
    Err(String),
}

/// Hands the runner's lines to the collector until both its pipes are closed, or it is gone and silent.
fn pump(running: &mut Running, collector: &mut Collector<'_>) -> Result<ExitStatus, Failure> {
    let lines = read_lines(running);
    let mut gone: Option<Instant> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(Line::Out(line)) => collector.out(&line),
            Ok(Line::Err(line)) => collector.err(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if gone.is_none() && matches!(running.child.try_wait(), Ok(Some(_))) {
                    gone = Some(Instant::now());
                }
                if gone.is_some_and(|since| since.elapsed() > DRAIN) {
                    break;
                }
            }
        }
    }
    running.wait()
}

fn read_lines(running: &mut Running) -> Receiver<Line> {
    let (sender, receiver) = channel();
    if let Some(out) = running.child.stdout.take() {
        read_in_thread(out, Line::Out, sender.clone());
    }
    if let Some(err) = running.child.stderr.take() {
        read_in_thread(err, Line::Err, sender);
    }
    receiver
}

fn read_in_thread(pipe: impl Read + Send + 'static, wrap: fn(String) -> Line, sender: Sender<Line>) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while pipe.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            if sender.send(wrap(line)).is_err() {
                return;
            }
        }
    });
}

/// Puts together what is known of each case while the lines come in.
struct Collector<'a> {
    /// Every line of the runner, in a file that is searched afterwards.
    transcript: Box<dyn Write>,
    /// Told when a case is over.
    over: &'a dyn Fn(&str),
    parser: Box<dyn Parser>,
    progress: Progress,
    /// nextest itself shows the cases and their output, so the lines of ours would only repeat them.
    forward: bool,
    known: BTreeMap<String, Known>,
    tail: VecDeque<String>,
}

#[derive(Default)]
struct Known {
    passed: Option<bool>,
    time: Option<Duration>,
    output: String,
}

impl<'a> Collector<'a> {
    fn new(job: &Job<'_>, progress: Progress, over: &'a dyn Fn(&str), transcript: Box<dyn Write>) -> Self {
        let known = job.cases.iter().map(|case| (case.path.clone(), Known::default())).collect();
        Self {
            transcript,
            over,
            parser: parser(job.runner),
            progress,
            forward: job.verbose && job.runner == Runner::Nextest,
            known,
            tail: VecDeque::new(),
        }
    }

    /// Lines that cannot be kept are missed by the search alone, which tells how much it has searched.
    fn keep(&mut self, line: &str) {
        let _ = writeln!(self.transcript, "{line}");
    }

    fn out(&mut self, line: &str) {
        self.keep(line);
        for event in self.parser.line(line) {
            self.take(event);
        }
    }

    fn err(&mut self, line: String) {
        self.keep(&line);
        if let Some((path, how)) = nextest_ending(&line)
            && let Some(known) = self.known.get_mut(path)
        {
            let _ = writeln!(known.output, "ended by {how}");
        }
        if self.forward {
            self.progress.line(&line);
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn take(&mut self, event: Event) {
        match event {
            // nextest also tells of ignored cases that were not chosen.
            Event::Started { path } if self.known.contains_key(&path) => self.progress.started(&path),
            Event::Finished { path, passed, time, output } => {
                let Some(known) = self.known.get_mut(&path) else { return };
                (self.over)(&path);
                known.passed = Some(passed);
                known.time = time;
                known.output.push_str(&output.unwrap_or_default());
                if !self.forward {
                    self.progress.finished(&path, passed, time);
                }
            }
            Event::Wrote { path, output } => {
                if let Some(known) = self.known.get_mut(&path) {
                    known.output.push_str(&output);
                }
            }
            Event::Started { .. } | Event::Ignored { .. } => {}
        }
    }

    fn tail(&self) -> String {
        self.tail.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// A case without a result has failed: its process died, and took the word with it.
    fn into_results(mut self, job: &Job<'_>, status: ExitStatus) -> Vec<CaseResult> {
        // Under `cargo test` one death is the end of all cases; its description is told with the first of them.
        let mut last_words = format!("; its last words:\n{}", self.tail());
        let results = job.cases.iter().map(|case| {
            let known = self.known.remove(&case.path).unwrap_or_default();
            let ending = if known.passed == Some(true) { Ending::Passed } else { Ending::Failed };
            let mut output = known.output;
            if known.passed.is_none() {
                let _ = writeln!(
                    output,
                    "no result: the test process ended ({status}){}",
                    mem::take(&mut last_words)
                );
            }
            CaseResult { case: (*case).clone(), ending, time: known.time, output }
        });
        results.collect()
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
