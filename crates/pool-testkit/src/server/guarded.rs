//! A directory for one test's own server, with a guard that takes both away.
//!
//! The guard is a shell script that waits for the end of file on a FIFO which the test's process holds open. It comes
//! when the directory is dropped, in a panic too, and when the process is killed. To whoever reaps, the guard is what
//! a watchdog is: if it is dead, the directory is an orphan.

use std::fs::Permissions;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::base::{Base, Locked, SERVER_PREFIX};
use super::error::{Doing, ServerError};
use super::hold::{self, Hold};
use super::owner::Owner;
use super::reap;

const GUARD: &str = include_str!("guard.sh");

#[derive(Debug)]
pub(super) struct GuardedDirectory {
    path: PathBuf,
    owner: Owner,
    guard: Child,
    /// Taken to let go.
    hold: Option<Hold>,
}

impl GuardedDirectory {
    /// Makes it among the servers of this user. Blocks while somebody else joins or starts one.
    pub(super) fn create() -> Result<Self, ServerError> {
        let base = Base::prepare(&Base::default_path())?;
        base.check_reachable()?;
        let owner = base.owner().clone();
        // Under the lock, since a directory without a guard is an orphan.
        let lock = base.lock()?;
        let dir = tempfile::Builder::new()
            .prefix(SERVER_PREFIX)
            .permissions(Permissions::from_mode(0o700)) // the passwords' only wall
            .tempdir_in(base.path())
            .doing("create a directory in", base.path())?;
        owner.give(dir.path())?;
        owner.write(&dir.path().join("guard.sh"), GUARD)?;
        let anchor = hold::prepare(dir.path(), &owner)?;
        let mut guard = spawn_guard(&owner, dir.path())?;
        let hold = hold_on(&lock, &mut guard, dir.path());
        drop(anchor); // from here on, the hold alone keeps the guard waiting
        match hold {
            Ok(hold) => Ok(Self { path: dir.keep(), owner, guard, hold: Some(hold) }),
            Err(why) => {
                let _ = guard.wait();
                Err(why)
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Lets go, and returns when what runs here has ended and the directory is gone.
    pub(super) fn remove(&mut self) {
        if self.hold.take().is_none() {
            return;
        }
        let _ = self.guard.wait();
        if let Err(why) = reap::remove_directory(&self.path) {
            tracing::warn!(%why, "leaving the rest to the next start");
        }
    }
}

impl Drop for GuardedDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}

fn spawn_guard(owner: &Owner, dir: &Path) -> Result<Child, ServerError> {
    owner
        .command("/bin/sh")
        .arg(dir.join("guard.sh"))
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0) // Ctrl-C ends the test, and its end is what ends this
        .spawn()
        .doing("run /bin/sh in", dir)
}

/// Waits until the guard listens, and takes the hold that it waits for the end of.
fn hold_on(lock: &Locked<'_>, guard: &mut Child, dir: &Path) -> Result<Hold, ServerError> {
    let told = guard.stdout.take().ok_or_else(|| io::Error::other("the guard has no pipe"))?;
    let mut line = String::new();
    BufReader::new(told).read_line(&mut line).doing("start the guard of", dir)?;
    let held = if line.is_empty() { None } else { Hold::open(lock, dir)? };
    held.ok_or_else(|| io::Error::other("the guard of a test's own server has ended at once").into())
}
