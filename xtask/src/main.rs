//! `cargo xtask`: plans and runs the suites, keeps the layers, and does what CI does.
//!
//! Start here: the commands and their help are below, and each has a file of its own. [`plan`], [`events`], [`report`] and
//! the rules under [`tidy`] are pure and tested as such; [`run`] and [`process`] hold everything that starts a process.

mod ci;
mod display;
mod events;
mod failure;
mod plan;
mod process;
mod report;
mod run;
mod test_pools;
mod tidy;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use failure::Failure;
use plan::Selection;
use process::Interrupts;
use run::Runner;

/// What scripts may rely on.
const EXIT_CODES: &str = "\
Exit codes:
  0    everything passed
  1    a case failed, something leaked, a rule is broken, or no case ran
  2    wrong usage: an unknown option, suite or case
  3    it could not be done: no server, no build, no runner
  130  stopped by Ctrl-C (128 + the number of the signal)";

const EXAMPLES: &str = "\
Examples:
  Prove the pools on a real PostgreSQL, which is the main job:
    cargo xtask test-pools
  See which suites and cases there are, then run one of each:
    cargo xtask test-pools --list
    cargo xtask test-pools --suite lifecycle
    cargo xtask test-pools --case full_cleanup -v
  Check the layers and the contract, or do everything that CI does:
    cargo xtask tidy
    cargo xtask ci";

const TEST_POOLS_HELP: &str = "\
Names:
  A suite is a module of the test binary; `--list` shows what there is. A case
  is named by its path (lifecycle::full_cleanup) or without its suite
  (full_cleanup, in every suite that has one), and the name of a table stands
  for all of its rows. With --suite as well, the case is looked for in those
  suites only.

Server:
  The one that TEST_DB_HOST, TEST_DB_PORT, TEST_DB_USER, TEST_DB_PASSWORD,
  TEST_DB_NAME and TEST_DB_SSLMODE (or DATABASE_URL, or PGHOST and its like)
  name, or else an ephemeral one, started for the run and taken away after it.

Result:
  A summary per suite, with connections as the server counts them. A connection
  or a database that is left behind fails the run. The last line is always
  `N passed, N failed, N skipped`.

Examples:
  cargo xtask test-pools --suite lifecycle --suite concurrency
  cargo xtask test-pools --case lifecycle::pool_initialization -v
  cargo xtask test-pools --runner cargo
  TEST_DB_HOST=db TEST_DB_USER=ci cargo xtask test-pools";

/// Plans and runs the suites, keeps the layers, and does what CI does.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs the suites against a real PostgreSQL, which it finds or starts.
    #[command(after_long_help = format!("{TEST_POOLS_HELP}\n\n{EXIT_CODES}"))]
    TestPools(TestPools),
    /// Checks what the compiler does not: layers, a test for every clause, file sizes, licences.
    #[command(after_long_help = EXIT_CODES)]
    Tidy,
    /// Does what CI does, in its order: format, clippy, tidy, documentation, all tests, test-pools.
    #[command(after_long_help = EXIT_CODES)]
    Ci,
}

#[derive(Debug, Args)]
struct TestPools {
    /// Run this suite only; may be repeated.
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
    /// Run this case only, as `suite::case` or `case`; may be repeated.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Say which suites and cases there are, without a server.
    #[arg(long)]
    list: bool,
    /// Show the output of all cases, not only of failed ones.
    #[arg(short, long)]
    verbose: bool,
    /// Who runs the cases [default: nextest where it is installed, else cargo].
    #[arg(long, value_enum)]
    runner: Option<Runner>,
}

impl From<TestPools> for test_pools::Options {
    fn from(asked: TestPools) -> Self {
        let TestPools { suites, cases, list, verbose, runner } = asked;
        Self { selection: Selection { suites, cases }, list, verbose, runner }
    }
}

fn main() -> ExitCode {
    match perform(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Told(_)) {
                display::complain(&failure.to_string());
            }
            ExitCode::from(&failure)
        }
    }
}

fn perform(task: Task) -> Result<(), Failure> {
    let interrupts = Interrupts::listen()?;
    match task {
        Task::TestPools(asked) => test_pools::test_pools(&asked.into(), &interrupts),
        Task::Tidy => tidy::tidy(&interrupts),
        Task::Ci => ci::ci(&interrupts),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::Parser as _;

    use super::{Cli, Task};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn suites_and_cases_may_be_repeated() {
        let line = "xtask test-pools --suite a --suite b --case c::d --case e -v";
        let Task::TestPools(asked) = Cli::parse_from(line.split(' ')).command else {
            panic!("another command")
        };
        assert_eq!((asked.suites.len(), asked.cases.len(), asked.verbose, asked.list), (2, 2, true, false));
    }

    #[test]
    fn wrong_usage_has_the_code_that_the_help_promises() {
        let error = Cli::try_parse_from(["xtask", "test-pools", "--nonsense"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
