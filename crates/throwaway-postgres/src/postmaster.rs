//! The postmaster, the first process of a server: what its file says of it, and whether it still runs.
//!
//! Process ids are used again, so a number in a file proves nothing: a process is taken for the server's only if it is
//! a postgres that runs on the very data directory.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// What `postmaster.pid` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Postmaster {
    pub(crate) pid: u32,
    pub(crate) ready: bool,
    /// It recovers, and will go on doing so.
    pub(crate) standby: bool,
}

impl Postmaster {
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(dir.join("data/postmaster.pid")).ok()?)
    }

    /// The first line is the process id (negative for a server that initdb runs by itself), the eighth the status.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 1)?;
        let status = lines.nth(6).map(str::trim);
        Some(Self { pid, ready: status == Some("ready"), standby: status == Some("standby") })
    }
}

/// Whether this process is a postgres with this data directory on its command line.
/// A zombie has no command line, so it does not count.
pub(crate) fn is_postgres_on(pid: u32, data: &Path) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "4711\n/d\n1700000000\n5433\n/s\n127.0.0.1\n  1  2\nready   \n";

    #[test]
    fn the_postmaster_is_ready_when_its_status_says_so() {
        let status = |text: &str| Postmaster::parse(text);
        let up = |ready| Some(Postmaster { pid: 4711, ready, standby: false });
        assert_eq!(status(READY), up(true));
        assert_eq!(status(&READY.replace("ready   ", "starting")), up(false));
        assert_eq!(status("4711\n/d\n"), up(false));
        assert_eq!(status("-4711\n/d\n"), None);
        assert_eq!(status(""), None);
    }
}
