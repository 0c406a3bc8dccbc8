//! Templates: databases that are made once, and copied for each new workspace. With a copy, a new workspace has all migrations
//! for the price of one `create database`, however many there are.

use std::borrow::Borrow;
use std::sync::Arc;

use pool_core::{DatabaseName, Driver as _, DriverError, DriverErrorKind, Endpoint, Phase, Target};
use sha2::{Digest as _, Sha256};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error};
use tokio::time::timeout;

use crate::catalog::{DatabaseSource, drop_database, find};
use crate::catch_panics::catch_panics;
use crate::classify::driver_error;
use crate::config_error::ConfigError;
use crate::connection::PgConn;
use crate::driver::PgDriver;
use crate::errors::BuildError;

/// The class of the locks under which templates are made, each with the beginning of its name's hash.
const MAKING: i32 = 0x706f_6f6c;
/// How long a fingerprint is.
const FINGERPRINT_CHARS: usize = 16;
/// What ends the name of a template that is not whole yet.
const SITE: &str = "_new";

/// Makes the database `name` unless it exists, once however many ask: `source` makes it, `fill` is to fill it, over connections of
/// its own that it closes. Nobody sees it before it is whole, and nobody can connect to it afterwards, so it can be copied at any time.
///
/// `system` is a connection to another database of the server, whose role may create databases.
///
/// # Errors
/// The server's, and those of `fill`: then nothing of the database is left.
///
/// # Cancel safety
/// Dropping the future may leave a database `<name>_new`, which the next call removes, and leaves `system` with an advisory lock: it is to be
/// closed.
pub async fn make_template<E, F>(
    system: &mut PgConnection,
    name: &DatabaseName,
    source: &dyn DatabaseSource,
    fill: impl FnOnce(DatabaseName) -> F,
) -> Result<(), E>
where
    E: From<Error>,
    F: Future<Output = Result<(), E>>,
{
    if find(system, name).await? {
        return Ok(());
    }
    let hash = Sha256::digest(name.as_str());
    let key = i32::from_be_bytes(hash.first_chunk().copied().unwrap_or_default());
    sqlx::query("select pg_catalog.pg_advisory_lock($1, $2)")
        .bind(MAKING)
        .bind(key)
        .execute(&mut *system)
        .await?;
    let made = make_alone(system, name, source, fill).await;
    let unlock = sqlx::query("select pg_catalog.pg_advisory_unlock($1, $2)").bind(MAKING).bind(key);
    let unlocked = unlock.execute(system).await;
    made?;
    unlocked?;
    Ok(())
}

/// Under the lock.
async fn make_alone<E, F>(
    system: &mut PgConnection,
    name: &DatabaseName,
    source: &dyn DatabaseSource,
    fill: impl FnOnce(DatabaseName) -> F,
) -> Result<(), E>
where
    E: From<Error>,
    F: Future<Output = Result<(), E>>,
{
    if find(system, name).await? {
        return Ok(());
    }
    let site = DatabaseName::new(format!("{}{SITE}", name.as_str()))
        .map_err(|why| Error::Configuration(why.into()))?;
    // Of somebody who was cut short: nobody else is at it now.
    drop_database(system, &site).await?;
    source.make(system, &site).await?;
    if let Err(error) = fill(site.clone()).await {
        drop_database(system, &site).await?;
        return Err(error);
    }
    let (old, new) = (site.quoted(), name.quoted());
    for statement in [
        format!("alter database {old} with allow_connections false"),
        format!("alter database {old} rename to {new}"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *system).await?;
    }
    Ok(())
}

/// What tells migrations apart: the first 64 bits of a SHA-256 over their numbers and checksums, in hexadecimal digits.
pub fn fingerprint(migrator: &Migrator) -> String {
    let mut hash = Sha256::new();
    for migration in migrator.iter() {
        hash.update(migration.version.to_be_bytes());
        hash.update(&migration.checksum);
    }
    format!("{:016x}", u64::from_be_bytes(hash.finalize().first_chunk().copied().unwrap_or_default()))
}

/// Migrations that new workspaces begin with, and the template that has them.
pub(crate) struct Migrations(pub(crate) Box<dyn Borrow<Migrator> + Send + Sync>);

