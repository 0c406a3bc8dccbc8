//! The base directory, under which all servers of a user live, and its lock.
//!
//! It usually lies in a world-writable place, so it is checked before it is trusted: a directory that somebody
//! else has put there could hand us a server of theirs.

use std::fs::{self, DirBuilder, File, Metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::geteuid;

use crate::error::{Doing, ServerError};
use crate::file_lock::FileLock;
use crate::owner::Owner;

/// How the directories of servers are called, followed by something random.
pub(crate) const SERVER_PREFIX: &str = "srv-";

/// Linux keeps what lies here in memory. A database is 300 files, and on a disk creating one takes up to five times as
/// long.
const SHARED_MEMORY: &str = "/dev/shm";
/// A thousand databases of 7.5 MB with their log. It is compared with the size of the whole and
/// not with what is free, since all processes must come to the same answer.
const SHARED_MEMORY_MIN: u64 = 12 << 30;

fn parent(wished: Option<PathBuf>, shared_memory: Option<u64>) -> PathBuf {
    match (wished, shared_memory) {
        (Some(wished), _) => wished,
        (None, Some(bytes)) if bytes >= SHARED_MEMORY_MIN => SHARED_MEMORY.into(),
        _ => std::env::temp_dir(),
    }
}

/// How much the file system at `path` holds when empty.
#[allow(clippy::useless_conversion, reason = "macOS counts blocks with 32 bits")]
fn bytes_of(path: &Path) -> Option<u64> {
    let told = nix::sys::statvfs::statvfs(path).ok()?;
    Some(u64::from(told.blocks()) * u64::from(told.fragment_size()))
}

/// A base directory that is known to be ours.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    path: PathBuf,
    owner: Owner,
}

/// Proof that this process alone joins, starts or reaps at the moment. The kernel frees it with the process.
#[derive(Debug)]
#[must_use = "the lock is free again as soon as this is dropped"]
pub(crate) struct Locked<'a> {
    base: &'a Base,
    _lock: FileLock,
}

impl Base {
    /// Where the servers of this user live unless the caller says otherwise: under `TMPDIR` if that is set, in memory
    /// if much fits there, and otherwise where temporary files go.
    pub(crate) fn default_path() -> PathBuf {
        let wished = std::env::var_os("TMPDIR").map(PathBuf::from);
        parent(wished, bytes_of(Path::new(SHARED_MEMORY))).join(format!("throwaway-postgres-{}", geteuid()))
    }

    /// Creates or checks the directory, and gives it to the user that runs the servers.
    pub(crate) fn prepare(path: &Path) -> Result<Self, ServerError> {
        let path = std::path::absolute(path).doing("resolve", path)?;
        let owner = Owner::of_this_process()?;
        DirBuilder::new().recursive(true).mode(0o700).create(&path).doing("create", &path)?;
        let base = Self { path, owner };
        base.take_over()?;
        Ok(base)
    }

    /// The directory if it exists already and is ours; nothing is created.
    pub(crate) fn existing(path: &Path) -> Result<Option<Self>, ServerError> {
        match path.try_exists() {
            Ok(false) => Ok(None),
            _ => Self::prepare(path).map(Some),
        }
    }

    fn take_over(&self) -> Result<(), ServerError> {
        let found = fs::symlink_metadata(&self.path).doing("look at", &self.path)?;
        self.refuse_strangers(&found)?;
        if found.uid() != self.owner.uid() {
            self.refuse_other_uses()?;
            self.owner.give(&self.path)?;
        }
        Ok(())
    }

    fn refuse_strangers(&self, found: &Metadata) -> Result<(), ServerError> {
        if !found.is_dir() {
            return Err(self.refused("it is not a directory. Remove it, or set TMPDIR"));
        }
        if found.uid() != self.owner.uid() && found.uid() != geteuid().as_raw() {
            return Err(self.refused("it belongs to another user. Remove it, or set TMPDIR"));
        }
        if found.mode() & 0o022 != 0 {
            return Err(self.refused("others may write to it. Use a directory of its own, with mode 0700"));
        }
        Ok(())
    }

