//! One bounded pool over many `PostgreSQL` databases, on sqlx.
//!
//! Access is **tracked** or **raw**. Statements through `&mut *lease`, `&mut lease`, `&mut *tx`, `&mut tx` and `&db` are tracked:
//! the pool sees them, and a connection that saw only plain ones (`SELECT`, `INSERT`, `UPDATE`, `DELETE`, `VALUES`, `WITH`)
//! goes to the next holder without a round trip. `&mut **lease`, `some_function_of_sqlx(&mut lease)` where that takes a
//! `&mut PgConnection`, and whatever [`sqlx::Acquire`] gives are raw: all of sqlx works there, and the connection is verified
//! and [reset](Reset) in the background when it comes back.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use pool_postgres::{Limits, PgPools, PostgresConfig, Terms, WorkspaceId};
//!
//! # async fn some_function_of_sqlx(_: &mut sqlx::PgConnection) -> sqlx::Result<()> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pools = PgPools::builder(PostgresConfig::from_env()?)      // DATABASE_URL, or PGHOST and its like
//!     .limits(Limits::new(90).per_workspace(10).system(9))       // hard ceilings, in connections
//!     .acquire_timeout(Duration::from_secs(5))
//!     .quantum(Duration::from_millis(50))                        // unless what six switches cost, as measured
//!     .build()
//!     .await?;
//!
//! let acme = WorkspaceId::new("acme")?;                          // validated; hostile ids are data, never SQL
//! pools.ensure_workspace(&acme).await?;                          // creates the database once, however many callers
//! let mut lease = pools.acquire(&acme).await?;
//! sqlx::query("insert into note values ($1)").bind(1).execute(&mut *lease).await?;  // tracked: known clean on return
//! some_function_of_sqlx(&mut lease).await?;                      // raw, a &mut PgConnection: verified and reset on return
//! drop(lease);                                                   // back to the pool, clean or closed
//!
//! let db = pools.workspace(&acme);                               // cheap, Clone; &db is a sqlx Executor
//! let n: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&db).await?;
//! let mut tx = db.begin().await?;                                // owns its lease; rolled back on drop
//! sqlx::query("delete from note").execute(&mut *tx).await?;      // tracked
//! tx.commit().await?;
//! let tx = db.begin_with("begin isolation level serializable read only").await?;
//! tx.rollback().await?;
//!
//! let migrator = sqlx::migrate::Migrator::new(std::path::Path::new("migrations")).await?;
//! db.migrate(&migrator).await?;                                  // sqlx's; or every workspace, 8 at a time, within the budget:
//! let report = pools.migrate_all(&migrator, 8).await?;           // goes on past failures; once more is cheap
//! assert!(report.is_complete(), "{:?}", report.failures);        // new workspaces begin with them: `.migrations(…)` of the builder
//!
//! pools.acquire_within(&acme, Duration::from_millis(50)).await?; // with a time limit of its own
//! let idle = pools.try_acquire(&acme).await?;                    // what is idle, or nothing; nobody waits
//! pools.set_terms(&acme, Terms { weight: 3, ceiling: Some(20) })?; // its part where slots do not suffice
//! pools.set_limits(Limits::new(120).per_workspace(20).system(9))?; // while running; no lease is cut
//! # drop(idle);
//!
//! let stats = pools.stats();                                     // a consistent snapshot; sums agree
//! assert!(stats.connections().total() + stats.control <= stats.limit());
//! let of_acme = db.stats();                                      // its connections, its waiters, what callers were answered
//! assert!(of_acme.answers.acquired >= 2 && pools.workspace_stats().by_workspace.contains_key(&acme));
//! pools.close_workspace(&acme).await?;
//! pools.close().await?;                                          // graceful drain; idempotent
//! # Ok(())
//! # }
//! ```
//!
//! # Notifications
//! `LISTEN` on a lease would be undone when it comes back. [`pools.listener(&id)`](PgPools::listener) has a session of its own, in a place that
//! [`.listeners(n)`](PgPoolsBuilder::listeners) keeps in the budget. After a loss it begins another one, and counts that: what was sent meanwhile is
//! lost, so look for what there is to do whenever [`reconnects`](PgWorkspaceListener::reconnects) has grown.
//!
//! # Passwords that change
//! [`password_provider`](PostgresConfig::password_provider) is asked before each new session, so a rotation needs no restart: what is warm serves
//! on, and is replaced once a session has begun with the new password.
//!
//! # Beside sqlx's own pool
//! Errors come out of executors in the form that sqlx's users match ([`into_sqlx`]). `use sqlx::postgres::*` and
//! `use pool_postgres::*` go together but for one name: sqlx has an alias `PgTransaction` for its own transaction. Whoever names it
//! writes `use pool_postgres::PgTransaction;` for the one that [`db.begin()`](PgWorkspacePool::begin) gives, which comes before both globs.
//!
//! - `&mut lease` and `&mut tx` are a [`sqlx::Acquire`]: `Acquire::begin(&mut lease)` gives sqlx's own `Transaction`, for functions that take
//!   that. Its `commit` says nothing where a statement before it has failed and the server rolls back; [`PgTransaction`]'s is an error then.
//! - `&db` is one, too, for code that is generic over it, and for `migrator.run(&db)`; its `begin` is an error that names `db.begin()`.
//!   (In a future that must be `Send`, such code is given `&db`: with `&mut lease`, as with sqlx's own `&mut conn`, the compiler says
//!   "implementation of `Acquire` is not general enough".)
//! - `&mut **lease` is for what is generic over `C: Connection`; `PgAdvisoryLock` takes a lease or a transaction as it is.
//!
//! # Features
//! TLS is by rustls, under sqlx's names:
//!
//! - `tls-rustls-ring-webpki` (default): ring, and the authorities that Mozilla trusts, compiled in.
//! - `tls-rustls-ring-native-roots`: ring, and the authorities that the system trusts.
//! - `tls-rustls-aws-lc-rs`: AWS-LC, which needs a C compiler, and Mozilla's authorities.
//!
//! With several of them, also those that other crates ask sqlx for, ring comes before AWS-LC, and the system's authorities before Mozilla's; so
//! the last two want `default-features = false`. With none, no TLS is compiled: `sslmode=prefer`, the default, then means no
//! encryption, and `require` and above are an error when the pool is built ([`ConfigError::NoTls`]).
//!
//! `serde`: `serde::Serialize` for the statistics ([`PoolStats`], [`WorkspaceStats`] and what they hold).

