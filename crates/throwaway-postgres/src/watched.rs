//! The directory of one server, and its watchdog, which takes both away.
//!
//! The watchdog is a shell script that waits for the end of file on a FIFO which each holder keeps open. It comes when
//! the last hold is dropped, in a panic too, and when the last holder is killed. Then the watchdog ends the process that
//! runs here and deletes the directory. If the watchdog is dead, the directory is an orphan.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::{Locked, SERVER_PREFIX};
use crate::error::{Doing, ServerError};
use crate::hold::{self, Hold};
use crate::owner::Owner;

const WATCHDOG: &str = include_str!("watchdog.sh");

/// A shell that becomes the program: it says which process it is, closes what it has inherited, since somebody may wait for
/// its end, and is gone. The watchdog deletes `holders` before it looks which process to end. So this one is seen by the
/// watchdog, or sees that `holders` is gone, also if whoever started it is dead by now.
const BECOME: &str = r#"echo $$ >"$0/process" && echo p 1<>"$0/fifo" && [ -f "$0/holders" ] || exit 1
exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-
exec "$@""#;

const POLL: Duration = Duration::from_millis(10);

/// How long a directory may keep filling up again while its last writers die.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Dropping it blocks until the process that runs in it has ended and the directory is gone.
#[derive(Debug)]
pub(crate) struct WatchedDirectory {
    path: PathBuf,
    owner: Owner,
    /// Taken to let go.
    held: Option<Held>,
    process: Option<Child>,
}

#[derive(Debug)]
struct Held {
    hold: Hold,
    watchdog: Child,
}

/// What is left of a directory that was given to all who hold it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) hold: Hold,
    pub(crate) watchdog: Child,
    pub(crate) process: Option<Child>,
}

