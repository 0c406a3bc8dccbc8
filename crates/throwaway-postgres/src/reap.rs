//! Removes servers that nobody ends any more: their watchdog was killed, or the machine restarted.
//!
//! A FIFO with a reader has a live watchdog, so its server is left alone. Any other is given to a new watchdog, which is told
//! to end it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::base::{Base, Locked, SERVER_PREFIX};
use crate::error::{Doing, ServerError};
use crate::postmaster::{Postmaster, is_postgres_on};
use crate::record::{self, DRAFT_PREFIX};
use crate::{hold, watched};

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
pub(crate) fn reap(lock: &Locked<'_>) -> Result<Vec<Reaped>, ServerError> {
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
    record::withdraw(lock, &record::name_of(&dir))?;
    let named = Postmaster::read(&dir).map(|found| found.pid);
    let postmaster_pid = named.filter(|pid| is_postgres_on(*pid, &dir.join("data")));
    if let Err(why) = watched::end(lock.base().owner(), &dir) {
        tracing::warn!(%why, "could not remove an orphaned server");
        return Ok(None);
    }
    tracing::info!(dir = %dir.display(), ?postmaster_pid, "removed an orphaned server");
    Ok(Some(Reaped { directory: dir, postmaster_pid }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::Owner;

    fn used_base() -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        drop(Base::prepare(base.path()).unwrap().lock().unwrap());
        base
    }

    fn owner() -> Owner {
        Owner::of_this_process().unwrap()
    }

    fn leftover(base: &Path, postmaster_pid: &str) -> PathBuf {
        let dir = base.join("srv-leftover");
        fs::create_dir_all(dir.join("data")).unwrap();
        owner().give(&dir).unwrap();
        owner().give(&dir.join("data")).unwrap();
        owner().write(&dir.join("data/postmaster.pid"), postmaster_pid).unwrap();
        owner().write(&dir.join("process"), postmaster_pid).unwrap();
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
        let mut bystander = owner().command("sleep").arg("60").spawn().unwrap();
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
