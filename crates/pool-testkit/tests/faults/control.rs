//! The pool's own connection to the server is slow, or dead.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use pool_postgres::{Limits, PgPools, WorkspaceId};
use pool_testkit::faults::{Link, Row};
use pool_testkit::server::config_of;
use pool_testkit::{eventually, execute_outside, wait_for_condition};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{
    Observed, Others, Outcome, PATIENT, SOON, World, behind_a_proxy, sessions_of, test_name,
};

const QUERIES: usize = 100;
/// What a message over the link takes, so that a question and its answer take twice as long.
const DELAY: Duration = Duration::from_millis(25);
/// The system's own database, in which the pool's own connection is.
const SYSTEM: &str = "postgres";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_a_hundred_queries_dropped_at_once_are_cancelled_together_over_a_slow_link() -> Outcome {
    let (server, proxy) = behind_a_proxy(&[("max_connections", "150")]).await?;
    let pools = PgPools::builder(
        config_of(server.address()).port(proxy.address().port()).application_name("cancels"),
    )
    .limits(Limits::new(120).system(5).per_workspace(110))
    .build()
    .await?;
    let busy = WorkspaceId::new("busy")?;
    pools.ensure_workspace(&busy).await?;
    let leases = try_join_all((0..QUERIES).map(|_| pools.acquire(&busy))).await?;
    let mut queries = JoinSet::new();
    for mut lease in leases {
        queries.spawn(async move { sqlx::query("select pg_sleep(600)").execute(&mut lease).await.map(drop) });
    }
    let mut outside =
        PgConnection::connect_with(&config_of(server.address()).connect_options(SYSTEM)).await?;
    let running =
        "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
    let mut are_running = 0_i64;
    while are_running < i64::try_from(QUERIES)? {
        are_running = sqlx::query_scalar(running).fetch_one(&mut outside).await?;
    }

    proxy.set(SYSTEM, Link::Slow(DELAY));
    let dropped = Instant::now();
    queries.shutdown().await;
    let is_idle = || pools.workspace(&busy).counts().idle == u32::try_from(QUERIES).unwrap_or(0);
    wait_for_condition("every connection being idle again", SOON, is_idle).await?;
    let recovery = dropped.elapsed();
    proxy.set(SYSTEM, Link::Up);
    assert_eq!(pools.stats().workspaces.closed, 0, "no connection is lost to it");
    assert!(
        recovery < 40 * DELAY,
        "a hundred questions one after the other take a hundred times {DELAY:?}: {recovery:?}"
    );

    let stats = pools.stats();
    let leaked =
        sessions_of(&server, "cancels").await? - i64::from(stats.connections().total() + stats.control);
    let (fault, law) =
        ("control link slow (25 ms a message), 100 queries dropped".to_owned(), "L1".to_owned());
    let (seen, others) = ("nothing".to_owned(), "nothing".to_owned());
    let row = Row { test: test_name()?, fault, law, seen, others, recovery, leaked };
    println!("{row}");
    assert_eq!(row.leaked, 0);
    pools.close().await?;
    Ok(row.leave()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o7_a_control_connection_that_is_lost_is_not_taken_for_the_server() -> Outcome {
    let world = World::proxied(PATIENT).await?;
    world.pools.close_workspace(&world.hit).await?;
    let bystander = world.watch();

    world.proxy().set(SYSTEM, Link::Lost);
    // A workspace that is opened, a connection that breaks and is replaced: nothing of it needs the control connection.
    world.back_at_once(Instant::now()).await?;
    let lease = world.lease().await?;
    execute_outside(
        &world.outsider(),
        SYSTEM,
        &format!("select pg_terminate_backend({})", lease.backend_pid()),
    )
    .await?;
    drop(lease);
    let since = Instant::now();
    let recovery = world.back_at_once(since).await?;
    world.proxy().set(SYSTEM, Link::Up);
    let is_served = || async { world.pools.list_workspaces().await.is_ok() };
    eventually("the system being served again", SOON, is_served).await?;
    let seen = "nothing; what the system pool is asked waits".into();
    world
        .finish(bystander, Others::Spared, Observed { fault: "control link dead", law: "O7", seen, recovery })
        .await
}

/// With every slot in use, the sessions of the system's database are lost without the server's learning of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_a_control_connection_that_says_nothing_is_replaced_within_the_budget() -> Outcome {
    let (server, proxy) = behind_a_proxy(&[]).await?;
    let pools = PgPools::builder(
        config_of(server.address()).port(proxy.address().port()).application_name("replaced"),
    )
    .limits(Limits::new(6).system(3).per_workspace(3))
    .build()
    .await?;
    let busy = WorkspaceId::new("busy")?;
    pools.ensure_workspace(&busy).await?;
    let mut leases = try_join_all((0..3).map(|_| pools.acquire(&busy))).await?;
    let system = pools.system();
    let mut leases_of_the_system =
        try_join_all((0..pools.stats().system.limit).map(|_| system.acquire())).await?;
    assert_eq!(pools.stats().limit(), 6);

    proxy.set(SYSTEM, Link::Lost);
    for lease in &mut leases_of_the_system {
        let unheard = sqlx::query("select 1").execute(lease);
        assert!(timeout(Duration::from_millis(100), unheard).await.is_err());
    }
    proxy.set(SYSTEM, Link::Up);
    let counted = tokio::spawn(async move {
        let mut outside =
            PgConnection::connect_with(&config_of(server.address()).connect_options(SYSTEM)).await?;
        let count = "select count(*) from pg_stat_activity where starts_with(application_name, 'replaced')";
        let mut most = 0_i64;
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            most = most.max(sqlx::query_scalar(count).fetch_one(&mut outside).await?);
        }
        Ok::<_, sqlx::Error>((server, most))
    });
    // The control connection is asked to cancel what was dropped.
    let mut running = leases.pop().ok_or("a lease")?;
    let query = sqlx::query("select pg_sleep(600)").execute(&mut running);
    assert!(timeout(Duration::from_millis(100), query).await.is_err());
    let lost = Instant::now();
    drop(running);
    leases.push(pools.acquire(&busy).await?);
    let recovery = lost.elapsed();
    let (server, most) = counted.await??;
    assert!(most <= 6, "the server counts {most} of 6");
    assert!(recovery < Duration::from_secs(2), "an answer that is late is not waited for: {recovery:?}");
    drop((leases, leases_of_the_system));
    let is_true = || async {
        let stats = pools.stats();
        let ours = i64::from(stats.connections().total() + stats.control);
        sessions_of(&server, "replaced").await.is_ok_and(|sessions| sessions == ours)
    };
    eventually("the server counting what the pool counts", SOON, is_true).await?;
    pools.close().await?;
    let leaked = sessions_of(&server, "replaced").await?;
    let (fault, law) = ("control connection silent, every slot in use".to_owned(), "B1".to_owned());
    let seen = "nothing; a query that is dropped costs its connection".to_owned();
    let row = Row { test: test_name()?, fault, law, seen, others: "nothing".to_owned(), recovery, leaked };
    println!("{row}");
    assert_eq!(row.leaked, 0);
    Ok(row.leave()?)
}
