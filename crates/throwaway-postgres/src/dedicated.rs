//! A server of one test's own, to be stopped, frozen, killed and brought back.
//!
//! What takes the server away in the end, whatever became of the test, is the watchdog of its directory (watched.rs).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::sleep;

use crate::address::ServerAddress;
use crate::base::Base;
use crate::binaries::{Binaries, Search};
use crate::error::{Doing, ServerError};
use crate::initdb;
use crate::postmaster::Postmaster;
use crate::processes::{children_of, is_alive, send};
use crate::settings::{setting, settings};
use crate::start::{self, PORT_TRIES};
use crate::watched::WatchedDirectory;

const POLL: Duration = Duration::from_millis(5);
/// A start takes 0.1 s, a shutdown less; this is for a machine that is busy.
const CHANGE_LIMIT: Duration = Duration::from_mins(1);

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
/// of the process does the same. Its futures need tokio's time, and panic outside of such a runtime.
///
/// ```
/// use throwaway_postgres::{DedicatedServer, Stop};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), throwaway_postgres::ServerError> {
/// let mut server = DedicatedServer::start_with(&[("max_connections", "200")]).await?;
/// let url = server.address().url();           // the same after each restart
/// server.stop(Stop::Immediate).await?;        // as a crash of the server
/// server.start_again().await?;
/// server.freeze()?;                           // as a network that swallows everything
/// server.thaw()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DedicatedServer {
    place: WatchedDirectory,
    address: ServerAddress,
    /// Settings that override the usual ones, as lines of `postgresql.auto.conf`.
    overrides: String,
    cluster: &'static Cluster,
}

/// A data directory that no server runs on: what initdb takes a second for is made once in a process, and copied.
/// Its watchdog removes it when the process has ended.
#[derive(Debug)]
struct Cluster {
    place: WatchedDirectory,
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
        let mut cluster = Self { place: directory()?, password: start::random_password()?, binaries };
        let options = ["--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "--wal-segsize=1"];
        initdb::begin(&mut cluster.place, &cluster.binaries, &cluster.password, &options)?;
        if !cluster.place.wait() {
            return Err(cluster.failed(&cluster.place));
        }
        initdb::clear(&cluster.place)?;
        Ok(cluster)
    }

    fn copy_to(&self, place: &mut WatchedDirectory) -> Result<(), ServerError> {
        let (from, to) = (self.place.data(), place.data());
        place.spawn(Path::new("cp"), [OsStr::new("-R"), from.as_os_str(), to.as_os_str()])?;
        if place.wait() { Ok(()) } else { Err(self.failed(place)) }
    }

    fn failed(&self, place: &WatchedDirectory) -> ServerError {
        ServerError::StartFailed { version: self.binaries.version().into(), log: place.log_tail() }
    }
}

/// A directory among the servers of this user. Blocks while somebody else joins or starts one.
fn directory() -> Result<WatchedDirectory, ServerError> {
    let base = Base::prepare(&Base::default_path())?;
    base.check_reachable()?;
    let lock = base.lock()?;
    WatchedDirectory::create(&lock)
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
                Err(refused) if start::is_port_taken(&refused) => {
                    server.address.set_port(start::free_port()?);
                }
                started => return started.map(|()| server),
            }
        }
        server.start_again().await.map(|()| server)
    }

    /// A directory with data in it; nothing runs yet.
    fn make() -> Result<Self, ServerError> {
        let cluster = Cluster::of_this_process()?;
        let mut place = directory()?;
        cluster.copy_to(&mut place)?;
        let address = ServerAddress::local(start::free_port()?, cluster.password.clone());
        Ok(Self { place, address, overrides: String::new(), cluster })
    }

    /// How a superuser reaches it, which stays the same over restarts.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// Where it lies; gone when the server is.
    pub fn directory(&self) -> &Path {
        self.place.path()
    }

    /// The first process of the server, if it runs.
    pub fn postmaster_pid(&self) -> Option<u32> {
        self.place.pid()
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
        // Frozen first: none may notice that another one is gone, and act on it. The postmaster last: the watchdog finds the
        // others by it, should this process end in the middle.
        self.freeze()?;
        let children = children_of(self.pid()?)?;
        send(Signal::SIGKILL, &children);
        self.tell(Signal::SIGKILL)?;
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
        let (data, settings) = (self.place.data(), settings(self.address.port()) + &self.overrides);
        self.place.owner().write(&data.join("postgresql.auto.conf"), &settings)?;
        if !self.place.is_running() {
            // A server that was killed has left its file, which must not be taken for the new one's.
            let _ = fs::remove_file(data.join("postmaster.pid"));
        }
        self.place.spawn(&self.cluster.binaries.dir().join("postgres"), [Path::new("-D"), &data])?;
        self.wait_until(until).await
    }

    async fn wait_until(&mut self, until: Until) -> Result<(), ServerError> {
        let begun = Instant::now();
        loop {
            match (Postmaster::read(self.place.path()), until) {
                (Some(Postmaster { ready: true, .. }), Until::Ready)
                | (Some(Postmaster { standby: true, .. }), Until::Standby) => return Ok(()),
                _ if !self.place.is_running() => return Err(self.failed()),
                _ if begun.elapsed() > CHANGE_LIMIT => return Err(self.failed()),
                _ => sleep(POLL).await,
            }
        }
    }

    async fn wait_for_exit(&mut self) -> Result<(), ServerError> {
        let begun = Instant::now();
        while self.place.is_running() {
            if begun.elapsed() > CHANGE_LIMIT {
                return Err(self.failed());
            }
            sleep(POLL).await;
        }
        self.place.wait(); // at once, since it has exited
        Ok(())
    }

    fn failed(&self) -> ServerError {
        self.cluster.failed(&self.place)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_has_the_settings_that_were_asked_for() {
        let server = DedicatedServer::start_with(&[("max_connections", "17")]).await.unwrap();
        let text = fs::read_to_string(server.place.data().join("postgresql.auto.conf")).unwrap();
        assert!(text.ends_with("max_connections = '17'\n"), "{text}");
    }
}
