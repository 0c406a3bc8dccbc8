//! The processes of a server besides its first one, as the system's table has them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Doing, ServerError};

/// Each of them leads a process group of its own, so they are found by their parent.
pub(crate) fn children_of(parent: Pid) -> Result<Vec<Pid>, ServerError> {
    let proc = Path::new("/proc");
    if !proc.join("self/stat").exists() {
        // macOS has no /proc, but always ps.
        let table = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).stdin(Stdio::null()).output()?;
        return Ok(String::from_utf8_lossy(&table.stdout)
            .lines()
            .filter_map(|l| child_in(l, parent))
            .collect());
    }
    let processes = fs::read_dir(proc).doing("read", proc)?.flatten();
    Ok(processes
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything; behind it are the state and the parent.
            let (pid, rest) = (stat.split(' ').next()?, stat.rsplit_once(") ")?.1);
            child_in(&format!("{pid} {}", rest.split(' ').nth(1)?), parent)
        })
        .collect())
}

pub(crate) fn send(signal: Signal, processes: &[Pid]) {
    for process in processes {
        let _ = kill(*process, signal); // one that has just exited is none
    }
}

/// A zombie is not: whoever adopted it may never ask for it.
pub(crate) fn is_alive(process: Pid) -> bool {
    if !Path::new("/proc/self/stat").exists() {
        return kill(process, None).is_ok();
    }
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The process of a line `pid parent`, if it is a child of `parent`.
fn child_in(line: &str, parent: Pid) -> Option<Pid> {
    let mut words = line.split_whitespace().map(str::parse::<i32>);
    let (pid, its_parent) = (words.next()?.ok()?, words.next()?.ok()?);
    (its_parent == parent.as_raw()).then_some(Pid::from_raw(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_told_from_others() {
        assert_eq!(child_in(" 12 7", Pid::from_raw(7)), Some(Pid::from_raw(12)));
        assert_eq!(child_in("12 8", Pid::from_raw(7)), None);
        assert_eq!(child_in("", Pid::from_raw(7)), None);
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let found = children_of(Pid::this()).unwrap();
        assert!(found.iter().any(|pid| pid.as_raw().unsigned_abs() == sleeper.id()), "{found:?}");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}
