//! What several suites need: a result that says why, and questions asked through a pool.

use std::error::Error;

use pool_postgres::PgWorkspacePool;

/// A case fails with whatever went wrong.
pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// The database that a query through `db` really runs in.
pub async fn current_database(db: &PgWorkspacePool) -> sqlx::Result<String> {
    sqlx::query_scalar("select current_database()::text").fetch_one(db).await
}

/// The backend that serves a query through `db`.
pub async fn backend_pid(db: &PgWorkspacePool) -> sqlx::Result<i32> {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(db).await
}