impl WatchedDirectory {
    /// Makes one among the servers of this user. Under the lock, since a directory without a watchdog is an orphan.
    pub(crate) fn create(lock: &Locked<'_>) -> Result<Self, ServerError> {
        let owner = lock.base().owner().clone();
        let dir = tempfile::Builder::new()
            .prefix(SERVER_PREFIX)
            .permissions(Permissions::from_mode(0o700)) // the socket's and the passwords' only wall
            .tempdir_in(lock.base().path())
            .doing("create a directory in", lock.base().path())?;
        owner.give(dir.path())?;
        owner.write(&dir.path().join("watchdog.sh"), WATCHDOG)?;
        let anchor = hold::prepare(dir.path(), &owner)?;
        let mut watchdog = spawn_watchdog(&owner, dir.path())?;
        let first = hold_on(lock, &mut watchdog, dir.path());
        drop(anchor); // from here on, holds alone keep the watchdog waiting
        match first {
            Ok(hold) => {
                Ok(Self { path: dir.keep(), owner, held: Some(Held { hold, watchdog }), process: None })
            }
            Err(why) => {
                let _ = watchdog.wait();
                Err(why)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Starts a program with `data` among its arguments; what it says goes to the log. One at a time, because the watchdog
    /// ends the last one.
    pub(crate) fn spawn(
        &mut self,
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<(), ServerError> {
        if self.is_running() {
            return Err(io::Error::other("the server runs already").into());
        }
        let path = self.path.join("log");
        let log = File::options().create(true).append(true).open(&path).doing("open", &path)?;
        let errors = log.try_clone().doing("open", &path)?;
        let mut command = self.owner.command("/bin/sh");
        command.arg("-c").arg(BECOME).arg(&self.path).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        command.process_group(0); // Ctrl-C in the terminal is not meant for it
        self.process = Some(command.spawn().doing("run /bin/sh in", &self.path)?);
        Ok(())
    }

    /// Whether the process that was started last goes on.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Waits for the end of the process, and says whether it was successful.
    pub(crate) fn wait(&mut self) -> bool {
        self.process.take().is_some_and(|mut child| child.wait().is_ok_and(|status| status.success()))
    }

    /// The last lines of what was said in here, to be shown in an error.
    pub(crate) fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let mut tail = String::new();
        for name in ["log", "watchdog.log"] {
            let bytes = fs::read(self.path.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                tail.push_str("  ");
                tail.push_str(line);
                tail.push('\n');
            }
        }
        if tail.is_empty() {
            tail.push_str("  (empty)");
        }
        tail
    }

    /// The process that watches; none if it is dead, so that nobody would end what runs here.
    pub(crate) fn watchdog_pid(&self) -> Option<u32> {
        let held = self.held.as_ref().filter(|_| hold::watchdog_listens(&self.path));
        held.map(|held| held.watchdog.id())
    }

    /// Gives it to all who hold it: what this returns can be dropped without waiting.
    pub(crate) fn share(mut self) -> Result<Shared, ServerError> {
        let held = self.held.take().ok_or_else(|| io::Error::other("the server was taken away"))?;
        Ok(Shared { hold: held.hold, watchdog: held.watchdog, process: self.process.take() })
    }

    /// Lets go, and returns when what runs here has ended and the directory is gone.
    pub(crate) fn remove(&mut self) {
        let Some(Held { hold, mut watchdog }) = self.held.take() else { return };
        drop(hold);
        let _ = watchdog.wait();
        if let Err(why) = end(&self.owner, &self.path) {
            tracing::warn!(%why, "leaving the rest to the next start");
        }
        self.wait(); // it has ended, and is a zombie no longer
    }
}

impl Drop for WatchedDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}

fn spawn_watchdog(owner: &Owner, dir: &Path) -> Result<Child, ServerError> {
    let log_path = dir.join("watchdog.log");
    let log = File::create(&log_path).doing("create", &log_path)?;
    owner
        .command("/bin/sh")
        .arg(dir.join("watchdog.sh"))
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0) // Ctrl-C in the terminal is not meant for it
        .spawn()
        .doing("run /bin/sh in", dir)
}

/// Waits until the watchdog listens, and takes the hold that it waits for the end of.
fn hold_on(lock: &Locked<'_>, watchdog: &mut Child, dir: &Path) -> Result<Hold, ServerError> {
    let told = watchdog.stdout.take().ok_or_else(|| io::Error::other("the watchdog has no pipe"))?;
    let mut line = String::new();
    BufReader::new(told).read_line(&mut line).doing("start the watchdog of", dir)?;
    let held = if line.is_empty() { None } else { Hold::open(lock, dir)? };
    held.ok_or_else(|| io::Error::other("the watchdog of a server has ended at once").into())
}

/// Ends a server whose watchdog is dead, and deletes its directory. Nothing is left to do if the watchdog did it all.
pub(crate) fn end(owner: &Owner, dir: &Path) -> Result<(), ServerError> {
    if dir.exists() {
        // Not from a file, since the disk may be full.
        owner
            .command("/bin/sh")
            .args(["-c", WATCHDOG, "watchdog.sh"])
            .arg(dir)
            .arg("end")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .status()
            .doing("run /bin/sh to end the server in", dir)?;
    }
    remove_directory(dir)
}

/// Deletes a directory, also while its last writers are still dying in it, and if it is not its owner's.
fn remove_directory(dir: &Path) -> Result<(), ServerError> {
    let begun = Instant::now();
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(why) if why.kind() == ErrorKind::NotFound && !dir.exists() => return Ok(()),
            Err(why) if !passes(&why) || begun.elapsed() > REMOVE_TIMEOUT => {
                return Err(why).doing("delete", dir);
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

fn passes(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Base;

    fn place(base: &tempfile::TempDir) -> WatchedDirectory {
        let base = Base::prepare(base.path()).unwrap();
        WatchedDirectory::create(&base.lock().unwrap()).unwrap()
    }

    #[test]
    fn a_process_that_comes_too_late_for_the_watchdog_does_not_start() {
        let base = tempfile::tempdir().unwrap();
        let mut place = place(&base);
        let made = place.path().join("made");
        place.spawn(Path::new("touch"), [&made]).unwrap();
        assert!(place.wait() && made.exists());
        // The first thing that the watchdog does.
        fs::remove_file(place.path().join("holders")).unwrap();
        let late = place.path().join("late");
        place.spawn(Path::new("touch"), [&late]).unwrap();
        assert!(!place.wait() && !late.exists());
    }

    #[test]
    fn a_process_that_does_not_obey_is_killed_and_none_starts_meanwhile() {
        let base = tempfile::tempdir().unwrap();
        let mut place = place(&base);
        let (path, data, deaf) = (place.path().to_owned(), place.data(), place.path().join("deaf"));
        let stubborn = "trap '' QUIT; >\"$0\"; while :; do sleep 0.1; done";
        let arguments = [OsStr::new("-c"), stubborn.as_ref(), deaf.as_ref(), data.as_ref()];
        place.spawn(Path::new("/bin/sh"), arguments).unwrap();
        while !deaf.exists() {
            thread::sleep(POLL);
        }
        let taken_away = thread::spawn(move || drop(place));
        while path.join("holders").exists() {
            thread::sleep(POLL);
        }
        assert!(path.exists(), "it has five seconds");
        taken_away.join().unwrap();
        assert!(!path.exists());
    }
}
