//! rstest fixtures: a test names what it needs as an argument, and gets it.
//!
//! ```
//! use pool_testkit::TestPool;
//! use pool_testkit::fixtures::test_pool;
//! use rstest::rstest;
//!
//! #[rstest]
//! #[tokio::test]
//! async fn my_case(#[future(awt)] test_pool: TestPool) {
//!     assert_eq!(test_pool.stats().connections().total(), 0);
//!     test_pool.cleanup().await.expect("nothing leaked");
//! }
//! ```

use rstest::fixture;

use crate::test_pool::TestPool;
use crate::test_pools::TestPools;

/// A pool of the test's own.
///
/// # Panics
/// When there is no server, with what to install or to set.
#[fixture]
pub async fn test_pool() -> TestPool {
    match TestPool::new().await {
        Ok(pool) => pool,
        Err(error) => panic!("no test pool: {error}"),
    }
}

/// Named pools, with room for two.
#[fixture]
pub fn test_pools() -> TestPools {
    TestPools::new()
}
