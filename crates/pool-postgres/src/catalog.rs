//! Databases of workspaces: created, dropped, found and listed, with statements over a system
//! connection. Names are quoted, ids travel as values; no id becomes part of a statement.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use pool_core::{Catalog, DatabaseName, DatabaseNaming, DriverError, DriverErrorKind, Phase, WorkspaceId};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Row};

use crate::catch_panics::catch_panics;
use crate::classify::driver_error;
use crate::config::PostgresConfig;
use crate::connection::PgConn;

/// What the comment on a workspace's database begins with; the id follows.
const COMMENT: &str = "workspace ";
/// Somebody else created it first: `duplicate_database`, or the unique index under it.
const EXISTS_ALREADY: [&str; 2] = ["42P04", "23505"];
const DATABASE_MISSING: &str = "3D000";
/// `insufficient_privilege`.
const MAY_NOT: &str = "42501";

/// Where a new workspace's database comes from.
#[async_trait]
pub trait DatabaseSource: Send + Sync {
    /// Makes the database `name`, which did not exist a moment ago, over a connection to the system
    /// database. An error with the state of a duplicate (42P04 or 23505) means that somebody else made it
    /// first, and is not one.
    async fn make(&self, system: &mut PgConnection, name: &DatabaseName) -> Result<(), Error>;
}

/// A copy of a template: the one given, or the server's `template1`.
#[derive(Clone, Debug, Default)]
pub struct Template(
    /// The database to copy; nobody may be connected to it.
    pub Option<DatabaseName>,
);

#[async_trait]
impl DatabaseSource for Template {
    async fn make(&self, system: &mut PgConnection, name: &DatabaseName) -> Result<(), Error> {
        let template = self.0.as_ref().map(|from| format!(" template {}", from.quoted()));
        let create = format!("create database {}{}", name.quoted(), template.unwrap_or_default());
        sqlx::raw_sql(AssertSqlSafe(create)).execute(system).await?;
        Ok(())
    }
}

/// The catalog of one server's workspaces.
pub struct PgCatalog {
    config: PostgresConfig,
    naming: Arc<dyn DatabaseNaming>,
    source: Arc<dyn DatabaseSource>,
}

impl PgCatalog {
    /// A catalog that names databases with `naming`, and gets new ones from `source`.
    pub fn new(
        config: PostgresConfig,
        naming: Arc<dyn DatabaseNaming>,
        source: Arc<dyn DatabaseSource>,
    ) -> Self {
        Self { config, naming, source }
    }

