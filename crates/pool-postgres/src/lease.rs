//! A lease as sqlx users know a connection. Orphan rules want the type here, around the generic one.

use std::fmt;
use std::ops::{Deref, DerefMut};

use pool_core::Target;
use pool_manager::Lease;

use crate::connection::{PgConn, PgSession};
use crate::driver::PgDriver;

/// A connection to one workspace's database, given back when dropped, anywhere.
///
/// `&mut lease` and `&mut *lease` are sqlx `Executor`s that are tracked: statements are seen, and after plain ones
/// (`SELECT`, `INSERT`, `UPDATE`, `DELETE`, `VALUES`, `WITH`) the connection is known to be clean without a round trip.
/// `&mut **lease`, a lease given to a function that takes `&mut PgConnection`, and whatever is done by way of
/// [`sqlx::Acquire`] are raw access to sqlx's own connection, for whatever else sqlx can do; the connection is then
/// verified in the background when it comes back, an open transaction is rolled back, and the session
/// is [reset](crate::Reset). Prepared statements are kept. (A `&mut PgLease` has one `*` more in front: `&mut ***lease`.)
#[must_use = "a lease that is dropped at once was not needed"]
pub struct PgLease {
    lease: Lease<PgDriver>,
}

impl PgLease {
    pub(crate) fn new(lease: Lease<PgDriver>) -> Self {
        Self { lease }
    }

    /// Whose database this is connected to.
    pub fn target(&self) -> &Target {
        self.lease.target()
    }

    /// The process id of the backend that serves it.
    pub fn backend_pid(&self) -> i32 {
        self.lease.backend_pid()
    }

    /// Has the connection closed instead of used again, on purpose: other connections are not doubted for it.
    pub fn discard(self) {
        self.lease.discard();
    }

    /// The same, and returns when the server no longer counts the connection, or has not answered for 30 s.
    ///
    /// # Cancel safety
    /// The close goes on.
    pub async fn close(self) {
        self.lease.close().await;
    }

    pub(crate) fn conn(&mut self) -> &mut PgConn {
        &mut self.lease
    }
}

impl From<Lease<PgDriver>> for PgLease {
    fn from(lease: Lease<PgDriver>) -> Self {
        Self::new(lease)
    }
}

impl Deref for PgLease {
    type Target = PgSession;

    fn deref(&self) -> &PgSession {
        &*self.lease
    }
}

impl DerefMut for PgLease {
    fn deref_mut(&mut self) -> &mut PgSession {
        &mut *self.lease
    }
}

impl fmt::Debug for PgLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgLease")
            .field("target", self.target())
            .field("backend_pid", &self.backend_pid())
            .finish_non_exhaustive()
    }
}
