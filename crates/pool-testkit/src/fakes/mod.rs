//! Fakes: whole implementations of the ports, in memory and driven by a script. They behave like the real
//! adapter as far as the ports promise, and a test decides what goes wrong, and when. For interactions use
//! the mocks of `pool_core::mock`.
//!
//! ```
//! use pool_core::{Limits, WorkspaceId};
//! use pool_testkit::fakes::FakeServer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let server = FakeServer::new();
//! let manager = server.manager(Limits::new(10), |_| ())?;
//! let acme = WorkspaceId::new("acme")?;
//! manager.ensure_workspace(&acme).await?;
//! let lease = manager.acquire(&acme).await?;
//! assert_eq!(server.sessions_of("fake_ws_acme"), 1);
//! drop(lease);
//! manager.close().await?;
//! assert_eq!(server.sessions(), 0);
//! # Ok(())
//! # }
//! ```

mod catalog;
mod driver;
mod manager;
mod server;

pub use catalog::FakeCatalog;
pub use driver::{FakeConn, FakeDriver};
pub use server::{FakeServer, Gate};
