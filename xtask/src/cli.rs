//! The command line of `cargo xtask`: its commands, their options, and the help that teaches them.
//!
//! Two programs read it: xtask itself, and `suite-runner`, which does what needs the pools.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::choices::{Adapter, Planted, Runner};

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
  Run the suites without a server, on files and in memory:
    cargo xtask test-pools --adapter sqlite
    cargo xtask test-pools --adapter memory
  See which suites and cases there are, then run one of each:
    cargo xtask test-pools --list
    cargo xtask test-pools --suite lifecycle
    cargo xtask test-pools --case full_cleanup -v
  Look for flaky cases and for leaks, and read about it in a browser:
    cargo xtask test-pools --repeat 5 --leak-check --report target/report
  See what runs have left on a server, and remove it:
    cargo xtask connections
    cargo xtask clean
  Break servers and networks, and write down what callers see of it:
    cargo xtask reliability
  A thousand workspaces and 256 tasks that do their worst, for as long as you like:
    cargo xtask soak --minutes 10
  See in seconds how fair and how busy the slots are, in virtual time, without a server:
    cargo xtask simulate
  Compare the pool with bare connections on a real server:
    cargo xtask measure
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

Adapters:
  The suites run on a real PostgreSQL. The cases that hold for every adapter
  have one more source, which runs on files (--adapter sqlite) and in memory in
  virtual time (--adapter memory), without a server, under the same names. Where
  an adapter has nothing of the kind that a case is named after, the case shows
  what holds there instead, and is counted as such. A machine on which there is
  no PostgreSQL runs those two, and says so first and last; with --adapter
  postgres that is an error (exit code 3).

Result:
  A summary per suite, with connections as the server counts them. A connection
  or a database that is left behind fails the run. The last line is always
  `N passed, N failed, N skipped`.

Examples:
  cargo xtask test-pools --suite lifecycle --suite concurrency
  cargo xtask test-pools --case lifecycle::pool_initialization -v
  cargo xtask test-pools --short --seed 42
  cargo xtask test-pools --adapter sqlite
  cargo xtask test-pools --leak-check --planted leak    (fails: it must be found)
  cargo xtask test-pools --race
  cargo xtask test-pools --race --planted lost-wake-up  (fails: it must be found)
  cargo xtask test-pools --runner cargo
  TEST_DB_HOST=db TEST_DB_USER=ci cargo xtask test-pools";

const CONNECTIONS_HELP: &str = "\
Server:
  The one that the environment names as for `test-pools`, or else the ephemeral
  one that runs now; none is started.

Examples:
  cargo xtask connections
  cargo xtask connections --terminate
  cargo xtask connections --terminate --run a1b2c3";

const SIMULATE_HELP: &str = "\
Worlds:
  A world says how many slots, workspaces and callers there are, and what
  queries, connects and closes cost. It runs through the real registry in
  virtual time: seconds for hours, no server, the same figures on every machine.
  A world has a name of its own (two-on-one), or is a point of a sweep
  (slots-50), which has a name as well (slots); `--list` shows them all.

Figures:
  goodput              the time that connections are leased, of the slots' time
  Jain                 1 if all workspaces got the same, 1/n if one got it all
  most / least         the most slot-time over the least, in ten cycles
  longest unserved     the longest time that a workspace waited without a grant
  longest wait         of one caller
  of the peer's        as a multiple of the same in another world: one connection
                       a workspace (walk-*), a fresh connection for each request
                       (picks-*), no unknown ids (storm)

  A turn is the quantum, up to the end of the query under way; a switch is a
  close and a connect, or slots x connect / permits where that is longer; a
  cycle is workspaces / slots x (turn + switch).

Examples:
  cargo xtask simulate
  cargo xtask simulate --world walk-105 --world slots
  cargo xtask simulate --csv target/simulate.csv --plots target/plots
  cargo xtask simulate --write-docs";

const MEASURE_HELP: &str = "\
Server:
  One of the run's own, from local binaries, with a database for each workspace.
  Two of the worlds need a thousand of them: half a minute, 8 GB in /dev/shm.

