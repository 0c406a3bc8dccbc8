//! `cargo xtask test-pools`: the main job, from the command line to the last line.
//!
//! What costs nothing comes first: the binary is built and the names are checked before a server is started, so a typing
//! error is answered at once. The server is let go before the last line is printed, whatever happened in between.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use pool_testkit::hostile::password_of;
use pool_testkit::run::{RunId, Sampler, read_figures, read_records};
use pool_testkit::server::TestServer;

use crate::case_result::{CaseResult, Ending};
use crate::display::{complain, say, spinner};
use crate::failure::Failure;
use crate::kept;
use crate::leftovers;
use crate::plan::{Case, Selection};
use crate::process::Interrupts;
use crate::publish;
use crate::repeat::{merge, seed_of};
use crate::report::Run;
use crate::run::{self, Job, Planted, Runner};
use crate::secrets::Search;

/// Why a case is not run with `--short`.
const LEFT_OUT: &str = "left out by --short, since it measures and takes its time; run it without --short";

/// What the command line asks for.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Options {
    /// The cases to run.
    pub selection: Selection,
    /// Leave out the suite that measures.
    pub short: bool,
    /// Only say which there are.
    pub list: bool,
    /// Show the output of passed cases too.
    pub verbose: bool,
    /// Who runs them; the best one installed unless named.
    pub runner: Option<Runner>,
    /// What the tests that choose at random begin with; random unless named.
    pub seed: Option<u64>,
    /// How many rounds to make; one unless named.
    pub repeat: Option<u32>,
    /// Where to leave the report.
    pub report: Option<PathBuf>,
    /// Look after each case whether it has left anything.
    pub leak_check: bool,
    /// Leave an ephemeral server running.
    pub keep_server: bool,
    /// What is built into the tests on purpose.
    pub planted: Option<Planted>,
}

/// Runs the command.
///
/// # Errors
/// See [`Failure`]; what was found in the cases is printed, and comes back as [`Failure::Told`].
pub fn test_pools(options: &Options, interrupts: &Interrupts) -> Result<(), Failure> {
    let binary = run::build(options.planted, interrupts)?;
    let catalogue = run::catalogue(&binary)?;
    if let [first, ..] = catalogue.empty_suites()[..] {
        complain(&format!("suite {first} has no case that runs; a suite that proves nothing does not pass"));
        return Err(Failure::FOUND);
    }
    let chosen = catalogue.choose(&selection(options)).map_err(|why| Failure::Usage(why.to_string()))?;
    if options.list {
        say(&listing(&chosen));
        return Ok(());
    }
    let mut reasons = run::reasons(&binary, &chosen)?;
    let is_left_out = |case: &Case| options.short && case.is_long();
    let long = chosen.iter().filter(|case| is_left_out(case) && !case.ignored);
    reasons.extend(long.map(|case| (case.path.clone(), LEFT_OUT.to_owned())));
    let (skip, runnable): (Vec<&Case>, Vec<&Case>) =
        chosen.iter().partition(|case| case.ignored || is_left_out(case));
    let mut run = if runnable.is_empty() {
        Run::new(Vec::new()) // no server is needed to say that nothing ran
    } else {
        supervise(options, &runnable, interrupts)?
    };
    run.results.extend(skip.into_iter().map(|case| skipped(case, &reasons)));
    conclude(run, options)
}

/// The cases that the command line means: what was planted runs alone unless others are named.
fn selection(options: &Options) -> Selection {
    let mut selection = options.selection.clone();
    if options.planted.is_some() && selection.suites.is_empty() && selection.cases.is_empty() {
        selection.suites.push(Planted::SUITE.to_owned());
    }
    selection
}

/// Holds a server while the cases run, and lets it go.
fn supervise(options: &Options, cases: &[&Case], interrupts: &Interrupts) -> Result<Run, Failure> {
    let server = obtain_server()?;
    leftovers::remove(&server)?;
    let described = server.describe();
    let (started, began) = (Instant::now(), SystemTime::now());
    let outcome = sampled_run(options, cases, &server, interrupts);
    let elapsed = started.elapsed();
    let released = if options.keep_server { kept::keep(server) } else { release(server) };
    let mut run = Run { elapsed, server: described, began: Some(began), ..outcome? };
    run.note(released, |_, ()| ());
    Ok(run)
}