mod catalog;
mod catch_panics;
mod classify;
mod config;
mod config_error;
mod connect;
mod connection;
mod control;
mod driver;
mod errors;
mod knock;
mod lease;
mod listener;
mod migrate;
mod password;
mod places;
mod plans;
mod pools;
mod raw_lease;
mod relay;
mod session;
mod statement;
mod tag;
mod templates;
mod tls;
mod tracked;
mod transaction;
mod url;
mod verify;
mod workspace_pool;

pub use catalog::{DatabaseSource, PgCatalog, Template, drop_database};
pub use config::{APPLICATION_NAME_DEFAULT, PREFIX_DEFAULT, PostgresConfig};
pub use config_error::ConfigError;
pub use connection::{PgConn, PgSession};
pub use driver::{PgDriver, PgHandle};
pub use errors::{BuildError, acquire_error, into_sqlx};
pub use lease::PgLease;
pub use listener::{ListenError, PgWorkspaceListener};
pub use migrate::MigrationReport;
pub use pool_core::{
    AcquireError, Answers, CallSite, CatalogError, CloseError, CloseReason, ConnectionId, Counts,
    DatabaseName, DatabaseNaming, DriverError, DriverErrorKind, Event, EvictionPolicy, Health, LeaseView,
    Limits, LimitsError, Lru, NamingError, Observer, OpenView, Phase, PoolStats, PoolView, PrefixNaming,
    Pressure, ShareStats, Stage, Target, TargetStats, Terms, WaitView, WorkspaceId, WorkspaceIdError,
    WorkspacePools, WorkspaceStats, Workspaces,
};
pub use pool_manager::{PolicyFactory, Settings, StartError};
pub use pools::{PgPools, PgPoolsBuilder};
pub use raw_lease::PgRawLease;
pub use session::{Reset, TargetRole};
pub use tag::{APPLICATION_NAME_MAX, without_tag};
pub use templates::{fingerprint, make_template};
pub use transaction::PgTransaction;
pub use workspace_pool::PgWorkspacePool;
