//! Starts the server that is shared: makes its data directory, runs it, waits until it is ready, and tells the others.
//!
//! What is half done lies in a [`WatchedDirectory`], which takes all of it away unless the start succeeds.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::address::{HOST, ServerAddress};
use crate::base::Locked;
use crate::binaries::{Binaries, Search};
use crate::error::{Doing, ServerError};
use crate::hold::Hold;
use crate::initdb;
use crate::postmaster::Postmaster;
use crate::record::{self, Record};
use crate::watched::{Shared, WatchedDirectory};

/// initdb and start take 1.2 s on an idle machine; this is for one that is not.
const START_TIMEOUT: Duration = Duration::from_mins(2);

/// Somebody else may take the free port that was found before the server does.
pub(crate) const PORT_TRIES: u32 = 5;

const POLL: Duration = Duration::from_millis(10);
const PROGRESS: Duration = Duration::from_secs(2);

const MAKING_DATA: &str = "creating the data directory (initdb)";
const STARTING_UP: &str = "starting up";

/// Kernels limit the path of a socket to 104 (macOS) or 108 bytes.
const SOCKET_PATH_MAX: usize = 100;

/// A new server, with its first hold.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) record: Record,
    pub(crate) hold: Hold,
    /// The watchdog and the postmaster.
    pub(crate) children: Vec<Child>,
}

/// Starts a server and publishes it.
pub(crate) fn start(lock: &Locked<'_>) -> Result<Started, ServerError> {
    let binaries = Search::from_env().run()?;
    lock.base().check_reachable()?;
    let mut tries = 1;
    loop {
        let refused = match Launch::new(lock, &binaries)?.finish(lock) {
            Ok(started) => return Ok(started),
            Err(refused) => refused,
        };
        if tries == PORT_TRIES || !is_port_taken(&refused) {
            return Err(refused);
        }
        tracing::info!("somebody took the port before the server did; trying another one");
        tries += 1;
    }
}

pub(crate) fn is_port_taken(refused: &ServerError) -> bool {
    matches!(refused, ServerError::StartFailed { log, .. }
        if log.contains("could not create any TCP/IP sockets") || log.contains("Address already in use"))
}

/// A server on its way up.
struct Launch<'a> {
    place: WatchedDirectory,
    address: ServerAddress,
    binaries: &'a Binaries,
    begun: Instant,
}

impl<'a> Launch<'a> {
    fn new(lock: &Locked<'_>, binaries: &'a Binaries) -> Result<Self, ServerError> {
        let begun = Instant::now();
        let place = WatchedDirectory::create(lock)?;
        let address = ServerAddress::local(free_port()?, random_password()?);
        let (port, dir) = (address.port(), place.path().display());
        tracing::info!(version = binaries.version(), port, %dir, "starting PostgreSQL");
        Ok(Self { place, address, binaries, begun })
    }

    fn finish(mut self, lock: &Locked<'_>) -> Result<Started, ServerError> {
        self.make_data()?;
        let postmaster_pid = self.run_server()?;
        let Some(watchdog_pid) = self.place.watchdog_pid() else { return Err(self.failed()) };
        let record = Record {
            name: record::name_of(self.place.path()),
            address: self.address.clone(),
            version: self.binaries.version().into(),
            postmaster_pid,
            watchdog_pid,
        };
        record::publish(lock, &record)?;
        tracing::info!(port = self.address.port(), took = ?self.begun.elapsed(), "PostgreSQL is ready");
        let Shared { hold, watchdog, process } = self.place.share()?;
        Ok(Started { record, hold, children: std::iter::once(watchdog).chain(process).collect() })
    }

    fn make_data(&mut self) -> Result<(), ServerError> {
        let options = options(self.binaries.major());
        initdb::begin(&mut self.place, self.binaries, self.address.password(), &options)?;
        self.wait_for(MAKING_DATA, |place| (!place.is_running()).then_some(()))?;
        if !self.place.wait() {
            return Err(self.failed());
        }
        initdb::clear(&self.place)?;
        let path = self.place.data().join("postgresql.conf");
        let settings = settings(self.place.path(), self.address.port(), self.binaries);
        let mut file = File::options().append(true).open(&path).doing("open", &path)?;
        file.write_all(settings.as_bytes()).doing("write", &path)
    }

