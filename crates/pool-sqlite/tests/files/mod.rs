//! A directory as a world of tests. The witness is the operating system: each open session has its own descriptor of the WAL.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pool_core::{CatalogKind, PrefixNaming};
use pool_sqlite::{SqliteCatalog, SqliteConfig, SqliteConn, SqliteDriver, SqliteSession};
use pool_testkit::conformance::{Adapter, Cannot};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _};
use tempfile::TempDir;

/// A directory as a world of tests.
pub struct Files {
    pub directory: TempDir,
    config: SqliteConfig,
    pub naming: Arc<PrefixNaming>,
}

impl Adapter for Files {
    type Driver = SqliteDriver;

    async fn set_up() -> Result<Self, String> {
        let directory = TempDir::new().map_err(|error| error.to_string())?;
        let config = SqliteConfig::new(directory.path());
        let naming = PrefixNaming::new("app").map_err(|error| error.to_string())?;
        Ok(Self { directory, config, naming: Arc::new(naming) })
    }

    async fn tear_down(self) {}

    async fn driver(&self) -> Result<SqliteDriver, String> {
        Ok(SqliteDriver::new(self.config.clone()))
    }

    fn catalog(&self) -> CatalogKind<SqliteConn> {
        CatalogKind::Alone(Arc::new(SqliteCatalog::new(self.config.clone(), self.naming.clone())))
    }

    async fn write(&self, conn: &mut SqliteConn, value: i64) -> Result<(), String> {
        let conn: &mut SqliteSession = conn;
        let told = |error: sqlx::Error| error.to_string();
        conn.execute("create table if not exists value (n integer)").await.map_err(told)?;
        let insert = sqlx::query("insert into value values (?)").bind(value);
        insert.execute(&mut *conn).await.map(drop).map_err(told)
    }

    async fn read(&self, conn: &mut SqliteConn) -> Result<Option<i64>, String> {
        let conn: &mut SqliteSession = conn;
        let told = |error: sqlx::Error| error.to_string();
        let there = "select count(*) from sqlite_schema where name = 'value'";
        if sqlx::query_scalar::<_, i64>(there).fetch_one(&mut *conn).await.map_err(told)? == 0 {
            return Ok(None);
        }
        let last = "select n from value order by rowid desc limit 1";
        sqlx::query_scalar(last).fetch_optional(conn).await.map_err(told)
    }

    async fn echo(&self, conn: &mut SqliteConn, number: i64) -> Result<i64, String> {
        let conn: &mut SqliteSession = conn;
        let echo = sqlx::query_scalar("select ?").bind(number);
        echo.fetch_one(conn).await.map_err(|error| error.to_string())
    }

    async fn sessions(&self) -> Result<usize, Cannot> {
        let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
            return Err(Cannot("the operating system does not list open files in /proc/self/fd"));
        };
        let is_wal = |path: &Path| {
            let name = path.to_string_lossy().into_owned();
            path.starts_with(self.directory.path()) && name.trim_end_matches(" (deleted)").ends_with("-wal")
        };
        let seen: Vec<(PathBuf, PathBuf)> = open
            .filter_map(|entry| {
                let at = entry.ok()?.path();
                let file = std::fs::read_link(&at).ok()?;
                is_wal(&file).then_some((at, file))
            })
            .collect();
        // The walk is not done in one moment: one that was seen may have made room for another that was seen later. Those that are still
        // there now were all there when the walk had ended.
        let stays = |(at, file): &&(PathBuf, PathBuf)| std::fs::read_link(at).is_ok_and(|now| now == *file);
        Ok(seen.iter().filter(stays).count())
    }

    fn ways(&self) -> &'static [&'static str] {
        &[
            "an open transaction",
            "a savepoint",
            "foreign keys off",
            "no writes",
            "an exclusive lock on the file",
            "a temporary table",
            "an attached database",
        ]
    }

    async fn leave(&self, conn: &mut SqliteConn, way: &'static str) -> Result<(), String> {
        let conn: &mut SqliteSession = conn;
        let statement = match way {
            "an open transaction" => "begin immediate",
            "a savepoint" => "savepoint x",
            "foreign keys off" => "pragma foreign_keys = off",
            "no writes" => "pragma query_only = on",
            "an exclusive lock on the file" => {
                "pragma locking_mode = exclusive; create table if not exists locked (n); insert into locked values (1)"
            }
            "a temporary table" => "create temp table t (n integer)",
            _ => "attach ':memory:' as other",
        };
        conn.execute(statement).await.map(drop).map_err(|error| error.to_string())
    }

    async fn is_left(&self, conn: &mut SqliteConn, way: &'static str) -> Result<bool, String> {
        let session: &mut SqliteSession = conn;
        let asked = match way {
            "foreign keys off" => "select not foreign_keys from pragma_foreign_keys",
            "no writes" => "select query_only from pragma_query_only",
            "a temporary table" => "select count(*) from sqlite_temp_schema",
            "an attached database" => "select count(*) from pragma_database_list where name = 'other'",
            // A transaction can be begun, and another session can write, only when nothing of these is left.
            _ => {
                let is_in_transaction = session.execute("begin").await.is_err();
                let _ = session.execute("rollback").await;
                return Ok(is_in_transaction || !self.another_can_write(session).await);
            }
        };
        sqlx::query_scalar::<_, bool>(asked).fetch_one(session).await.map_err(|error| error.to_string())
    }

    async fn slow_statement(&self, conn: &mut SqliteConn) -> Result<(), Cannot> {
        let conn: &mut SqliteSession = conn;
        let endless =
            "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n";
        let _: Result<i64, _> = sqlx::query_scalar(endless).fetch_one(conn).await;
        Ok(())
    }
}

impl Files {
    async fn another_can_write(&self, conn: &SqliteSession) -> bool {
        let options =
            SqliteConnectOptions::new().filename(conn.file()).busy_timeout(Duration::from_millis(100));
        let Ok(mut other) = SqliteConnection::connect_with(&options).await else { return false };
        let written =
            other.execute("create table if not exists another (n); insert into another values (1)").await;
        written.is_ok() && other.close().await.is_ok()
    }
}
