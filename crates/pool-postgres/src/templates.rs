//! Templates: databases that are made once, and copied for each new workspace. With a copy, a new workspace has all migrations
//! for the price of one `create database`, however many there are.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use pool_core::{DatabaseName, Driver as _, DriverError, DriverErrorKind, Endpoint, Phase, Target};
use sha2::{Digest as _, Sha256};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error};
use tokio::time::{sleep, timeout};

use crate::catalog::{DatabaseSource, drop_database, find};
use crate::catch_panics::catch_panics;
use crate::classify::driver_error;
use crate::config_error::ConfigError;
use crate::connection::PgConn;
use crate::driver::PgDriver;
use crate::errors::BuildError;

/// The class of the locks under which templates are made, each with the beginning of its name's hash.
const MAKING: i32 = 0x746d_706c;
/// The pause between two looks whether somebody else has made it. To wait for the lock at the server would leave a session there when the
/// client has gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a fingerprint is.
const FINGERPRINT_CHARS: usize = 16;
/// What ends the name of a template that is not whole yet.
const SITE: &str = "_new";

/// Makes the database `name` unless it exists, once however many ask: `source` creates it, and `fill` then fills it over its own connections,
/// and closes them. Nobody sees it before it is whole, and nobody can connect to it afterwards, so it can be copied at any time. Whoever
/// asks while somebody else makes it waits for that.
///
/// `system` is a connection to another database of the server, the same one for all who ask, whose role may create databases. The name has at
/// most 59 bytes.
///
/// # Errors
/// The server's, and those of `fill`: then the database is dropped, as far as the server lets it.
///
/// # Cancel safety
/// Dropping the future may leave a database `<name>_new`, which the next call removes, and an advisory lock of `system`: close `system` then.
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
    let site = site_of(name)?;
    while !find(system, name).await? {
        if !try_lock(system, name).await? {
            sleep(LOOK_EVERY).await;
            continue;
        }
        // Somebody else may have been faster.
        let made = match find(system, name).await {
            Ok(false) => make_alone(system, name, site, source, fill).await,
            found => found.map(drop).map_err(E::from),
        };
        let unlocked = unlock(system, name).await;
        made?;
        unlocked?;
        break;
    }
    Ok(())
}

/// Under the lock.
async fn make_alone<E, F>(
    system: &mut PgConnection,
    name: &DatabaseName,
    site: DatabaseName,
    source: &dyn DatabaseSource,
    fill: impl FnOnce(DatabaseName) -> F,
) -> Result<(), E>
where
    E: From<Error>,
    F: Future<Output = Result<(), E>>,
{
    // A maker that was cut short may have left it. We hold the lock, so nobody is using it.
    drop_database(system, &site).await?;
    let made = async {
        source.make(system, &site).await?;
        fill(site.clone()).await?;
        for change in ["with allow_connections false".to_owned(), format!("rename to {}", name.quoted())] {
            let change = format!("alter database {} {change}", site.quoted());
            sqlx::raw_sql(AssertSqlSafe(change)).execute(&mut *system).await?;
        }
        Ok(())
    };
    let made = made.await;
    if made.is_err()
        && let Err(error) = drop_database(system, &site).await
    {
        tracing::warn!(database = site.as_str(), %error, "a template that could not be made is left");
    }
    made
}

fn site_of(template: &DatabaseName) -> Result<DatabaseName, Error> {
    let name = format!("{}{SITE}", template.as_str());
    DatabaseName::new(name).map_err(|why| Error::Configuration(why.into()))
}

/// Whether this session alone may make the template from now on.
async fn try_lock(system: &mut PgConnection, name: &DatabaseName) -> Result<bool, Error> {
    let lock = sqlx::query_scalar("select pg_catalog.pg_try_advisory_lock($1, $2)");
    lock.bind(MAKING).bind(key(name)).fetch_one(system).await
}

async fn unlock(system: &mut PgConnection, name: &DatabaseName) -> Result<(), Error> {
    let unlock = sqlx::query("select pg_catalog.pg_advisory_unlock($1, $2)");
    unlock.bind(MAKING).bind(key(name)).execute(system).await.map(drop)
}

fn key(name: &DatabaseName) -> i32 {
    i32::from_be_bytes(Sha256::digest(name.as_str()).first_chunk().copied().unwrap_or_default())
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
        config.naming()?; // else the prefix may be too long for a name
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
    let run = async { migrator.run_direct(None, conn.raw_mut(), false).await.map_err(Failed::Migration) };
    let run = catch_panics(run).await;
    driver.close(conn).await;
    run
}

/// Drops the templates that begin with `stem`, but for the one with the fingerprint `own` and those that somebody is making. What makers
/// that were cut short have left goes, too. Over a connection as makers have it; says how many there were.
pub(crate) async fn drop_others(system: &mut PgConnection, stem: &str, own: &str) -> Result<usize, Error> {
    let all = "select datname::pg_catalog.text from pg_catalog.pg_database \
               where pg_catalog.starts_with(datname::pg_catalog.text, $1)";
    let all: Vec<String> = sqlx::query_scalar(all).bind(stem).fetch_all(&mut *system).await?;
    let mut dropped = 0;
    for name in &all {
        let (Some(print), Ok(database)) = (fingerprint_in(name, stem), DatabaseName::new(name)) else {
            continue;
        };
        let Ok(template) = DatabaseName::new(format!("{stem}{print}")) else { continue };
        if print == own || !try_lock(system, &template).await? {
            continue;
        }
        let gone = drop_database(system, &database).await;
        unlock(system, &template).await?;
        dropped += usize::from(gone?);
    }
    Ok(dropped)
}

/// The fingerprint in the name of a template, whole or not, that begins with `stem`.
fn fingerprint_in<'n>(name: &'n str, stem: &str) -> Option<&'n str> {
    let rest = name.strip_prefix(stem)?;
    let print = rest.strip_suffix(SITE).unwrap_or(rest);
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (print.len() == FINGERPRINT_CHARS && print.bytes().all(is_digit)).then_some(print)
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
            assert_eq!(fingerprint_in(&format!("stem{print}"), "stem"), Some(print.as_str()));
            assert!(!prints[..at].contains(print), "{prints:?}");
        }
        assert_eq!(prints[1], fingerprint(&migrator(&[(1, "select 1")])));
    }

    #[test]
    fn only_templates_are_taken_for_some() {
        assert_eq!(fingerprint_in("stem0123456789abcdef_new", "stem"), Some("0123456789abcdef"));
        for other in
            ["stem0123456789abcde", "stem0123456789abcdeg", "stem0123456789abcdef_old", "0123456789abcdef"]
        {
            assert_eq!(fingerprint_in(other, "stem"), None, "{other}");
        }
    }
}
