//! The simulator: a real registry in virtual time. Opens, closes and queries take what the [`World`] says they take on a
//! server; nothing else takes time. So an hour of load takes seconds, a figure does not depend on the machine, and the
//! same seed gives the same figures.
//!
//! What happens is a queue of events, ordered by their moment and then by their number. [`run`] takes them one by one,
//! tells the registry, performs the effects as the shell would, and measures from outside: the time that each
//! workspace's connections were counted for it, the time that they were leased, and how long callers waited. Every
//! step checks what an outsider can see (B1, B2, I2, the permits), and from time to time the registry checks itself.
//!
//! [`cases`] is the table of worlds with what is to be reached in each; [`Case::run`] judges one.
//!
//! ```
//! use pool_explore::simulate::{World, Workload, run};
//! use std::time::Duration;
//!
//! // Two callers on one warm connection, each query a millisecond.
//! let world = World {
//!     slots: 1,
//!     workspaces: 1,
//!     workload: Workload::Busy { callers: 2 },
//!     query: Duration::from_millis(1),
//!     jitter: 0.0,
//!     ..World::default()
//! };
//! let figures = run(&world)?;
//! assert_eq!(figures.connects, 0, "the one connection was opened before the measurement");
//! assert!(figures.goodput > 0.999);
//! # Ok::<(), pool_core::Broken>(())
//! ```

mod case;
mod cases;
mod drive;
mod figures;
mod goals;
mod meter;
mod queue;
mod run;
mod sweeps;
mod tasks;
mod world;

pub use case::{Case, Figure, Goal, Judged, Peer, Verdict};
pub use cases::cases;
pub use figures::{Figures, Waits};
pub use run::run;
pub use world::{Demand, Workload, World};
