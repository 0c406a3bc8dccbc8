//! `cargo xtask`: answers what needs no pool, and hands the rest to `suite-runner`.
//!
//! Start here: [`xtask::cli`] has the commands and their help. The rules of the workspace are in [`xtask::tidy`], what CI does in
//! [`ci`]; everything else is in `xtask/runner`.

mod ci;
mod delegate;

use std::process::ExitCode;

use clap::Parser as _;
use xtask::cli::{Cli, Command};
use xtask::failure::{Failure, ended_with};
use xtask::process::Interrupts;
use xtask::tidy;

fn main() -> ExitCode {
    ended_with(perform(Cli::parse().command))
}

fn perform(command: Command) -> Result<(), Failure> {
    let interrupts = Interrupts::listen()?;
    match command {
        Command::Tidy => tidy::tidy(&interrupts),
        Command::Ci => ci::ci(&interrupts),
        Command::Run(_) => Err(delegate::to_runner(&interrupts)),
    }
}
