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

use crate::address::ServerAddress;
use crate::base::{Base, Locked};
use crate::error::ServerError;
use crate::hold::{self, Hold};
use crate::kept::{self, KeptMark};
use crate::postmaster::is_postgres_on;
use crate::record::{self, Record};
use crate::{reap, start};

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
/// # fn main() -> Result<(), throwaway_postgres::ServerError> {
/// use throwaway_postgres::Ephemeral;
///
/// let server = Ephemeral::join_or_start()?;
/// println!("PostgreSQL {} at {}", server.version(), server.url());
/// # Ok(())
/// # }
/// ```
pub struct Ephemeral {
    record: Record,
    base: Base,
    /// Its `Drop` is what lets go.
    hold: Hold,
    /// Watchdog and postmaster; only in the process that started them, which alone can wait for them.
    children: Vec<Child>,
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
                    return Ok(Self { record: *record, base, hold, children: Vec::new() });
                }
                Attempt::Nothing => {
                    let started = start::start(&lock)?;
                    drop(lock);
                    return Ok(Self {
                        record: started.record,
                        base,
                        hold: started.hold,
                        children: started.children,
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
        Ok(Some(Self { record: *record, base, hold, children: Vec::new() }))
    }

    /// Where the servers of this user lie.
    #[must_use]
    pub fn base_directory() -> PathBuf {
        Base::default_path()
    }

    /// How a superuser reaches it.
    #[must_use]
    pub fn address(&self) -> &ServerAddress {
        &self.record.address
    }

    /// The same as a URL, password included: `postgres://…`.
    #[must_use]
    pub fn url(&self) -> String {
        self.record.address.url()
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

    /// Says that this process keeps the server, as it does for as long as it holds it and the mark. [`kept_server`](crate::kept_server)
    /// finds it.
    ///
    /// # Errors
    /// [`ServerError`] when the directory cannot be written.
    pub fn mark_kept(&self) -> Result<KeptMark, ServerError> {
        kept::mark(&self.directory())
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
                collect(self.children, begun);
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
        // The address masks the password.
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
        // Its watchdog takes it away, or died since the orphans were reaped.
        record::withdraw(lock, &record.name)?;
        return Ok(Attempt::Ending);
    };
    if !record::names(lock.base(), &record.name)? {
        return Ok(Attempt::Ending);
    }
    if !is_postgres_on(record.postmaster_pid, &dir.join("data")) {
        hold.report_dead(); // the watchdog does not notice a crash by itself
        return Ok(Attempt::Ending);
    }
    Ok(Attempt::Joined(Box::new(record), hold))
}

/// Reads the exit status of those that we have started, which end before or right after the directory, so that they are no zombies.
fn collect(mut children: Vec<Child>, begun: Instant) {
    for child in &mut children {
        while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < RELEASE_TIMEOUT {
            thread::sleep(POLL);
        }
    }
}
