//! `cargo xtask test-pools`: the main job, from the command line to the last line.
//!
//! What costs nothing comes first: the binary is built and the names are checked before a server is started, so a typing
//! error is answered at once. The server is let go before the last line is printed, whatever happened in between.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::{Instant, SystemTime};

use anstyle::{AnsiColor, Style};
use pool_testkit::hostile::password_of;
use pool_testkit::run::{RunId, Sampler, read_figures, read_records, read_replaced};
use pool_testkit::server::{ServerError, TestServer};
use xtask::choices::{Adapter, Planted};
use xtask::cli::TestPools;
use xtask::display::{complain, say};
use xtask::failure::Failure;
use xtask::process::Interrupts;

use crate::case_result::{CaseResult, Ending};
use crate::kept;
use crate::leftovers;
use crate::plan::{Case, Catalogue, Selection};
use crate::progress::spinner;
use crate::publish;
use crate::repeat::{merge, seed_of};
use crate::report::Run;
use crate::run::{self, Job};
use crate::scratch;
use crate::secrets::Search;

/// Why a case is not run with `--short`.
const LEFT_OUT: &str = "left out by --short, since it measures and takes its time; run it without --short";

/// What is said first and last of a run that could not be on a server.
const NOT_ON_POSTGRES: &str = "NOT ON POSTGRESQL: there is none here, so the suites run on files (sqlite) and in memory. They prove the manager, \
    and nothing of the PostgreSQL adapter. For the rest install PostgreSQL's server (apt-get install postgresql, dnf install \
    postgresql-server, brew install postgresql), set PG_BIN to the directory of its initdb, or name a server with TEST_DB_HOST.";

const ODD: Style = AnsiColor::Yellow.on_default();

/// Runs the command. Where there is no PostgreSQL, and none was asked for, the suites run on what needs no server.
///
/// # Errors
/// See [`Failure`]; what was found in the cases is printed, and comes back as [`Failure::Told`].
pub fn test_pools(options: &TestPools, interrupts: &Interrupts) -> Result<(), Failure> {
    if let Some(adapter @ (Adapter::Sqlite | Adapter::Memory)) = options.adapter
        && (options.keep_server || options.planted.is_some())
    {
        let why = format!(
            "{} has no server: --keep-server and --planted are for --adapter postgres",
            adapter.name()
        );
        return Err(Failure::Usage(why));
    }
    let binary = run::build(options.planted, interrupts)?;
    let all = run::catalogue(&binary)?;
    let on = |adapters: &[Adapter], notice| {
        run_on(options, &binary, &all.clone().on(adapters), notice, interrupts)
    };
    match options.adapter {
        Some(adapter) => on(&[adapter], None),
        None => match on(&[Adapter::Postgres], None) {
            Err(Failure::NoPostgres(why)) if !options.keep_server && options.planted.is_none() => {
                say(&format!("{why}\n\n{ODD}{NOT_ON_POSTGRES}{ODD:#}"));
                on(&Adapter::EMBEDDED, Some(NOT_ON_POSTGRES))
            }
            outcome => outcome,
        },
    }
}

/// Runs the cases of a catalogue that were asked for. The notice is said once more at the end.
fn run_on(
    options: &TestPools,
    binary: &Path,
    catalogue: &Catalogue,
    notice: Option<&str>,
    interrupts: &Interrupts,
) -> Result<(), Failure> {
    if let [first, ..] = catalogue.empty_suites()[..] {
        complain(&format!("suite {first} has no case that runs; a suite that proves nothing does not pass"));
        return Err(Failure::FOUND);
    }
    let chosen = catalogue.choose(&selection(options)).map_err(|why| Failure::Usage(why.to_string()))?;
    if options.list {
        say(&listing(&chosen));
        return Ok(());
    }
    scratch::remove_left();
    let mut reasons = run::reasons(binary, &chosen)?;
    let is_left_out = |case: &Case| options.short && case.is_long();
    let long = chosen.iter().filter(|case| is_left_out(case) && !case.ignored);
    reasons.extend(long.map(|case| (case.path.clone(), LEFT_OUT.to_owned())));
    let (skip, runnable): (Vec<&Case>, Vec<&Case>) =
        chosen.iter().partition(|case| case.ignored || is_left_out(case));
    let mut run = match runnable.first() {
        None => Run::new(Vec::new()), // no server is needed to say that nothing ran
        Some(Case { adapter: Adapter::Postgres, .. }) => supervise(options, &runnable, interrupts)?,
        Some(_) => run_embedded(options, &runnable, interrupts)?,
    };
    run.results.extend(skip.into_iter().map(|case| skipped(case, &reasons)));
    conclude(run, options, notice)
}

