//! Waiting for what is to come true, and asking a server from outside.

use std::time::Duration;

use pool_postgres::PostgresConfig;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use tokio::time::{Instant, sleep};

use crate::error::TestError;
use crate::server::{ServerError, TestServer};

const POLL_FIRST: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(50);

/// Waits until `condition` holds, asking again and again with growing pauses.
///
/// # Errors
/// [`TestError::Never`] with `what` when it does not come true within the limit.
///
/// # Cancel safety
/// Dropping the future ends the asking.
pub async fn eventually<F: Future<Output = bool>>(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> F,
) -> Result<(), TestError> {
    let deadline = Instant::now() + within;
    let mut pause = POLL_FIRST;
    while !condition().await {
        if Instant::now() >= deadline {
            return Err(TestError::Never { what: what.to_owned(), within });
        }
        sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
    Ok(())
}

/// The same for a condition that can be looked at without waiting.
///
/// # Errors
/// As [`eventually`].
///
/// # Cancel safety
/// Dropping the future ends the asking.
pub async fn wait_for_condition(
    what: &str,
    within: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<(), TestError> {
    eventually(what, within, || std::future::ready(condition())).await
}

/// How the server is reached that tests use: named by the environment, or the shared ephemeral one, which
/// lives as long as the returned hold.
///
/// # Errors
/// [`ServerError`], which says what to install or to set.
///
/// # Cancel safety
/// Dropping the future leaves a server that was started to its watchdog.
pub async fn test_database_config() -> Result<(TestServer, PostgresConfig), ServerError> {
    let obtained = tokio::task::spawn_blocking(TestServer::obtain).await;
    let server = obtained.map_err(|error| ServerError::from(std::io::Error::other(error)))??;
    let config = server.config().clone();
    Ok((server, config))
}

/// Waits until a database takes connections and answers a query.
///
/// # Errors
/// [`TestError::Never`] when it does not within the limit.
///
/// # Cancel safety
/// Dropping the future ends the asking.
pub async fn wait_for_database_ready(
    config: &PostgresConfig,
    database: &str,
    within: Duration,
) -> Result<(), TestError> {
    let what = format!("{} being ready", config.address(database));
    eventually(&what, within, || async { answers(config, database).await.is_ok() }).await
}

async fn answers(config: &PostgresConfig, database: &str) -> Result<(), sqlx::Error> {
    let mut conn = PgConnection::connect_with(&config.connect_options(database)).await?;
    sqlx::raw_sql("select 1").execute(&mut conn).await?;
    conn.close().await
}

/// Runs one statement over a connection of its own, outside of any pool.
///
/// # Errors
/// What sqlx says.
///
/// # Cancel safety
/// Dropping the future leaves open whether the statement took place.
pub async fn execute_outside(config: &PostgresConfig, database: &str, sql: &str) -> Result<(), sqlx::Error> {
    let mut conn = PgConnection::connect_with(&config.connect_options(database)).await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
    conn.close().await
}

/// Runs an operation, prints how long it took on a line that says `what`, and gives both back.
///
/// # Cancel safety
/// That of the operation.
pub async fn measure_operation_time<R>(what: &str, operation: impl Future<Output = R>) -> (Duration, R) {
    let began = std::time::Instant::now();
    let result = operation.await;
    let took = began.elapsed();
    crate::run::figure(what, took.as_secs_f64() * 1e3, "ms");
    (took, result)
}

/// The memory of this process that is in use now, in bytes; none where the system does not tell.
pub fn resident_memory_bytes() -> Option<u64> {
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        return Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024);
    }
    let pid = std::process::id().to_string();
    let told = std::process::Command::new("ps").args(["-o", "rss=", "-p", &pid]).output().ok()?;
    Some(String::from_utf8(told.stdout).ok()?.trim().parse::<u64>().ok()? * 1024)
}
