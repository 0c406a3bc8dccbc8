//! `cargo xtask test-pools --race`: everything here that searches for races, and how much of it was searched.
//!
//! Each step is a test binary that prints what it has covered on lines that begin with `race: `; a step that covers
//! nothing has failed. The concurrency suite is then repeated on one thread and on many, with seeds of its own.

use std::process::{Command, Stdio};

use anstyle::Style;

use crate::display::say;
use crate::failure::Failure;
use crate::process::{Interrupts, cargo, workspace_root};
use crate::run::Planted;

const HEAD: Style = Style::new().bold();
/// What a test prints before what it has covered.
const COVERED: &str = "race: ";
/// How many callers the larger worlds of the enumerator have.
const CALLERS: &str = "5";
/// How often the concurrency suite is run on each kind of runtime, unless `--repeat` says.
const ROUNDS: u32 = 3;

/// A test binary that searches.
struct Search {
    what: &'static str,
    package: &'static str,
    test: &'static str,
    filter: &'static str,
}

const SEARCHES: &[Search] = &[
    Search {
        what: "every schedule of small worlds through the registry",
        package: "pool-testkit",
        test: "explore",
        filter: "no_schedule",
    },
    Search { what: "every interleaving of threads, by loom", package: "pool-core", test: "loom", filter: "" },
    Search {
        what: "cancellation at every await point of the manager",
        package: "pool-testkit",
        test: "cancel",
        filter: "",
    },
];

/// Searches for races; the first one found ends it.
///
/// # Errors
/// [`Failure::FOUND`] when a race was found, or when a search covered nothing.
pub fn race(planted: Option<Planted>, repeat: Option<u32>, interrupts: &Interrupts) -> Result<(), Failure> {
    for search in SEARCHES {
        say(&format!("\n{HEAD}{}{HEAD:#}", search.what));
        search.run(planted, interrupts)?;
    }
    if planted.is_some() {
        return Ok(());
    }
    for threads in ["1", "4"] {
        let rounds = repeat.unwrap_or(ROUNDS);
        say(&format!(
            "\n{HEAD}the concurrency suite, {rounds} times on a runtime of {threads} threads{HEAD:#}"
        ));
        repeat_suite(threads, rounds, interrupts)?;
        say(&format!("{COVERED}{rounds} repetitions of the concurrency suite on {threads} threads"));
    }
    say(&format!("\nskipped: {}", thread_sanitizer()));
    Ok(())
}

impl Search {
    fn run(&self, planted: Option<Planted>, interrupts: &Interrupts) -> Result<(), Failure> {
        interrupts.check()?;
        let mut command = cargo();
        command.args([
            "test",
            "--workspace",
            "--quiet",
            "--test",
            self.test,
            "--",
            "--nocapture",
            self.filter,
        ]);
        command.env("POOL_EXPLORE_CALLERS", CALLERS).stdin(Stdio::null()).stderr(Stdio::inherit());
        if let Some(bug) = planted.and_then(Planted::in_the_registry) {
            command.env("POOL_PLANTED", bug);
        }
        let output =
            command.output().map_err(|why| Failure::while_doing(&format!("search {}", self.package), why))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let covered: Vec<&str> = said.lines().filter(|line| line.starts_with(COVERED)).collect();
        for line in &covered {
            say(line);
        }
        if output.status.success() && !covered.is_empty() {
            return Ok(());
        }
        say(&said);
        if covered.is_empty() && output.status.success() {
            say("this search has covered nothing");
        }
        Err(Failure::FOUND)
    }
}

/// Runs the concurrency suite again, as a person would, on a runtime of so many threads.
fn repeat_suite(threads: &str, rounds: u32, interrupts: &Interrupts) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|why| Failure::while_doing("find xtask", why))?;
    let mut command = Command::new(program);
    command.current_dir(workspace_root()).env("POOL_TEST_THREADS", threads);
    command.args(["test-pools", "--suite", "concurrency", "--repeat", &rounds.to_string()]);
    if interrupts.run(&mut command)?.success() { Ok(()) } else { Err(Failure::FOUND) }
}

/// Why `ThreadSanitizer` is not run. Without a standard library built for it, it takes correct programs for racy ones.
fn thread_sanitizer() -> String {
    let sysroot = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
    let sysroot =
        sysroot.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let source = std::path::Path::new(&sysroot).join("lib/rustlib/src/rust/library/std");
    if sysroot.is_empty() {
        "ThreadSanitizer, since there is no nightly toolchain (rustup toolchain install nightly --component rust-src)".into()
    } else if source.exists() {
        "ThreadSanitizer, which this command does not run yet; the nightly toolchain has what it needs".into()
    } else {
        "ThreadSanitizer, since the nightly toolchain lacks rust-src: std could not be built for it, and correct \
         programs would be reported (rustup component add rust-src --toolchain nightly)"
            .into()
    }
}
