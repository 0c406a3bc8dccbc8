//! The driver: opens, checks, cleans and closes sessions with files.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pool_core::{Condition, Driver, DriverError, DriverErrorKind, Endpoint, Phase};
use sqlx::sqlite::{SqliteConnection, SqliteTransactionManager};
use sqlx::{AssertSqlSafe, Connection, Error, Executor as _, Row as _};
// sqlx does not export the trait that counts transactions; see docs/decisions/0003.
use sqlx_core::transaction::TransactionManager as _;
use tokio::time::sleep;

use crate::config::SqliteConfig;
use crate::connection::{Place, Schemas, SqliteConn, is_loss};

/// How many steps of its machine `SQLite` takes between two looks whether a statement is to end: some tens of microseconds.
const INTERRUPT_STEPS: i32 = 1_000;

/// What every session begins with, and is set back to: what `connect_options` says, and otherwise `SQLite`'s own defaults.
const SETTINGS: &str = "pragma query_only = off; pragma foreign_keys = on; pragma locking_mode = normal; \
    pragma synchronous = normal; pragma defer_foreign_keys = off; pragma ignore_check_constraints = off; \
    pragma recursive_triggers = off; pragma case_sensitive_like = off; pragma legacy_alter_table = off; \
    pragma reverse_unordered_selects = off; pragma writable_schema = off; pragma trusted_schema = on; \
    pragma read_uncommitted = off; pragma automatic_index = on; pragma cell_size_check = off; \
    pragma max_page_count = 4294967294; pragma wal_autocheckpoint = 1000; pragma cache_size = -2000; \
    pragma full_column_names = off; pragma short_column_names = on; pragma journal_size_limit = -1; \
    pragma mmap_size = 0; pragma secure_delete = off; pragma analysis_limit = 0";

/// The pause before a database is opened again that another session had for itself.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Opens sessions with the databases of a directory. A session is a thread of this process, so nothing ends it from outside.
#[derive(Debug)]
pub struct SqliteDriver {
    config: SqliteConfig,
    /// Moves on when a schema has changed, whichever database's: to prepare a few statements anew costs less than to know whose.
    schemas: Arc<AtomicU64>,
}

impl SqliteDriver {
    /// A driver for the databases of `config`.
    pub fn new(config: SqliteConfig) -> Self {
        Self { config, schemas: Arc::default() }
    }

    /// How the databases are opened.
    pub fn config(&self) -> &SqliteConfig {
        &self.config
    }

    /// Ends what runs and what was begun, and sets the session back.
    async fn clean(&self, conn: &mut SqliteConn) -> Result<(), Error> {
        let interrupt = conn.interrupt();
        // It is answered when the statement before it has ended.
        conn.own().ping().await?;
        drop(interrupt);
        let opened = conn.place().opened.clone();
        let own = conn.own();
        while SqliteTransactionManager::get_transaction_depth(own) > 0 {
            SqliteTransactionManager::rollback(own).await?;
        }
        // After a commit whose future was dropped sqlx ignores the next rollback of this kind, which must not be a holder's.
        SqliteTransactionManager::start_rollback(own);
        if let Err(error) = own.execute("rollback").await
            && !is_without_transaction(&error)
        {
            return Err(error);
        }
        set_hooks(conn).await?;
        let own = conn.own();
        let busy = self.config.get_busy_timeout().as_millis();
        own.execute(AssertSqlSafe(format!("{SETTINGS}; pragma busy_timeout = {busy}"))).await?;
        let version = own.fetch_one("pragma schema_version").await?.try_get(0)?;
        let left = left_behind(own, &opened).await?;
        conn.schema_is(version);
        conn.renew_statements().await?;
        match left {
            None => Ok(()),
            Some(what) => Err(Error::Protocol(format!("the session has {what}"))),
        }
    }

    /// Opens the database that `endpoint` has now. Another session may have it for itself for a moment, as while it is brought into
    /// WAL, which heeds no busy timeout. A database that was dropped meanwhile fails in many ways, and is looked for again.
    async fn open(&self, endpoint: &Endpoint) -> Result<SqliteConn, DriverError> {
        let directory = self.config.directory();
        let epoch = self.schemas.load(Ordering::Acquire);
        let give_up_at = Instant::now() + self.config.get_busy_timeout();
        loop {
            let pointer = match directory.current(&endpoint.database) {
                Ok(Some(pointer)) => pointer,
                Ok(None) => {
                    let missing = DriverErrorKind::DatabaseMissing;
                    return Err(DriverError::new(Phase::Connect, missing, self.address(endpoint)));
                }
                Err(error) => return Err(no_pointer(error, self.address(endpoint))),
            };
            let file = directory.file(&endpoint.database, &pointer.generation);
            match open_file(&self.config, &file).await {
                Ok((conn, opened, version)) => {
                    let place = Place {
                        file,
                        pointer: directory.pointer(&endpoint.database),
                        pointer_said: pointer.text(),
                        opened,
                    };
                    return Ok(SqliteConn::new(
                        conn,
                        place,
                        Schemas::new(Arc::clone(&self.schemas), epoch, version),
                    ));
                }
                Err(error) => {
                    let is_former =
                        directory.current(&endpoint.database).ok().flatten().as_ref() != Some(&pointer);
                    if !(is_former || is_busy(&error)) || Instant::now() >= give_up_at {
                        return Err(driver_error(error, Phase::Connect, self.address(endpoint)));
                    }
                    sleep(BUSY_PAUSE).await;
                }
            }
        }
    }
}

