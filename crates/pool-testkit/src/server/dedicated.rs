//! A server of one test's own, to be stopped, frozen, killed and brought back.
//!
//! The test's process is the parent of the postmaster, so that it knows when that has exited. What takes the server
//! away in the end, whatever became of the test, is the guard of its directory (guarded.rs).

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pool_postgres::PostgresConfig;
use tokio::time::sleep;

use super::binaries::{Binaries, Search};
use super::error::{Doing, ServerError};
use super::guarded::GuardedDirectory;
use super::postmaster::Postmaster;
use super::settings::{setting, settings};
use super::start::{self, HOST};

const USER: &str = "pool_test";
const POLL: Duration = Duration::from_millis(5);
/// A start takes 0.1 s, a shutdown less; this is for a machine that is busy.
const CHANGE_LIMIT: Duration = Duration::from_mins(1);
const PORT_TRIES: u32 = 5;

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended (57P01), and everything is written down.
    Fast,
    /// Sessions are ended (57P02), nothing is written down; the next start recovers.
    Immediate,
}

/// What `postmaster.pid` says when a start is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Ready,
    /// It recovers for as long as it is told to, and takes no sessions (57P03).
    Standby,
}

/// A small server that nobody else uses: 30 connections of which 3 are for superusers, passwords by SCRAM,
/// nothing synced. Dropping it, in a panic too, blocks until it has ended and its directory is gone; the death
/// of the process does the same.
#[derive(Debug)]
pub struct DedicatedServer {
    place: GuardedDirectory,
    port: u16,
    /// Settings that override the usual ones, as lines of `postgresql.auto.conf`.
    overrides: String,
    cluster: &'static Cluster,
    postmaster: Option<Child>,
}

/// A data directory that no server runs on: what initdb takes a second for is made once in a process, and copied.
/// Its guard removes it when the process has ended.
#[derive(Debug)]
struct Cluster {
    place: GuardedDirectory,
    password: String,
    binaries: Binaries,
}

impl Cluster {
    fn of_this_process() -> Result<&'static Self, ServerError> {
        static CLUSTER: OnceLock<Result<Cluster, ServerError>> = OnceLock::new();
        let made = CLUSTER.get_or_init(Self::make).as_ref();
        made.map_err(|why| io::Error::other(why.to_string()).into())
    }

    fn make() -> Result<Self, ServerError> {
        let binaries = Search::from_env().run()?;
        let place = GuardedDirectory::create()?;
        let password = start::random_password()?;
        let passwords = place.path().join("pwfile");
        place.owner().write(&passwords, &password)?;
        let told = place
            .owner()
            .command(binaries.dir().join("initdb"))
            .arg("-D")
            .arg(place.data())
            .arg(format!("--pwfile={}", passwords.display()))
            .arg(format!("--username={USER}"))
            .args(["--auth-host=scram-sha-256", "--auth-local=scram-sha-256"])
            .args(["--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"])
            .stdin(Stdio::null())
            .output()
            .doing("run initdb in", place.path())?;
        let cluster = Self { place, password, binaries };
        cluster.expect(&told)?;
        Ok(cluster)
    }

    fn copy_to(&self, place: &GuardedDirectory) -> Result<(), ServerError> {
        let (from, to) = (self.place.data(), place.data());
        let copy = place.owner().command("cp").arg("-R").args([&from, &to]).stdin(Stdio::null()).output();
        self.expect(&copy.doing("copy", &from)?)
    }

    fn expect(&self, told: &Output) -> Result<(), ServerError> {
        if told.status.success() {
            return Ok(());
        }
        Err(self.failed(String::from_utf8_lossy(&told.stderr).into_owned()))
    }

    fn failed(&self, log: String) -> ServerError {
        ServerError::StartFailed { version: self.binaries.version().into(), log }
    }
}

impl DedicatedServer {
    /// Makes a data directory and starts a server on it; returns when it takes connections.
    ///
    /// # Errors
    /// [`ServerError`]: no binaries, or the start failed; it shows the end of the log.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind; what was begun is taken away in the background.
    pub async fn start() -> Result<Self, ServerError> {
        Self::start_with(&[]).await
    }

    /// The same with other settings than the usual ones, by name: `("max_connections", "200")`.
    ///
    /// # Errors
    /// As [`DedicatedServer::start`]; a setting that the server does not take is in the log that it shows.
    ///
    /// # Cancel safety
    /// As [`DedicatedServer::start`].
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, ServerError> {
        let made = tokio::task::spawn_blocking(Self::make).await;
        let mut server = made.map_err(io::Error::other)??;
        server.overrides = settings.iter().map(|(name, value)| setting(name, value)).collect();
        for _ in 1..PORT_TRIES {
            match server.start_again().await {
                Err(refused) if start::is_port_taken(&refused) => server.port = start::free_port()?,
                started => return started.map(|()| server),
            }
        }
        server.start_again().await.map(|()| server)
    }

