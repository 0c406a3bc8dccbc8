//! `cargo xtask test-pools --race`: everything here that searches for races, and how much of it was searched.
//!
//! Each step is a test binary that prints what it has covered after `race: `; a step that covers nothing has
//! failed. The concurrency suite is then repeated on one thread and on many, with seeds of its own, and
//! `ThreadSanitizer` watches the shell where a standard library can be built for it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anstyle::Style;
use xtask::choices::Planted;
use xtask::display::{complain, say};
use xtask::failure::Failure;
use xtask::process::{Interrupts, cargo, workspace_root};

const HEAD: Style = Style::new().bold();
/// What a test prints before what it has covered.
const COVERED: &str = "race: ";
/// How often the concurrency suite is run on each kind of runtime, unless `--repeat` says.
const ROUNDS: u32 = 3;

/// A test binary that searches.
struct Search {
    what: &'static str,
    test: &'static str,
    filter: &'static str,
}

/// The search that must find a bug planted in the registry.
const PLANTED: Search = Search {
    what: "every schedule of small worlds through the registry",
    test: "planted_bugs",
    filter: "no_schedule",
};

const SEARCHES: &[Search] = &[
    Search {
        what: "every schedule of small worlds through the registry",
        test: "explore",
        filter: "no_schedule",
    },
    Search { what: "every interleaving of threads, by loom", test: "loom", filter: "" },
    Search {
        what: "cancellation at every await point of the manager, with a server in memory",
        test: "cancel",
        filter: "",
    },
    Search {
        what: "cancellation at every await point, with a real server",
        test: "postgres",
        filter: "cancelled::",
    },
    Search {
        what: "whatever a holder can leave behind, and whether later holders get their own answers",
        test: "postgres",
        filter: "mishaps::",
    },
];

/// Searches for races; the first one found ends it. With a planted bug, only the search that must find it.
///
/// # Errors
/// [`Failure::FOUND`] when a race was found, or when a search covered nothing.
pub fn race(planted: Option<Planted>, repeat: Option<u32>, interrupts: &Interrupts) -> Result<(), Failure> {
    if let Some(planted) = planted {
        head(PLANTED.what);
        PLANTED.run(Some(planted), interrupts)?;
        complain("the planted bug was NOT found");
        return Ok(());
    }
    for search in SEARCHES {
        head(search.what);
        search.run(None, interrupts)?;
    }
    for threads in ["1", "4"] {
        let rounds = repeat.unwrap_or(ROUNDS);
        head(&format!("the concurrency suite, {rounds} times on a runtime of {threads} threads"));
        repeat_suite(threads, rounds, interrupts)?;
        say(&format!("{COVERED}{rounds} repetitions of the concurrency suite on {threads} threads"));
    }
    head("ThreadSanitizer over the shell");
    thread_sanitizer(interrupts)
}

fn head(what: &str) {
    say(&format!("\n{HEAD}{what}{HEAD:#}"));
}

impl Search {
    fn run(&self, planted: Option<Planted>, interrupts: &Interrupts) -> Result<(), Failure> {
        let mut command = cargo();
        command.args([
            "test",
            "--workspace",
            "--test",
            self.test,
            "--",
            "--quiet", // not for cargo, which tells what it builds
            "--nocapture",
            self.filter,
        ]);
        // The story is what helps, not the stack of the test that tells it.
        command.env("RUST_BACKTRACE", "0");
        command.arg("--include-ignored");
        if let Some(bug) = planted.and_then(Planted::in_the_registry) {
            command.env("POOL_PLANTED", bug);
        }
        watch(self.what, &mut command, interrupts)
    }
}

/// Runs a search, and shows what it covers as it goes; what it found is on standard error.
fn watch(what: &str, command: &mut Command, interrupts: &Interrupts) -> Result<(), Failure> {
    let mut running = interrupts.spawn(command.stdout(Stdio::piped()))?;
    let mut covered = 0;
    if let Some(output) = running.child.stdout.take() {
        // The harness writes a dot for each test that passed, without a line of its own.
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some((_, covering)) = line.split_once(COVERED) {
                covered += 1;
                say(&format!("{COVERED}{covering}"));
            }
        }
    }
    let status = running.wait()?;
    interrupts.check()?;
    if !status.success() {
        complain(&format!("FAILED: {what}"));
        return Err(Failure::FOUND);
    }
    if covered == 0 {
        complain(&format!("FAILED: {what}: this search has covered nothing"));
        return Err(Failure::FOUND);
    }
    Ok(())
}

/// Runs the concurrency suite again, as a person would, on a runtime of so many threads.
fn repeat_suite(threads: &str, rounds: u32, interrupts: &Interrupts) -> Result<(), Failure> {
    let mut command = cargo();
    command.env("POOL_TEST_THREADS", threads);
    command.args(["xtask", "test-pools", "--suite", "concurrency", "--repeat", &rounds.to_string()]);
    if interrupts.run(&mut command)?.success() { Ok(()) } else { Err(Failure::FOUND) }
}

/// Runs the tests of the shell under `ThreadSanitizer`, with a standard library built for it. Without one, correct
/// programs that use std's mutex are reported, so then it is skipped, with the reason.
fn thread_sanitizer(interrupts: &Interrupts) -> Result<(), Failure> {
    let Some(sysroot) = said_by_nightly(&["--print", "sysroot"]) else {
        say("skipped: there is no nightly toolchain (rustup toolchain install nightly --component rust-src)");
        return Ok(());
    };
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/std").exists() {
        say(
            "skipped: the nightly toolchain lacks rust-src, so std cannot be built with the sanitizer, and correct \
             programs would be reported (rustup component add rust-src --toolchain nightly)",
        );
        return Ok(());
    }
    let Some(host) = said_by_nightly(&["--print", "host-tuple"]) else {
        return Err(Failure::Infrastructure("nightly's rustc does not say which host it is for".to_owned()));
    };
    let mut command = Command::new("rustup");
    command.current_dir(workspace_root()).args([
        "run",
        "nightly",
        "cargo",
        "test",
        "-Zbuild-std",
        "--target",
        &host,
    ]);
    command.args([
        "-p",
        "pool-testkit",
        "--test",
        "shell",
        "--test",
        "cancel",
        "--",
        "--quiet",
        "--nocapture",
    ]);
    command.env("RUSTFLAGS", "-Zsanitizer=thread").env("CARGO_TARGET_DIR", "target/sanitized");
    if interrupts.run(&mut command)?.success() {
        say(&format!("{COVERED}the tests of the shell under ThreadSanitizer"));
        return Ok(());
    }
    complain("FAILED: the tests of the shell under ThreadSanitizer");
    Err(Failure::FOUND)
}

/// One line that nightly's compiler says, if there is one.
fn said_by_nightly(arguments: &[&str]) -> Option<String> {
    let output = Command::new("rustup").args(["run", "nightly", "rustc"]).args(arguments).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !line.is_empty()).then_some(line)
}