Worlds:
  round-robin  16 tasks walk over 100 warm workspaces: a second connection of
               one must not cost another its only one
  callers      40 workspaces with one caller each on 10 slots
  loud         60 workspaces with 10 callers each, and a quiet one, on 45 slots
  uniform      64 tasks pick any of 1,000 workspaces, 50 slots
  zipf         the same by Zipf's law
  pairs        acquire and release without a query

Figures:
  In one run and by turns, in rounds of about two seconds, work the pool and
  what it is compared with: bare connections, a fresh connection for each
  request, or the same pool with one connection a workspace. A ratio is taken
  within a round; the figure is the median of the rounds, and the least and the
  most of them stand beside it. So a ratio is worth something on a machine that
  others use, too; a time is not. It is no part of CI for that reason.
  A figure without a bound is there to explain the others.

  connects per grant   how often a lease cost a new connection
  evicted, yielded     connections closed for another workspace: idle ones, and
                       ones that had served for a quantum
  grants at once       leases that did not wait

Examples:
  cargo xtask measure
  cargo xtask measure --world loud --world round-robin
  cargo xtask measure --seconds 5    (a first look)
  cargo xtask measure --write-docs   (on a machine that does nothing else)";

/// Plans and runs the suites, keeps the layers, and does what CI does.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Done by the program that knows the pools.
    #[command(flatten)]
    Run(Task),
    /// Checks what the compiler does not: layers, a test for every clause, a row for every fault, sizes of files and tests, licences.
    #[command(after_long_help = EXIT_CODES)]
    Tidy,
    /// Does what CI does, in its order: format, clippy, tidy, documentation, all tests, test-pools.
    #[command(after_long_help = EXIT_CODES)]
    Ci,
}

/// What needs the pools, so that it is done by a program that is built when it is first asked for.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Runs the suites against a real PostgreSQL, which it finds or starts.
    #[command(after_long_help = format!("{TEST_POOLS_HELP}\n\n{EXIT_CODES}"))]
    TestPools(TestPools),
    /// Shows the connections that runs have on a server, by their tags, and ends them on request.
    #[command(after_long_help = format!("{CONNECTIONS_HELP}\n\n{EXIT_CODES}"))]
    Connections {
        /// End those whose process is gone; with --run, all of that run. Sessions without a tag are never touched.
        #[arg(long)]
        terminate: bool,
        /// Those of this run only.
        #[arg(long, value_name = "ID")]
        run: Option<String>,
    },
    /// Removes servers, databases, connections and directories of runs that were killed; those of a run that lives stay.
    #[command(after_long_help = EXIT_CODES)]
    Clean {
        /// End a server too that `test-pools --keep-server` has left running.
        #[arg(long)]
        server: bool,
    },
    /// Holds the ephemeral server until it is told to end: what `--keep-server` leaves running.
    #[command(hide = true)]
    HoldServer,
    /// Runs the fault matrix on servers of its own, and writes docs/reliability.md from what it observed.
    #[command(after_long_help = EXIT_CODES)]
    Reliability,
    /// Runs the soak: 1,000 workspaces, 50 connections, 256 tasks, sessions ended and databases dropped all the time.
    #[command(after_long_help = EXIT_CODES)]
    Soak {
        /// How long the load lasts; making and dropping the databases comes on top.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        minutes: u64,
    },
    /// Runs a table of worlds in virtual time, and prints each figure beside what is to be reached.
    #[command(after_long_help = format!("{SIMULATE_HELP}\n\n{EXIT_CODES}"))]
    Simulate(Simulate),
    /// Measures pools on a real server beside bare connections, and prints each figure beside what is to be reached.
    #[command(after_long_help = format!("{MEASURE_HELP}\n\n{EXIT_CODES}"))]
    Measure(Measure),
}

