//! The ports: what the engine asks of a driver, a catalog and an observer, and what an application asks of the engine. An
//! adapter implements [`Driver`] and [`Catalog`]; an application may implement [`Observer`], and depends on, and mocks,
//! [`WorkspacePools`] and [`Workspaces`].

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{AcquireError, CatalogError, CloseError, DriverError, DriverErrorKind, Phase};
use crate::events::Event;
use crate::health::Health;
use crate::ids::{Target, WorkspaceId};
use crate::limits::Capacity;
use crate::naming::{DatabaseName, DatabaseNaming};
use crate::stats::PoolStats;

/// Where a connection goes: the target it will belong to, and that target's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The system database or a workspace.
    pub target: Target,
    /// The database to connect to.
    pub database: DatabaseName,
}

/// The state of a connection that came back, as far as can be told without asking the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Known clean: no transaction, no half-read result, no query running.
    Clean,
    /// Not known to be clean: to be recycled.
    Suspect,
    /// Broken: to be closed.
    Broken,
}

/// Opens, checks, cleans and closes the connections of one kind of server.
///
/// Every future may be dropped at any point; a connection whose future was dropped is inspected before
/// anybody else gets it.
pub trait Driver: Send + Sync + 'static {
    /// A live session with one database.
    type Connection: Send + 'static;
    /// What is needed to end a session from outside, while somebody else holds the connection. [`Infallible`](std::convert::Infallible) says that nobody
    /// can: leases that are held past the deadline of a close then stay counted until they come back.
    type Handle: Clone + Send + Sync + 'static;

    /// Opens a session. After the connect timeout those who wait are told, but the future is polled on, for up to thirty
    /// timeouts, since the server may count its session: let it end as soon as the server counts none. A server that is full
    /// for a moment is to be asked again inside.
    fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = Result<Self::Connection, DriverError>> + Send;

    /// Asks whether the session lives: one round trip. A session whose check was dropped is recycled if need be, and
    /// checked again before anybody gets it.
    fn check(&self, conn: &mut Self::Connection) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Whether a connection must be checked before its next use, however short it was idle: something that
    /// another one met has spoiled it. Synchronous; called for every lease.
    fn wants_check(&self, conn: &Self::Connection) -> bool {
        let _ = conn;
        false
    }

    /// Tells what is known of a connection that came back. Synchronous and without a round trip; called
    /// from `Drop`, perhaps outside a runtime.
    fn inspect(&self, conn: &mut Self::Connection) -> Condition;

    /// Makes a suspect connection clean: ends what still runs, reads what is half read, rolls back. An
    /// error means that it is to be closed.
    fn recycle(&self, conn: &mut Self::Connection) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Ends the session, whatever it is doing, and returns when the server no longer counts it.
    fn close(&self, conn: Self::Connection) -> impl Future<Output = ()> + Send;

    /// Where `endpoint` is, for errors: host, port and database; never a password.
    fn address(&self, endpoint: &Endpoint) -> String;

    /// What [`Driver::terminate`] needs to end this session; none, as by default, if it cannot be ended from outside.
    fn handle(&self, conn: &Self::Connection) -> Option<Self::Handle> {
        let _ = conn;
        None
    }

    /// Whether a session is to be replaced although it lives, such as one that began with a password that has been changed since.
    /// Synchronous; asked about every session with a handle, once a second: one that is idle is closed then, and one that is in use
    /// when it comes back. None is by default.
    fn is_outdated(&self, handle: &Self::Handle) -> bool {
        let _ = handle;
        false
    }

    /// Ends sessions from outside, and returns when the server no longer counts them: their slots are free then. An error
    /// says that some may live on, and so do the slots of all of them. The default, for drivers without handles, ends none.
    fn terminate(&self, handles: Vec<Self::Handle>) -> impl Future<Output = Result<(), DriverError>> + Send {
        let cannot = || {
            DriverError::new(Phase::Close, DriverErrorKind::Other, "sessions cannot be ended from outside")
        };
        std::future::ready(if handles.is_empty() { Ok(()) } else { Err(cannot()) })
    }

    /// Which of these sessions the server has ended, by their place in `handles`: one question about all of them, however
    /// many. Asked about idle connections, so that those that died do not count until somebody wants them. A driver that
    /// cannot tell says nothing of any of them, as the default does.
    fn departed(
        &self,
        handles: Vec<Self::Handle>,
    ) -> impl Future<Output = Result<Vec<usize>, DriverError>> + Send {
        drop(handles);
        std::future::ready(Ok(Vec::new()))
    }

    /// Whether the server as a whole answers: asked when something is seen that may be its fault, and again and again until
    /// it does, perhaps before the last answer has come. Must not depend on any one database. The number is another one when
    /// the server may have been started again meanwhile. A driver that cannot tell says that it answers, and always the
    /// same, as the default does.
    fn answers(&self) -> impl Future<Output = Result<u64, DriverError>> + Send {
        std::future::ready(Ok(0))
    }

    /// Whether the server lets a new session in, whatever its database: asked when an open was refused, for a wrong password
    /// is everybody's, and again until it does. An error says that it refuses everybody, or does not answer. A refusal that
    /// may be one database's is none. A driver that cannot tell says that it admits, as the default does.
    fn admits(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        std::future::ready(Ok(()))
    }

    /// How many connections the server can hold, and how many others have: neither those in `own` nor the driver's. A driver
    /// that cannot tell says nothing, as the default does.
    fn capacity(
        &self,
        own: Vec<Self::Handle>,
    ) -> impl Future<Output = Result<Option<Capacity>, DriverError>> + Send {
        drop(own);
        std::future::ready(Ok(None))
    }

    /// How many connections the driver keeps for its own use; they come out of the system share. None by default.
    fn control_connections(&self) -> u32 {
        0
    }

    /// How many more it has while it replaces them: a session that says nothing may still be counted when its successor
    /// begins. They are kept free in the system share, where that leaves a lease. None by default.
    fn control_reserve(&self) -> u32 {
        0
    }

    /// Ends the driver's own connections, after the last close. The driver is not used afterwards. Nothing by default.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// Names, creates, drops and finds workspaces' databases. `C` is what it is lent for each question: a connection of
