//! An adapter of one's own. Its databases are logs: a directory for each workspace, a file of numbers in it, and a lock beside it that one
//! session at a time holds while it writes. `docs/adapters.md` walks through it.
//!
//! ```
//! use own_adapter::{LogCatalog, LogDriver};
//! use pool_core::{CatalogKind, Limits, PrefixNaming, WorkspaceId};
//! use pool_manager::{PoolManager, Settings};
//! use std::sync::Arc;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let root = std::env::temp_dir().join(format!("own-adapter-{}", std::process::id()));
//! let naming = Arc::new(PrefixNaming::new("log")?);
//! let catalog = CatalogKind::Alone(Arc::new(LogCatalog::new(&root, naming)));
//! let pools = PoolManager::start(LogDriver::new(&root), catalog, Settings::new(Limits::new(8).per_workspace(4)))?;
//! let acme = WorkspaceId::new("acme")?;
//! pools.ensure_workspace(&acme).await?;
//! let mut log = pools.acquire(&acme).await?;
//! log.append(7).await?;
//! assert_eq!(log.last().await?, Some(7));
//! drop(log);
//! pools.close().await?;
//! # std::fs::remove_dir_all(root)?;
//! # Ok(())
//! # }
//! ```

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use pool_core::{
    Catalog, Condition, DatabaseName, DatabaseNaming, Driver, DriverError, DriverErrorKind, Endpoint, Phase,
    WorkspaceId,
};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, SeekFrom};

const NUMBERS: &str = "numbers";
const ID: &str = "id";
const LOCK: &str = "lock";

/// Opens sessions with the logs below a directory.
#[derive(Clone, Debug)]
pub struct LogDriver {
    root: PathBuf,
}

/// A session with one log.
#[derive(Debug)]
pub struct LogSession {
    directory: PathBuf,
    numbers: File,
    lock: Option<Lock>,
    /// A request is under way, or was dropped.
    in_flight: bool,
}

/// The lock of a log. Dropping it lets go, as a server lets the locks of a session go that has ended.
#[derive(Debug)]
struct Lock(PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl LogSession {
    /// Appends a number. Numbers of several sessions do not mix: each is written at once.
    pub async fn append(&mut self, number: i64) -> io::Result<()> {
        self.in_flight = true;
        self.numbers.seek(SeekFrom::End(0)).await?;
        self.numbers.write_all(&number.to_be_bytes()).await?;
        self.numbers.flush().await?;
        self.in_flight = false;
        Ok(())
    }

    /// The number that was appended last.
    pub async fn last(&mut self) -> io::Result<Option<i64>> {
        self.in_flight = true;
        let end = self.numbers.seek(SeekFrom::End(0)).await?;
        let mut bytes = [0; 8];
        let last = if end >= 8 {
            self.numbers.seek(SeekFrom::Start(end - end % 8 - 8)).await?;
            self.numbers.read_exact(&mut bytes).await?;
            Some(i64::from_be_bytes(bytes))
        } else {
            None
        };
        self.in_flight = false;
        Ok(last)
    }

    /// Takes the lock of the log, until [`LogSession::unlock`]; fails if another session has it. Short, and nothing is awaited: a call that
    /// cannot be dropped half-way leaves no doubt who has the lock.
    pub fn lock(&mut self) -> io::Result<()> {
        let path = self.directory.join(LOCK);
        std::fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        self.lock = Some(Lock(path));
        Ok(())
    }

    /// Lets the lock go.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Whether this session holds the lock.
    pub fn has_lock(&self) -> bool {
        self.lock.is_some()
    }
}

impl LogDriver {
    /// A driver for the logs below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn directory(&self, endpoint: &Endpoint) -> PathBuf {
        self.root.join(endpoint.database.as_str())
    }
}

impl Driver for LogDriver {
    type Connection = LogSession;
    /// A session is a file that its holder has open: nobody ends it from outside.
    type Handle = Infallible;

    async fn connect(&self, endpoint: &Endpoint) -> Result<LogSession, DriverError> {
        let directory = self.directory(endpoint);
        let opened = OpenOptions::new().read(true).write(true).open(directory.join(NUMBERS)).await;
        let numbers = opened.map_err(|error| failed(error, Phase::Connect, &directory))?;
        Ok(LogSession { directory, numbers, lock: None, in_flight: false })
    }

