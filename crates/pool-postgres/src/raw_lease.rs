//! What generic code of sqlx gets from a handle.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_core::future::BoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{Acquire, Error, Postgres, Transaction};

use crate::errors::into_sqlx;
use crate::lease::PgLease;
use crate::workspace_pool::PgWorkspacePool;

const NO_BEGIN: &str = "a transaction of sqlx's own type cannot own a lease of this pool: use `db.begin()` of `PgWorkspacePool`, or \
                        `sqlx::Acquire::begin(&mut lease)`";

/// A lease that derefs straight to sqlx's connection, as [`sqlx::Acquire`] demands: whatever is done with it is raw access,
/// verified when it comes back.
#[must_use = "a lease that is dropped at once was not needed"]
pub struct PgRawLease {
    lease: PgLease,
}

impl From<PgLease> for PgRawLease {
    fn from(lease: PgLease) -> Self {
        Self { lease }
    }
}

impl Deref for PgRawLease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.lease
    }
}

impl DerefMut for PgRawLease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.lease
    }
}

impl AsMut<PgConnection> for PgRawLease {
    fn as_mut(&mut self) -> &mut PgConnection {
        self
    }
}

impl AsRef<PgConnection> for PgRawLease {
    fn as_ref(&self) -> &PgConnection {
        self
    }
}

impl fmt::Debug for PgRawLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PgRawLease").field(&self.lease).finish()
    }
}

/// For code that is generic over it: `acquire` gives a lease that is raw. `begin` always fails, with an error that says so: a
/// `sqlx::Transaction` can own a connection of sqlx's own pool, and of no other. `db.begin()` is this crate's, which owns its lease.
impl<'a> Acquire<'a> for &'_ PgWorkspacePool {
    type Database = Postgres;
    type Connection = PgRawLease;

    fn acquire(self) -> BoxFuture<'static, Result<PgRawLease, Error>> {
        let db = self.clone();
        Box::pin(async move { PgWorkspacePool::acquire(&db).await.map(PgRawLease::from).map_err(into_sqlx) })
    }

    fn begin(self) -> BoxFuture<'a, Result<Transaction<'a, Postgres>, Error>> {
        Box::pin(std::future::ready(Err(Error::Configuration(NO_BEGIN.into()))))
    }
}
