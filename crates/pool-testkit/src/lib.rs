//! Tests of connection pools on a real server, in parallel, with nothing left behind.
//!
//! ```
//! use pool_testkit::{TestError, TestPool};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), TestError> {
//! let pool = TestPool::new().await?;                  // its own namespace, tag and ceiling
//! let ids = pool.create_test_workspaces(3).await?;
//! let db = pool.workspace(&ids[0]);
//! let one: i32 = sqlx::query_scalar("select 1").fetch_one(&db).await.expect("a live database");
//! assert_eq!(one, 1);
//! pool.cleanup().await?;                              // idempotent; also in Drop, also on panic
//! pool.verify_no_leaked_connections().await?;         // asks the server, counts only this pool's own
//! # Ok(())
//! # }
//! ```
//!
//! The server is the one that the environment names, or an ephemeral one from local binaries that all
//! test processes share (see [`server`]). The pools of all processes together never use more connections
//! than it allows: each waits for room first.

/// The README's examples, compiled.
#[cfg(all(doctest, feature = "postgres"))]
#[doc = include_str!("../../../README.md")]
mod readme {}

pub mod conformance;
#[cfg(feature = "postgres")]
mod error;
pub mod fakes;
#[cfg(feature = "postgres")]
pub mod faults;
#[cfg(feature = "postgres")]
pub mod fixtures;
#[cfg(feature = "postgres")]
mod helpers;
pub mod hostile;
#[cfg(feature = "postgres")]
mod janitor;
#[cfg(feature = "postgres")]
mod naming;
mod polls;
#[cfg(feature = "postgres")]
mod room;
#[cfg(feature = "postgres")]
pub mod run;
#[cfg(feature = "postgres")]
pub mod server;
#[cfg(feature = "postgres")]
mod template_stock;
#[cfg(feature = "postgres")]
mod templates;
#[cfg(feature = "postgres")]
mod test_env;
#[cfg(feature = "postgres")]
mod test_pool;
#[cfg(feature = "postgres")]
mod test_pools;

#[cfg(feature = "postgres")]
pub use error::{Session, TestError};
#[cfg(feature = "postgres")]
pub use helpers::{
    eventually, execute_outside, measure_operation_time, resident_memory_bytes, test_database_config,
    wait_for_condition, wait_for_database_ready,
};
pub use polls::poll_at_most;
#[cfg(feature = "postgres")]
pub use templates::Schema;
#[cfg(feature = "postgres")]
pub use test_pool::{LIMITS_DEFAULT, PoolMetrics, TestPool, TestPoolBuilder};
#[cfg(feature = "postgres")]
pub use test_pools::TestPools;
