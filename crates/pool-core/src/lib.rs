//! The core of a connection manager for products with one database per tenant: **count connections, not
//! pools**. One hard budget covers every connection to every workspace's database; a workspace is a key
//! and costs nothing while it has no connection. When the budget is spent, an idle connection of another
//! workspace is closed to make room; a connection in use is never taken. Slots are time: a connection serves
//! its workspace for a quantum, and the workspace that has had least slot-time for its weight is next.
//!
//! All policy is one synchronous state machine, the [`Registry`]: it is told what happened and answers
//! with what to do. There is no runtime, no driver, no clock and no lock in this crate. Debts that cannot
//! be cloned stand for every connection being opened, held or closed, so the count cannot drift.
//!
//! ```
//! use std::time::Instant;
//! use pool_core::{Acquire, Claim, Lru, Registry, RegistryConfig, Target, WorkspaceId};
//!
//! let now = Instant::now();
//! let mut registry = Registry::<&str>::new(RegistryConfig::new(1, 1), Box::new(Lru::default()));
//! let acme = Target::Workspace(WorkspaceId::new("acme")?);
//!
//! // Nothing is open yet: the caller queues, and an open is owed.
//! let Acquire::Queued(ticket, effects) = registry.acquire(&acme, now) else { unreachable!() };
//! let open = effects.opens.into_iter().next().expect("an open is owed");
//!
//! // The world has opened a connection: it is granted to the caller, who fetches it.
//! let (_, effects) = registry.opened(open, "a connection", (), None, now);
//! effects.wakes.wake();
//! let Claim::Leased(leased) = registry.claim(ticket, &mut None, now) else { unreachable!() };
//! assert_eq!(registry.stats().connections.in_use, 1);
//!
//! // It comes back and is idle, ready for the next caller.
//! let effects = registry.release(leased.debt, leased.conn, now);
//! assert!(effects.closes.is_empty());
//! assert_eq!(registry.stats().connections.idle, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The tour: `docs/contract.md` (the laws), [`token`] (the debts), [`registry`] (the machine and its
//! invariants), [`ports`] (what adapters implement).

mod budget;
pub mod error;
mod events;
mod health;
mod ids;
mod limits;
mod links;
mod lru;
#[cfg(feature = "mock")]
pub mod mock;
mod naming;
mod policy;
pub mod ports;
mod queued;
pub mod registry;
pub mod stats;
pub mod token;
mod view;

pub use error::{
    AcquireError, CatalogError, CloseError, DriverError, DriverErrorKind, LimitsError, NamingError, Phase,
    Pressure, Stage, WorkspaceIdError,
};
pub use events::{CloseReason, Event};
pub use health::Health;
pub use ids::{ConnectionId, Target, WORKSPACE_ID_BYTES_MAX, WorkspaceId};
pub use limits::{
    Capacity, Ceilings, Limits, OPENS_DEFAULT, PER_WORKSPACE_DEFAULT, WAITING_PER_WORKSPACE_DEFAULT,
};
pub use lru::Lru;
pub use naming::{DATABASE_NAME_BYTES_MAX, DatabaseName, DatabaseNaming, PREFIX_BYTES_MAX, PrefixNaming};
pub use policy::EvictionPolicy;
pub use ports::{Catalog, CatalogKind, Condition, Driver, Endpoint, Observer, WorkspacePools, Workspaces};
pub use queued::{Door, LastLook, QueuedAcquire};
pub use registry::{
    Acquire, Broken, CancelledWait, Claim, Registry, RegistryConfig, Terms, View, WorkspaceView,
};
pub use stats::{Answers, Counts, PoolStats, ShareStats, TargetStats, WorkspaceStats};
pub use token::{
    CloseDebt, CloseWork, Effects, EffectsDescription, LeaseDebt, Leased, LostOpen, OpenWork, Ticket, Wakes,
};
pub use view::{CallSite, LeaseView, OpenView, PoolView, WaitView};
