//! What several tests need.

use std::time::Duration;

use pool_postgres::{Limits, WorkspaceId};
use pool_testkit::TestPool;

pub const SOON: Duration = Duration::from_secs(10);

pub fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

/// A pool whose workspace `a` has exactly one connection, so that the next holder gets what the last
/// one left.
pub async fn one_connection() -> (TestPool, WorkspaceId) {
    let pool = TestPool::builder().limits(Limits::new(6).system(5).per_workspace(1)).build().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    (pool, a)
}
