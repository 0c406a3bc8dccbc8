//! The throwaway server against real processes: shared, and gone with the last of them, however they end.
//!
//! Each test has a base directory of its own, so they run side by side. Where another process is needed, this test
//! binary runs itself: the "test" `another_process` is that process, and does nothing on its own.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pool_testkit::server::{Ephemeral, reap_orphans};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

/// Generous, because the machine may be busy; each wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_mins(1);

/// A base directory, without servers at the end even if the test fails.
struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("ptk-test-").tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn join(&self) -> Ephemeral {
        Ephemeral::join_or_start_in(self.path()).unwrap()
    }

    fn servers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap().flatten();
        let is_server = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("srv-")
        };
        entries.map(|entry| entry.path()).filter(is_server).collect()
    }

    /// Whether any watchdog or server has this ground on its command line.
    fn has_processes(&self) -> bool {
        let ps = Command::new("ps").args(["-A", "-ww", "-o", "args="]).output();
        let lines = String::from_utf8_lossy(&ps.unwrap().stdout).into_owned();
        lines.contains(self.path().to_str().unwrap())
    }

    fn is_clean(&self) -> bool {
        self.servers().is_empty() && !self.path().join("current").exists()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if thread::panicking() {
            return; // what is left tells more, and its watchdog ends it
        }
        wait_for("the base to be clean", || {
            drop(reap_orphans(self.path()));
            self.is_clean()
        });
        wait_for("the last process to go", || !self.has_processes());
    }
}

/// Another process that holds the server.
struct Holder {
    process: Child,
    port: u16,
    postmaster: u32,
    watchdog: u32,
    dir: PathBuf,
}

