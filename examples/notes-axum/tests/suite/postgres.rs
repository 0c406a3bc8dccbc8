//! Where there is no `PostgreSQL`, what needs it is skipped, and says so.

use pool_testkit::server::ServerError;
use pool_testkit::{TestError, TestPool, TestPoolBuilder};

/// A pool of one's own on the test server; none, with the reason printed, where there are no binaries to start one from.
pub async fn test_pool(builder: TestPoolBuilder) -> Option<TestPool> {
    match builder.build().await {
        Err(TestError::Server(error @ ServerError::NoBinaries { .. })) => {
            println!("skipped: {error}");
            None
        }
        pool => Some(pool.unwrap()),
    }
}
