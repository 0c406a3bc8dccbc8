//! A link that stalls for a moment, and callers who cannot wait that long for what is idle behind it.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use pool_postgres::{AcquireError, DatabaseNaming, Limits, PgPools, Stage};
use pool_testkit::eventually;
use pool_testkit::faults::{DedicatedServer, Link, Proxy};
use pool_testkit::server::config_of;

use crate::support::{SOON, id};

const STALL: Duration = Duration::from_millis(500);
const HURRY: Duration = Duration::from_millis(200);
const CONNECTIONS: u32 = 6;

/// What a caller in a hurry is told; nothing if it is served.
async fn hurry(pools: &PgPools) -> Option<AcquireError> {
    pools.acquire(&id("a")).await.err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_a_healthy_connection_outlives_a_check_that_meets_a_stalled_link() {
    let server = DedicatedServer::start().await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], server.address().port()).into()).await.unwrap();
    let pools = PgPools::builder(config_of(server.address()).port(proxy.address().port()))
        .limits(Limits::new(12).system(4).per_workspace(CONNECTIONS))
        .acquire_timeout(HURRY)
        .adjust(|settings| settings.check_after = Duration::ZERO)
        .build()
        .await
        .unwrap();
    let a = id("a");
    // On a busy machine the hurry may be too great for a first connect.
    eventually("the workspace", SOON, || async { pools.ensure_workspace(&a).await.is_ok() }).await.unwrap();
    let all = || async {
        let leases = try_join_all((0..CONNECTIONS).map(|_| pools.acquire(&a))).await;
        leases.is_ok_and(|leases| leases.len() == CONNECTIONS as usize)
    };
    eventually("all connections that the workspace may have", SOON, all).await.unwrap();
    let before = pools.stats().workspaces;

    let database = pools.config().naming().unwrap().database(&a);
    proxy.set(database.as_str(), Link::Dark);
    let began = Instant::now();
    let mut told = Vec::new();
    while began.elapsed() < STALL {
        told.extend(join_all((0..CONNECTIONS).map(|_| hurry(&pools))).await.into_iter().flatten());
    }
    proxy.set(database.as_str(), Link::Up);
    let checked =
        |error: &AcquireError| matches!(error, AcquireError::TimedOut { waiting_for: Stage::Check, .. });
    assert!(told.iter().filter(|error| checked(error)).count() >= CONNECTIONS as usize, "{told:?}");

    let idle = || async { pools.stats().workspaces.connections.idle == CONNECTIONS };
    eventually("the connections being idle again", SOON, idle).await.unwrap();
    let after = pools.stats().workspaces;
    println!("{CONNECTIONS} checks met a stall of {STALL:?}; {} closed", after.closed - before.closed);
    assert_eq!((after.opened, after.closed), (before.opened, before.closed), "healthy ones were closed");

    // Nothing of the unfinished checks is left on them: each answers its own question.
    let mut leases = try_join_all((0..CONNECTIONS).map(|_| pools.acquire(&a))).await.unwrap();
    for (n, lease) in (0..).zip(&mut leases) {
        let answer: i32 = sqlx::query_scalar("select $1").bind(n).fetch_one(lease).await.unwrap();
        assert_eq!(answer, n);
    }
    drop(leases);
    pools.close().await.unwrap();
}