/// [`Target::Catalog`], on which nobody else's statements ever ran, or `()` if it needs none ([`CatalogKind`]). What it learns is
/// remembered by its caller, not here. It may be asked about several workspaces at a time, and about one by several processes.
#[async_trait]
pub trait Catalog<C: Send>: DatabaseNaming {
    /// Creates the database of `workspace` unless it exists. Returns whether it was created. Safe to
    /// race with other processes.
    async fn ensure(&self, system: &mut C, workspace: &WorkspaceId) -> Result<bool, DriverError>;

    /// Drops the database of `workspace` if it exists, ending sessions that others still have there.
    /// Returns whether it existed.
    async fn drop(&self, system: &mut C, workspace: &WorkspaceId) -> Result<bool, DriverError>;

    /// Whether the database of `workspace` exists.
    async fn exists(&self, system: &mut C, workspace: &WorkspaceId) -> Result<bool, DriverError>;

    /// Which of `workspaces` have a database, in their order. Asked before a connection of another workspace is closed for
    /// one of them, for many at a time, so an adapter that can should answer in one round trip.
    async fn which_exist(
        &self,
        system: &mut C,
        workspaces: &[WorkspaceId],
    ) -> Result<Vec<bool>, DriverError> {
        let mut exist = Vec::with_capacity(workspaces.len());
        for workspace in workspaces {
            exist.push(self.exists(system, workspace).await?);
        }
        Ok(exist)
    }

    /// The workspaces that have a database, in no particular order.
    async fn list(&self, system: &mut C) -> Result<Vec<WorkspaceId>, DriverError>;
}

/// How a catalog is asked.
pub enum CatalogKind<C> {
    /// Over a connection to a system database, which is served from the system share of the budget.
    OverSystem {
        /// The database that the system pool connects to as well.
        system: DatabaseName,
        /// What is asked.
        catalog: Arc<dyn Catalog<C>>,
    },
    /// By itself. There is no system database and no system share: all of the budget is for workspaces.
    Alone(Arc<dyn Catalog<()>>),
}

impl<C: Send> CatalogKind<C> {
    /// The system database, if there is one.
    pub fn system(&self) -> Option<&DatabaseName> {
        match self {
            Self::OverSystem { system, .. } => Some(system),
            Self::Alone(_) => None,
        }
    }

    /// The database of `workspace`.
    pub fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
        match self {
            Self::OverSystem { catalog, .. } => catalog.database(workspace),
            Self::Alone(catalog) => catalog.database(workspace),
        }
    }
}

/// Is told what happens. Called outside the registry's lock, on whatever thread made it happen; must
/// neither block nor panic.
pub trait Observer: Send + Sync {
    /// `event` has happened.
    fn on(&self, event: &Event<'_>);
}

/// What an application that makes and removes workspaces depends on, and mocks in its unit tests.
#[async_trait]
pub trait Workspaces: Send + Sync {
    /// Creates the database of `workspace` unless it exists.
    async fn ensure_workspace(&self, workspace: &WorkspaceId) -> Result<(), CatalogError>;

    /// Closes the connections of `workspace` and drops its database. Returns whether there was one.
    async fn drop_workspace(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError>;

    /// Whether `workspace` has a database.
    async fn workspace_exists(&self, workspace: &WorkspaceId) -> Result<bool, CatalogError>;

    /// The workspaces that have a database, in no particular order.
    async fn list_workspaces(&self) -> Result<Vec<WorkspaceId>, CatalogError>;
}

/// What an application that works with workspaces' databases depends on, and mocks in its unit tests.
#[async_trait]
pub trait WorkspacePools: Send + Sync {
    /// A connection to one workspace's database, given back when dropped.
    type Lease: Send;

    /// A lease on a connection to `workspace`'s database.
    async fn acquire(&self, workspace: &WorkspaceId) -> Result<Self::Lease, AcquireError>;

    /// Closes all connections of `workspace`, waiting for those in use.
    async fn close_workspace(&self, workspace: &WorkspaceId) -> Result<(), CloseError>;

    /// Closes everything for good, waiting for what is in use. Idempotent.
    async fn close(&self) -> Result<(), CloseError>;

    /// A consistent snapshot.
    fn stats(&self) -> PoolStats;

    /// Whether callers can be served, as far as is known without a question to the server. Costs what `stats` costs.
    fn health(&self) -> Health;
}
