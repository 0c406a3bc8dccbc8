//! What needs the pools: the program that knows them is built, and takes our place with the same arguments.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use xtask::artifact::{self, Missing};
use xtask::failure::Failure;
use xtask::process::{Interrupts, cargo};

/// Its package and its name.
const RUNNER: &str = "suite-runner";

/// Becomes the runner. Returns only when that cannot be.
pub fn to_runner(interrupts: &Interrupts) -> Failure {
    match runner(interrupts) {
        // One process instead of two, so that signals and the exit code are the runner's own.
        Ok(mut runner) => Failure::while_doing("start the runner", runner.exec()),
        Err(failure) => failure,
    }
}

fn runner(interrupts: &Interrupts) -> Result<Command, Failure> {
    let mut build = cargo();
    build.args(["build", "--package", RUNNER, "--bin", RUNNER]);
    let program = artifact::build(&mut build, RUNNER, interrupts)?.map_err(|missing| {
        Failure::Infrastructure(match missing {
            Missing::NotBuilt => {
                format!("the runner does not build; cargo's message is above, and `cargo build -p {RUNNER}` repeats it")
            }
            Missing::NotThere => format!("cargo built no program named `{RUNNER}`; is it still in xtask/runner?"),
        })
    })?;
    let mut runner = Command::new(program);
    runner.args(std::env::args_os().skip(1));
    Ok(runner)
}
