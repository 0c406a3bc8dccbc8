//! Hostile input, for tests of whatever takes workspace ids or configurations: proptest strategies that make
//! it, and the properties that must hold for each input.
//!
//! Who plugs in a [`DatabaseNaming`](pool_core::DatabaseNaming) of their own asks it the same as our tests ask
//! the default one:
//!
//! ```
//! use pool_core::{PrefixNaming, WorkspaceId};
//! use pool_testkit::hostile;
//!
//! let naming = PrefixNaming::new("shop")?;
//! hostile::runner(100, 7).run(&hostile::lookalikes(), |(one, other)| {
//!     let (Ok(one), Ok(other)) = (WorkspaceId::new(one), WorkspaceId::new(other)) else { return Ok(()) };
//!     assert_ne!(hostile::check_name(&naming, &one), hostile::check_name(&naming, &other));
//!     Ok(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod check;
#[cfg(feature = "postgres")]
mod configs;
#[cfg(feature = "hostile")]
mod ids;
mod nastiest;
#[cfg(feature = "hostile")]
mod passwords;

pub use check::{check_name, check_workspace_id};
#[cfg(feature = "postgres")]
pub use configs::{check_postgres_config, password_of};
#[cfg(feature = "hostile")]
pub use ids::{ids, lookalikes};
pub use nastiest::nastiest_ids;
#[cfg(feature = "hostile")]
pub use passwords::{passwords, percent_encoded};
#[cfg(feature = "hostile")]
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Runs a property over `cases` inputs that follow from `seed` alone, so that a failure can be replayed; give
/// it [`run::seed`](crate::run::seed). It leaves no files.
#[cfg(feature = "hostile")]
pub fn runner(cases: u32, seed: u64) -> TestRunner {
    TestRunner::new(Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    })
}