impl Holder {
    fn spawn(ground: &Ground) -> Child {
        another_process_that("hold", ground).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn new(ground: &Ground) -> Self {
        Self::ready(Self::spawn(ground))
    }

    fn ready(mut process: Child) -> Self {
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
    fn killed(self) {
        drop(self);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const JOB: &str = "PTK_TEST_JOB";
const BASE: &str = "PTK_TEST_BASE";
const HELD: &str = "held by another process: ";

fn another_process_that(job: &str, ground: &Ground) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["another_process", "--exact", "--ignored", "--nocapture"])
        .env(JOB, job)
        .env(BASE, ground.path());
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
        other => panic!("no such job: {other}"),
    }
}

/// Joins, says so, and lets go at the end of its input.
fn hold(base: &Path) {
    let server = Ephemeral::join_or_start_in(base).unwrap_or_else(|why| panic!("{why}"));
    println!(
        "{HELD}{} {} {} {}",
        server.port(),
        server.postmaster_pid(),
        server.watchdog_pid(),
        server.directory().display()
    );
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
fn answers(server: &Ephemeral) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect((server.host(), server.port()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer[0])
    };
    matches!(ask(), Ok(b'N' | b'S'))
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// A zombie does not count: nobody may be there to collect it in a container.
fn runs(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output().unwrap().stdout;
    !matches!(state.trim_ascii().first(), None | Some(b'Z'))
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
    println!("{what}: {:?}", begun.elapsed());
}

#[test]
fn a_second_hold_joins_the_same_server() {
    let ground = Ground::new();
    let begun = Instant::now();
    let first = ground.join();
    let started = begun.elapsed();
    let begun = Instant::now();
    let second = ground.join();
    println!("start {started:?}, join {:?}", begun.elapsed());
    assert_eq!(first.port(), second.port());
    assert_eq!(first.password(), second.password());
    assert_eq!(first.data_dir(), second.data_dir());
    assert!(runs(first.postmaster_pid()));
    assert_eq!((first.host(), first.database()), ("127.0.0.1", "postgres"));
    assert!(!format!("{first:?}").contains(first.password()));
    first.release_now().unwrap();
    assert!(runs(second.postmaster_pid()), "the second still holds it");
    second.release_now().unwrap();
    assert!(ground.is_clean());
}

#[tokio::test]
async fn the_password_is_asked_for_and_settings_are_as_promised() {
    let ground = Ground::new();
    let server = ground.join();
    let login = PgConnectOptions::new_without_pgpass()
        .host(server.host())
        .port(server.port())
        .username(server.user())
        .database(server.database());
    let refused = PgConnection::connect_with(&login.clone().password("wrong")).await.unwrap_err();
    let code = refused.as_database_error().and_then(DatabaseError::code);
    assert_eq!(code.as_deref(), Some("28P01"), "{refused}");

    let mut connection = PgConnection::connect_with(&login.password(server.password())).await.unwrap();
    let mut setting = async |name: &str| -> String {
        sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(setting("max_connections").await, "100");
    assert_eq!(setting("fsync").await, "off");
    assert_eq!(setting("server_encoding").await, "UTF8");
    // In the data directory, so that a killed server leaves nothing in /dev/shm.
    assert_eq!(setting("dynamic_shared_memory_type").await, "mmap");
    assert_eq!(setting("listen_addresses").await, "127.0.0.1");
    assert!(setting("server_version").await.starts_with(server.version()));
    assert_eq!(setting("data_directory").await, server.data_dir().display().to_string());
    connection.close().await.unwrap();
    server.release_now().unwrap();
}

#[test]
fn processes_that_start_at_once_share_one_server() {
    let ground = Ground::new();
    let spawned: Vec<Child> = (0..8).map(|_| Holder::spawn(&ground)).collect();
    let holders: Vec<Holder> = spawned.into_iter().map(Holder::ready).collect();
    for holder in &holders {
        assert_eq!(holder.port, holders[0].port);
        assert_eq!(holder.postmaster, holders[0].postmaster);
    }
    assert_eq!(ground.servers().len(), 1);
    for holder in holders {
        holder.killed();
    }
    wait_for("the server to follow its killed holders", || ground.is_clean());
}

#[test]
fn the_server_goes_with_its_only_holder_that_was_killed() {
    let ground = Ground::new();
    let holder = Holder::new(&ground);
    let (postmaster, watchdog) = (holder.postmaster, holder.watchdog);
    assert!(runs(postmaster) && runs(watchdog));
    holder.killed();
    wait_for("the server to go", || ground.is_clean());
    wait_for("the watchdog to go", || !runs(postmaster) && !runs(watchdog));
}

#[test]
fn a_starter_killed_in_the_middle_leaves_nothing() {
    let ground = Ground::new();
    let mut starter = Holder::spawn(&ground);
    wait_for("the start to be under way", || ground.servers().iter().any(|dir| dir.join("log").exists()));
    starter.kill().unwrap();
    starter.wait().unwrap();
    wait_for("the half-started server to go", || ground.is_clean());
}

#[test]
fn the_server_outlives_the_process_that_started_it() {
    let ground = Ground::new();
    let starter = Holder::new(&ground);
    let server = ground.join();
    let pid = starter.postmaster;
    starter.killed();
    // Longer than any grace period would matter: a new process still finds the same server.
    assert_eq!(Holder::new(&ground).postmaster, pid);
    assert!(runs(pid));
    server.release_now().unwrap();
}

#[test]
fn the_grace_period_lets_the_next_process_have_the_same_server() {
    let ground = Ground::new();
    let first = ground.join();
    let pid = first.postmaster_pid();
    drop(first);
    let second = ground.join();
    assert_eq!(second.postmaster_pid(), pid);
    second.release_now().unwrap();
}

#[test]
fn a_server_whose_watchdog_was_killed_is_reaped_by_the_next_join() {
    let ground = Ground::new();
    let orphan = Holder::new(&ground);
    signal(orphan.watchdog, Signal::SIGKILL);
    wait_for("the watchdog to die", || !runs(orphan.watchdog));
    let server = ground.join();
    assert_ne!(server.postmaster_pid(), orphan.postmaster);
    assert!(!runs(orphan.postmaster), "the orphan was ended");
    assert!(!orphan.dir.exists());
    assert_eq!(ground.servers(), [server.directory()]);
    server.release_now().unwrap();
    orphan.killed();
}

#[test]
fn reaping_spares_a_server_that_is_watched() {
    let ground = Ground::new();
    let server = ground.join();
    assert_eq!(reap_orphans(ground.path()), []);
    assert!(runs(server.postmaster_pid()));
    server.release_now().unwrap();
}

#[test]
fn reaping_says_what_it_removed() {
    let ground = Ground::new();
    let orphan = Holder::new(&ground);
    signal(orphan.watchdog, Signal::SIGKILL);
    wait_for("the watchdog to die", || !runs(orphan.watchdog));
    let reaped = reap_orphans(ground.path());
    assert_eq!(reaped.len(), 1);
    assert_eq!(reaped[0].directory, orphan.dir);
    assert_eq!(reaped[0].postmaster_pid, Some(orphan.postmaster));
    assert!(ground.is_clean());
    orphan.killed();
}

#[test]
fn a_crashed_server_is_cleared_away_and_replaced() {
    let ground = Ground::new();
    let first = ground.join();
    signal(first.postmaster_pid(), Signal::SIGKILL);
    wait_for("the server to die", || !runs(first.postmaster_pid()));
    let second = ground.join();
    assert_ne!(first.postmaster_pid(), second.postmaster_pid());
    assert!(runs(second.postmaster_pid()));
    wait_for("the crashed server's directory to go", || !first.directory().exists());
    second.release_now().unwrap();
}

#[test]
fn sigterm_to_the_watchdog_stops_the_server_in_spite_of_holders() {
    let ground = Ground::new();
    let server = ground.join();
    signal(server.watchdog_pid(), Signal::SIGTERM);
    wait_for("the server to stop", || ground.is_clean());
    assert!(!runs(server.postmaster_pid()));
}

#[test]
fn the_watchdog_ignores_what_the_terminal_sends() {
    let ground = Ground::new();
    let server = ground.join();
    for ignored in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signal(server.watchdog_pid(), ignored);
    }
    assert_eq!(ground.join().postmaster_pid(), server.postmaster_pid());
    assert!(runs(server.watchdog_pid()));
    server.release_now().unwrap();
}

#[test]
fn release_now_leaves_nothing_when_it_returns() {
    let ground = Ground::new();
    let server = ground.join();
    let (postmaster, watchdog) = (server.postmaster_pid(), server.watchdog_pid());
    let begun = Instant::now();
    server.release_now().unwrap();
    println!("release_now {:?}", begun.elapsed());
    assert!(ground.is_clean());
    assert!(!runs(postmaster) && !runs(watchdog));
    let left: Vec<_> = fs::read_dir(ground.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only the lock file: {left:?}");
}

#[test]
fn joins_that_race_with_shutdowns_never_get_a_dead_server() {
    let ground = Ground::new();
    let racers: Vec<Child> = (0..2).map(|_| another_process_that("race", &ground).spawn().unwrap()).collect();
    for mut racer in racers {
        assert!(racer.wait().unwrap().success());
    }
    wait_for("the last server to go", || ground.is_clean());
}

#[test]
fn a_pg_bin_without_binaries_is_an_error_and_not_passed_over() {
    let ground = Ground::new();
    let empty = tempfile::tempdir().unwrap();
    let output = another_process_that("hold", &ground).env("PG_BIN", empty.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("PG_BIN is set to"), "{text}");
    assert!(text.contains("there is no initdb"), "{text}");
    assert!(ground.is_clean());
}

#[test]
fn a_server_that_cannot_start_shows_its_log_and_leaves_nothing() {
    let ground = Ground::new();
    let bin = ground_with_broken_binaries();
    let output = another_process_that("hold", &ground).env("PG_BIN", bin.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("the disk is made of cheese"), "{text}");
    assert!(ground.is_clean());
}

fn ground_with_broken_binaries() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let bin = tempfile::tempdir().unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bin.path(), open.clone()).unwrap();
    let script = "#!/bin/sh\n\
        case $1 in --version) echo 'x (PostgreSQL) 15.0'; exit 0 ;; esac\n\
        echo 'the disk is made of cheese' >&2; exit 1\n";
    for name in ["initdb", "postgres"] {
        fs::write(bin.path().join(name), script).unwrap();
        fs::set_permissions(bin.path().join(name), open.clone()).unwrap();
    }
    bin
}