/// A session with `file`, how `SQLite` itself names the file, and the version of its schema. One that is no database is told here, and not to the first who
/// uses it.
async fn open_file(config: &SqliteConfig, file: &Path) -> Result<(SqliteConnection, String, i64), Error> {
    let mut conn = SqliteConnection::connect_with(&config.connect_options(file)).await?;
    let asked = "select file, (select schema_version from pragma_schema_version), (select count(*) from sqlite_schema) \
                 from pragma_database_list where name = 'main'";
    let row = conn.fetch_one(asked).await?;
    Ok((conn, row.try_get(0)?, row.try_get(1)?))
}

fn is_busy(error: &Error) -> bool {
    matches!(class_of(error), Some(5 | 6))
}

/// Has the session's statements end when they are to, and takes back what a holder has hooked in.
async fn set_hooks(conn: &mut SqliteConn) -> Result<(), Error> {
    let progress = conn.progress();
    let mut handle = conn.own().lock_handle().await?;
    handle.remove_update_hook();
    handle.remove_commit_hook();
    handle.remove_rollback_hook();
    handle.set_progress_handler(INTERRUPT_STEPS, progress);
    Ok(())
}

/// What cannot be taken back by a setting.
async fn left_behind(conn: &mut SqliteConnection, opened: &str) -> Result<Option<&'static str>, Error> {
    let asked = "select (select count(*) from pragma_database_list where name not in ('main', 'temp')), \
                 (select count(*) from sqlite_temp_schema), (select file from pragma_database_list where name = 'main')";
    let row = conn.fetch_one(asked).await?;
    if row.try_get::<String, _>(2)? != opened {
        return Ok(Some("another database than it was opened for"));
    }
    let journal: String = conn.fetch_one("pragma journal_mode").await?.try_get(0)?;
    Ok(match (row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?) {
        _ if journal != "wal" => Some("another journal than WAL"),
        (0, 0) => None,
        (0, _) => Some("temporary tables"),
        _ => Some("an attached database"),
    })
}

/// `ROLLBACK` where nothing was begun is an error to `SQLite`.
fn is_without_transaction(error: &Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().contains("no transaction is active"))
}

impl Driver for SqliteDriver {
    type Connection = SqliteConn;
    type Handle = Infallible;

    async fn connect(&self, endpoint: &Endpoint) -> Result<SqliteConn, DriverError> {
        let mut conn = self.open(endpoint).await?;
        let hooked = set_hooks(&mut conn).await;
        hooked.map_err(|error| driver_error(error, Phase::Connect, self.address(endpoint)))?;
        Ok(conn)
    }

    async fn check(&self, conn: &mut SqliteConn) -> Result<(), DriverError> {
        let address = conn.file().display().to_string();
        if !conn.is_current() {
            let lost = DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, address);
            return Err(lost.caused_by("the database was dropped"));
        }
        let failed = |error| driver_error(error, Phase::Check, address.clone());
        conn.renew_statements().await.map_err(failed)?;
        conn.own().ping().await.map_err(failed)
    }

    /// A look at the pointer: others may have dropped the database, and made another one. Or a schema has changed.
    fn wants_check(&self, conn: &SqliteConn) -> bool {
        conn.has_old_statements() || !conn.is_current()
    }

    fn inspect(&self, conn: &mut SqliteConn) -> Condition {
        conn.condition()
    }

    async fn recycle(&self, conn: &mut SqliteConn) -> Result<(), DriverError> {
        conn.is_suspect();
        let cleaned = self.clean(conn).await;
        cleaned.map_err(|error| driver_error(error, Phase::Recycle, conn.file().display().to_string()))?;
        conn.is_clean();
        Ok(())
    }

    async fn close(&self, conn: SqliteConn) {
        let _interrupt = conn.interrupt();
        if let Err(error) = conn.into_own().close().await {
            tracing::debug!(%error, "a session did not end as it should");
        }
    }

    fn address(&self, endpoint: &Endpoint) -> String {
        self.config.directory().place(&endpoint.database).display().to_string()
    }
}

fn no_pointer(error: io::Error, address: String) -> DriverError {
    let is_refused = error.kind() == io::ErrorKind::PermissionDenied;
    let kind = if is_refused { DriverErrorKind::Refused } else { DriverErrorKind::Unreachable };
    DriverError::new(Phase::Connect, kind, address).caused_by(error)
}

/// What an error of sqlx means for the pool.
pub(crate) fn driver_error(error: Error, phase: Phase, address: String) -> DriverError {
    // 3 permission, 5 and 6 busy, 14 cannot open, 23 authorization.
    let kind = match class_of(&error) {
        _ if is_loss(&error) => DriverErrorKind::ConnectionLost,
        Some(5 | 6) => DriverErrorKind::ServerNotReady,
        Some(14) => DriverErrorKind::Unreachable,
        Some(3 | 23) => DriverErrorKind::Refused,
        _ => DriverErrorKind::Other,
    };
    DriverError::new(phase, kind, address).caused_by(error)
}

/// The class of an error of `SQLite`: the lower byte of its code.
fn class_of(error: &Error) -> Option<i32> {
    error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok()).map(|code| code & 0xff)
}
