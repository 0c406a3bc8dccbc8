//! Leases that are held past the deadline of a close.

use std::time::Duration;

use pool_postgres::{CloseError, Limits};
use pool_testkit::{TestPool, eventually};

use crate::support::{SOON, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_b2_a_lease_that_was_cut_holds_no_place_of_its_workspace() {
    let pool = TestPool::builder()
        .limits(Limits::new(6).system(5).per_workspace(1))
        .adjust(|builder| {
            builder
                .acquire_timeout(Duration::from_secs(5))
                .adjust(|settings| settings.close_timeout = Duration::from_millis(200))
        })
        .build()
        .await
        .unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let mut held = pool.acquire(&a).await.unwrap();
    let outcome = pool.close_workspace(&a).await;
    assert!(matches!(outcome, Err(CloseError::Cut { leases: 1, .. })), "{outcome:?}");
    let mut next = pool.acquire(&a).await.unwrap();
    sqlx::query("select 1").execute(&mut held).await.unwrap_err();
    drop(held);
    sqlx::query("select 1").execute(&mut next).await.unwrap();
    let counted = pool.stats().workspaces.connections;
    assert_eq!((counted.in_use, counted.total()), (1, 1));
    drop(next);
    let idle = || async { pool.stats().workspaces.connections.idle == 1 };
    eventually("the second lease being back", SOON, idle).await.unwrap();
    pool.cleanup().await.unwrap();
}
