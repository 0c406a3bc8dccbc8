//! Starts a server: makes its directory, launches the watchdog, and waits until the server is ready.
//!
//! The directory and the watchdog are owed from the first moment, so they sit in [`Launch`], whose `Drop` takes
//! both away unless the start succeeds.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::base::{Locked, SERVER_PREFIX};
use super::binaries::{Binaries, Search};
use super::error::{Doing, ServerError};
use super::hold::{self, Hold};
use super::postmaster::{Postmaster, end_postmaster};
use super::reap;
use super::record::{self, Record};

const WATCHDOG: &str = include_str!("watchdog.sh");

/// How long a server outlives its last holder, so that the next test process need not start one.
const GRACE: Duration = Duration::from_secs(3);

/// initdb and start take 1.2 s on an idle machine; this is for one that is not.
const START_TIMEOUT: Duration = Duration::from_mins(2);

/// Somebody else may take the free port that was found before the server does.
const PORT_TRIES: u32 = 5;

const POLL: Duration = Duration::from_millis(10);
const PROGRESS: Duration = Duration::from_secs(2);

pub(super) const HOST: &str = "127.0.0.1";
const USER: &str = "pool_test";
const DATABASE: &str = "postgres";

/// Kernels limit the path of a socket to 104 (macOS) or 108 bytes.
const SOCKET_PATH_MAX: usize = 100;

/// A new server, with its first hold.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) record: Record,
    pub(super) hold: Hold,
    pub(super) watchdog: Child,
}

/// Starts a server and publishes it.
pub(super) fn start(lock: &Locked<'_>) -> Result<Started, ServerError> {
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

pub(super) fn is_port_taken(refused: &ServerError) -> bool {
    matches!(refused, ServerError::StartFailed { log, .. }
        if log.contains("could not create any TCP/IP sockets") || log.contains("Address already in use"))
}

/// A server on its way up.
struct Launch<'a> {
    dir: PathBuf,
    port: u16,
    password: String,
    binaries: &'a Binaries,
    begun: Instant,
    /// Keeps the watchdog from hearing the end of file before the first hold is there.
    _anchor: File,
    /// Taken when the start succeeds; otherwise `Drop` ends it.
    watchdog: Option<Child>,
}

impl<'a> Launch<'a> {
    fn new(lock: &Locked<'_>, binaries: &'a Binaries) -> Result<Self, ServerError> {
        let begun = Instant::now();
        let owner = lock.base().owner();
        let dir = tempfile::Builder::new()
            .prefix(SERVER_PREFIX)
            .permissions(Permissions::from_mode(0o700)) // the socket's and the password's only wall
            .tempdir_in(lock.base().path())
            .doing("create a directory in", lock.base().path())?;
        owner.give(dir.path())?;
        let password = random_password()?;
        let port = free_port()?;
        write_private(lock, &dir.path().join("pwfile"), &password)?;
        owner.write(&dir.path().join("watchdog.sh"), WATCHDOG)?;
        owner.write(&dir.path().join("settings.conf"), &settings(dir.path(), port, binaries))?;
        let anchor = hold::prepare(dir.path(), owner)?;
        let watchdog = spawn_watchdog(lock, dir.path(), binaries)?;
        tracing::info!(version = binaries.version(), port, dir = %dir.path().display(), "starting PostgreSQL");
        Ok(Self {
            dir: dir.keep(),
            port,
            password,
            binaries,
            begun,
            _anchor: anchor,
            watchdog: Some(watchdog),
        })
    }

    /// Waits for the server, takes the first hold, and tells the others.
    fn finish(mut self, lock: &Locked<'_>) -> Result<Started, ServerError> {
        let postmaster_pid = self.wait_until_ready()?;
        let Some(hold) = Hold::open(lock, &self.dir)? else {
            return Err(self.failed());
        };
        let record = self.record(postmaster_pid);
        record::publish(lock, &record)?;
        let Some(watchdog) = self.watchdog.take() else {
            return Err(self.failed());
        };
        tracing::info!(port = record.port, took = ?self.begun.elapsed(), "PostgreSQL is ready");
        Ok(Started { record, hold, watchdog })
    }

