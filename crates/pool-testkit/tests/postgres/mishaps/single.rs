//! Mishaps that have no place in the table: before the lease, with two leases, and on a system connection.

use std::time::Duration;

use pool_postgres::Limits;
use pool_testkit::{TestPool, eventually, run, wait_for_condition};
use sqlx::Executor;
use tokio::time::sleep;

use super::readers::reader;
use super::ways::drop_at;
use crate::support::{SOON, id, one_connection};

/// A connection idle for longer is checked before it is had.
const CHECKED_AFTER: Duration = Duration::from_millis(510);

#[tokio::test]
async fn l4_a_check_dropped_at_any_await_point_answers_nobodys_question() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    let mut dice = fastrand::Rng::with_seed(run::seed());
    let mut mishaps = 0;
    for when_woken in [false, true] {
        for polls in 0.. {
            db.acquire().await.unwrap().execute("select 1").await.unwrap();
            sleep(CHECKED_AFTER).await;
            let had = drop_at(polls, when_woken, db.acquire()).await;
            mishaps += 1;
            let is_done = had.is_some();
            drop(had);
            let answers = reader(&db, dice.fork()).await;
            assert!(answers.is_ok(), "dropped after {polls} polls, woken {when_woken}: {:?}", told(answers));
            if is_done {
                break;
            }
        }
    }
    println!("race: {mishaps} checks dropped");
    pool.cleanup().await.unwrap();
}

fn told(answers: Result<u64, (String, super::readers::Wrong)>) -> Option<String> {
    answers.err().map(|(shape, wrong)| format!("{shape}: {wrong}"))
}

#[tokio::test]
async fn l4_swapped_connections_answer_nobody_elses_question() {
    let pool = TestPool::builder().limits(Limits::new(9).system(5).per_workspace(2)).build().await.unwrap();
    let (a, b) = (id("a"), id("b"));
    for workspace in [&a, &b] {
        pool.ensure_workspace(workspace).await.unwrap();
    }
    for (one, other) in [(&a, &a), (&a, &b)] {
        let (mut one, mut other) = (pool.acquire(one).await.unwrap(), pool.acquire(other).await.unwrap());
        std::mem::swap(&mut **one, &mut **other);
        drop((one, other));
        for workspace in [&a, &b] {
            let name: String = sqlx::query_scalar("select current_database()::text")
                .fetch_one(&pool.workspace(workspace))
                .await
                .unwrap();
            assert_eq!(name, pool.database_of(workspace));
        }
    }
    pool.cleanup().await.unwrap();
}

/// What a holder of a system connection does to the pool's own questions about databases.
const IMPOSTURES: [&str; 3] = [
    // Temporary tables come before `pg_catalog`.
    "create temporary table pg_database as select oid, 'nobody'::name as datname, datdba, false as datistemplate \
     from pg_catalog.pg_database",
    "create function pg_temp.always(name, text) returns boolean language sql as 'select true'; \
     create operator pg_temp.= (leftarg = name, rightarg = text, function = pg_temp.always); \
     set search_path = pg_temp, pg_catalog",
    "begin; create temporary table pg_database (datname name)",
];

#[tokio::test]
async fn l4_a_holder_of_a_system_connection_does_not_answer_for_the_catalog() {
    let (pool, a) = one_connection().await;
    let is_quiet = || pool.stats().system.connections.in_use == 0;
    for imposture in IMPOSTURES {
        let mut lease = pool.system().acquire().await.unwrap();
        (**lease).execute(imposture).await.unwrap();
        drop(lease);
        // The connection used last is used next.
        wait_for_condition("the system connection being back", SOON, is_quiet).await.unwrap();
        assert!(!pool.workspace_exists(&id("nobody")).await.unwrap(), "{imposture}");
        assert!(pool.workspace_exists(&a).await.unwrap(), "{imposture}");
        assert!(pool.list_workspaces().await.unwrap().contains(&a), "{imposture}");
        let new = id("new");
        pool.ensure_workspace(&new).await.unwrap();
        assert!(pool.drop_workspace(&new).await.unwrap(), "{imposture}");
        pool.ensure_workspace(&a).await.unwrap();
    }
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l4_a_copy_left_on_a_system_connection_does_not_answer_for_the_catalog() {
    let (pool, a) = one_connection().await;
    for _ in 0..8 {
        let mut lease = pool.system().acquire().await.unwrap();
        (**lease).execute("create temporary table if not exists half (n int)").await.unwrap();
        drop((**lease).copy_in_raw("copy half from stdin").await.unwrap());
        drop(lease);
        eventually("the system connection being back", SOON, || async {
            pool.stats().system.connections.in_use == 0
        })
        .await
        .unwrap();
        assert!(!pool.workspace_exists(&id("nobody")).await.unwrap());
        assert!(pool.workspace_exists(&a).await.unwrap());
        assert!(pool.list_workspaces().await.unwrap().contains(&a));
    }
    pool.cleanup().await.unwrap();
}
