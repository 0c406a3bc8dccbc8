//! Planted faults, built only with their features: what must be found is put where it must be found.

use std::mem;
use std::time::Duration;

use pool_testkit::TestPool;
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::support::Outcome;

/// Leaves a session in the middle of a statement, and a database, and passes. `cargo xtask test-pools --planted leak
/// --leak-check` names this case, the session with its statement, and the database.
#[tokio::test]
async fn leaks_a_session_and_a_database() -> Outcome {
    let pool = TestPool::new().await?;
    pool.create_test_workspaces(1).await?;
    // An idle session ends with its process; one in the middle of a statement does not notice.
    let options = pool.config().connect_options(&pool.databases().await?[0]);
    let mut session = PgConnection::connect_with(&options).await?;
    let asleep = tokio::spawn(async move {
        sqlx::raw_sql("select pg_sleep(60)").execute(&mut session).await?;
        session.close().await
    });
    while !pool.sessions().await?.iter().any(|session| session.last_query.contains("pg_sleep")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    mem::forget(asleep);
    mem::forget(pool); // its Drop would end the session and drop the database
    Ok(())
}