    /// A directory with data in it; nothing runs yet.
    fn make() -> Result<Self, ServerError> {
        let cluster = Cluster::of_this_process()?;
        let place = GuardedDirectory::create()?;
        cluster.copy_to(&place)?;
        Ok(Self { place, port: start::free_port()?, overrides: String::new(), cluster, postmaster: None })
    }

    /// How a superuser reaches it.
    pub fn config(&self) -> PostgresConfig {
        PostgresConfig::new(HOST).port(self.port).user(USER).password(&self.cluster.password)
    }

    /// The TCP port, which stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it lies; gone when the server is.
    pub fn directory(&self) -> &Path {
        self.place.path()
    }

    /// The first process of the server, if it runs.
    pub fn postmaster_pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    /// Starts it after a stop or a kill; returns when it takes connections.
    ///
    /// # Errors
    /// [`ServerError`] with the end of the log.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the start under way.
    pub async fn start_again(&mut self) -> Result<(), ServerError> {
        self.launch(Until::Ready).await
    }

    /// Starts it after a stop as a server that recovers until [`DedicatedServer::end_recovery`], and refuses sessions.
    ///
    /// # Errors
    /// [`ServerError`] with the end of the log.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the start under way.
    pub async fn start_in_recovery(&mut self) -> Result<(), ServerError> {
        self.place.owner().write(&self.place.data().join("standby.signal"), "")?;
        self.launch(Until::Standby).await
    }

    /// Starts it after a stop as a standby, which takes sessions and refuses writes, until
    /// [`DedicatedServer::end_recovery`]. It must have been made with `hot_standby` on.
    ///
    /// # Errors
    /// [`ServerError`] with the end of the log.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the start under way.
    pub async fn start_as_standby(&mut self) -> Result<(), ServerError> {
        self.place.owner().write(&self.place.data().join("standby.signal"), "")?;
        self.launch(Until::Ready).await
    }

    /// Has a server that recovers become an ordinary one; returns when it takes connections.
    ///
    /// # Errors
    /// [`ServerError`] when it does not.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the change under way.
    pub async fn end_recovery(&mut self) -> Result<(), ServerError> {
        self.place.owner().write(&self.place.data().join("promote"), "")?;
        self.tell(Signal::SIGUSR1)?;
        self.wait_until(Until::Ready).await
    }

    /// Stops it; returns when it has exited.
    ///
    /// # Errors
    /// [`ServerError`] when it does not.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the stop under way.
    pub async fn stop(&mut self, how: Stop) -> Result<(), ServerError> {
        self.tell(match how {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        })?;
        self.wait_for_exit().await
    }

