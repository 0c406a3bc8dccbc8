//! What `cargo xtask` hands over: the suites on a real server, the search for races, faults, soak, worlds and benchmarks.
//!
//! Start here: the command line is `xtask::cli`, and each command has a file of its own. [`plan`], [`events`] and [`report`]
//! are pure and tested as such; most child processes go through `xtask::process`, which passes signals on.

mod case_result;
mod events;
mod kept;
mod leftovers;
mod measure;
mod page;
mod plan;
mod progress;
mod publish;
mod race;
mod reliability;
mod repeat;
mod report;
mod run;
mod scratch;
mod secrets;
mod simulate;
mod soak;
mod test_pools;

use std::process::ExitCode;

use clap::Parser as _;
use xtask::cli::{Cli, Command, Task, TestPools};
use xtask::failure::{Failure, ended_with};
use xtask::process::Interrupts;

fn main() -> ExitCode {
    ended_with(match Cli::parse().command {
        Command::Run(task) => perform(task),
        Command::Tidy | Command::Ci => Err(Failure::Usage("that is done by `cargo xtask` itself".to_owned())),
    })
}

fn perform(task: Task) -> Result<(), Failure> {
    if matches!(task, Task::HoldServer) {
        return kept::hold(); // it listens to signals in its own way
    }
    let interrupts = Interrupts::listen()?;
    match task {
        Task::TestPools(asked) => search_and_test(&asked, &interrupts),
        Task::Connections { terminate, run } => leftovers::connections(terminate, run.as_deref()),
        Task::Clean { server } => leftovers::clean(server),
        Task::HoldServer => Ok(()),
        Task::Reliability => reliability::reliability(&interrupts),
        Task::Soak { minutes } => soak::soak(minutes, &interrupts),
        Task::Simulate(asked) => simulate::simulate(&asked),
        Task::Measure(asked) => measure::measure(&asked, &interrupts),
    }
}

fn search_and_test(asked: &TestPools, interrupts: &Interrupts) -> Result<(), Failure> {
    let is_in_registry = asked.planted.is_some_and(|planted| planted.in_the_registry().is_some());
    if is_in_registry && !asked.race {
        return Err(Failure::Usage("this bug is for the search for races: add --race".to_owned()));
    }
    if asked.race {
        race::race(asked.planted, asked.repeat, interrupts)?;
    }
    test_pools::test_pools(asked, interrupts)
}