    fn wait_until_ready(&mut self) -> Result<u32, ServerError> {
        let mut told = Instant::now();
        loop {
            let status = Postmaster::read(&self.dir);
            match status {
                Some(Postmaster { pid, ready: true, .. }) => return Ok(pid),
                _ if self.is_over() => return Err(self.failed()),
                _ => {}
            }
            let stage = match status {
                None => "creating the data directory (initdb)",
                Some(_) => "starting up",
            };
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

    /// Whether nothing can come any more: the watchdog has exited, or somebody has deleted the directory.
    fn is_over(&mut self) -> bool {
        if !self.dir.exists() {
            return true;
        }
        match &mut self.watchdog {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => true,
        }
    }

    fn record(&self, postmaster_pid: u32) -> Record {
        Record {
            name: reap::name_of(&self.dir),
            host: HOST.into(),
            port: self.port,
            user: USER.into(),
            password: self.password.clone(),
            database: DATABASE.into(),
            version: self.binaries.version().into(),
            postmaster_pid,
            watchdog_pid: self.watchdog.as_ref().map_or(0, Child::id),
        }
    }

    fn failed(&self) -> ServerError {
        ServerError::StartFailed { version: self.binaries.version().into(), log: log_tail(&self.dir) }
    }

    fn timed_out(&self, stage: &'static str) -> ServerError {
        ServerError::StartTimedOut {
            version: self.binaries.version().into(),
            stage,
            after: START_TIMEOUT,
            log: log_tail(&self.dir),
        }
    }
}

impl Drop for Launch<'_> {
    fn drop(&mut self) {
        let Some(mut watchdog) = self.watchdog.take() else {
            return;
        };
        // First the watchdog alone, so that the server can still be ended in an orderly way; then whatever is
        // left of its process group, such as initdb.
        if let Some(pid) = pid_of(&watchdog).filter(|_| matches!(watchdog.try_wait(), Ok(None))) {
            let _ = kill(pid, Signal::SIGKILL);
            end_postmaster(&self.dir);
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = watchdog.wait();
        }
        if let Err(why) = reap::remove_directory(&self.dir) {
            tracing::warn!(%why, "leaving the rest to the next start");
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().map(Pid::from_raw)
}

fn spawn_watchdog(lock: &Locked<'_>, dir: &Path, binaries: &Binaries) -> Result<Child, ServerError> {
    let log_path = dir.join("watchdog.log");
    let log = File::create(&log_path).doing("create", &log_path)?;
    let errors = log.try_clone().doing("open", &log_path)?;
    lock.base()
        .owner()
        .command("/bin/sh")
        .arg(dir.join("watchdog.sh"))
        .arg(dir)
        .arg(record::path_in(lock.base()))
        .arg(binaries.dir())
        .arg((GRACE.as_millis() / 100).to_string())
        .args(initdb_options(binaries.major()))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0) // Ctrl-C in the terminal is not meant for it
        .spawn()
        .doing("run /bin/sh in", dir)
}

/// A password that is cheap to check, because debug builds hash slowly. MD5 is deprecated from 18 on, where SCRAM
/// can be told to hash only once instead.
fn initdb_options(major: u32) -> Vec<String> {
    let password: &[&str] = if major >= 18 {
        &["--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "--set=scram_iterations=1"]
    } else {
        &["--auth-host=md5", "--auth-local=md5"]
    };
    let common = ["--encoding=UTF8", "--locale=C", "--no-sync"];
    std::iter::once(format!("--username={USER}"))
        .chain(common.iter().chain(password).map(|option| (*option).to_owned()))
        .collect()
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

pub(super) fn free_port() -> Result<u16, ServerError> {
    let listener = TcpListener::bind((HOST, 0)).doing("find a free port on", Path::new(HOST))?;
    let address = listener.local_addr().doing("find a free port on", Path::new(HOST))?;
    Ok(address.port())
}

pub(super) fn random_password() -> Result<String, ServerError> {
    use std::io::Read;
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).doing("read", source)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn write_private(lock: &Locked<'_>, path: &Path, secret: &str) -> Result<(), ServerError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| writeln!(file, "{secret}"))
        .doing("write", path)?;
    lock.base().owner().give(path)
}

/// The last lines of both logs, to be shown in an error.
pub(super) fn log_tail(dir: &Path) -> String {
    const LINES: usize = 20;
    let mut tail = String::new();
    for name in ["log", "watchdog.log"] {
        let bytes = fs::read(dir.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            tail.push_str("  ");
            tail.push_str(line);
            tail.push('\n');
        }
    }
    if tail.is_empty() {
        tail.push_str("  (empty)");
    }
    tail
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
        assert!(initdb_options(15).contains(&"--auth-host=md5".to_owned()));
        assert!(!initdb_options(18).iter().any(|option| option.contains("md5")));
    }

    #[test]
    fn a_taken_port_is_told_by_the_log() {
        let failed = |log: &str| ServerError::StartFailed { version: "15".into(), log: log.into() };
        assert!(is_port_taken(&failed("FATAL:  could not create any TCP/IP sockets")));
        assert!(!is_port_taken(&failed("FATAL:  out of memory")));
    }
}
