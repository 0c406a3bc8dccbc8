//! Finds, starts, shares and takes away a throwaway `PostgreSQL` server.
//!
//! Every test process of one user joins the same server. Nobody has to be the last to clean up: a small shell
//! script, the watchdog, starts the server and counts its users with a FIFO that each of them keeps open for
//! writing. The kernel closes a dead process's descriptors, so the count is right after SIGKILL, too.
//!
//! ```text
//! <temp>/pool-testkit-<uid>/        the base directory                                  base.rs
//!     lock                          taken to join, start or reap: one at a time
//!     current                       names the server to join; mode 0600                 record.rs
//!     srv-<random>/                 one server                                          start.rs
//!         fifo, holders             who uses it                                         hold.rs
//!         kept                      locked by the process that keeps it, if one does       kept.rs
//!         data/, log, settings.conf PostgreSQL's own
//!         watchdog.sh, watchdog.log starts the server, sees the last user go, ends it   watchdog.sh
//! ```
//!
//! A test that breaks its server has one of its own, [`DedicatedServer`], beside it in another `srv-` directory.
//!
//! A server whose watchdog is dead is an orphan; `reap.rs` removes it on the next occasion.

mod base;
mod binaries;
mod dedicated;
pub mod ephemeral;
mod error;
mod file_lock;
mod guarded;
mod hold;
mod kept;
mod owner;
mod postmaster;
mod reap;
mod record;
mod settings;
mod start;
mod test_server;

pub use binaries::{Binaries, Search};
pub use dedicated::{DedicatedServer, Stop};
pub use ephemeral::Ephemeral;
pub use error::ServerError;
pub use kept::{KeptMark, KeptServer, kept_server};
pub use reap::{Reaped, reap_orphans};
pub use test_server::TestServer;