    /// Kills all of its processes, as a crash of the machine would; returns when they are gone.
    ///
    /// # Errors
    /// [`ServerError`] when they cannot be found or do not go.
    ///
    /// # Cancel safety
    /// Dropping the future leaves them dying.
    pub async fn kill(&mut self) -> Result<(), ServerError> {
        // Frozen first: none may notice that another one is gone, and act on it.
        self.freeze()?;
        let children = children_of(self.pid()?)?;
        self.tell(Signal::SIGKILL)?;
        send(Signal::SIGKILL, &children);
        self.wait_for_exit().await?;
        // The next server refuses to start while one of them holds the shared memory.
        while children.iter().any(|child| is_alive(*child)) {
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Stops all of its processes where they are: sockets stay open, and nobody answers.
    ///
    /// # Errors
    /// [`ServerError`] when they cannot be found.
    pub fn freeze(&self) -> Result<(), ServerError> {
        self.tell_all(Signal::SIGSTOP)
    }

    /// Has them go on.
    ///
    /// # Errors
    /// [`ServerError`] when they cannot be found.
    pub fn thaw(&self) -> Result<(), ServerError> {
        self.tell_all(Signal::SIGCONT)
    }

    async fn launch(&mut self, until: Until) -> Result<(), ServerError> {
        let settings = settings(self.port) + &self.overrides;
        self.place.owner().write(&self.place.data().join("postgresql.auto.conf"), &settings)?;
        let path = self.place.path().join("log");
        let log = File::options().create(true).append(true).open(&path).doing("open", &path)?;
        let errors = log.try_clone().doing("open", &path)?;
        // A server that was killed has left its file, which must not be taken for the new one's.
        let _ = fs::remove_file(self.place.data().join("postmaster.pid"));
        let postmaster = self
            .place
            .owner()
            .command(self.cluster.binaries.dir().join("postgres"))
            .arg("-D")
            .arg(self.place.data())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0) // Ctrl-C in the terminal is the guard's affair
            .spawn()
            .doing("run postgres in", self.place.path())?;
        self.postmaster = Some(postmaster);
        self.wait_until(until).await
    }

    async fn wait_until(&mut self, until: Until) -> Result<(), ServerError> {
        let begun = Instant::now();
        loop {
            match (Postmaster::read(self.place.path()), until) {
                (Some(Postmaster { ready: true, .. }), Until::Ready)
                | (Some(Postmaster { standby: true, .. }), Until::Standby) => return Ok(()),
                _ if self.has_exited() => return Err(self.failed()),
                _ if begun.elapsed() > CHANGE_LIMIT => return Err(self.failed()),
                _ => sleep(POLL).await,
            }
        }
    }

    async fn wait_for_exit(&mut self) -> Result<(), ServerError> {
        let begun = Instant::now();
        while !self.has_exited() {
            if begun.elapsed() > CHANGE_LIMIT {
                return Err(self.failed());
            }
            sleep(POLL).await;
        }
        self.postmaster = None;
        Ok(())
    }

    fn has_exited(&mut self) -> bool {
        self.postmaster.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn failed(&self) -> ServerError {
        self.cluster.failed(start::log_tail(self.place.path()))
    }

    fn pid(&self) -> Result<Pid, ServerError> {
        let pid = self.postmaster_pid().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        pid.ok_or_else(|| io::Error::other("the test's own server does not run").into())
    }

    fn tell(&self, signal: Signal) -> Result<(), ServerError> {
        kill(self.pid()?, signal).doing("signal the server in", self.place.path())
    }

    /// The postmaster is told first, so that it starts no more; then its children, each of which leads a process
    /// group of its own.
    fn tell_all(&self, signal: Signal) -> Result<(), ServerError> {
        self.tell(signal)?;
        send(signal, &children_of(self.pid()?)?);
        Ok(())
    }
}

impl Drop for DedicatedServer {
    fn drop(&mut self) {
        self.place.remove();
        if let Some(postmaster) = &mut self.postmaster {
            let _ = postmaster.wait(); // it has ended, and is a zombie no longer
        }
    }
}

fn children_of(parent: Pid) -> Result<Vec<Pid>, ServerError> {
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

fn send(signal: Signal, processes: &[Pid]) {
    for process in processes {
        let _ = kill(*process, signal); // one that has just exited is none
    }
}

/// A zombie is not: whoever adopted it may never ask for it.
fn is_alive(process: Pid) -> bool {
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
    use std::io::{BufRead, BufReader};

    use super::super::postmaster::is_postgres_on;
    use super::*;
    use crate::wait_for_condition;

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

    #[tokio::test]
    async fn a_server_has_the_settings_that_were_asked_for() {
        let server = DedicatedServer::start_with(&[("max_connections", "17")]).await.unwrap();
        let text = fs::read_to_string(server.place.data().join("postgresql.auto.conf")).unwrap();
        assert!(text.ends_with("max_connections = '17'\n"), "{text}");
    }

    /// Makes [`another_process`] one.
    const JOB: &str = "POOL_TESTKIT_OWN_SERVER";

    fn runs(pid: u32, dir: &Path) -> bool {
        is_postgres_on(pid, &dir.join("data"))
    }

    #[tokio::test]
    async fn a_frozen_server_is_gone_when_it_is_dropped() {
        let server = DedicatedServer::start().await.unwrap();
        let (dir, pid) = (server.directory().to_owned(), server.postmaster_pid().unwrap());
        assert!(runs(pid, &dir));
        server.freeze().unwrap();
        drop(server);
        assert!(!dir.exists() && !runs(pid, &dir));
    }

    #[tokio::test]
    async fn a_frozen_server_is_gone_when_its_process_was_killed() {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::dedicated::tests::another_process", "--nocapture"])
            .env(JOB, "yes")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let told =
            lines.find_map(|line| line.split_once("frozen: ").map(|(_, told)| told.to_owned())).unwrap();
        let (pid, dir) = told.split_once(' ').unwrap();
        let (pid, dir) = (pid.parse().unwrap(), Path::new(dir));
        assert!(runs(pid, dir));
        process.kill().unwrap();
        process.wait().unwrap();
        wait_for_condition("the guard taking it away", CHANGE_LIMIT, || !dir.exists()).await.unwrap();
        assert!(!runs(pid, dir));
    }

    /// The process that is killed; as a test of its own it does nothing.
    #[tokio::test]
    async fn another_process() {
        if std::env::var_os(JOB).is_none() {
            return;
        }
        let server = DedicatedServer::start().await.unwrap();
        server.freeze().unwrap();
        println!("frozen: {} {}", server.postmaster_pid().unwrap(), server.directory().display());
        std::future::pending::<()>().await;
    }
}
