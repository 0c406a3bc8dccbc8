//! The driver: opens, checks, cleans and closes sessions with files.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pool_core::{Condition, Driver, DriverError, DriverErrorKind, Endpoint, Phase};
use sqlx::sqlite::{SqliteConnection, SqliteTransactionManager};
use sqlx::{AssertSqlSafe, Connection, Error, Executor as _, Row as _};
// sqlx does not export the trait that counts transactions; see docs/decisions/0003.
use sqlx_core::transaction::TransactionManager as _;

use crate::config::SqliteConfig;
use crate::connection::{SqliteConn, is_loss};

/// How many steps of its machine `SQLite` takes between two looks whether a statement is to end: some tens of microseconds.
const INTERRUPT_STEPS: i32 = 1_000;

/// What every session begins with, and is set back to. `query_only` and the rest are `SQLite`'s own defaults.
const SETTINGS: &str = "pragma query_only = off; pragma foreign_keys = on; pragma locking_mode = normal; \
    pragma synchronous = normal; pragma defer_foreign_keys = off; pragma ignore_check_constraints = off; \
    pragma recursive_triggers = off; pragma case_sensitive_like = off; pragma legacy_alter_table = off; \
    pragma reverse_unordered_selects = off; pragma writable_schema = off; pragma trusted_schema = on; \
    pragma read_uncommitted = off; pragma automatic_index = on; pragma cell_size_check = off";

/// Opens sessions with the databases of a directory. A session is a thread of this process, so nothing ends it from outside.
#[derive(Debug)]
pub struct SqliteDriver {
    config: SqliteConfig,
}

impl SqliteDriver {
    /// A driver for the databases of `config`.
    pub fn new(config: SqliteConfig) -> Self {
        Self { config }
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
        let own = conn.own();
        while SqliteTransactionManager::get_transaction_depth(own) > 0 {
            SqliteTransactionManager::rollback(own).await?;
        }
        if let Err(error) = own.execute("rollback").await
            && !is_without_transaction(&error)
        {
            return Err(error);
        }
        let busy = self.config.get_busy_timeout().as_millis();
        own.execute(AssertSqlSafe(format!("{SETTINGS}; pragma busy_timeout = {busy}"))).await?;
        match left_behind(own).await? {
            None => Ok(()),
            Some(what) => Err(Error::Protocol(format!("the session still has {what}"))),
        }
    }
}

/// What cannot be taken back by a setting.
async fn left_behind(conn: &mut SqliteConnection) -> Result<Option<&'static str>, Error> {
    let asked = "select (select count(*) from pragma_database_list where name not in ('main', 'temp')), \
                 (select count(*) from sqlite_temp_schema)";
    let row = conn.fetch_one(asked).await?;
    Ok(match (row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?) {
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
        let directory = self.config.directory();
        let file = match directory.current(&endpoint.database) {
            Ok(Some(pointer)) => directory.file(&endpoint.database, &pointer.generation),
            Ok(None) => {
                let missing = DriverErrorKind::DatabaseMissing;
                return Err(DriverError::new(Phase::Connect, missing, self.address(endpoint)));
            }
            Err(error) => return Err(no_pointer(error, self.address(endpoint))),
        };
        let failed = |error| driver_error(error, Phase::Connect, self.address(endpoint));
        let options = self.config.connect_options(&file);
        let mut conn = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        // A file that is no database is told here, and not to the first who uses it.
        conn.fetch_one("select count(*) from sqlite_schema").await.map_err(failed)?;
        let interrupt = Arc::new(AtomicBool::new(false));
        let is_to_end = Arc::clone(&interrupt);
        let mut handle = conn.lock_handle().await.map_err(failed)?;
        handle.set_progress_handler(INTERRUPT_STEPS, move || !is_to_end.load(Ordering::Relaxed));
        drop(handle);
        Ok(SqliteConn::new(conn, file, interrupt))
    }

    async fn check(&self, conn: &mut SqliteConn) -> Result<(), DriverError> {
        let address = conn.file().display().to_string();
        if !conn.has_its_file() {
            let lost = DriverError::new(Phase::Check, DriverErrorKind::ConnectionLost, address);
            return Err(lost.caused_by("the database was dropped"));
        }
        conn.own().ping().await.map_err(|error| driver_error(error, Phase::Check, address))
    }

    /// A look whether the file is there: others may have dropped the database, and made another one.
    fn wants_check(&self, conn: &SqliteConn) -> bool {
        !conn.has_its_file()
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
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    // The lower byte is the class: 5 and 6 busy, 13 full, 14 cannot open, 23 authorization.
    let kind = match code.map(|code| code & 0xff) {
        _ if is_loss(&error) => DriverErrorKind::ConnectionLost,
        Some(5 | 6) => DriverErrorKind::ServerNotReady,
        Some(14) => DriverErrorKind::Unreachable,
        Some(3 | 23) => DriverErrorKind::Refused,
        _ => DriverErrorKind::Other,
    };
    DriverError::new(phase, kind, address).caused_by(error)
}
