//! What a caller is told whose time is over, by what it waited for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pool_postgres::{AcquireError, Stage, WorkspaceId};
use pool_testkit::{TestPool, eventually};
use sqlx::AssertSqlSafe;

use crate::support::{Outcome, SOON, backend_pid, database_of, error_of};

/// The two connections that `full` may have are held.
pub async fn the_ceiling_of_a_workspace_is_told(
    pool: &TestPool,
    full: &WorkspaceId,
    patience: Duration,
) -> Outcome {
    let began = Instant::now();
    let error = error_of(pool.acquire(full).await);
    let AcquireError::TimedOut { waiting_for, after, pressure, .. } = &error else { panic!("{error}") };
    assert_eq!(*waiting_for, Stage::WorkspaceCeiling);
    assert!(*after >= patience && began.elapsed() >= patience && *after < SOON, "{error}");
    assert_eq!((pressure.target_counted, pressure.target_limit, pressure.waiting), (2, 2, 1), "{error}");
    assert_eq!((pressure.in_use, pressure.counted, pressure.limit), (2, 2, 4), "{error}");
    let said = error.to_string();
    for part in ["workspace \"ws_0000\"", "at its ceiling", "2 of 4 in use", "here 2 of 2", "1 waiting"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    Ok(())
}

/// Met by three callers, one of them through an executor; the system share is not touched.
pub async fn the_budget_is_told(
    pool: &TestPool,
    one: &WorkspaceId,
    other: &WorkspaceId,
    patience: Duration,
) -> Outcome {
    let (db, system) = (pool.workspace(one), pool.system());
    let (first, second, third, answer) = tokio::join!(
        pool.acquire(one),
        pool.acquire(other),
        sqlx::query("select 1").execute(&db),
        sqlx::query_scalar::<_, i32>("select 1").fetch_one(&system),
    );
    assert_eq!(answer?, 1);
    let through_executor = error_of(third);
    assert!(matches!(through_executor, sqlx::Error::PoolTimedOut), "{through_executor}");
    let mut queue = BTreeSet::new();
    for error in [&error_of(first), &error_of(second)] {
        let AcquireError::TimedOut { waiting_for: Stage::Budget, pressure, after, .. } = error else {
            panic!("{error}")
        };
        assert!(*after >= patience, "{error}");
        assert_eq!((pressure.in_use, pressure.counted, pressure.limit), (4, 4, 4), "{error}");
        assert_eq!(pressure.target_counted, 0, "{error}");
        queue.insert(pressure.waiting);
    }
    let is_of_three = queue.is_subset(&BTreeSet::from([1, 2, 3]));
    assert!(queue.len() == 2 && is_of_three, "each tells how many waited, itself included: {queue:?}");
    assert_eq!(pool.stats().workspaces.waiting, 0, "who gave up leaves no trace");
    Ok(())
}

/// The server holds a login back while somebody renames the database.
pub async fn an_open_that_hangs_is_told_and_goes_on(
    pool: &TestPool,
    fine: &WorkspaceId,
    hung: &WorkspaceId,
) -> Outcome {
    let name = database_of(pool, hung)?;
    let mut renaming = pool.system().begin().await?;
    let rename = format!("alter database {name} rename to {name}_not");
    sqlx::query(AssertSqlSafe(rename)).execute(&mut renaming).await?;
    let db = pool.workspace(fine);
    let (told, served) = tokio::join!(pool.acquire(hung), backend_pid(&db));
    served?;
    let error = error_of(told);
    let AcquireError::TimedOut { waiting_for: Stage::Opening, pressure, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((pressure.target_counted, pressure.target_limit), (1, 2), "{error}");
    renaming.rollback().await?;
    let arrived = || async { pool.workspace(hung).counts().idle == 1 };
    eventually("the open going on without its caller", SOON, arrived).await?;
    let opened = pool.stats().workspaces.opened;
    backend_pid(&pool.workspace(hung)).await?;
    assert_eq!(pool.stats().workspaces.opened, opened, "its connection serves the next caller");
    Ok(())
}
