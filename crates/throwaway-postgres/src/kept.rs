//! A server that somebody asked to keep: one process holds it and does nothing else, and says so with a locked file
//! in the server's directory. The lock, not the number in the file, is what tells that it lives.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::base::{Base, SERVER_PREFIX};
use crate::error::{Doing, ServerError};

const POLL: Duration = Duration::from_millis(20);
/// A shutdown takes 0.3 s, or 15 s if the server resists to the last.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// A server that is still there so long after its holder let go is used by others.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(5);

/// The sign that this process keeps a server. Dropping it takes the sign away.
#[derive(Debug)]
pub struct KeptMark {
    _file: File,
}

/// A server that a process keeps.
#[derive(Debug)]
pub struct KeptServer {
    directory: PathBuf,
    holder_pid: u32,
}

impl KeptServer {
    /// The server's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process that holds it; SIGTERM makes it let go.
    pub fn holder_pid(&self) -> u32 {
        self.holder_pid
    }

    /// Waits until the server is gone, once its holder was told to let go. False if it goes on, since others use it.
    pub fn wait_for_end(&self) -> bool {
        let begun = Instant::now();
        let mut let_go: Option<Instant> = None;
        while self.directory.exists() {
            if is_kept(&self.directory) {
                let_go = None;
            } else if let_go.get_or_insert_with(Instant::now).elapsed() > OTHERS_TIMEOUT {
                return false;
            }
            if begun.elapsed() > END_TIMEOUT {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join("kept")
}

/// Says that this process keeps the server in `dir`.
pub(crate) fn mark(dir: &Path) -> Result<KeptMark, ServerError> {
    let path = path_in(dir);
    let mut file = File::options().create(true).append(true).open(&path).doing("open", &path)?;
    file.lock().doing("lock", &path)?;
    file.set_len(0).doing("write", &path)?;
    write!(file, "{}", std::process::id()).doing("write", &path)?;
    Ok(KeptMark { _file: file })
}

fn is_kept(dir: &Path) -> bool {
    File::open(path_in(dir)).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// The server that a process keeps, if there is one.
///
/// # Errors
/// When the base directory cannot be read.
pub fn kept_server() -> Result<Option<KeptServer>, ServerError> {
    kept_in(&Base::default_path())
}

fn kept_in(base: &Path) -> Result<Option<KeptServer>, ServerError> {
    let entries = match fs::read_dir(base) {
        Ok(entries) => entries,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why).doing("read", base),
    };
    for entry in entries.flatten() {
        let directory = entry.path();
        let is_server = entry.file_name().to_str().is_some_and(|name| name.starts_with(SERVER_PREFIX));
        if is_server && is_kept(&directory) {
            let pid = fs::read_to_string(path_in(&directory)).ok().and_then(|pid| pid.trim().parse().ok());
            return Ok(pid.map(|holder_pid| KeptServer { directory, holder_pid }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_kept_as_long_as_the_mark_lives() {
        let base = tempfile::tempdir().unwrap();
        assert!(kept_in(base.path()).unwrap().is_none());
        let dir = base.path().join(format!("{SERVER_PREFIX}x"));
        fs::create_dir(&dir).unwrap();
        let kept = mark(&dir).unwrap();
        let found = kept_in(base.path()).unwrap().unwrap();
        assert_eq!((found.holder_pid(), found.directory()), (std::process::id(), dir.as_path()));
        drop(kept);
        assert!(kept_in(base.path()).unwrap().is_none(), "the number alone proves nothing");
    }
}