/// Why there is no template.
enum Failed {
    Connect(DriverError),
    Server(Error),
    Migration(MigrateError),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

impl Migrations {
    /// The template; it is made if there is none, in sessions of the driver that are gone when this returns. There are two at a
    /// time at most.
    ///
    /// # Errors
    /// [`BuildError::Connect`] for what the server refuses, [`BuildError::Template`] for a migration that fails.
    pub(crate) async fn template(
        &self,
        driver: &PgDriver,
        source: &dyn DatabaseSource,
    ) -> Result<DatabaseName, BuildError> {
        let migrator = (*self.0).borrow();
        let config = driver.config();
        let name =
            DatabaseName::new(config.template_stem() + &fingerprint(migrator)).map_err(ConfigError::from)?;
        let system = Endpoint { target: Target::Catalog, database: config.get_system_database()? };
        let mut conn = connect(driver, &system).await.map_err(Arc::new)?;
        let made = make_template(conn.raw_mut(), &name, source, |site| migrated(driver, site, migrator));
        let made = Box::pin(catch_panics(made)).await;
        driver.close(conn).await;
        match made {
            Ok(()) => Ok(name),
            Err(Failed::Connect(error)) => Err(Arc::new(error).into()),
            Err(Failed::Server(error)) => {
                let address = config.address(name.as_str());
                Err(Arc::new(driver_error(error, Phase::Catalog, address)).into())
            }
            Err(Failed::Migration(source)) => {
                Err(BuildError::Template { database: name.as_str().to_owned(), source })
            }
        }
    }
}

/// A session, within the connect timeout.
async fn connect(driver: &PgDriver, endpoint: &Endpoint) -> Result<PgConn, DriverError> {
    let late = || DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, driver.address(endpoint));
    let connected = timeout(driver.connect_timeout(), driver.connect(endpoint)).await;
    connected.unwrap_or_else(|_| Err(late()))
}

/// Applies all migrations to a database that nobody else uses.
async fn migrated(driver: &PgDriver, database: DatabaseName, migrator: &Migrator) -> Result<(), Failed> {
    // A session as callers get it, as for the migrations of a workspace.
    let site = Endpoint { target: Target::System, database };
    let mut conn = connect(driver, &site).await.map_err(Failed::Connect)?;
    let run = async { migrator.run_direct(None, conn.own(), false).await.map_err(Failed::Migration) };
    let run = catch_panics(run).await;
    driver.close(conn).await;
    run
}

/// Drops the templates that begin with `stem`, but for the one with the fingerprint `own` and those that are being made, over a
/// connection to another database.
/// Says how many there were.
pub(crate) async fn drop_others(system: &mut PgConnection, stem: &str, own: &str) -> Result<usize, Error> {
    let all = "select datname::pg_catalog.text from pg_catalog.pg_database \
               where pg_catalog.starts_with(datname::pg_catalog.text, $1)";
    let all: Vec<String> = sqlx::query_scalar(all).bind(stem).fetch_all(&mut *system).await?;
    let mut dropped = 0;
    let others = all.iter().filter(|name| is_template(name, stem) && !name.ends_with(own));
    for name in others.filter_map(|name| DatabaseName::new(name).ok()) {
        dropped += usize::from(drop_database(system, &name).await?);
    }
    Ok(dropped)
}

/// Whether a name is the stem and a fingerprint, as those of templates are that are whole.
fn is_template(name: &str, stem: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix(stem)
        .is_some_and(|print| print.len() == FINGERPRINT_CHARS && print.bytes().all(is_digit))
}

#[cfg(test)]
mod tests {
    use sqlx::SqlSafeStr as _;
    use sqlx::migrate::{Migration, MigrationType};

    use super::*;

    fn migrator(numbered: &[(i64, &'static str)]) -> Migrator {
        let migration = |(number, sql): &(i64, &'static str)| {
            Migration::new(*number, "a test".into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        Migrator::with_migrations(numbered.iter().map(migration).collect())
    }

    #[test]
    fn migrations_are_told_apart_by_their_numbers_and_texts() {
        let prints = [
            migrator(&[]),
            migrator(&[(1, "select 1")]),
            migrator(&[(2, "select 1")]),
            migrator(&[(1, "select 2")]),
            migrator(&[(1, "select 1"), (2, "select 2")]),
        ]
        .map(|migrator| fingerprint(&migrator));
        for (at, print) in prints.iter().enumerate() {
            assert!(is_template(&format!("stem{print}"), "stem"), "{print}");
            assert!(!prints[..at].contains(print), "{prints:?}");
        }
        assert_eq!(prints[1], fingerprint(&migrator(&[(1, "select 1")])));
    }

    #[test]
    fn only_whole_templates_are_taken_for_some() {
        for other in
            ["stem0123456789abcdef_new", "stem0123456789abcde", "stem0123456789abcdeg", "0123456789abcdef"]
        {
            assert!(!is_template(other, "stem"), "{other}");
        }
    }
}
