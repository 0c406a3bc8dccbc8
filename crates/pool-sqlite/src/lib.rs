//! One bounded pool over many `SQLite` databases, one file for each workspace, on sqlx. No server, no TLS.
//!
//! ```
//! use pool_sqlite::{Limits, SqliteConfig, SqlitePools, WorkspaceId};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = std::env::temp_dir().join(format!("pool-sqlite-{}", std::process::id()));
//! let pools = SqlitePools::builder(SqliteConfig::new(&directory)) // WAL, foreign keys on, a busy timeout
//!     .limits(Limits::new(20).per_workspace(4))                  // connections of the process; each is a thread
//!     .build()
//!     .await?;
//!
//! let acme = WorkspaceId::new("acme")?;                          // no id leaves the directory
//! pools.ensure_workspace(&acme).await?;                          // makes the file once, however many callers
//! let db = pools.workspace(&acme);                               // cheap, Clone; &db is a sqlx Executor
//! sqlx::query("create table note (text)").execute(&db).await?;
//! let mut lease = pools.acquire(&acme).await?;
//! sqlx::query("insert into note values (?)").bind("hello").execute(&mut lease).await?; // seen: known clean on return
//! drop(lease);
//! let mut tx = db.begin().await?;                                // owns its lease; rolled back on drop
//! sqlx::query("delete from note").execute(&mut tx).await?;
//! tx.rollback().await?;
//! let mut reader = db.acquire_read_only().await?;                // beside the writer, and waits for it never
//! let notes: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&mut reader).await?;
//! assert_eq!(notes, 1);
//! drop(reader);
//! pools.drop_workspace(&acme).await?;                            // the file, its WAL and its shared memory
//! pools.close().await?;
//! # std::fs::remove_dir_all(directory)?;
//! # Ok(())
//! # }
//! ```
//!
//! A directory may be shared by several processes of one machine: databases are made and removed under a lock on a file in it, and
//! a connection whose file was removed or replaced is not handed out again.

mod catalog;
mod config;
mod connection;
mod driver;
mod errors;
mod files;
mod lease;
mod migrate;
mod pools;
mod statement;
mod transaction;
mod workspace_pool;

pub use catalog::SqliteCatalog;
pub use config::{PREFIX_DEFAULT, SqliteConfig};
pub use connection::{SqliteConn, SqliteSession};
pub use driver::SqliteDriver;
pub use errors::{BuildError, acquire_error, into_sqlx};
pub use lease::SqliteLease;
pub use migrate::MigrationReport;
pub use pool_core::{
    AcquireError, Answers, CallSite, CatalogError, CloseError, CloseReason, ConnectionId, Counts,
    DatabaseName, DatabaseNaming, DriverError, DriverErrorKind, Event, EvictionPolicy, Health, LeaseView,
    Limits, LimitsError, Lru, NamingError, Observer, OpenView, Phase, PoolStats, PoolView, PrefixNaming,
    Pressure, ShareStats, Stage, Target, TargetStats, Terms, WaitView, WorkspaceId, WorkspaceIdError,
    WorkspacePools, WorkspaceStats, Workspaces,
};
pub use pool_manager::{PolicyFactory, Settings, StartError};
pub use pools::{SqlitePools, SqlitePoolsBuilder};
pub use transaction::SqliteTransaction;
pub use workspace_pool::SqliteWorkspacePool;