/// What `simulate` is asked for.
#[derive(Debug, Args)]
pub struct Simulate {
    /// Run this world, or this sweep, only; may be repeated.
    #[arg(long = "world", value_name = "NAME")]
    pub worlds: Vec<String>,
    /// Say which worlds there are, without running them.
    #[arg(long)]
    pub list: bool,
    /// Write every figure of every world to this file, one a line.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Draw the sweeps that were run, and what the worlds have reached, into this directory.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Write the tables and plots of docs/performance.md.
    #[arg(long, conflicts_with_all = ["worlds", "list"])]
    pub write_docs: bool,
}

/// What `measure` is asked for.
#[derive(Debug, Args)]
pub struct Measure {
    /// Measure this world only; may be repeated.
    #[arg(long = "world", value_name = "NAME")]
    pub worlds: Vec<String>,
    /// How long each contestant works in each world, in all rounds together.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=3_600))]
    pub seconds: u64,
    /// Say which worlds there are, without measuring.
    #[arg(long)]
    pub list: bool,
    /// Write the table of docs/performance.md.
    #[arg(long, conflicts_with_all = ["worlds", "list"])]
    pub write_docs: bool,
}

/// What `test-pools` is asked for.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct TestPools {
    /// Run this suite only; may be repeated.
    #[arg(long = "suite", value_name = "NAME")]
    pub suites: Vec<String>,
    /// Run this case only, as `suite::case` or `case`; may be repeated.
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// What the suites run on [default: postgres; where there is none, sqlite and memory, said first and last].
    #[arg(long, value_enum, value_name = "ADAPTER")]
    pub adapter: Option<Adapter>,
    /// Say which suites and cases there are, without a server.
    #[arg(long)]
    pub list: bool,
    /// Show the output of all cases, not only of failed ones.
    #[arg(short, long)]
    pub verbose: bool,
    /// Leave out the `performance` suite, and say so.
    #[arg(long)]
    pub short: bool,
    /// What the cases that choose at random begin with; printed when it is not given.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Run the cases N times, each time with another seed; tells how often each passed, and which are flaky.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: Option<u32>,
    /// Look after each case for connections and databases that it has left; each one fails it.
    #[arg(long)]
    pub leak_check: bool,
    /// Search for races first: schedules, thread interleavings, cancellation points, repetitions; says how many.
    #[arg(long)]
    pub race: bool,
    /// Leave report.html, report.json and junit.xml in this directory.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Leave the ephemeral server running, and say how to connect to it and how to end it.
    #[arg(long)]
    pub keep_server: bool,
    /// Build a fault into the tests, to see that it is found; runs what was planted only, unless others are named.
    #[arg(long, value_enum, value_name = "FAULT")]
    pub planted: Option<Planted>,
    /// Who runs the cases [default: nextest where it is installed, else cargo].
    #[arg(long, value_enum)]
    pub runner: Option<Runner>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::Parser as _;

    use super::{Cli, Command, Task};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn suites_and_cases_may_be_repeated() {
        let line = "xtask test-pools --suite a --suite b --case c::d --case e -v";
        let Command::Run(Task::TestPools(asked)) = Cli::parse_from(line.split(' ')).command else {
            panic!("another command")
        };
        assert_eq!((asked.suites.len(), asked.cases.len(), asked.verbose, asked.list), (2, 2, true, false));
    }

    #[test]
    fn a_repeated_run_is_asked_for_like_this() {
        let line = "xtask test-pools --short --seed 42 --repeat 3 --leak-check --report d --keep-server";
        let Command::Run(Task::TestPools(asked)) = Cli::parse_from(line.split(' ')).command else {
            panic!("another command")
        };
        assert_eq!(
            (asked.seed, asked.repeat, asked.short, asked.leak_check),
            (Some(42), Some(3), true, true)
        );
        for wrong in ["test-pools --repeat 0", "soak --minutes 0", "test-pools --planted weeds"] {
            let error = Cli::try_parse_from(format!("xtask {wrong}").split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn wrong_usage_has_the_code_that_the_help_promises() {
        let error = Cli::try_parse_from(["xtask", "test-pools", "--nonsense"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
