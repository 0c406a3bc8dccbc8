//! A transaction that owns its lease. sqlx's own can only borrow a connection or own one of sqlx's pool.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use sqlx::postgres::{PgConnection, PgRow, PgStatement, PgTransactionManager, PgTypeInfo};
use sqlx::{Describe, Error, Execute, Executor, Postgres, SqlStr};

// sqlx does not export the trait that counts transactions; see docs/decisions/0003.
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::connection::Wire;
use crate::lease::{PgLease, Step};
use crate::verify::{self, With};

/// How long what was not seen to end may take before the end of its transaction is given up.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
const UNSETTLED: &str = "a statement of the transaction has not ended in time; the connection is closed and the \
                         transaction rolled back";

/// A transaction on a connection of its own; `&mut tx` is an executor whose statements are seen,
/// `&mut *tx` the raw connection. Commit or roll back; dropped, it is rolled back in the background
/// before anybody else gets the connection.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PgTransaction {
    lease: PgLease,
    is_open: bool,
}

impl PgTransaction {
    pub(crate) async fn begin(lease: PgLease) -> Result<Self, Error> {
        let mut tx = Self { lease, is_open: true };
        tx.step(Boundary::Begin).await?;
        Ok(tx)
    }

    /// Commits. A transaction in which a statement has failed, or in which not everything was seen, is asked
    /// first whether it can be: the server would answer COMMIT with a rollback, and no error; and a COMMIT
    /// that reads another statement's answer would say nothing of its own.
    ///
    /// # Errors
    /// What the server says; the transaction is then rolled back in the background. Where a statement before ended in
    /// something that the server has not said (`Error::Protocol`, a panic), or has not ended after five more seconds, an
    /// `Error::Protocol` that says so: the connection is closed, and the transaction rolled back by it.
    ///
    /// # Cancel safety
    /// Dropping the future leaves open whether the commit took place.
    pub async fn commit(mut self) -> Result<(), Error> {
        self.lease.conn().may_send()?;
        if self.lease.conn().may_have_failed() {
            let asked = timeout(SETTLE_LIMIT, verify::ask(self.lease.conn(), With::default())).await;
            asked.unwrap_or_else(|_| Err(self.goes_astray()))?;
        }
        self.step(Boundary::Commit).await?;
        self.is_open = false;
        Ok(())
    }

    /// Rolls back, and waits for it.
    ///
    /// # Errors
    /// What the server says; and where [`commit`](Self::commit) would not be sent, the same `Error::Protocol`.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back in the background.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.lease.conn().may_send()?;
        if self.lease.conn().may_have_failed() {
            let rolled_back = timeout(SETTLE_LIMIT, self.step(Boundary::Rollback)).await;
            rolled_back.unwrap_or_else(|_| Err(self.goes_astray()))?;
        } else {
            self.step(Boundary::Rollback).await?;
        }
        self.is_open = false;
        Ok(())
    }

    fn goes_astray(&mut self) -> Error {
        self.lease.conn().set_wire(Wire::Astray);
        Error::Protocol(UNSETTLED.into())
    }

    /// Takes a step during which the connection counts as suspect, so that a step cut short is found.
    async fn step(&mut self, step: Boundary) -> Result<(), Error> {
        let conn = self.lease.conn();
        let before = conn.set_wire(Wire::Unsure);
        match step {
            Boundary::Begin => PgTransactionManager::begin(conn.own(), None).await?,
            Boundary::Commit => PgTransactionManager::commit(conn.own()).await?,
            Boundary::Rollback => PgTransactionManager::rollback(conn.own()).await?,
        }
        conn.set_wire(before);
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Boundary {
    Begin,
    Commit,
    Rollback,
}

impl Drop for PgTransaction {
    fn drop(&mut self) {
        if self.is_open {
            // Queues the ROLLBACK; the lease, dropped next, is seen to have it and sends it.
            PgTransactionManager::start_rollback(self.lease.conn().own());
        }
    }
}

impl Deref for PgTransaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.lease
    }
}

impl DerefMut for PgTransaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.lease
    }
}

impl fmt::Debug for PgTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgTransaction").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl<'t> Executor<'t> for &'t mut PgTransaction {
    type Database = Postgres;

    fn fetch_many<'e, 'q, E>(self, query: E) -> BoxStream<'e, Result<Step, Error>>
    where
        't: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        (&mut self.lease).fetch_many(query)
    }

    fn fetch_optional<'e, 'q, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        't: 'e,
        E: Execute<'q, Postgres>,
        'q: 'e,
        E: 'q,
    {
        (&mut self.lease).fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        't: 'e,
    {
        (&mut self.lease).prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        't: 'e,
    {
        (&mut self.lease).describe(sql)
    }
}
