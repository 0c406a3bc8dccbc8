//! What a holder leaves behind, and what befalls connections that nobody holds.

use std::time::Instant;

use pool_testkit::{execute_outside, wait_for_condition};
use sqlx::{Executor, Row as _};

use crate::support::{Observed, Others, Outcome, PATIENT, SOON, World, state_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_a_copy_that_was_dropped_half_way_answers_nobodys_question() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;
    lease.execute("create table copied (n int)").await?;
    let mut copy = lease.as_mut().copy_in_raw("copy copied from stdin").await?;
    copy.send(&b"1\n2\n"[..]).await?;
    drop(copy);
    drop(lease);

    let since = Instant::now();
    let recovery = world.back_at_once(since).await?;
    let rows: i64 = sqlx::query_scalar("select count(*) from copied")
        .fetch_one(&world.pools.workspace(&world.hit))
        .await?;
    assert_eq!(rows, 0, "nothing of it was kept");
    let seen = "nothing; the connection may be closed".into();
    world
        .finish(
            bystander,
            Others::Spared,
            Observed { fault: "COPY dropped half-way", law: "L4", seen, recovery },
        )
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_settings_and_locks_that_a_holder_left_reach_nobody() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;
    let pid = lease.backend_pid();
    for left in [
        // Long enough for what the holder says next, and for the reset.
        "set statement_timeout = '1min'",
        "set search_path = nowhere",
        "listen something",
        "select pg_advisory_lock(7)",
    ] {
        lease.as_mut().execute(left).await?;
    }
    drop(lease);
    world.given_back().await?;

    let since = Instant::now();
    let mut next = world.pools.acquire(&world.hit).await?;
    let recovery = since.elapsed();
    assert_eq!(next.backend_pid(), pid, "the connection stays");
    let left = "select current_setting('statement_timeout') || ' ' || current_setting('search_path') || ' ' || \
                (select count(*) from pg_listening_channels()) || ' ' || \
                (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
    let row = sqlx::query(left).fetch_one(&mut next).await?;
    assert_eq!(row.try_get::<String, _>(0)?, "0 \"$user\", public 0 0");
    drop(next);
    let seen = "nothing; the connection stays".into();
    let fault = "settings, LISTEN and a lock left by a holder";
    world.finish(bystander, Others::Spared, Observed { fault, law: "L1", seen, recovery }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_a_migration_under_warm_connections_fails_one_holder() -> Outcome {
    const READ: &str = "select * from migrated";
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let outside = world.outsider();
    let database = world.database()?;
    execute_outside(&outside, &database, "create table migrated (n int)").await?;
    let (mut one, mut other) = (world.lease().await?, world.lease().await?);
    sqlx::query(READ).fetch_all(&mut one).await?;
    sqlx::query(READ).fetch_all(&mut other).await?;
    execute_outside(&outside, &database, "alter table migrated add column m int").await?;

    let told = sqlx::query(READ).fetch_all(&mut one).await.unwrap_err();
    assert_eq!(state_of(&told).as_deref(), Some("0A000"), "{told}");
    drop(one);
    drop(other);
    let since = Instant::now();
    for _ in 0..10 {
        sqlx::query(READ).fetch_all(&world.pools.workspace(&world.hit)).await?;
    }
    let seen = "statement: 0A000, to one holder".into();
    let fault = "migration under warm connections";
    world
        .finish(bystander, Others::Spared, Observed { fault, law: "L1", seen, recovery: since.elapsed() })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_connections_that_are_killed_while_idle_leave_the_count_without_an_acquire() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let leases = [world.lease().await?, world.lease().await?, world.lease().await?];
    let pids: Vec<String> = leases.iter().map(|lease| lease.backend_pid().to_string()).collect();
    drop(leases);
    let idle = || world.pools.workspace(&world.hit).counts().idle;
    wait_for_condition("the connections being back", SOON, || idle() == 3).await?;

    let since = Instant::now();
    world
        .order(&format!("select pg_terminate_backend(pid) from unnest(array[{}]) pid", pids.join(",")))
        .await?;
    wait_for_condition("the dead having left the count", SOON, || idle() == 0).await?;
    let recovery = since.elapsed();
    let seen = "nothing".into();
    let fault = "mass kill while idle (until the count is right)";
    world.finish(bystander, Others::Spared, Observed { fault, law: "S1", seen, recovery }).await
}
