//! Ready-made databases. A schema is built once, into a template named by the hash of its text; copies of
//! the template are stocked ahead by the janitors; a test that asks for a workspace waits for a rename, not
//! for a copy. On a server that lives on, the last janitor to leave takes templates and stock away.

use std::sync::Arc;

use pool_core::DatabaseName;
use pool_postgres::{DatabaseSource as _, PostgresConfig, Template, fingerprint, make_template};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Error};
use tokio::time::{Duration, sleep};

use crate::run::drop_database;

/// What the names of all templates and stocked copies begin with.
const PREFIX: &str = "tk_";
/// Copies to have at hand, of each schema.
const STOCK: usize = 4;
/// The lock that every janitor shares while it lives.
const PRESENCE: (i32, i32) = (0x7072_6573, 0);
/// A database cannot be renamed while a session that has just left it is still counted.
const RENAME_TRIES: usize = 50;
const RENAME_PAUSE: Duration = Duration::from_millis(5);
const OBJECT_IN_USE: &str = "55006";

/// The tables, functions and rows that a workspace's database begins with.
///
/// ```
/// use pool_testkit::Schema;
///
/// let schema = Schema::new("create table note (id int primary key)");
/// assert_eq!(schema.hash(), Schema::new("create table note (id int primary key)").hash());
/// assert_ne!(schema.hash(), Schema::new("create table note (id bigint primary key)").hash());
/// ```
#[derive(Clone, Debug)]
pub struct Schema {
    made: Made,
    hash: u64,
}

/// What makes it.
#[derive(Clone, Debug)]
enum Made {
    Script(String),
    Migrations(Arc<Migrator>),
}

impl Schema {
    /// A schema made by these statements, as one script.
    pub fn new(sql: impl Into<String>) -> Self {
        let sql = sql.into();
        let hash = fnv1a(sql.as_bytes());
        Self { made: Made::Script(sql), hash }
    }

    /// The schema that these migrations make, so that tests begin where a workspace of the application does: `db.migrate` with the
    /// same ones then finds nothing to do.
    pub fn migrated(migrator: Migrator) -> Self {
        let hash = fnv1a(fingerprint(&migrator).as_bytes());
        Self { made: Made::Migrations(Arc::new(migrator)), hash }
    }

    /// What tells schemas apart: FNV-1a, 64 bits, of the text, or of the migrations' [`fingerprint`].
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn stem(&self) -> String {
        format!("{PREFIX}{:016x}_", self.hash)
    }

    fn template(&self) -> String {
        format!("{}template", self.stem())
    }

    fn fresh(&self, kind: char) -> String {
        format!("{}{kind}{:016x}", self.stem(), fastrand::u64(..))
    }
}

/// Not for secrets; the same in every process and for ever.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Builds the template of a schema, once however many ask.
pub(crate) async fn build(
    system: &mut PgConnection,
    config: &PostgresConfig,
    schema: &Schema,
) -> Result<(), Error> {
    let source = Template(Some(named("template0")?));
    make_template(system, &named(&schema.template())?, &source, async |site| {
        fill(config, schema, &site).await
    })
    .await
}

async fn fill(config: &PostgresConfig, schema: &Schema, site: &DatabaseName) -> Result<(), Error> {
    let mut conn = PgConnection::connect_with(&config.connect_options(site.as_str())).await?;
    let filled = match &schema.made {
        Made::Script(sql) => sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(&mut conn).await.map(drop),
        Made::Migrations(migrator) => migrator.run_direct(None, &mut conn, false).await.map_err(Error::from),
    };
    conn.close().await?;
    filled
}

/// Makes the database of this name: a stocked copy gets it, or a new copy is made. Says whether the stock has shrunk.
pub(crate) async fn make(system: &mut PgConnection, schema: &Schema, name: &str) -> Result<bool, Error> {
    let copies: Vec<String> = stocked(system, schema).await?;
    for copy in copies {
        if rename(system, &copy, name).await? {
            return Ok(true);
        }
    }
    copy(system, schema, name).await?;
    Ok(false)
}

/// Makes copies until there are as many as are to be at hand.
pub(crate) async fn refill(system: &mut PgConnection, schema: &Schema) -> Result<(), Error> {
    for _ in stocked(system, schema).await?.len()..STOCK {
        copy(system, schema, &schema.fresh('s')).await?;
    }
    Ok(())
}

/// Says that a janitor is there, until its session ends or [`leave`].
pub(crate) async fn arrive(system: &mut PgConnection) -> Result<(), Error> {
    lock("pg_advisory_lock_shared", system).await
}

/// Says that a janitor is gone; the last one takes everything stocked away. Its session ends next, and with
/// it whatever lock it holds.
pub(crate) async fn leave(system: &mut PgConnection) -> Result<(), Error> {
    lock("pg_advisory_unlock_shared", system).await?;
    let (class, key) = PRESENCE;
    // The locks of janitors that are connected to another database are seen, though not in the way.
    let alone: bool = sqlx::query_scalar(
        "select pg_try_advisory_lock($1, $2) and not exists(select from pg_locks where locktype = 'advisory' \
         and classid::bigint = $1::bigint and pid <> pg_backend_pid())",
    )
    .bind(class)
    .bind(key)
    .fetch_one(&mut *system)
    .await?;
    if alone {
        for name in names(system, PREFIX).await? {
            drop_database(system, &name).await?;
        }
    }
    Ok(())
}

async fn lock(how: &str, system: &mut PgConnection) -> Result<(), Error> {
    let (class, key) = PRESENCE;
    let sql = AssertSqlSafe(format!("select {how}({class}, {key})"));
    sqlx::raw_sql(sql).execute(system).await.map(drop)
}

async fn stocked(system: &mut PgConnection, schema: &Schema) -> Result<Vec<String>, Error> {
    names(system, &format!("{}s", schema.stem())).await
}

async fn names(system: &mut PgConnection, prefix: &str) -> Result<Vec<String>, Error> {
    let names = "select datname::pg_catalog.text from pg_catalog.pg_database \
                 where pg_catalog.starts_with(datname::pg_catalog.text, $1) \
                 order by pg_catalog.random() using operator(pg_catalog.<)";
    sqlx::query_scalar(names).bind(prefix).fetch_all(system).await
}

async fn copy(system: &mut PgConnection, schema: &Schema, name: &str) -> Result<(), Error> {
    Template(Some(named(&schema.template())?)).make(system, &named(name)?).await
}

/// Renames a database that nobody uses. False if it is not there any more.
async fn rename(system: &mut PgConnection, from: &str, to: &str) -> Result<bool, Error> {
    let rename = format!("alter database {} rename to {}", named(from)?.quoted(), named(to)?.quoted());
    for _ in 0..RENAME_TRIES {
        match sqlx::raw_sql(AssertSqlSafe(rename.as_str())).execute(&mut *system).await {
            Ok(_) => return Ok(true),
            Err(error) => {
                match error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() {
                    Some("3D000") => return Ok(false),
                    Some(OBJECT_IN_USE) => sleep(RENAME_PAUSE).await,
                    _ => return Err(error),
                }
            }
        }
    }
    Ok(false)
}

fn named(name: &str) -> Result<DatabaseName, Error> {
    DatabaseName::new(name).map_err(|error| Error::Configuration(error.into()))
}