    async fn check(&self, conn: &mut LogSession) -> Result<(), DriverError> {
        let told = |error| failed(error, Phase::Check, &conn.directory);
        let there = fs::metadata(conn.directory.join(NUMBERS)).await.map_err(told)?;
        let open = conn.numbers.metadata().await.map_err(told)?;
        if (there.dev(), there.ino()) == (open.dev(), open.ino()) {
            return Ok(());
        }
        let lost = DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, place(&conn.directory));
        Err(lost.caused_by("the log was removed, and another one made"))
    }

    fn inspect(&self, conn: &mut LogSession) -> Condition {
        if conn.in_flight || conn.has_lock() { Condition::Suspect } else { Condition::Clean }
    }

    async fn recycle(&self, conn: &mut LogSession) -> Result<(), DriverError> {
        if conn.in_flight {
            // Nobody knows how far it came. Another file is opened by the next.
            let unknown = DriverError::new(Phase::Recycle, DriverErrorKind::Other, place(&conn.directory));
            return Err(unknown.caused_by("a request was dropped"));
        }
        conn.unlock();
        Ok(())
    }

    async fn close(&self, conn: LogSession) {
        // What was dropped may still be under way with the file, in a thread of the runtime.
        drop(conn.numbers.into_std().await);
    }

    fn address(&self, endpoint: &Endpoint) -> String {
        place(&self.directory(endpoint))
    }
}

/// Makes, finds and removes logs. Nothing is lent for that.
pub struct LogCatalog {
    root: PathBuf,
    naming: Arc<dyn DatabaseNaming>,
}

impl LogCatalog {
    /// A catalog of the logs below `root`. The names that `naming` gives must be file names, also where case is ignored: those of
    /// `PrefixNaming` are.
    pub fn new(root: impl Into<PathBuf>, naming: Arc<dyn DatabaseNaming>) -> Self {
        Self { root: root.into(), naming }
    }

    fn directory(&self, workspace: &WorkspaceId) -> PathBuf {
        self.root.join(self.naming.database(workspace).as_str())
    }

    /// A place that no log has: of one that is being made, or taken away.
    fn unfinished(&self, workspace: &WorkspaceId) -> PathBuf {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        self.root.join(format!(".{}-{process}-{number}", self.naming.database(workspace)))
    }

    /// Makes a log beside its place, and moves it there whole: whoever comes second finds the place taken.
    async fn make(&self, workspace: &WorkspaceId) -> io::Result<bool> {
        let place = self.directory(workspace);
        if fs::try_exists(&place).await? {
            return Ok(false);
        }
        let unfinished = self.unfinished(workspace);
        fs::create_dir_all(&unfinished).await?;
        fs::write(unfinished.join(NUMBERS), []).await?;
        fs::write(unfinished.join(ID), workspace.as_str()).await?;
        match fs::rename(&unfinished, &place).await {
            Ok(()) => Ok(true),
            Err(_) if fs::try_exists(&place).await? => fs::remove_dir_all(&unfinished).await.map(|()| false),
            Err(error) => Err(error),
        }
    }
}

impl DatabaseNaming for LogCatalog {
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        self.naming.database(workspace)
    }
}

#[async_trait]
impl Catalog<()> for LogCatalog {
    async fn ensure(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        self.make(workspace).await.map_err(|error| failed(error, Phase::Catalog, &self.directory(workspace)))
    }

    async fn drop(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let directory = self.directory(workspace);
        // Out of its place at once, and then away: who looks meanwhile sees all of it or nothing.
        let rest = self.unfinished(workspace);
        match fs::rename(&directory, &rest).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed(error, Phase::Catalog, &directory)),
        }
        fs::remove_dir_all(&rest).await.map_err(|error| failed(error, Phase::Catalog, &rest))?;
        Ok(true)
    }

    async fn exists(&self, (): &mut (), workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let directory = self.directory(workspace);
        fs::try_exists(&directory).await.map_err(|error| failed(error, Phase::Catalog, &directory))
    }

    async fn list(&self, (): &mut ()) -> Result<Vec<WorkspaceId>, DriverError> {
        let told = |error| failed(error, Phase::Catalog, &self.root);
        let mut ids = Vec::new();
        let mut entries = match fs::read_dir(&self.root).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
            Err(error) => return Err(told(error)),
        };
        while let Some(entry) = entries.next_entry().await.map_err(told)? {
            let Ok(text) = fs::read_to_string(entry.path().join(ID)).await else { continue };
            // Believed only if it is where it belongs: what is unfinished is not.
            ids.extend(WorkspaceId::new(text).ok().filter(|id| self.directory(id) == entry.path()));
        }
        Ok(ids)
    }
}

fn place(directory: &Path) -> String {
    directory.display().to_string()
}

fn failed(error: io::Error, phase: Phase, directory: &Path) -> DriverError {
    let kind = match (error.kind(), phase) {
        (io::ErrorKind::NotFound, Phase::Connect) => DriverErrorKind::DatabaseMissing,
        (io::ErrorKind::NotFound, Phase::Check) => DriverErrorKind::ConnectionLost,
        (io::ErrorKind::PermissionDenied, _) => DriverErrorKind::Refused,
        _ => DriverErrorKind::Other,
    };
    DriverError::new(phase, kind, place(directory)).caused_by(error)
}
