//! The adapter of `PostgreSQL`, as the suite sees it. The witness is the server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pool_core::{CatalogKind, DatabaseName, PrefixNaming};
use pool_postgres::{Limits, PgCatalog, PgConn, PgDriver, PgSession, PostgresConfig, Template};
use sqlx::{AssertSqlSafe, Row as _};

use super::{Adapter, Cannot};
use crate::{TestPool, eventually, execute_outside};

/// The connections that it keeps room for on the test server, its own included.
const ROOM: u32 = 24;
/// What a session is called that is not one of the world's.
const OUTSIDER: &str = "pk:outsider";

/// A prefix on the test server as a world of the suite.
pub struct PostgresAdapter {
    /// Keeps room on the server, and takes everything away at the end.
    pool: TestPool,
    /// The sessions of that pool itself.
    own: BTreeSet<i32>,
    config: PostgresConfig,
    system: DatabaseName,
    naming: Arc<PrefixNaming>,
}

impl PostgresAdapter {
    /// Runs a statement in the system database, in a session that is not one of this world.
    ///
    /// # Errors
    /// What the server says.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the statement took place.
    pub async fn execute_outside(&self, sql: &str) -> Result<(), sqlx::Error> {
        let config = self.config.clone().application_name(OUTSIDER);
        execute_outside(&config, self.system.as_str(), sql).await
    }

    async fn pids(&self) -> Result<BTreeSet<i32>, Cannot> {
        let sessions =
            self.pool.sessions().await.map_err(|_| Cannot("the server does not tell its sessions"))?;
        Ok(sessions.into_iter().map(|session| session.pid).filter(|pid| !self.own.contains(pid)).collect())
    }

    async fn is_so(&self, conn: &mut PgConn, question: &'static str) -> Result<bool, String> {
        let session: &mut PgSession = conn;
        // In the simple protocol, in which a transaction begins with its statement unless one is open.
        let row = sqlx::raw_sql(AssertSqlSafe(question)).fetch_one(session).await;
        row.and_then(|row| row.try_get(0)).map_err(|error| error.to_string())
    }
}

impl Adapter for PostgresAdapter {
    type Driver = PgDriver;

    async fn set_up() -> Result<Self, String> {
        let built = TestPool::builder().limits(Limits::new(ROOM).system(3)).build().await;
        let pool = built.map_err(|error| error.to_string())?;
        let config = pool.config().clone();
        let system = config.get_system_database().map_err(|error| error.to_string())?;
        let naming = Arc::new(PrefixNaming::new(pool.prefix()).map_err(|error| error.to_string())?);
        let mut world = Self { pool, own: BTreeSet::new(), config, system, naming };
        world.own = world.pids().await.map_err(|Cannot(why)| why.to_owned())?;
        Ok(world)
    }

    async fn tear_down(self) {
        if let Err(error) = self.pool.cleanup().await {
            println!("{error}");
        }
    }

    async fn driver(&self) -> Result<PgDriver, String> {
        let started = PgDriver::start(self.config.clone(), self.system.as_str(), Duration::from_secs(10));
        started.await.map_err(|error| error.to_string())
    }

    fn catalog(&self) -> CatalogKind<PgConn> {
        let catalog = PgCatalog::new(self.config.clone(), self.naming.clone(), Arc::new(Template::default()));
        CatalogKind::OverSystem { system: self.system.clone(), catalog: Arc::new(catalog) }
    }

    async fn write(&self, conn: &mut PgConn, value: i64) -> Result<(), String> {
        let session: &mut PgSession = conn;
        let told = |error: sqlx::Error| error.to_string();
        let table = "create table if not exists value (at bigint generated always as identity, n bigint)";
        sqlx::query(table).execute(&mut *session).await.map_err(told)?;
        let insert = sqlx::query("insert into value (n) values ($1)").bind(value);
        insert.execute(session).await.map(drop).map_err(told)
    }

    async fn read(&self, conn: &mut PgConn) -> Result<Option<i64>, String> {
        if !self.is_so(conn, "select to_regclass('value') is not null").await? {
            return Ok(None);
        }
        let session: &mut PgSession = conn;
        let last = "select n from value order by at desc limit 1";
        sqlx::query_scalar(last).fetch_optional(session).await.map_err(|error| error.to_string())
    }

    async fn echo(&self, conn: &mut PgConn, number: i64) -> Result<i64, String> {
        let session: &mut PgSession = conn;
        let echo = sqlx::query_scalar("select $1").bind(number);
        echo.fetch_one(session).await.map_err(|error| error.to_string())
    }

    async fn sessions(&self) -> Result<usize, Cannot> {
        Ok(self.pids().await?.len())
    }

    async fn end_session(&self, conn: &mut PgConn) -> Result<(), Cannot> {
        let pid = conn.backend_pid();
        let end = format!("select pg_terminate_backend({pid})");
        let ended = self.execute_outside(&end).await;
        ended.map_err(|_| Cannot("the server does not end sessions for this role"))?;
        let gone = || async { self.pids().await.is_ok_and(|pids| !pids.contains(&pid)) };
        let seen = eventually("the session being gone", Duration::from_secs(10), gone).await;
        seen.map_err(|_| Cannot("the server did not end a session in ten seconds"))
    }

    fn ways(&self) -> &'static [&'static str] {
        &["an open transaction", "a changed setting", "a temporary table", "an advisory lock", "a channel"]
    }

    async fn leave(&self, conn: &mut PgConn, way: &'static str) -> Result<(), String> {
        let statement = match way {
            "an open transaction" => "begin; select 1",
            "a changed setting" => "set statement_timeout = 12345",
            "a temporary table" => "create temp table t (n int)",
            "an advisory lock" => "select pg_advisory_lock(7)",
            _ => "listen conformance",
        };
        let session: &mut PgSession = conn;
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut **session)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    }

    async fn is_left(&self, conn: &mut PgConn, way: &'static str) -> Result<bool, String> {
        let question = match way {
            "an open transaction" => "select now() <> statement_timestamp()",
            "a changed setting" => "select current_setting('statement_timeout') = '12345ms'",
            "a temporary table" => "select to_regclass('pg_temp.t') is not null",
            "an advisory lock" => {
                "select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())"
            }
            _ => "select exists (select from pg_listening_channels())",
        };
        self.is_so(conn, question).await
    }

    async fn slow_statement(&self, conn: &mut PgConn) -> Result<(), Cannot> {
        let session: &mut PgSession = conn;
        let _ = sqlx::query("select pg_sleep(60)").execute(session).await;
        Ok(())
    }

    fn tells_departed(&self) -> Result<(), Cannot> {
        Ok(())
    }
}
