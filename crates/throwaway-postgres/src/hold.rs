//! A hold: what keeps a server alive, and what the kernel takes back when its process dies.
//!
//! It is two descriptors. The FIFO's write end tells the watchdog that somebody is there, and the kernel's end of
//! file tells it that nobody is. The shared lock on `holders` lets another process ask whether anybody else holds
//! on, which a FIFO cannot answer. Both are close-on-exec, so children do not hold on by accident, but for the moment before.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::base::Locked;
use crate::error::{Doing, ServerError};
use crate::file_lock::FileLock;
use crate::owner::Owner;

/// What a holder says to the watchdog. Each is one short write, which a FIFO does not tear.
#[derive(Debug, Clone, Copy)]
enum Word {
    Join,
    Leave,
    Quit,
    /// Left, because the server is dead.
    Dead,
}

impl Word {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Join => b"j\n",
            Self::Leave => b"l\n",
            Self::Quit => b"q\n",
            Self::Dead => b"x\n",
        }
    }
}

/// A share in a running server. Dropping it lets go.
#[derive(Debug)]
pub(crate) struct Hold {
    fifo: File,
    parting: Word,
    _holders: FileLock,
}

impl Hold {
    /// Opens a share and announces it; `None` when no watchdog listens any more.
    ///
    /// The lock is asked for because [`others_hold`] must not run in between.
    pub(crate) fn open(_: &Locked<'_>, dir: &Path) -> Result<Option<Self>, ServerError> {
        open(dir).or_else(none_if_nobody_listens).doing("join the server in", dir)
    }

    /// Lets go, and asks for no grace period if this was the last share.
    pub(crate) fn quit(mut self) {
        self.parting = Word::Quit;
    }

    /// Lets go of a server that has crashed: the watchdog takes it away although others hold it, if it finds the same.
    pub(crate) fn report_dead(mut self) {
        self.parting = Word::Dead;
    }
}

fn open(dir: &Path) -> io::Result<Option<Hold>> {
    let holders = FileLock::shared(File::open(holders_path(dir))?)?;
    let mut hold = Hold { fifo: open_writer(dir)?, parting: Word::Leave, _holders: holders };
    hold.fifo.write_all(Word::Join.bytes())?;
    Ok(Some(hold))
}

fn none_if_nobody_listens(why: io::Error) -> io::Result<Option<Hold>> {
    if nobody_listens(&why) { Ok(None) } else { Err(why) }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A non-blocking write. If it fails, the watchdog is dead or sees the end of file all the same.
        let _ = self.fifo.write_all(self.parting.bytes());
    }
}

fn fifo_path(dir: &Path) -> PathBuf {
    dir.join("fifo")
}

fn holders_path(dir: &Path) -> PathBuf {
    dir.join("holders")
}

fn open_writer(dir: &Path) -> io::Result<File> {
    File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(fifo_path(dir))
}

fn nobody_listens(why: &io::Error) -> bool {
    why.raw_os_error() == Some(Errno::ENXIO as i32)
        || matches!(why.kind(), ErrorKind::NotFound | ErrorKind::BrokenPipe)
}

/// Makes the files that holds are made of, and opens the FIFO so that the watchdog hears nothing, not even an end
/// of file, until the first hold is there. The anchor reads as well, so it must be gone before anybody probes.
pub(crate) fn prepare(dir: &Path, owner: &Owner) -> Result<File, ServerError> {
    let fifo = fifo_path(dir);
    nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).doing("make the FIFO", &fifo)?;
    owner.give(&fifo)?;
    owner.write(&holders_path(dir), "")?;
    File::options().read(true).write(true).open(&fifo).doing("open", &fifo)
}

/// Whether a watchdog reads the FIFO. In doubt (no permission, say) it does.
pub(crate) fn watchdog_listens(dir: &Path) -> bool {
    match open_writer(dir) {
        Ok(_) => true,
        Err(why) => !nobody_listens(&why),
    }
}

/// Whether anybody holds on to this server. Asked under the lock, so that two who ask do not mistake each other
/// for holders.
pub(crate) fn others_hold(_: &Locked<'_>, dir: &Path) -> Result<bool, ServerError> {
    let path = holders_path(dir);
    let holders = match File::open(&path) {
        Ok(file) => file,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(false),
        Err(why) => return Err(why).doing("open", &path),
    };
    Ok(FileLock::try_exclusive(holders).doing("lock", &path)?.is_none())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::base::Base;

    #[test]
    fn a_hold_announces_itself_counts_and_says_goodbye() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        let lock = base.lock().unwrap();
        let mut listener = prepare(dir.path(), base.owner()).unwrap();

        let first = Hold::open(&lock, dir.path()).unwrap().unwrap();
        let second = Hold::open(&lock, dir.path()).unwrap().unwrap();
        assert!(others_hold(&lock, dir.path()).unwrap());
        first.quit();
        assert!(others_hold(&lock, dir.path()).unwrap());
        drop(second);
        assert!(!others_hold(&lock, dir.path()).unwrap());

        let mut heard = [0; 8];
        listener.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"j\nj\nq\nl\n");
    }

    #[test]
    fn without_a_listener_there_is_nothing_to_hold() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::prepare(dir.path()).unwrap();
        let lock = base.lock().unwrap();
        assert!(Hold::open(&lock, dir.path()).unwrap().is_none());
        let anchor = prepare(dir.path(), base.owner()).unwrap();
        assert!(watchdog_listens(dir.path()));
        drop(anchor);
        assert!(!watchdog_listens(dir.path()));
        assert!(Hold::open(&lock, dir.path()).unwrap().is_none());
    }
}
