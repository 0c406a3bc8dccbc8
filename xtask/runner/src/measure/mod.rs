//! `cargo xtask measure`: pools on a real server beside bare connections, each figure beside what is to be reached.
//!
//! An example of the test kit measures, built in release, so that xtask knows no driver. It says a line of JSON for each
//! figure, which is shown at once.

mod table;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdout, ExitStatus, Stdio};

use anstyle::{AnsiColor, Style};
use pool_testkit::run::Measured;
use xtask::cli::Measure;
use xtask::display::say;
use xtask::failure::Failure;
use xtask::process::{Interrupts, cargo};

use crate::page;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The block of the page begins with this line.
const BEGIN: &str = "<!-- cargo xtask measure --write-docs -->";
/// The benchmark was called in a wrong way.
const USAGE: i32 = 2;
/// With more processes at work than this before it begins, figures say as much about them as about the pool.
const QUIET_LOAD: f64 = 0.5;

/// Measures the worlds that were asked for.
///
/// # Errors
/// [`Failure::FOUND`] when a goal was missed, [`Failure::Usage`] for a world that does not exist,
/// [`Failure::Infrastructure`] when the benchmark cannot be built or does not end well, or the page cannot be written.
pub fn measure(asked: &Measure, interrupts: &Interrupts) -> Result<(), Failure> {
    build(interrupts)?;
    let load = load_average();
    let mut command = cargo();
    command.args(["run", "--quiet"]).args(EXAMPLE).arg("--");
    command.args(["--seconds", &asked.seconds.to_string()]);
    command.args(asked.worlds.iter().flat_map(|world| ["--world", world]));
    command.args(asked.list.then_some("--list"));
    let mut running = interrupts.spawn(command.stdout(Stdio::piped()))?;
    let measured = running.child.stdout.take().map(show).unwrap_or_default();
    let status = running.wait()?;
    interrupts.check()?;
    check(status)?;
    if asked.list {
        return Ok(());
    }
    if asked.write_docs {
        page::write_block(page::PERFORMANCE, BEGIN, &table::markdown(&measured, asked.seconds))?;
    }
    conclude(&measured, load)
}

const EXAMPLE: [&str; 6] = ["--release", "--locked", "-p", "pool-testkit", "--example", "measure"];

/// Apart from the run: a build would be part of the load that is looked at before.
fn build(interrupts: &Interrupts) -> Result<(), Failure> {
    let built = interrupts.run(cargo().arg("build").args(EXAMPLE))?;
    if built.success() {
        Ok(())
    } else {
        Err(Failure::Infrastructure("the benchmark cannot be built".to_owned()))
    }
}

/// Shows each figure when it comes.
fn show(out: ChildStdout) -> Vec<Measured> {
    let mut measured: Vec<Measured> = Vec::new();
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        let Ok(figure) = serde_json::from_str::<Measured>(&line) else {
            say(&line);
            continue;
        };
        if measured.last().is_none_or(|last| last.world != figure.world) {
            say(&table::head(&figure));
        }
        say(&table::line(&figure));
        measured.push(figure);
    }
    measured
}

fn check(status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        Some(USAGE) => Err(Failure::Usage("nothing was measured; `--list` shows all worlds".to_owned())),
        _ => Err(Failure::Infrastructure(format!("the benchmark did not come to its end: {status}"))),
    }
}

fn conclude(measured: &[Measured], load: Option<f64>) -> Result<(), Failure> {
    let goals = measured.iter().filter(|figure| figure.goal.is_some()).count();
    let missed = measured.iter().filter(|figure| !figure.is_met()).count();
    if let Some(load) = load.filter(|load| *load > QUIET_LOAD) {
        say(&format!(
            "\n{load:.1} other processes were at work before it began (load average): repeat what was missed on a quiet machine"
        ));
    }
    let style = if missed == 0 { GOOD } else { BAD };
    say(&format!("{style}measure{style:#}: {} of {goals} goals reached, {missed} missed", goals - missed));
    if missed == 0 { Ok(()) } else { Err(Failure::FOUND) }
}

/// How many processes wanted to run, on average over the last minute; unknown where there is no such file.
fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
