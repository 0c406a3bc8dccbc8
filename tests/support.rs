//! What several suites need: a result that says why, and questions asked through a pool.

use std::error::Error;

use pool_postgres::PgWorkspacePool;

/// A case fails with whatever went wrong.
pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Runs a case on a runtime with as many threads as `POOL_TEST_THREADS` says, or four; one means the
/// single-threaded one, which knows other races.
pub fn on_runtime(case: impl Future<Output = Outcome>) -> Outcome {
    let threads = std::env::var("POOL_TEST_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()?.block_on(case)
}

/// The database that a query through `db` really runs in.
pub async fn current_database(db: &PgWorkspacePool) -> sqlx::Result<String> {
    sqlx::query_scalar("select current_database()::text").fetch_one(db).await
}

/// The backend that serves a query through `db`.
pub async fn backend_pid(db: &PgWorkspacePool) -> sqlx::Result<i32> {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(db).await
}
