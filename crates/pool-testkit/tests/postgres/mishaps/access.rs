//! The ways a caller reaches a connection, as one executor: a kind of mishap is written once for all of them.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use pool_postgres::{PgLease, PgTransaction, PgWorkspacePool, acquire_error};
use sqlx::postgres::{PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection, Describe, Either, Error, Execute, Executor, Postgres, SqlStr};

use super::kinds::Kind;
use super::ways::{Fault, Pace};

/// How a caller reaches its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `&mut lease`: the adapter sees each statement.
    Lease,
    /// `&db`: a lease for each statement.
    Handle,
    /// `&mut tx` of `db.begin()`, ended like this when all went well.
    Transaction(End),
    /// `&mut **lease`: nobody sees the statements.
    Raw,
    /// `&mut **tx` of `db.begin()`, committed.
    RawInTransaction,
    /// sqlx's own transaction on a lease, ended like this when all went well.
    SqlxTransaction(End),
}

/// How a transaction ends; one that sqlx cannot follow, of its own or behind raw access, is dropped if anything has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Commit,
    Rollback,
    Drop,
}

impl Route {
    /// Whether the mishap stands in a transaction.
    pub fn is_in_transaction(self) -> bool {
        matches!(self, Self::Transaction(_) | Self::RawInTransaction | Self::SqlxTransaction(_))
    }

    /// Has the kind of mishap happen over this route; whatever it leaves is left.
    pub async fn walk(
        self,
        db: &PgWorkspacePool,
        kind: Kind,
        fault: Fault,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        if self == Self::Handle {
            return kind.happen(Access::Handle(db), fault, pace).await;
        }
        if let Self::Transaction(_) | Self::RawInTransaction = self {
            return self.walk_in_transaction(db, kind, fault, pace).await;
        }
        let mut lease = db.acquire().await.map_err(|error| Error::Configuration(error.into()))?;
        match self {
            Self::Lease => kind.happen(Access::Lease(&mut lease), fault, pace).await,
            Self::SqlxTransaction(end) => {
                let mut tx = lease.begin().await?;
                kind.happen(Access::Raw(&mut tx), fault, pace).await?;
                match end {
                    End::Commit => tx.commit().await,
                    End::Rollback => tx.rollback().await,
                    End::Drop => Ok(()),
                }
            }
            _ => kind.happen(Access::Raw(&mut lease), fault, pace).await,
        }
    }

    async fn walk_in_transaction(
        self,
        db: &PgWorkspacePool,
        kind: Kind,
        fault: Fault,
        pace: &Pace<'_>,
    ) -> Result<(), Error> {
        let mut tx = db.begin().await?;
        let (access, end) = match self {
            Self::Transaction(end) => (Access::Transaction(&mut tx), end),
            _ => (Access::Raw(&mut tx), End::Commit),
        };
        let outcome = kind.happen(access, fault, pace).await;
        if outcome.is_err() && self == Self::RawInTransaction {
            return outcome;
        }
        let ended = match end {
            End::Commit => tx.commit().await,
            End::Rollback => tx.rollback().await,
            End::Drop => Ok(()),
        };
        outcome.and(ended)
    }
}

/// Whether the pool gave no connection, so that the mishap had nothing to happen to.
pub fn had_no_connection(error: &Error) -> bool {
    let is_told = matches!(error, Error::PoolTimedOut | Error::PoolClosed | Error::Configuration(_));
    is_told || acquire_error(error).is_some()
}

/// A connection, reached over one of the routes.
#[derive(Debug)]
pub enum Access<'a> {
    Lease(&'a mut PgLease),
    Handle(&'a PgWorkspacePool),
    Transaction(&'a mut PgTransaction),
    Raw(&'a mut PgConnection),
}

impl Access<'_> {
    /// For one more statement.
    pub fn again(&mut self) -> Access<'_> {
        match self {
            Self::Lease(lease) => Access::Lease(lease),
            Self::Handle(db) => Access::Handle(db),
            Self::Transaction(tx) => Access::Transaction(tx),
            Self::Raw(conn) => Access::Raw(conn),
        }
    }

    /// sqlx's own connection, for what is no executor's to do.
    pub fn raw(&mut self) -> Result<&mut PgConnection, Error> {
        match self {
            Self::Lease(lease) => Ok(lease),
            Self::Handle(_) => Err(Error::Protocol("a handle has no connection of its own".into())),
            Self::Transaction(tx) => Ok(tx),
            Self::Raw(conn) => Ok(conn),
        }
    }
}

/// What a query gives, step by step.
pub type Step = Either<PgQueryResult, PgRow>;

/// The same call for each of them: their executors have no type in common.
macro_rules! for_each_access {
    ($access:expr, $executor:ident => $call:expr) => {
        match $access {
            Access::Lease($executor) => $call,
            Access::Handle($executor) => $call,
            Access::Transaction($executor) => $call,
            Access::Raw($executor) => $call,
        }
    };
}

impl<'c> Executor<'c> for Access<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        for_each_access!(self, executor => executor.fetch_many(query))
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        for_each_access!(self, executor => executor.fetch_optional(query))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        for_each_access!(self, executor => executor.prepare_with(sql, parameters))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        for_each_access!(self, executor => executor.describe(sql))
    }
}