    /// Root may own anything: only an empty directory, or one that served before, may change hands.
    fn refuse_other_uses(&self) -> Result<(), ServerError> {
        let mut entries = fs::read_dir(&self.path).doing("read", &self.path)?;
        if entries.next().is_some() && !self.lock_path().exists() {
            return Err(self.refused("it holds other files. Use a directory of its own"));
        }
        Ok(())
    }

    fn refused(&self, why: &str) -> ServerError {
        ServerError::Base { base: self.path.clone(), why: why.into() }
    }

    /// Fails clearly if the user that runs the server cannot get here, before initdb fails unclearly.
    pub(crate) fn check_reachable(&self) -> Result<(), ServerError> {
        if !self.owner.switches() {
            return Ok(());
        }
        let status = self
            .owner
            .command("/bin/sh")
            .args(["-c", "cd -- \"$1\" && test -w .", "sh"])
            .arg(&self.path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .doing("run /bin/sh to look at", &self.path)?;
        if status.success() {
            return Ok(());
        }
        Err(ServerError::Unreachable { base: self.path.clone(), user: self.owner.name().into() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn lock_file(&self) -> Result<File, ServerError> {
        let path = self.lock_path();
        File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).doing("open", &path)
    }

    /// Waits for its turn. Whoever holds the lock is bounded by time limits of its own.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, ServerError> {
        let lock = FileLock::exclusive(self.lock_file()?).doing("lock", &self.lock_path())?;
        Ok(Locked { base: self, _lock: lock })
    }

    /// The lock if it is free.
    pub(crate) fn try_lock(&self) -> Result<Option<Locked<'_>>, ServerError> {
        let lock = FileLock::try_exclusive(self.lock_file()?).doing("lock", &self.lock_path())?;
        Ok(lock.map(|lock| Locked { base: self, _lock: lock }))
    }
}

impl Locked<'_> {
    pub(crate) fn base(&self) -> &Base {
        self.base
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::said_by_the_user(Some("/x"), Some(SHARED_MEMORY_MIN), Path::new("/x"))]
    #[case::in_memory(None, Some(SHARED_MEMORY_MIN), Path::new(SHARED_MEMORY))]
    #[case::too_small_a_memory(None, Some(SHARED_MEMORY_MIN - 1), &std::env::temp_dir())]
    #[case::no_such_memory(None, None, &std::env::temp_dir())]
    fn servers_live_where_the_user_says_or_in_memory(
        #[case] wished: Option<&str>,
        #[case] memory: Option<u64>,
        #[case] expected: &Path,
    ) {
        assert_eq!(parent(wished.map(PathBuf::from), memory), expected);
    }

    #[test]
    fn the_size_of_a_file_system_is_known() {
        assert!(bytes_of(Path::new("/")).is_some_and(|bytes| bytes > 1 << 20));
        assert_eq!(bytes_of(Path::new("/no/such/place")), None);
    }

    fn why(path: &Path) -> String {
        Base::prepare(path).unwrap_err().to_string()
    }

    #[test]
    fn a_world_writable_base_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(why(dir.path()).contains("others may write to it"));
    }

    #[test]
    fn a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        fs::create_dir(dir.path().join("target")).unwrap();
        symlink(dir.path().join("target"), &link).unwrap();
        assert!(why(&link).contains("it is not a directory"));
    }

    #[test]
    fn a_directory_in_other_use_does_not_change_hands() {
        if !geteuid().is_root() {
            return; // an ordinary user's directories never change hands
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        assert!(why(dir.path()).contains("it holds other files"));
        assert_eq!(fs::metadata(dir.path()).unwrap().uid(), 0);
    }

    #[test]
    fn a_base_that_the_server_cannot_reach_is_a_clear_error() {
        if !geteuid().is_root() {
            return; // there is no second user to be locked out
        }
        let private = tempfile::tempdir().unwrap();
        fs::set_permissions(private.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let base = Base::prepare(&private.path().join("base")).unwrap();
        let text = base.check_reachable().unwrap_err().to_string();
        assert!(text.contains("TMPDIR=/tmp"), "{text}");
    }

    #[test]
    fn only_one_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        let held = base.lock().unwrap();
        assert!(base.try_lock().unwrap().is_none());
        drop(held);
        assert!(base.try_lock().unwrap().is_some());
    }
}
