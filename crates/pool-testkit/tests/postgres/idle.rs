//! Connections that the server ends while nobody holds them.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pool_postgres::{Limits, WorkspaceId};
use pool_testkit::{TestPool, eventually, execute_outside};

use crate::support::SOON;

/// How soon the counts are to be equal again.
const LIMIT: Duration = Duration::from_secs(2);

/// Ends backends of `pool` from outside, all at once: those of its workspaces, or all.
async fn kill(pool: &TestPool, everything: bool) {
    let config = pool.config().clone().application_name("pk:outsider");
    let system = config.get_system_database().unwrap();
    let which = if everything { "" } else { "and datname <> current_database() " };
    let tag = pool.tag();
    let kill = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where starts_with(application_name, '{tag}') {which}"
    );
    execute_outside(&config, system.as_str(), &kill).await.unwrap();
}

/// Has `each` of `ids` that many idle connections.
async fn idle_connections(pool: &TestPool, ids: &[WorkspaceId], each: usize) {
    let wanted = ids.iter().cycle().take(ids.len() * each).map(|id| pool.acquire(id));
    drop(try_join_all(wanted).await.unwrap());
    let idle = || async { pool.stats().workspaces.connections.idle as usize == ids.len() * each };
    eventually("everything being idle", SOON, idle).await.unwrap();
}

/// Twice: the second time, the driver's own connection is among those that are ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_a_mass_kill_of_idle_connections_is_counted_within_two_seconds() {
    let limits = Limits::new(30).system(5).per_workspace(4);
    let pool = TestPool::builder().limits(limits).build().await.unwrap();
    let ids = pool.create_test_workspaces(5).await.unwrap();
    for everything in [false, true] {
        idle_connections(&pool, &ids, 4).await;
        eventually("everything being idle", SOON, || async {
            pool.stats().workspaces.connections.idle == 20
        })
        .await
        .unwrap();
        let acquired = pool.stats().workspaces.acquired;
        let began = Instant::now();
        kill(&pool, everything).await;
        let agreed = || async {
            let stats = pool.stats();
            let ours = stats.connections().total() + stats.control;
            let counted = pool.active_connection_count().await;
            stats.workspaces.connections.total() == 0 && counted.is_ok_and(|counted| counted == ours)
        };
        eventually("the server counting what the pool counts", SOON, agreed).await.unwrap();
        let took = began.elapsed();
        println!("20 idle connections ended; the counts were equal again after {took:?}");
        assert!(took <= LIMIT, "{took:?}");
        assert_eq!(pool.stats().workspaces.acquired, acquired, "nobody has asked for a connection");
    }
    pool.cleanup().await.unwrap();
}
