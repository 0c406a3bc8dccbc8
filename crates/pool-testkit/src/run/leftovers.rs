//! What runs have left on a server, and who may take it away. Everything of a run carries its tag, and a pool
//! that lives holds a lock; so what is dead can be told from what lives, and from what is somebody else's.
//!
//! The order of the questions matters: first what there is, then who lives. A pool takes its lock before it
//! has a session or a database, so whatever was there and has no lock afterwards is dead.

use std::collections::BTreeSet;
use std::time::Duration;

use pool_core::DatabaseName;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error, Row};

use crate::naming::{RunId, Tag, run_of_database, serial_of_database};
use crate::server::{ServerError, TestServer};

/// The class of the advisory locks of living pools; the other half of the key is the pool's number.
pub(crate) const ALIVE_CLASS: i32 = 0x616c_6976;

/// A session on a server that carries the tag of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaggedConnection {
    /// The run.
    pub run: RunId,
    /// The suite of its test.
    pub suite: String,
    /// The case of its test, as [`in_tag`](super::in_tag) shortens it.
    pub case: String,
    /// The process id of its backend.
    pub pid: i32,
    /// Whether it is the connection of a pool's janitor, and not one of the pool.
    pub is_janitor: bool,
    /// Whether its pool lives: its process runs, and looks after what it has opened.
    pub lives: bool,
    /// The database it is connected to.
    pub database: String,
    /// What it is doing.
    pub state: String,
    /// How long ago it was opened.
    pub age: Duration,
    /// The last statement it ran.
    pub last_query: String,
    serial: i32,
}

/// What [`clean`] has removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Sessions that it ended.
    pub connections: Vec<TaggedConnection>,
    /// Databases that it dropped.
    pub databases: Vec<String>,
}

/// The sessions on a server that carry the tag of a run. Blocks.
///
/// # Errors
/// When the server cannot be asked.
pub fn connections(server: &TestServer) -> Result<Vec<TaggedConnection>, ServerError> {
    on(server, async |conn| tagged(conn).await)
}

/// Ends sessions, and tells which: those of one run, whether it lives or not, or those of all pools whose
/// process is gone. Sessions without a tag, and those of other users, are never touched. Blocks.
///
/// # Errors
/// When the server cannot be asked.
pub fn terminate(server: &TestServer, run: Option<&RunId>) -> Result<Vec<TaggedConnection>, ServerError> {
    let is_meant = |session: &TaggedConnection| match run {
        Some(run) => session.run == *run,
        None => !session.lives && !session.is_janitor,
    };
    on(server, async |conn| {
        let meant: Vec<_> = tagged(conn).await?.into_iter().filter(is_meant).collect();
        end(conn, &meant).await?;
        Ok(meant)
    })
}

/// Ends the sessions and drops the databases of pools whose process is gone. Never touches those of a pool
/// that lives. Blocks.
///
/// # Errors
/// When the server cannot be asked.
pub fn clean(server: &TestServer) -> Result<Cleaned, ServerError> {
    on(server, async |conn| {
        let dead: Vec<_> = tagged(conn).await?.into_iter().filter(|s| !s.lives && !s.is_janitor).collect();
        end(conn, &dead).await?;
        Ok(Cleaned { connections: dead, databases: reap_databases(conn).await? })
    })
}

fn on<R>(
    server: &TestServer,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<R, Error>,
) -> Result<R, ServerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = server.config().clone().application_name("pool-testkit");
    let options = config.connect_options(server.system_database());
    runtime.block_on(async {
        let mut conn = PgConnection::connect_with(&options).await?;
        let outcome = work(&mut conn).await?;
        conn.close().await?;
        Ok(outcome)
    })
}

