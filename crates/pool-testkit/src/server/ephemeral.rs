//! A hold on the server that this user's test processes share.
//!
//! Joining is a race against the server's end, and is won in this order: open the FIFO, say so, and only then
//! look whether the note still names the server. The watchdog takes the note away first and listens afterwards. So
//! either it hears the joiner and stays, or the joiner sees that the note is gone and starts over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use super::base::{Base, Locked};
use super::error::ServerError;
use super::hold::{self, Hold};
use super::postmaster::is_postgres_on;
use super::record::{self, Record};
use super::{reap, start};

const POLL: Duration = Duration::from_millis(10);

/// For meeting servers that are just ending; starting one has a limit of its own.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A shutdown takes 0.3 s, or 15 s if the server resists to the last.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// A share in a running `PostgreSQL` server, which lives as long as any process holds one.
///
/// Dropping it lets go without waiting: the server ends about three seconds after its last holder, unless somebody
/// joins. The same happens when the process dies of whatever cause.
///
/// ```no_run
/// # fn main() -> Result<(), pool_testkit::server::ServerError> {
/// use pool_testkit::server::Ephemeral;
///
/// let server = Ephemeral::join_or_start()?;
/// println!("PostgreSQL {} on port {}", server.version(), server.port());
/// # Ok(())
/// # }
/// ```
pub struct Ephemeral {
    record: Record,
    base: Base,
    /// Its `Drop` is what lets go.
    hold: Hold,
    /// Only in the process that started it, which alone can wait for it.
    watchdog: Option<Child>,
}

/// How an attempt to join came out.
enum Attempt {
    Joined(Box<Record>, Hold),
    /// There is no server to join.
    Nothing,
    /// The server is about to go.
    Ending,
}

impl Ephemeral {
    /// Joins this user's running server, or starts one.
    ///
    /// Blocks while another process starts it. Run it on a thread that may block.
    ///
    /// # Errors
    /// See [`ServerError`]; each says what to do.
    pub fn join_or_start() -> Result<Self, ServerError> {
        Self::join_or_start_in(&Base::default_path())
    }

    /// Joins the server that runs in the base directory `base`, or starts one there.
    ///
    /// The directory is created if need be. Run by root, it must be empty or have served before, because it
    /// changes hands: `PostgreSQL` refuses to run as root.
    ///
    /// # Errors
    /// See [`ServerError`]; each says what to do.
    pub fn join_or_start_in(base: &Path) -> Result<Self, ServerError> {
        let base = Base::prepare(base)?;
        let lock = base.lock()?;
        let begun = Instant::now();
        while begun.elapsed() < JOIN_TIMEOUT {
            reap::reap(&lock)?;
            match attempt(&lock)? {
                Attempt::Joined(record, hold) => {
                    drop(lock);
                    return Ok(Self { record: *record, base, hold, watchdog: None });
                }
                Attempt::Nothing => {
                    let started = start::start(&lock)?;
                    drop(lock);
                    return Ok(Self {
                        record: started.record,
                        base,
                        hold: started.hold,
                        watchdog: Some(started.watchdog),
                    });
                }
                Attempt::Ending => thread::sleep(POLL),
            }
        }
        Err(ServerError::JoinTimedOut { base: base.path().into(), after: JOIN_TIMEOUT })
    }

    /// Joins this user's running server, if there is one; starts none.
    ///
    /// # Errors
    /// See [`ServerError`]; each says what to do.
    pub fn join_running() -> Result<Option<Self>, ServerError> {
        let Some(base) = Base::existing(&Base::default_path())? else { return Ok(None) };
        let lock = base.lock()?;
        let Attempt::Joined(record, hold) = attempt(&lock)? else { return Ok(None) };
        drop(lock);
        Ok(Some(Self { record: *record, base, hold, watchdog: None }))
    }

    /// Where the servers of this user lie.
    #[must_use]
    pub fn base_directory() -> PathBuf {
        Base::default_path()
    }

    /// The address to connect to, always the loopback interface.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.record.host
    }

    /// The TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.record.port
    }

    /// A superuser.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.record.user
    }

    /// The superuser's password, random for each server. `Debug` does not show it.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.record.password
    }

    /// A database that always exists: `postgres`.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.record.database
    }

    /// The server's version, such as `15.18`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.record.version
    }

    /// The server's own directory, which holds its data and logs and goes away with it.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.base.path().join(&self.record.name)
    }

    /// `PostgreSQL`'s data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// The process id of the server's first process.
    #[must_use]
    pub fn postmaster_pid(&self) -> u32 {
        self.record.postmaster_pid
    }

    /// The process id of the script that ends the server. SIGTERM to it ends the server at once.
    #[must_use]
    pub fn watchdog_pid(&self) -> u32 {
        self.record.watchdog_pid
    }

    /// Lets go without the grace period. If this was the last hold, returns when the server and its directory are
    /// gone; if others hold on, returns at once.
    ///
    /// # Errors
    /// [`ServerError::ReleaseTimedOut`] if the server does not end.
    pub fn release_now(self) -> Result<(), ServerError> {
        let dir = self.directory();
        self.hold.quit();
        let begun = Instant::now();
        while begun.elapsed() < RELEASE_TIMEOUT {
            if !dir.exists() {
                collect(self.watchdog, begun);
                return Ok(());
            }
            // If somebody else has the lock, it is too early to tell who holds on.
            if let Some(lock) = self.base.try_lock()?
                && hold::others_hold(&lock, &dir)?
            {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        Err(ServerError::ReleaseTimedOut { dir, after: RELEASE_TIMEOUT })
    }
}

impl fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The record masks the password.
        f.debug_struct("Ephemeral")
            .field("server", &self.record)
            .field("base", &self.base.path())
            .finish_non_exhaustive()
    }
}

/// Tries to join the server that the note names.
fn attempt(lock: &Locked<'_>) -> Result<Attempt, ServerError> {
    let Some(record) = record::read(lock.base())? else {
        return Ok(Attempt::Nothing);
    };
    let dir = lock.base().path().join(&record.name);
    let Some(hold) = Hold::open(lock, &dir)? else {
        // Its watchdog died since the orphans were reaped.
        record::withdraw(lock, &record.name)?;
        return Ok(Attempt::Ending);
    };
    // A server that has just crashed is still named until its watchdog hears of it.
    let runs = is_postgres_on(record.postmaster_pid, &dir.join("data"));
    if !runs || !record::names(lock.base(), &record.name)? {
        return Ok(Attempt::Ending);
    }
    Ok(Attempt::Joined(Box::new(record), hold))
}

/// Reads the exit status of our watchdog, which ends right after its directory, so that it is no zombie.
fn collect(watchdog: Option<Child>, begun: Instant) {
    let Some(mut watchdog) = watchdog else { return };
    while matches!(watchdog.try_wait(), Ok(None)) && begun.elapsed() < RELEASE_TIMEOUT {
        thread::sleep(POLL);
    }
}