/// Runs the cases, as often as is asked for, while a sampler watches the server. A sampler that fails does not take
/// the results with it.
fn sampled_run(
    options: &Options,
    cases: &[&Case],
    server: &TestServer,
    interrupts: &Interrupts,
) -> Result<Run, Failure> {
    let watch = "watch the connections on the server";
    let records =
        tempfile::tempdir().map_err(|why| Failure::while_doing("make a directory for the records", why))?;
    let id = RunId::fresh();
    let seed = options.seed.unwrap_or_else(random_seed);
    let runner = options.runner.unwrap_or_else(Runner::installed);
    say(&format!("running  {} cases with {}, run {id}, seed {seed}", cases.len(), runner.name()));
    let sampler = Sampler::start(server, &id).map_err(|why| Failure::while_doing(watch, why))?;
    let job = Job {
        runner,
        cases: cases.to_vec(),
        run: &id,
        records: records.path(),
        seed,
        planted: options.planted,
        verbose: options.verbose,
    };
    let search = RefCell::new(Search::new(&password_of(server.config())));
    let rounds = rounds(options, &job, &sampler, interrupts, &search);
    let watched = sampler.finish().map_err(|why| Failure::while_doing(watch, why));
    let (results, tries) = merge(rounds?);
    let mut run = Run { id: id.to_string(), seed, tries, ..Run::new(results) };
    run.note(watched, Run::take_sampled);
    run.note(read_records(records.path()), |run, records| run.records = records);
    run.note(read_figures(records.path()), |run, figures| run.figures = figures);
    let mut search = search.into_inner();
    for result in &run.results {
        search.text(&format!("the output of {}", result.case.path), result.output.as_bytes());
    }
    let places = [Some(records.path().to_owned()), server.directory()];
    let looked = places.into_iter().flatten().try_for_each(|place| search.directory(&place));
    run.note(looked.map_err(|why| Failure::while_doing("search for the password", why)), |_, ()| ());
    run.searched = search.into_searched();
    Ok(run)
}

/// The results of each round, with its seed.
fn rounds(
    options: &Options,
    job: &Job<'_>,
    sampler: &Sampler,
    interrupts: &Interrupts,
    search: &RefCell<Search>,
) -> Result<Vec<(u64, Vec<CaseResult>)>, Failure> {
    let over = |path: &str| {
        search.borrow_mut().processes();
        if options.leak_check {
            sampler.case_is_over(path);
        }
    };
    let count = options.repeat.unwrap_or(1);
    let mut rounds = Vec::new();
    for round in 0..count {
        let seed = seed_of(job.seed, round);
        if count > 1 {
            say(&format!("round    {} of {count}, seed {seed}", round + 1));
        }
        rounds.push((seed, run::execute(&Job { seed, ..job.clone() }, interrupts, &over)?));
        sampler.settle();
    }
    Ok(rounds)
}

/// Small enough to be typed again.
fn random_seed() -> u64 {
    RandomState::new().hash_one(SystemTime::now()) >> 32
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

fn skipped(case: &Case, reasons: &BTreeMap<String, String>) -> CaseResult {
    let reason = reasons.get(&case.path).cloned();
    let reason = reason.unwrap_or_else(|| "no reason given; write #[ignore = \"why\"]".to_owned());
    CaseResult { case: case.clone(), ending: Ending::Skipped(reason), time: None, output: String::new() }
}

/// Prints what a run ends with, leaves the report, and turns it into an exit code.
fn conclude(mut run: Run, options: &Options) -> Result<(), Failure> {
    for result in &run.results {
        if !result.output.trim().is_empty() && (options.verbose || result.ending == Ending::Failed) {
            say(&format!("\n---- {} ----\n{}", result.case.path, result.output.trim_end()));
        }
    }
    let published = options.report.as_deref().map(|dir| publish::publish(&run, dir)).transpose();
    if let (Ok(Some(_)), Some(dir)) = (&published, &options.report) {
        let looked = run.searched.also(dir);
        run.note(looked.map_err(|why| Failure::while_doing("search the report", why)), |_, ()| ());
    }
    let counts = run.counts();
    say(&format!("\n{}", run.summary().trim_end()));
    if let Ok(Some(page)) = &published {
        say(&format!("report   {}", page.display()));
    }
    say(&counts.last_line());
    published?;
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