    /// Starts the server, and returns the process id of the postmaster when it is ready.
    fn run_server(&mut self) -> Result<u32, ServerError> {
        let data = self.place.data();
        self.place.spawn(&self.binaries.dir().join("postgres"), [Path::new("-D"), &data])?;
        let ready = self.wait_for(STARTING_UP, |place| match Postmaster::read(place.path()) {
            Some(Postmaster { pid, ready: true, .. }) => Some(Some(pid)),
            _ => (!place.is_running()).then_some(None),
        })?;
        ready.ok_or_else(|| self.failed())
    }

    fn wait_for<T>(
        &mut self,
        stage: &'static str,
        mut answer: impl FnMut(&mut WatchedDirectory) -> Option<T>,
    ) -> Result<T, ServerError> {
        let mut told = Instant::now();
        loop {
            if let Some(answer) = answer(&mut self.place) {
                return Ok(answer);
            }
            if self.begun.elapsed() > START_TIMEOUT {
                return Err(self.timed_out(stage));
            }
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                tracing::info!(stage, waited = ?self.begun.elapsed(), "still waiting for PostgreSQL");
            }
            thread::sleep(POLL);
        }
    }

    fn failed(&self) -> ServerError {
        ServerError::StartFailed { version: self.binaries.version().into(), log: self.place.log_tail() }
    }

    fn timed_out(&self, stage: &'static str) -> ServerError {
        ServerError::StartTimedOut {
            version: self.binaries.version().into(),
            stage,
            after: START_TIMEOUT,
            log: self.place.log_tail(),
        }
    }
}

/// A password that is cheap to check, because debug builds hash slowly. MD5 is deprecated from 18 on, where SCRAM
/// can be told to hash only once instead.
fn options(major: u32) -> Vec<&'static str> {
    if major >= 18 {
        vec!["--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "--set=scram_iterations=1"]
    } else {
        vec!["--auth-host=md5", "--auth-local=md5"]
    }
}

/// The lines appended to `postgresql.conf`: nothing here need survive a crash, and nobody else may connect. All the
/// rest, `max_connections` above all, stays as the server's authors chose it. Shared memory by `mmap` lies in the data
/// directory, so it goes with it; otherwise a server that is killed leaves files in `/dev/shm`.
fn settings(dir: &Path, port: u16, binaries: &Binaries) -> String {
    let password_encryption = if binaries.major() >= 18 { "scram-sha-256" } else { "md5" };
    format!(
        "fsync = off\n\
         synchronous_commit = off\n\
         full_page_writes = off\n\
         dynamic_shared_memory_type = mmap\n\
         listen_addresses = '{HOST}'\n\
         port = {port}\n\
         password_encryption = '{password_encryption}'\n\
         unix_socket_directories = '{}'\n",
        socket_directory(dir)
    )
}

/// The server's private directory, or none if its path is too long or not expressible in a setting.
fn socket_directory(dir: &Path) -> String {
    match dir.to_str() {
        Some(text)
            if dir.join(".s.PGSQL.65535").as_os_str().len() <= SOCKET_PATH_MAX
                && !text.contains(['\'', '"', ',', '\\', '\n']) =>
        {
            text.to_owned()
        }
        _ => String::new(),
    }
}

pub(crate) fn free_port() -> Result<u16, ServerError> {
    let listener = TcpListener::bind((HOST, 0)).doing("find a free port on", Path::new(HOST))?;
    let address = listener.local_addr().doing("find a free port on", Path::new(HOST))?;
    Ok(address.port())
}

pub(crate) fn random_password() -> Result<String, ServerError> {
    use std::io::Read;
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).doing("read", source)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_or_odd_path_means_no_socket() {
        assert_eq!(socket_directory(Path::new("/tmp/srv-a")), "/tmp/srv-a");
        assert_eq!(socket_directory(&Path::new("/tmp").join("x".repeat(90))), "");
        assert_eq!(socket_directory(Path::new("/tmp/it's")), "");
    }

    #[test]
    fn passwords_differ() {
        let one = random_password().unwrap();
        assert_eq!(one.len(), 32);
        assert_ne!(one, random_password().unwrap());
    }

    #[test]
    fn no_password_is_hashed_by_a_deprecated_method() {
        assert!(options(15).contains(&"--auth-host=md5"));
        assert!(!options(18).iter().any(|option| option.contains("md5")));
    }

    #[test]
    fn a_taken_port_is_told_by_the_log() {
        let failed = |log: &str| ServerError::StartFailed { version: "15".into(), log: log.into() };
        assert!(is_port_taken(&failed("FATAL:  could not create any TCP/IP sockets")));
        assert!(!is_port_taken(&failed("FATAL:  out of memory")));
    }
}
