//! A transaction that owns its lease. sqlx's own can only borrow a connection or own one of sqlx's pool.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::postgres::PgTransactionManager;
use sqlx::{Error, SqlStr};

// sqlx does not export the trait that counts transactions; see docs/decisions/0003.
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::connection::{PgSession, Wire};
use crate::lease::PgLease;
use crate::statement::begins_only;
use crate::verify::{self, With};

/// How long what was not seen to end may take before the end of its transaction is given up.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
const UNSETTLED: &str = "a statement of the transaction has not ended in time; the connection is closed and the \
                         transaction rolled back";

/// A transaction on a connection of its own; `&mut tx` and `&mut *tx` are executors whose statements are seen,
/// `&mut **tx` is the raw connection. Commit or roll back; dropped, it is rolled back in the background
/// before anybody else gets the connection.
///
/// `tx.begin()` of [`sqlx::Acquire`] begins a savepoint, in a transaction of sqlx's own type.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct PgTransaction {
    lease: PgLease,
    is_open: bool,
}

impl PgTransaction {
    pub(crate) async fn begin(lease: PgLease, statement: Option<SqlStr>) -> Result<Self, Error> {
        let mut tx = Self { lease, is_open: true };
        if let Some(statement) = &statement
            && !begins_only(statement.as_str())
        {
            tx.lease.conn().is_dirty_now();
        }
        tx.step(Boundary::Begin(statement)).await?;
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
            Boundary::Begin(statement) => PgTransactionManager::begin(conn.own(), statement).await?,
            Boundary::Commit => PgTransactionManager::commit(conn.own()).await?,
            Boundary::Rollback => PgTransactionManager::rollback(conn.own()).await?,
        }
        conn.set_wire(before);
        Ok(())
    }
}

enum Boundary {
    /// With this statement, or sqlx's.
    Begin(Option<SqlStr>),
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
    type Target = PgSession;

    fn deref(&self) -> &PgSession {
        &self.lease
    }
}

impl DerefMut for PgTransaction {
    fn deref_mut(&mut self) -> &mut PgSession {
        &mut self.lease
    }
}

impl fmt::Debug for PgTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgTransaction").field("lease", &self.lease).finish_non_exhaustive()
    }
}
