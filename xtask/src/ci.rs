//! `cargo xtask ci`: what CI runs, in its order, so that a green run here is a green run there.
//!
//! Cheap steps come first and the first failure ends it. The last step is `test-pools`, whose last line ends this run too.

use std::process::{Command, ExitStatus};
use std::time::Instant;

use anstyle::Style;
use xtask::display::{complain, say};
use xtask::failure::Failure;
use xtask::process::{Interrupts, cargo};
use xtask::tidy::tidy;

const HEAD: Style = Style::new().bold();

/// One thing that CI does.
struct Step {
    name: &'static str,
    work: Work,
}

/// How a step is done.
enum Work {
    /// By cargo, with these arguments and this one variable.
    Cargo(&'static [&'static str], Option<(&'static str, &'static str)>),
    /// By `cargo xtask tidy`, in this process.
    Tidy,
    /// By `cargo xtask` with these arguments, whose exit code is told as it is.
    Xtask(&'static [&'static str]),
}

/// The examples have workspaces of their own, and are built into the directory of this one.
const ADAPTER: &str = "examples/own-adapter/Cargo.toml";
const SERVICE: &str = "examples/notes-axum/Cargo.toml";
const BESIDE: Option<(&str, &str)> = Some(("CARGO_TARGET_DIR", "target"));

const STEPS: &[Step] = &[
    Step { name: "format", work: Work::Cargo(&["fmt", "--all", "--check"], None) },
    Step {
        name: "format of an adapter of one's own",
        work: Work::Cargo(&["fmt", "--manifest-path", ADAPTER, "--check"], None),
    },
    Step {
        name: "format of a service",
        work: Work::Cargo(&["fmt", "--manifest-path", SERVICE, "--check"], None),
    },
    Step {
        name: "clippy",
        work: Work::Cargo(
            &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            None,
        ),
    },
    Step {
        name: "clippy on an adapter of one's own",
        work: Work::Cargo(
            &["clippy", "--manifest-path", ADAPTER, "--all-targets", "--locked", "--", "-D", "warnings"],
            BESIDE,
        ),
    },
    Step {
        name: "clippy on a service",
        work: Work::Cargo(
            &["clippy", "--manifest-path", SERVICE, "--all-targets", "--locked", "--", "-D", "warnings"],
            BESIDE,
        ),
    },
    Step { name: "tidy", work: Work::Tidy },
    Step {
        name: "documentation",
        work: Work::Cargo(
            &["doc", "--workspace", "--no-deps", "--locked"],
            Some(("RUSTDOCFLAGS", "-D warnings")),
        ),
    },
    Step {
        name: "unit and documentation tests",
        work: Work::Cargo(&["test", "--workspace", "--locked"], None),
    },
    Step {
        name: "example: an adapter of one's own",
        work: Work::Cargo(&["test", "--manifest-path", ADAPTER, "--locked"], BESIDE),
    },
    Step {
        name: "example: a service",
        work: Work::Cargo(&["test", "--manifest-path", SERVICE, "--locked"], BESIDE),
    },
    // On a machine without PostgreSQL that is no success.
    Step { name: "test-pools", work: Work::Xtask(&["test-pools", "--adapter", "postgres"]) },
];

/// Runs every step until one fails.
///
/// # Errors
/// The failure of that step; 1 when cargo found something.
pub fn ci(interrupts: &Interrupts) -> Result<(), Failure> {
    for (number, step) in (1..).zip(STEPS) {
        let Step { name, work } = step;
        say(&format!("\n{HEAD}[{number}/{}] {name}{HEAD:#}{}", STEPS.len(), work.repeated_by()));
        let started = Instant::now();
        let done = work.perform(interrupts);
        let seconds = started.elapsed().as_secs_f64();
        match done {
            // Its own last line has to stay the last one, and its summary has the time.
            done if matches!(work, Work::Xtask(_)) => return done,
            Ok(()) => say(&format!("{name}: done in {seconds:.1} s")),
            Err(failure) => {
                complain(&format!("ci stops at step {number}, {name}, after {seconds:.1} s"));
                return Err(failure);
            }
        }
    }
    Ok(())
}

impl Work {
    /// What a person types to do this step alone.
    fn repeated_by(&self) -> String {
        match self {
            Self::Cargo(arguments, variable) => {
                let set = variable.map(|(name, value)| format!("{name}=\"{value}\" ")).unwrap_or_default();
                format!("  {set}cargo {}", arguments.join(" "))
            }
            Self::Tidy => "  cargo xtask tidy".into(),
            Self::Xtask(arguments) => format!("  cargo xtask {}", arguments.join(" ")),
        }
    }

    fn perform(&self, interrupts: &Interrupts) -> Result<(), Failure> {
        match self {
            Self::Cargo(arguments, variable) => {
                let mut command: Command = cargo();
                command.args(*arguments).envs(*variable);
                let status = interrupts.run(&mut command)?;
                if status.success() { Ok(()) } else { Err(Failure::FOUND) }
            }
            Self::Tidy => tidy(interrupts),
            Self::Xtask(arguments) => {
                let status = interrupts.run(cargo().arg("xtask").args(*arguments))?;
                if status.success() { Ok(()) } else { Err(Failure::Told(code(status))) }
            }
        }
    }
}

/// What a command of ours has ended with; one that a signal has ended could not do its work.
fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(3)
}

#[cfg(test)]
mod tests {
    use super::STEPS;

    /// People repeat CI by hand in this order, and `.ci/run` relies on it.
    #[test]
    fn the_steps_are_these_in_this_order() {
        let steps: Vec<String> = STEPS.iter().map(|step| step.work.repeated_by().trim().to_owned()).collect();
        let expected = [
            "cargo fmt --all --check",
            "cargo fmt --manifest-path examples/own-adapter/Cargo.toml --check",
            "cargo fmt --manifest-path examples/notes-axum/Cargo.toml --check",
            "cargo clippy --workspace --all-targets --locked -- -D warnings",
            "CARGO_TARGET_DIR=\"target\" cargo clippy --manifest-path examples/own-adapter/Cargo.toml --all-targets --locked -- -D warnings",
            "CARGO_TARGET_DIR=\"target\" cargo clippy --manifest-path examples/notes-axum/Cargo.toml --all-targets --locked -- -D warnings",
            "cargo xtask tidy",
            "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps --locked",
            "cargo test --workspace --locked",
            "CARGO_TARGET_DIR=\"target\" cargo test --manifest-path examples/own-adapter/Cargo.toml --locked",
            "CARGO_TARGET_DIR=\"target\" cargo test --manifest-path examples/notes-axum/Cargo.toml --locked",
            "cargo xtask test-pools --adapter postgres",
        ];
        assert_eq!(steps, expected);
    }
}
