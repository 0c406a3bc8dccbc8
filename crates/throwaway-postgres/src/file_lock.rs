//! A lock on a file, let go when dropped. To close the file is not enough: a child that another thread has forked has it, too, and so the
//! lock, until its `exec`.

use std::fs::{File, TryLockError};
use std::io;

/// A lock on a file. Dropping it lets go, whoever else has the file open.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Waits until nobody has the file for itself.
    pub(crate) fn shared(file: File) -> io::Result<Self> {
        file.lock_shared()?;
        Ok(Self(file))
    }

    /// Waits until nobody has the file.
    pub(crate) fn exclusive(file: File) -> io::Result<Self> {
        file.lock()?;
        Ok(Self(file))
    }

    /// The file for itself, if nobody has it.
    pub(crate) fn try_exclusive(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing, which follows, is all that is left to do if this fails.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_dropped_is_let_go_although_the_file_is_open_elsewhere() {
        let file = tempfile::tempfile().unwrap();
        // As a forked child has it.
        let elsewhere = file.try_clone().unwrap();
        drop(FileLock::exclusive(file).unwrap());
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&elsewhere));
        let again = File::open(path).unwrap();
        assert!(FileLock::try_exclusive(again).unwrap().is_some());
    }
}
