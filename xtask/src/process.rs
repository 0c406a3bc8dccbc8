//! Child processes that an interruption reaches exactly once.
//!
//! Each child leads a process group of its own and a signal to xtask is passed on to that group, so Ctrl-C in a terminal
//! and `kill` from a script do the same thing: the runner gets one signal and can stop its tests in good order (a second
//! one would make nextest kill them), while we live on, as the runner to let the test server go.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// Presses after which waiting politely for a child ends.
const PATIENCE: u32 = 3;

/// Listens for SIGINT, SIGTERM and SIGHUP, and passes them on to the child that runs at the moment.
#[derive(Debug, Clone)]
pub struct Interrupts {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    first: Option<i32>,
    presses: u32,
    children: Option<Pid>,
}

impl Interrupts {
    /// Starts to listen, in a thread of its own that lives as long as the program.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the system refuses the handler.
    pub fn listen() -> Result<Self, Failure> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
            .map_err(|why| Failure::while_doing("listen for Ctrl-C", why))?;
        let interrupts = Self { state: Arc::default() };
        let listener = interrupts.clone();
        thread::spawn(move || {
            for signal in &mut signals {
                listener.received(signal);
            }
        });
        Ok(interrupts)
    }

    /// Fails once a signal has come; called between the phases of a command.
    ///
    /// # Errors
    /// [`Failure::Interrupted`] with the first signal that came.
    pub fn check(&self) -> Result<(), Failure> {
        self.lock().first.map_or(Ok(()), |signal| Err(Failure::Interrupted(signal)))
    }

    /// Starts a child in a process group of its own, without standard input.
    ///
    /// # Errors
    /// [`Failure::Interrupted`] instead of a start when a signal has come, else [`Failure::Infrastructure`].
    pub fn spawn(&self, command: &mut Command) -> Result<Running, Failure> {
        self.check()?;
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|why| Failure::while_doing(&format!("start `{program}`"), why))?;
        let group = i32::try_from(child.id()).ok().map(Pid::from_raw);
        let mut state = self.lock();
        state.children = group;
        if let (Some(signal), Some(group)) = (state.first, group) {
            pass_on(signal, group); // it came between the check and the start
        }
        drop(state);
        Ok(Running { child, interrupts: self.clone() })
    }

    /// Runs a child to its end with our own standard output and error.
    ///
    /// # Errors
    /// As [`Interrupts::spawn`], and [`Failure::Interrupted`] when a signal ended the child.
    pub fn run(&self, command: &mut Command) -> Result<ExitStatus, Failure> {
        let mut running = self.spawn(command)?;
        let status = running.wait()?;
        self.check()?;
        Ok(status)
    }

    fn received(&self, signal: i32) {
        let mut state = self.lock();
        state.first.get_or_insert(signal);
        state.presses += 1;
        match state.children {
            Some(group) if state.presses < PATIENCE => pass_on(signal, group),
            Some(group) => {
                pass_on_signal(Signal::SIGKILL, group);
                std::process::exit(128 + signal);
            }
            // Nothing to stop in good order: the first press is seen by `check`, the second is an order.
            None if state.presses > 1 => std::process::exit(128 + signal),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A child whose group receives the signals that xtask receives, until it has been waited for.
#[derive(Debug)]
pub struct Running {
    /// The child, for its pipes.
    pub child: Child,
    interrupts: Interrupts,
}

impl Running {
    /// Waits for the end of the child.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the system cannot say how it ended.
    pub fn wait(&mut self) -> Result<ExitStatus, Failure> {
        let status = self.child.wait().map_err(|why| Failure::while_doing("wait for a child process", why));
        self.interrupts.lock().children = None; // its number may be another's from now on
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only an early return leaves a child unwaited; its output has no reader then, so it must not go on.
        if let (Ok(None), Some(group)) = (self.child.try_wait(), self.interrupts.lock().children.take()) {
            pass_on_signal(Signal::SIGTERM, group);
        }
    }
}

fn pass_on(signal: i32, group: Pid) {
    if let Ok(signal) = Signal::try_from(signal) {
        pass_on_signal(signal, group);
    }
}

fn pass_on_signal(signal: Signal, group: Pid) {
    // A group that is gone already has no need of the signal.
    let _ = killpg(group, signal);
}

/// The directory of the workspace, wherever the command was typed: the nearest one with a lock file above the package that runs.
pub fn workspace_root() -> PathBuf {
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let here = PathBuf::from(here);
    let root = here.ancestors().find(|directory| directory.join("Cargo.lock").is_file());
    root.map_or_else(|| here.clone(), Path::to_path_buf)
}

/// The cargo that runs us, so that a toolchain override stays in force, started at the root of the workspace.
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(workspace_root());
    // What `cargo run` told us about ourselves. Build scripts watch it (ring's does), and would take each
    // change between us and a cargo started by hand for a reason to build everything anew.
    for (name, _) in std::env::vars_os() {
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether `cargo NAME` is there to be used.
pub fn has_subcommand(name: &str) -> bool {
    cargo()
        .args([name, "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Interrupts, has_subcommand, workspace_root};

    #[test]
    fn a_child_is_waited_for_and_its_end_reported() {
        let interrupts = Interrupts { state: std::sync::Arc::default() };
        let status = interrupts.run(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        assert_eq!(status.code(), Some(7));
        assert!(interrupts.lock().children.is_none(), "a finished child must not be signalled");
    }

    #[test]
    fn a_signal_reaches_the_whole_group_of_the_child_and_stops_the_command() {
        let interrupts = Interrupts { state: std::sync::Arc::default() };
        // The inner sleep is a grandchild: only a signal to the group ends both at once.
        let mut running = interrupts.spawn(Command::new("sh").args(["-c", "sleep 600; true"])).unwrap();
        interrupts.received(signal_hook::consts::SIGTERM);
        assert!(!running.wait().unwrap().success());
        assert_eq!(interrupts.check().unwrap_err().code(), 143);
        assert_eq!(
            interrupts.spawn(&mut Command::new("true")).unwrap_err().code(),
            143,
            "nothing starts afterwards"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let interrupts = Interrupts { state: std::sync::Arc::default() };
        let failure = interrupts.run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("no-such-program-here"), "{failure}");
    }

    #[test]
    fn the_root_is_that_of_the_workspace_and_an_unknown_subcommand_is_not_there() {
        assert!(workspace_root().join("xtask/Cargo.toml").is_file());
        assert!(!has_subcommand("no-such-subcommand-here"));
    }
}
