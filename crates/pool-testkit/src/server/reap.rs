//! Removes servers that nobody ends any more: their watchdog was killed, or the machine restarted.
//!
//! The order of proof matters. A FIFO with a reader has a live watchdog, so its server is left alone. A process is
//! killed only if it is a postgres that runs on the very data directory: process ids are used again.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::base::{Base, Locked, SERVER_PREFIX};
use super::error::{Doing, ServerError};
use super::hold;
use super::record::{self, DRAFT_PREFIX};
use super::start::Postmaster;

const POLL: Duration = Duration::from_millis(10);

/// How long a server may take to obey, before it is killed.
const OBEY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a directory may keep filling up again while its last writers die.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A server that was removed because its watchdog was dead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reaped {
    /// Its directory, which is gone now.
    pub directory: PathBuf,
    /// The postmaster that still ran, and was ended.
    pub postmaster_pid: Option<u32>,
}

/// Removes the servers in `base` whose watchdog is dead: ends the orphaned postmaster and deletes the directory.
///
/// Waits while another process joins or starts a server. What cannot be removed is reported by `tracing` and left
/// for the next time.
#[must_use = "an orphan means that something was killed; say so"]
pub fn reap_orphans(base: &Path) -> Vec<Reaped> {
    let outcome = Base::existing(base).and_then(|found| match found {
        Some(base) => reap(&base.lock()?),
        None => Ok(Vec::new()),
    });
    outcome.unwrap_or_else(|why| {
        tracing::warn!(%why, "could not look for orphaned servers");
        Vec::new()
    })
}

/// The same, by somebody who has the lock.
pub(super) fn reap(lock: &Locked<'_>) -> Result<Vec<Reaped>, ServerError> {
    let base = lock.base().path();
    let mut reaped = Vec::new();
    for entry in fs::read_dir(base).doing("read", base)?.flatten() {
        if starts_with(&entry.file_name(), DRAFT_PREFIX) {
            let _ = fs::remove_file(entry.path()); // its writer died; we have the lock, so nobody writes now
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir || !starts_with(&entry.file_name(), SERVER_PREFIX) {
            continue;
        }
        reaped.extend(reap_one(lock, entry.path())?);
    }
    Ok(reaped)
}

fn starts_with(name: &OsStr, prefix: &str) -> bool {
    name.as_bytes().starts_with(prefix.as_bytes())
}

fn reap_one(lock: &Locked<'_>, dir: PathBuf) -> Result<Option<Reaped>, ServerError> {
    if hold::watchdog_listens(&dir) {
        return Ok(None);
    }
    record::withdraw(lock, &name_of(&dir))?;
    let postmaster_pid = end_postmaster(&dir);
    if let Err(why) = remove_directory(&dir) {
        tracing::warn!(%why, "could not remove an orphaned server");
        return Ok(None);
    }
    tracing::info!(dir = %dir.display(), ?postmaster_pid, "removed an orphaned server");
    Ok(Some(Reaped { directory: dir, postmaster_pid }))
}

/// The name by which the note knows a server.
pub(super) fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Ends the server that runs on this directory, if one does, and says which.
pub(super) fn end_postmaster(dir: &Path) -> Option<u32> {
    let data = dir.join("data");
    let pid = Postmaster::read(dir)?.pid;
    if !is_postgres_on(pid, &data) {
        return None;
    }
    for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
        let _ = kill(Pid::from_raw(i32::try_from(pid).ok()?), signal);
        if ends(pid, &data) {
            return Some(pid);
        }
    }
    tracing::warn!(pid, "a server does not even obey SIGKILL");
    None
}

fn ends(pid: u32, data: &Path) -> bool {
    let begun = Instant::now();
    while is_postgres_on(pid, data) {
        if begun.elapsed() > OBEY_TIMEOUT {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

/// Whether this process is a postgres with this data directory on its command line, as the watchdog starts it.
/// A zombie has no command line, so it does not count.
pub(super) fn is_postgres_on(pid: u32, data: &Path) -> bool {
    let data = data.as_os_str().as_bytes();
    if Path::new("/proc/self/cmdline").exists() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        return words.next().is_some_and(ends_in_postgres) && words.any(|word| word == data);
    }
    // macOS has no /proc, but always ps.
    let Ok(ps) =
        Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).stdin(Stdio::null()).output()
    else {
        return false;
    };
    let line = ps.stdout.trim_ascii();
    let command = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    ends_in_postgres(command) && line.ends_with(data)
}

fn ends_in_postgres(program: &[u8]) -> bool {
    program.ends_with(b"/postgres")
}

/// Deletes a directory, also while its last writers are still dying in it.
pub(super) fn remove_directory(dir: &Path) -> Result<(), ServerError> {
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

    fn used_base() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        drop(Base::prepare(base.path()).unwrap().lock().unwrap());
        base
    }

    fn leftover(base: &Path, postmaster_pid: &str) -> PathBuf {
        let dir = base.join("srv-leftover");
        fs::create_dir_all(dir.join("data")).unwrap();
        fs::write(dir.join("data/postmaster.pid"), postmaster_pid).unwrap();
        dir
    }

    #[test]
    fn after_a_reboot_only_the_directory_is_removed() {
        let base = used_base();
        let dir = leftover(base.path(), "999999999\n");
        let expected = Reaped { directory: dir.clone(), postmaster_pid: None };
        assert_eq!(reap_orphans(base.path()), [expected]);
        assert!(!dir.exists());
    }

    #[test]
    fn a_process_that_got_the_old_number_is_spared() {
        let base = used_base();
        let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
        leftover(base.path(), &format!("{}\n", bystander.id()));
        assert_eq!(reap_orphans(base.path())[0].postmaster_pid, None);
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[test]
    fn other_files_are_none_of_its_business() {
        let base = used_base();
        fs::create_dir(base.path().join("notes")).unwrap();
        fs::write(base.path().join("srv-file"), "").unwrap();
        assert_eq!(reap_orphans(base.path()), []);
        assert!(base.path().join("notes").exists());
        assert!(base.path().join("srv-file").exists());
    }

    #[test]
    fn a_base_that_does_not_exist_is_not_created() {
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join("base");
        assert_eq!(reap_orphans(&base), []);
        assert!(!base.exists());
    }
}