/// The cases that the command line means: what was planted runs alone unless others are named.
fn selection(options: &TestPools) -> Selection {
    let mut selection = Selection { suites: options.suites.clone(), cases: options.cases.clone() };
    if options.planted.is_some() && selection.suites.is_empty() && selection.cases.is_empty() {
        selection.suites.push(Planted::SUITE.to_owned());
    }
    selection
}

/// Holds a server while the cases run, and lets it go.
fn supervise(options: &TestPools, cases: &[&Case], interrupts: &Interrupts) -> Result<Run, Failure> {
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
    options: &TestPools,
    cases: &[&Case],
    server: &TestServer,
    interrupts: &Interrupts,
) -> Result<Run, Failure> {
    let watch = "watch the connections on the server";
    let records = scratch::directory("the records")?;
    let id = RunId::fresh();
    let job = job(options, cases, &id, records.path(), None);
    let sampler = Sampler::start(server, &id).map_err(|why| Failure::while_doing(watch, why))?;
    let search = RefCell::new(Search::new(&password_of(server.config())));
    let over = |path: &str| {
        search.borrow_mut().processes();
        if options.leak_check {
            sampler.case_is_over(path);
        }
    };
    let rounds = rounds(options, &job, interrupts, &over, &|| sampler.settle());
    let watched = sampler.finish().map_err(|why| Failure::while_doing(watch, why));
    let mut run = run_of(&job, rounds?);
    run.note(watched, Run::take_sampled);
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

/// Runs cases that need no server; what they leave in the directory for their temporary files fails the run.
fn run_embedded(options: &TestPools, cases: &[&Case], interrupts: &Interrupts) -> Result<Run, Failure> {
    let (records, scratch) =
        (scratch::directory("the records")?, scratch::directory("what the cases write")?);
    let id = RunId::fresh();
    let job = job(options, cases, &id, records.path(), Some(scratch.path()));
    let (started, began) = (Instant::now(), SystemTime::now());
    let rounds = rounds(options, &job, interrupts, &|_| (), &|| ())?;
    let mut run = run_of(&job, rounds);
    run.elapsed = started.elapsed();
    run.began = Some(began);
    "no server".clone_into(&mut run.server);
    let left =
        fs::read_dir(scratch.path()).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    run.note(left, |run, files| run.left_files = files);
    Ok(run)
}

/// What to run, told to whoever waits for it.
fn job<'a>(
    options: &TestPools,
    cases: &[&'a Case],
    run: &'a RunId,
    records: &'a Path,
    scratch: Option<&'a Path>,
) -> Job<'a> {
    let seed = options.seed.unwrap_or_else(random_seed);
    let runner = options.runner.unwrap_or_else(run::best_installed);
    let adapters: BTreeSet<&str> = cases.iter().map(|case| case.adapter.name()).collect();
    let adapters = Vec::from_iter(adapters).join(" and ");
    say(&format!(
        "running  {} cases on {adapters} with {}, run {run}, seed {seed}",
        cases.len(),
        runner.name()
    ));
    let cases = cases.to_vec();
    Job { runner, cases, run, records, scratch, seed, planted: options.planted, verbose: options.verbose }
}

/// The results of all rounds together, with what the cases have left for the report.
fn run_of(job: &Job<'_>, rounds: Vec<(u64, Vec<CaseResult>)>) -> Run {
    let (results, tries) = merge(rounds);
    let mut run = Run { id: job.run.to_string(), seed: job.seed, tries, ..Run::new(results) };
    run.note(read_records(job.records), |run, records| run.records = records);
    run.note(read_figures(job.records), |run, figures| run.figures = figures);
    run.note(read_replaced(job.records), |run, replaced| run.replaced = replaced);
    run
}

/// The results of each round, with its seed. `over` hears of each case when it is over; `settle` is called after each round.
fn rounds(
    options: &TestPools,
    job: &Job<'_>,
    interrupts: &Interrupts,
    over: &dyn Fn(&str),
    settle: &dyn Fn(),
) -> Result<Vec<(u64, Vec<CaseResult>)>, Failure> {
    let count = options.repeat.unwrap_or(1);
    let mut rounds = Vec::new();
    for round in 0..count {
        let seed = seed_of(job.seed, round);
        if count > 1 {
            say(&format!("round    {} of {count}, seed {seed}", round + 1));
        }
        rounds.push((seed, run::execute(&Job { seed, ..job.clone() }, interrupts, over)?));
        settle();
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
    let server = server.map_err(|why| {
        let said = format!("no test server: {why}");
        if matches!(why, ServerError::NoBinaries { .. }) {
            Failure::NoPostgres(said)
        } else {
            Failure::Infrastructure(said)
        }
    })?;
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
fn conclude(mut run: Run, options: &TestPools, notice: Option<&str>) -> Result<(), Failure> {
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
    if let Some(notice) = notice {
        say(&format!("{ODD}{notice}{ODD:#}"));
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
