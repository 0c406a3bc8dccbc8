//! The directories of a run, in the system's place for temporary files: taken away at its end, or by the next run where it was killed.

use std::path::{Path, PathBuf};
use std::{fs, process};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;
use xtask::display::say;
use xtask::failure::Failure;

/// What their names begin with; the number of the process follows.
const PREFIX: &str = "pool-suites-";

/// A directory for `what`, which goes when this is dropped.
///
/// # Errors
/// [`Failure::Infrastructure`] when it cannot be made.
pub fn directory(what: &str) -> Result<TempDir, Failure> {
    let made = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", process::id())).tempdir();
    made.map_err(|why| Failure::while_doing(&format!("make a directory for {what}"), why))
}

/// Removes the directories of runs that were killed, and says which.
pub fn remove_left() {
    for directory in left_in(&std::env::temp_dir()) {
        // Somebody else's stays.
        if fs::remove_dir_all(&directory).is_ok() {
            say(&format!("removed  {}, whose run is gone", directory.display()));
        }
    }
}

/// The directories of processes that are gone.
fn left_in(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let is_left = |name: &str| process_in(name).is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH));
    directories
        .filter(|entry| entry.file_name().to_str().is_some_and(is_left))
        .map(|entry| entry.path())
        .collect()
}

fn process_in(name: &str) -> Option<Pid> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_processes_that_are_gone_are_found_and_no_others() {
        let place = tempfile::tempdir().unwrap();
        let mut child = process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let dead = child.id();
        let own = process::id();
        for name in [format!("{PREFIX}{dead}-x"), format!("{PREFIX}{own}-x"), format!("others-{dead}-x")] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        for odd in ["0-x", "-1-x", "x-x", ""] {
            fs::create_dir(place.path().join(format!("{PREFIX}{odd}"))).unwrap();
        }
        fs::write(place.path().join(format!("{PREFIX}{dead}-file")), "").unwrap();
        assert_eq!(left_in(place.path()), [place.path().join(format!("{PREFIX}{dead}-x"))]);
    }

    #[test]
    fn a_directory_of_this_run_is_not_taken_for_one_that_was_left() {
        let directory = directory("a test").unwrap();
        assert!(!left_in(directory.path().parent().unwrap()).contains(&directory.path().to_owned()));
    }
}
