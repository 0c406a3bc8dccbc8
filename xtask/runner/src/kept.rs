//! `--keep-server`: an ephemeral server lives as long as a process holds it, so one is left behind that does nothing else.
//!
//! It is this program again, in a process group of its own, which says on its standard output when it holds the server.
//! It writes its number into the server's directory and locks that file, so that a number which another process got in
//! the meantime is not mistaken for it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pool_testkit::server::{TestServer, kept_server};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xtask::display::say;
use xtask::failure::Failure;

/// What the holder says once it holds.
const HOLDS: &str = "holds";

/// Leaves the server running, and says how to reach it and how to end it.
///
/// # Errors
/// [`Failure::Infrastructure`] when nobody could be left to hold it.
pub fn keep(server: TestServer) -> Result<(), Failure> {
    let Some(psql) = server.psql() else {
        say("--keep-server: the server is not ours, so it stays as it is");
        return Ok(());
    };
    if kept_server().map_err(keeping)?.is_none() {
        start_holder()?;
    }
    say(&format!("kept     {psql}\n         it stays until `cargo xtask clean --server`"));
    drop(server); // the holder holds it, so it does not end with us
    Ok(())
}

fn start_holder() -> Result<(), Failure> {
    let this = std::env::current_exe().map_err(keeping)?;
    let mut command = Command::new(this);
    command.arg("hold-server").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = command.process_group(0).spawn().map_err(keeping)?;
    let mut word = String::new();
    if let Some(stdout) = holder.stdout.take() {
        BufReader::new(stdout).read_line(&mut word).map_err(keeping)?;
    }
    if word.trim() == HOLDS { Ok(()) } else { Err(keeping("its holder ended at once")) }
}

/// Holds the server that runs until a signal comes: the whole of `cargo xtask hold-server`.
///
/// # Errors
/// [`Failure::Infrastructure`] when there is no server to hold.
pub fn hold() -> Result<(), Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(keeping)?;
    let server = TestServer::running().map_err(keeping)?.ok_or_else(|| keeping("none runs"))?;
    let mark = server.mark_kept().map_err(keeping)?;
    let _ = writeln!(std::io::stdout(), "{HOLDS}");
    // The end of the terminal is not the end of the server.
    signals.forever().find(|signal| *signal != SIGHUP);
    drop(mark);
    server.release_now().map_err(keeping)
}

/// Ends the server that was kept, if there is one, and waits until it is gone unless others use it.
///
/// # Errors
/// [`Failure::Infrastructure`] when it does not end.
pub fn end() -> Result<(), Failure> {
    let Some(kept) = kept_server().map_err(keeping)? else {
        say("no server is kept");
        return Ok(());
    };
    let ending = |why: &dyn std::fmt::Display| Failure::while_doing("end the kept server", why);
    let pid = i32::try_from(kept.holder_pid()).map_err(|why| ending(&why))?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|why| ending(&why))?;
    if kept.wait_for_end() {
        say(&format!("ended    the kept server in {}", kept.directory().display()));
    } else {
        say("the kept server is let go; it goes on until those who use it have ended");
    }
    Ok(())
}

fn keeping(why: impl std::fmt::Display) -> Failure {
    Failure::while_doing("keep the server", why)
}