async fn tagged(conn: &mut PgConnection) -> Result<Vec<TaggedConnection>, Error> {
    let rows = sqlx::query(
        "select pid, application_name, coalesce(datname, '')::text, coalesce(state, ''), coalesce(query, ''), \
             greatest(extract(epoch from clock_timestamp() - backend_start), 0)::float8 \
         from pg_stat_activity where application_name ~ '^p[tk]:[0-9a-z]{6}:' and usename = current_user \
         order by application_name, pid",
    )
    .fetch_all(&mut *conn)
    .await?;
    let living = living(conn).await?;
    let mut sessions = Vec::with_capacity(rows.len());
    for row in rows {
        let Some(Tag { is_janitor, run, serial, suite, case }) = Tag::parse(row.try_get(1)?) else {
            continue;
        };
        sessions.push(TaggedConnection {
            run,
            suite,
            case,
            pid: row.try_get(0)?,
            is_janitor,
            lives: living.contains(&serial),
            database: row.try_get(2)?,
            state: row.try_get(3)?,
            age: Duration::try_from_secs_f64(row.try_get(5)?).unwrap_or_default(),
            last_query: row.try_get(4)?,
            serial,
        });
    }
    Ok(sessions)
}

/// The numbers of the pools whose janitor holds its lock, in whichever database.
async fn living(conn: &mut PgConnection) -> Result<BTreeSet<i32>, Error> {
    let serials: Vec<i32> = sqlx::query_scalar(
        "select objid::bigint::int from pg_locks \
         where locktype = 'advisory' and objsubid = 2 and classid::bigint = $1 and granted",
    )
    .bind(i64::from(ALIVE_CLASS))
    .fetch_all(conn)
    .await?;
    Ok(serials.into_iter().collect())
}

/// Ends these sessions, if they are still those that were seen: a pid is used again.
async fn end(conn: &mut PgConnection, sessions: &[TaggedConnection]) -> Result<(), Error> {
    for session in sessions {
        let sign = format!("^p[tk]:{}:", session.run);
        let query = sqlx::query_scalar::<_, bool>(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and application_name ~ $2",
        );
        query.bind(session.pid).bind(sign).fetch_optional(&mut *conn).await?;
    }
    Ok(())
}

/// Drops the databases of pools whose janitor is gone: their processes were killed, or they leaked. Those of
/// a run under supervision are left to whoever looks after it, who counts them before they are dropped.
pub(crate) async fn reap_databases(conn: &mut PgConnection) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database where datname ~ '^t[0-9a-z]{6}_[0-9a-z]{7}_(ws|template)_' and pg_has_role(datdba, 'USAGE') order by 1",
    )
    .fetch_all(&mut *conn)
    .await?;
    if names.is_empty() {
        return Ok(names);
    }
    let supervised = supervised(conn).await?;
    let living = living(conn).await?;
    names.retain(|name| {
        let is_dead = serial_of_database(name).is_some_and(|serial| !living.contains(&serial));
        is_dead && !run_of_database(name).is_some_and(|run| supervised.contains(&run.to_string()))
    });
    let mut dropped = Vec::new();
    for name in names {
        // One that cannot be dropped is no reason not to test: it stays for those who can.
        match drop_database(conn, &name).await {
            Ok(()) => dropped.push(name),
            Err(error) => tracing::warn!(%error, name, "a database that a dead run left cannot be dropped"),
        }
    }
    Ok(dropped)
}

/// The runs that have a sampler: whoever has it finds and names what their pools have left.
async fn supervised(conn: &mut PgConnection) -> Result<BTreeSet<String>, Error> {
    let runs: Vec<String> = sqlx::query_scalar(
        "select substr(application_name, 4, 6) from pg_stat_activity where application_name ~ '^pk:[0-9a-z]{6}:sampler$'",
    )
    .fetch_all(conn)
    .await?;
    Ok(runs.into_iter().collect())
}

/// Drops a database if it is there, and ends whatever is connected to it.
pub(crate) async fn drop_database(conn: &mut PgConnection, name: &str) -> Result<(), Error> {
    let Ok(name) = DatabaseName::new(name) else { return Ok(()) };
    pool_postgres::drop_database(conn, &name).await.map(drop)
}
