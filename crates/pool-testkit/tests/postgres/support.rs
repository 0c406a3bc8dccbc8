//! What several tests need.

use std::time::Duration;

use pool_postgres::{Limits, WorkspaceId};
use pool_testkit::TestPool;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

pub const SOON: Duration = Duration::from_secs(10);

/// Migrations with the numbers 1, 2 and so on.
pub fn migrator(statements: &[&'static str]) -> Migrator {
    let migration = |(number, sql): (i64, &&'static str)| {
        Migration::new(number, "a test".into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations((1..).zip(statements).map(migration).collect())
}

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
