//! `cargo xtask test-pools`: the main job, from the command line to the last line.
//!
//! What costs nothing comes first: the binary is built and the names are checked before a server is started, so a typing
//! error is answered at once. The server is let go before the last line is printed, whatever happened in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use pool_testkit::run::{Record, RunId, Sampled, Sampler, read_records};
use pool_testkit::server::TestServer;

use crate::display::{say, spinner};
use crate::failure::Failure;
use crate::plan::{Case, Selection};
use crate::process::Interrupts;
use crate::report::{CaseResult, Ending, Run};
use crate::run::{self, Job, Runner};

/// What the command line asks for.
#[derive(Debug, Default)]
pub struct Options {
    /// The cases to run.
    pub selection: Selection,
    /// Only say which there are.
    pub list: bool,
    /// Show the output of passed cases too.
    pub verbose: bool,
    /// Who runs them; the best one installed unless named.
    pub runner: Option<Runner>,
}

/// Runs the command.
///
/// # Errors
/// See [`Failure`]; what was found in the cases is printed, and comes back as [`Failure::Told`].
pub fn test_pools(options: &Options, interrupts: &Interrupts) -> Result<(), Failure> {
    let binary = run::build(interrupts)?;
    let catalogue = run::catalogue(&binary)?;
    let chosen = catalogue.choose(&options.selection).map_err(|why| Failure::Usage(why.to_string()))?;
    if options.list {
        say(&listing(&chosen));
        return Ok(());
    }
    let reasons = run::reasons(&binary, &chosen)?;
    let (ignored, runnable): (Vec<&Case>, Vec<&Case>) = chosen.iter().partition(|case| case.ignored);
    let mut run = if runnable.is_empty() {
        Run::new(Vec::new()) // no server is needed to say that nothing ran
    } else {
        supervise(options, runnable, interrupts)?
    };
    run.results.extend(ignored.into_iter().map(|case| skipped(case, &reasons)));
    conclude(&run, options.verbose)
}

/// Holds a server while the cases run, and lets it go.
fn supervise(options: &Options, cases: Vec<&Case>, interrupts: &Interrupts) -> Result<Run, Failure> {
    let runner = options.runner.unwrap_or_else(Runner::installed);
    let records =
        tempfile::tempdir().map_err(|why| Failure::while_doing("make a directory for the records", why))?;
    let server = obtain_server()?;
    let started = Instant::now();
    let id = RunId::fresh();
    say(&format!("running  {} cases with {}, run {id}", cases.len(), runner.name()));
    let job = Job { runner, cases, run: &id, records: records.path(), verbose: options.verbose };
    let outcome = sampled_run(&job, &server, interrupts);
    let elapsed = started.elapsed();
    let released = release(server);
    let (results, sampled) = outcome?;
    let mut run = Run { elapsed, ..Run::new(results) };
    run.note(sampled, |run, sampled| run.sampled = sampled);
    run.note(read(records.path()), |run, records| run.records = records);
    run.note(released, |_, ()| ());
    Ok(run)
}

type Sampling = Result<Sampled, Failure>;

/// Runs the cases while a sampler watches the server. A sampler that fails does not take the results with it.
fn sampled_run(
    job: &Job<'_>,
    server: &TestServer,
    interrupts: &Interrupts,
) -> Result<(Vec<CaseResult>, Sampling), Failure> {
    let watch = "watch the connections on the server";
    let sampler = Sampler::start(server, job.run).map_err(|why| Failure::while_doing(watch, why))?;
    let results = run::execute(job, interrupts);
    let seen = sampler.finish().map_err(|why| Failure::while_doing(watch, why));
    Ok((results?, seen))
}

fn obtain_server() -> Result<TestServer, Failure> {
    let waiting = spinner("finding or starting a test server");
    let server = TestServer::obtain();
    waiting.finish_and_clear();
    let server = server.map_err(|why| Failure::Infrastructure(format!("no test server: {why}")))?;
    say(&format!("server   {}", server.describe()));
    Ok(server)
}

/// Lets the server go, and waits until an ephemeral one is gone: afterwards nothing of the run is left.
fn release(server: TestServer) -> Result<(), Failure> {
    let waiting = spinner("letting the test server go");
    let released = server.release_now();
    waiting.finish_and_clear();
    released.map_err(|why| Failure::while_doing("let the test server go", why))
}

fn read(records: &Path) -> Result<Vec<Record>, Failure> {
    read_records(records).map_err(|why| Failure::while_doing("read the records of the tests", why))
}

fn skipped(case: &Case, reasons: &BTreeMap<String, String>) -> CaseResult {
    let reason = reasons.get(&case.path).cloned();
    let reason = reason.unwrap_or_else(|| "no reason given; write #[ignore = \"why\"]".to_owned());
    CaseResult { case: case.clone(), ending: Ending::Skipped(reason), time: None, output: String::new() }
}

/// Prints what a run ends with, and turns it into an exit code.
fn conclude(run: &Run, verbose: bool) -> Result<(), Failure> {
    for result in &run.results {
        if !result.output.trim().is_empty() && (verbose || result.ending == Ending::Failed) {
            say(&format!("\n---- {} ----\n{}", result.case.path, result.output.trim_end()));
        }
    }
    let counts = run.counts();
    say(&format!("\n{}", run.summary().trim_end()));
    say(&counts.last_line());
    match run.unchecked {
        Some(_) => Err(Failure::Told(3)),
        None if counts.are_good() => Ok(()),
        None => Err(Failure::FOUND),
    }
}

/// The suites and their cases, for `--list`.
fn listing(cases: &[Case]) -> String {
    let mut by_suite: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in cases {
        by_suite.entry(&case.suite).or_default().push(case);
    }
    let mut lines = Vec::new();
    for (suite, cases) in by_suite {
        lines.push(suite.to_owned());
        lines.extend(
            cases
                .iter()
                .map(|case| format!("  {}{}", case.name, if case.ignored { " (skipped)" } else { "" })),
        );
    }
    lines.join("\n")
}