    async fn create(&self, conn: &mut PgConnection, workspace: &WorkspaceId) -> Result<bool, Error> {
        let name = self.naming.database(workspace);
        if find(conn, &name).await? {
            renote(conn, &name, workspace).await?;
            return Ok(false);
        }
        match self.source.make(&mut *conn, &name).await {
            Ok(()) => {
                note(conn, &name, workspace).await?;
                Ok(true)
            }
            Err(error) if has_state(&error, &EXISTS_ALREADY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, conn: &mut PgConnection, workspace: &WorkspaceId) -> Result<bool, Error> {
        let name = self.naming.database(workspace);
        if !find(conn, &name).await? {
            return Ok(false);
        }
        drop_database(conn, &name).await
    }

    /// The workspace that `database` belongs to, if it is one of ours: as its comment says, or as its
    /// readable name says; believed only if the naming scheme agrees.
    fn owner(&self, database: &str, comment: Option<&str>) -> Option<WorkspaceId> {
        let noted = comment.and_then(|comment| comment.strip_prefix(COMMENT));
        let readable = database.split_once("_ws_").map(|(_, id)| id);
        noted
            .into_iter()
            .chain(readable)
            .filter_map(|id| WorkspaceId::new(id).ok())
            .find(|id| self.naming.database(id).as_str() == database)
    }

    fn error(&self, error: Error, database: &str) -> DriverError {
        driver_error(error, Phase::Catalog, self.config.address(database))
    }
}

/// Drops a database and ends the sessions in it, over a connection to another one. False if there is none.
///
/// `WITH (FORCE)` ends all sessions or refuses (42501) if there is one that the role may not end; an autovacuum worker
/// is such a one, of no role at all. A plain `DROP DATABASE` sends those away by itself, so after a refusal the sessions
/// that the role may end are ended, and the rest is left to it. It waits up to 5 s for others to leave.
///
/// # Errors
/// The server's: 42501 if the database belongs to another role, and then no session was ended; 55006 if a session of
/// somebody else stays in it.
///
/// # Cancel safety
/// A statement that was sent goes on at the server; the connection must not be used again.
pub async fn drop_database(conn: &mut PgConnection, name: &DatabaseName) -> Result<bool, Error> {
    match order_drop(conn, name, " with (force)").await {
        Err(error) if has_state(&error, &[MAY_NOT]) => {
            end_own_sessions(conn, name).await?;
            order_drop(conn, name, "").await
        }
        outcome => outcome,
    }
}

async fn order_drop(conn: &mut PgConnection, name: &DatabaseName, how: &str) -> Result<bool, Error> {
    let drop = format!("drop database {}{how}", name.quoted());
    match sqlx::raw_sql(AssertSqlSafe(drop)).execute(conn).await {
        Ok(_) => Ok(true),
        Err(error) if has_state(&error, &[DATABASE_MISSING]) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends those sessions in a database of ours which this role may end.
async fn end_own_sessions(conn: &mut PgConnection, name: &DatabaseName) -> Result<(), Error> {
    let end = "select pg_catalog.pg_terminate_backend(a.pid) from pg_catalog.pg_stat_activity a \
               join pg_catalog.pg_database d on d.oid operator(pg_catalog.=) a.datid \
               where d.datname operator(pg_catalog.=) $1 and pg_catalog.pg_has_role(d.datdba, 'USAGE') \
               and pg_catalog.pg_has_role(a.usesysid, 'USAGE')";
    sqlx::query(end).bind(name.as_str()).execute(conn).await.map(drop)
}

pub(crate) async fn find(conn: &mut PgConnection, name: &DatabaseName) -> Result<bool, Error> {
    let exists = "select exists(select from pg_catalog.pg_database where datname operator(pg_catalog.=) $1)";
    sqlx::query_scalar(exists).bind(name.as_str()).fetch_one(conn).await
}

/// Notes the id on the database, so that it can be listed whatever its name. The server itself quotes it.
async fn note(conn: &mut PgConnection, name: &DatabaseName, workspace: &WorkspaceId) -> Result<(), Error> {
    let comment =
        "select pg_catalog.format('comment on database %I is %L', $1::pg_catalog.text, $2::pg_catalog.text)";
    let statement: String = sqlx::query_scalar(comment)
        .bind(name.as_str())
        .bind(format!("{COMMENT}{}", workspace.as_str()))
        .fetch_one(&mut *conn)
        .await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await?;
    Ok(())
}

/// Notes the id on a database that bears none: whoever created it was cut short. Somebody else's database
/// cannot be noted on, and is listed only if its name is readable.
async fn renote(conn: &mut PgConnection, name: &DatabaseName, workspace: &WorkspaceId) -> Result<(), Error> {
    let bare = "select pg_catalog.shobj_description(oid, 'pg_database') is null \
                and pg_catalog.pg_has_role(datdba, 'USAGE') \
                from pg_catalog.pg_database where datname operator(pg_catalog.=) $1";
    let is_bare: Option<bool> =
        sqlx::query_scalar(bare).bind(name.as_str()).fetch_optional(&mut *conn).await?;
    if is_bare == Some(true) { note(conn, name, workspace).await } else { Ok(()) }
}

fn has_state(error: &Error, states: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| states.contains(&code.as_ref()))
}

impl DatabaseNaming for PgCatalog {
    fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        self.naming.database(workspace)
    }
}

#[async_trait]
impl Catalog<PgConn> for PgCatalog {
    async fn ensure(&self, system: &mut PgConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let created = catch_panics(self.create(system.raw_mut(), workspace)).await;
        created.map_err(|error| {
            let mut error = self.error(error, self.naming.database(workspace).as_str());
            // What is missing is what it was to be a copy of, and not the workspace.
            if error.kind == DriverErrorKind::DatabaseMissing {
                error.kind = DriverErrorKind::Other;
            }
            error
        })
    }

    async fn drop(&self, system: &mut PgConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let dropped = catch_panics(self.remove(system.raw_mut(), workspace)).await;
        dropped.map_err(|error| self.error(error, self.naming.database(workspace).as_str()))
    }

    async fn exists(&self, system: &mut PgConn, workspace: &WorkspaceId) -> Result<bool, DriverError> {
        let name = self.naming.database(workspace);
        let (conn, statement) = system.begin_statement();
        statement
            .ended(catch_panics(find(conn, &name)).await)
            .map_err(|error| self.error(error, name.as_str()))
    }

    async fn which_exist(
        &self,
        system: &mut PgConn,
        workspaces: &[WorkspaceId],
    ) -> Result<Vec<bool>, DriverError> {
        let names: Vec<DatabaseName> = workspaces.iter().map(|id| self.naming.database(id)).collect();
        let asked: Vec<&str> = names.iter().map(DatabaseName::as_str).collect();
        let existing = "select datname::pg_catalog.text from pg_catalog.pg_database \
                        where datname operator(pg_catalog.=) any ($1::pg_catalog.name[])";
        let (conn, statement) = system.begin_statement();
        let found = sqlx::query_scalar::<_, String>(existing).bind(asked).fetch_all(conn);
        let found = statement.ended(catch_panics(found).await).map_err(|error| self.error(error, "*"))?;
        let found: HashSet<String> = found.into_iter().collect();
        Ok(names.iter().map(|name| found.contains(name.as_str())).collect())
    }

    async fn list(&self, system: &mut PgConn) -> Result<Vec<WorkspaceId>, DriverError> {
        let all = "select datname::pg_catalog.text, pg_catalog.shobj_description(oid, 'pg_database') \
                   from pg_catalog.pg_database where not datistemplate";
        let (conn, statement) = system.begin_statement();
        let rows = statement.ended(catch_panics(sqlx::query(all).fetch_all(conn)).await);
        let rows = rows.map_err(|error| self.error(error, "*"))?;
        Ok(rows
            .iter()
            .filter_map(|row| {
                let (name, comment): (String, Option<String>) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
                self.owner(&name, comment.as_deref())
            })
            .collect())
    }
}
