//! Whatever a holder leaves behind, the next one gets a clean connection.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use pool_postgres::PgLease;
use rstest::rstest;
use sqlx::{Connection, Executor, Row};

use crate::support::{SOON, one_connection};

/// In the simple protocol, a statement outside of a transaction begins with its transaction.
async fn is_in_a_transaction(lease: &mut PgLease) -> bool {
    let row = lease.fetch_one(sqlx::raw_sql("select now() <> statement_timestamp()")).await.unwrap();
    row.get(0)
}

#[derive(Clone, Copy, Debug)]
enum Leaves {
    RawBegin,
    FailedTransaction,
    HalfReadResult,
    RunningQuery,
    SqlxTransaction,
}

async fn leave_behind(lease: PgLease, what: Leaves) {
    let mut lease = lease;
    match what {
        Leaves::RawBegin => {
            lease.execute("begin").await.unwrap();
            lease.execute("insert into note values (1)").await.unwrap();
        }
        Leaves::FailedTransaction => {
            (**lease).execute("begin").await.unwrap();
            (**lease).execute("select 1/0").await.unwrap_err();
        }
        Leaves::HalfReadResult => {
            let mut rows = (&mut lease).fetch("select generate_series(1, 1000000)");
            rows.try_next().await.unwrap().unwrap();
        }
        Leaves::RunningQuery => {
            let sleep = lease.execute("select pg_sleep(60)");
            tokio::time::timeout(Duration::from_millis(50), sleep).await.unwrap_err();
        }
        Leaves::SqlxTransaction => {
            let mut tx = sqlx::Acquire::begin(&mut lease).await.unwrap();
            tx.execute("insert into note values (1)").await.unwrap();
        }
    }
}

#[rstest]
#[case::in_a_raw_begin(Leaves::RawBegin)]
#[case::after_an_error_in_a_raw_begin(Leaves::FailedTransaction)]
#[case::with_a_half_read_result(Leaves::HalfReadResult)]
#[case::in_mid_query(Leaves::RunningQuery)]
#[case::in_a_sqlx_transaction(Leaves::SqlxTransaction)]
#[tokio::test]
async fn l1_the_next_holder_gets_a_clean_connection(#[case] what: Leaves) {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();

    let began = Instant::now();
    leave_behind(pool.acquire(&a).await.unwrap(), what).await;
    let mut next = pool.acquire(&a).await.unwrap();
    assert!(began.elapsed() < SOON, "the next holder waited {:?}", began.elapsed());
    assert!(!is_in_a_transaction(&mut next).await);
    let notes: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&mut next).await.unwrap();
    assert_eq!(notes, 0, "what was not committed is gone");
    drop(next);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_lease_dropped_in_a_panic_comes_back_clean() {
    let (pool, a) = one_connection().await;
    let mut lease = pool.acquire(&a).await.unwrap();
    let panicked = tokio::spawn(async move {
        (**lease).execute("begin").await.unwrap();
        panic!("on purpose, with a transaction open");
    });
    assert!(panicked.await.unwrap_err().is_panic());

    let mut next = pool.acquire(&a).await.unwrap();
    assert!(!is_in_a_transaction(&mut next).await);
    drop(next);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_plain_statements_leave_a_connection_known_clean() {
    let (pool, a) = one_connection().await;
    let mut lease = pool.acquire(&a).await.unwrap();
    let one: i32 = sqlx::query_scalar("select $1").bind(1).fetch_one(&mut lease).await.unwrap();
    assert_eq!(one, 1);
    drop(lease);
    // Nothing was awaited since: were it being verified, it would still be in use.
    assert_eq!(pool.workspace(&a).counts().idle, 1);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_transaction_commits_rolls_back_and_is_rolled_back_when_dropped() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    for (id, end) in ["commit", "rollback", "drop"].into_iter().enumerate() {
        let mut tx = db.begin().await.unwrap();
        let id = i32::try_from(id).unwrap();
        sqlx::query("insert into note values ($1)").bind(id).execute(&mut tx).await.unwrap();
        match end {
            "commit" => tx.commit().await.unwrap(),
            "rollback" => tx.rollback().await.unwrap(),
            _ => drop(tx),
        }
    }
    let notes: Vec<i32> = sqlx::query_scalar("select id from note").fetch_all(&db).await.unwrap();
    assert_eq!(notes, [0], "only what was committed");
    assert_eq!(pool.stats().workspaces.opened, 1, "on one connection, all of it");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l2_a_nested_transaction_is_a_savepoint() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let mut inner = (*tx).begin().await.unwrap();
    inner.execute("insert into note values (1)").await.unwrap();
    inner.rollback().await.unwrap();
    tx.execute("insert into note values (2)").await.unwrap();
    tx.commit().await.unwrap();
    let notes: Vec<i32> = sqlx::query_scalar("select id from note").fetch_all(&db).await.unwrap();
    assert_eq!(notes, [2]);
    pool.cleanup().await.unwrap();
}
