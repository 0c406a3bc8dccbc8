//! A base directory of one's own, other processes that hold its server, and what is asked of the system.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;
use throwaway_postgres::{DedicatedServer, Ephemeral};

/// Generous, because the machine may be busy; each wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_mins(1);

/// A base directory, without servers at the end even if the test fails.
pub struct Ground(TempDir);

impl Ground {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("throwaway-test-").tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn join(&self) -> Ephemeral {
        Ephemeral::join_or_start_in(self.path()).unwrap()
    }

    pub fn servers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap().flatten();
        let is_server = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("srv-")
        };
        entries.map(|entry| entry.path()).filter(is_server).collect()
    }

    /// Whether any watchdog or server has this ground on its command line.
    pub fn has_processes(&self) -> bool {
        let ps = Command::new("ps").args(["-A", "-ww", "-o", "args="]).output();
        let lines = String::from_utf8_lossy(&ps.unwrap().stdout).into_owned();
        lines.contains(self.path().to_str().unwrap())
    }

    pub fn is_clean(&self) -> bool {
        self.servers().is_empty() && !self.path().join("current").exists()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if thread::panicking() {
            return; // what is left tells more, and its watchdog ends it
        }
        wait_for("the base to be clean", || self.is_clean());
        wait_for("the last process to go", || !self.has_processes());
    }
}

/// Another process that holds the server.
pub struct Holder {
    process: Child,
    pub port: u16,
    pub postmaster: u32,
    pub watchdog: u32,
    pub dir: PathBuf,
}

impl Holder {
    pub fn spawn(ground: &Ground) -> Child {
        another_process_that("hold", ground.path()).spawn().unwrap()
    }

    pub fn new(ground: &Ground) -> Self {
        Self::ready(Self::spawn(ground))
    }

    pub fn ready(mut process: Child) -> Self {
        let output = BufReader::new(process.stdout.as_mut().unwrap());
        let told =
            output.lines().find_map(|line| Some(line.unwrap().split_once(HELD)?.1.to_owned())).unwrap();
        let words: Vec<&str> = told.split_whitespace().collect();
        Self {
            port: words[0].parse().unwrap(),
            postmaster: words[1].parse().unwrap(),
            watchdog: words[2].parse().unwrap(),
            dir: words[3].into(),
            process,
        }
    }

    /// Ends it by SIGKILL, as its `Drop` does.
    pub fn killed(self) {
        drop(self);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const JOB: &str = "THROWAWAY_TEST_JOB";
const BASE: &str = "THROWAWAY_TEST_BASE";
const HELD: &str = "held by another process: ";

pub fn another_process_that(job: &str, base: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["support::another_process", "--exact", "--ignored", "--nocapture"])
        .env(JOB, job)
        .env(BASE, base)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

#[test]
#[ignore = "the other tests run it, as another process"]
fn another_process() {
    let Some(base) = std::env::var_os(BASE) else {
        return; // run by hand with --ignored
    };
    match std::env::var(JOB).unwrap().as_str() {
        "hold" => hold(Path::new(&base)),
        "race" => race(Path::new(&base)),
        "freeze" => freeze(),
        other => panic!("no such job: {other}"),
    }
}

/// Joins, says so, and lets go at the end of its input.
fn hold(base: &Path) {
    let server = Ephemeral::join_or_start_in(base).unwrap_or_else(|why| panic!("{why}"));
    let (postmaster, watchdog) = (server.postmaster_pid(), server.watchdog_pid());
    say_that_it_holds(server.address().port(), postmaster, watchdog, &server.directory());
}

/// Starts a server of its own, freezes it, says so, and lets go at the end of its input.
fn freeze() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(DedicatedServer::start()).unwrap();
    server.freeze().unwrap();
    say_that_it_holds(server.address().port(), server.postmaster_pid().unwrap(), 0, server.directory());
}

fn say_that_it_holds(port: u16, postmaster: u32, watchdog: u32, dir: &Path) {
    println!("{HELD}{port} {postmaster} {watchdog} {}", dir.display());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Joins and leaves again and again; the server must answer each time.
fn race(base: &Path) {
    for round in 0..30 {
        let server = Ephemeral::join_or_start_in(base).unwrap_or_else(|why| panic!("{why}"));
        for _ in 0..3 {
            assert!(answers(&server), "round {round}: no answer by {server:?}");
        }
        server.release_now().unwrap();
    }
}

/// Asks for TLS, which needs a live server process to be declined.
pub fn answers(server: &Ephemeral) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect((server.address().host(), server.address().port()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer[0])
    };
    matches!(ask(), Ok(b'N' | b'S'))
}

pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// A zombie does not count: nobody may be there to collect it in a container.
pub fn runs(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output().unwrap().stdout;
    !matches!(state.trim_ascii().first(), None | Some(b'Z'))
}

/// A starter whose watchdog has an `mv` that says `begun` in the directory, and waits for `go`. With it the watchdog takes
/// the note away.
pub fn holder_with_a_slow_mv(ground: &Ground) -> (Holder, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\n\
        here=${0%/*}; >\"$here/begun\"\n\
        while [ -d \"$here\" ] && [ ! -f \"$here/go\" ]; do sleep 0.01; done\n\
        /bin/mv \"$@\"; >\"$here/done\"\n";
    let file = dir.path().join("mv");
    fs::write(&file, script).unwrap();
    for path in [dir.path(), &file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let starter = another_process_that("hold", ground.path()).env("PATH", path).spawn().unwrap();
    (Holder::ready(starter), dir)
}

/// The processes of a server besides the first, as far as they live.
pub fn children_of(pid: u32) -> Vec<u32> {
    let table = Command::new("ps").args(["-A", "-o", "pid=", "-o", "ppid="]).output().unwrap().stdout;
    let row = |line: &str| {
        let mut words = line.split_whitespace().map(|word| word.parse::<u32>().unwrap());
        (words.next().unwrap(), words.next().unwrap())
    };
    let rows = String::from_utf8(table).unwrap();
    rows.lines().map(row).filter(|(_, parent)| *parent == pid).map(|(child, _)| child).collect()
}

/// Stops all processes of a server where they are, and says which.
pub fn freeze_all(postmaster: u32) -> Vec<u32> {
    signal(postmaster, Signal::SIGSTOP);
    let mut all = children_of(postmaster);
    for child in &all {
        signal(*child, Signal::SIGSTOP);
    }
    all.push(postmaster);
    all
}

/// The System V segment of a server that runs, or was killed.
pub fn segment_of(dir: &Path) -> String {
    let lines = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap();
    lines.lines().nth(6).unwrap().split_whitespace().last().unwrap().to_owned()
}

pub fn segment_exists(id: &str) -> bool {
    let table = Command::new("ipcs").arg("-m").output().unwrap().stdout;
    String::from_utf8(table).unwrap().split_whitespace().any(|word| word == id)
}

pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
    println!("{what}: {:?}", begun.elapsed());
}
