//! The common idioms of sqlx are the tracked ones: nothing is asked beside what the caller sends.

use futures_util::future::BoxFuture;
use pool_postgres::{PgLease, PgTransaction};
use rstest::rstest;
use sqlx::{Acquire, Connection, Error, Executor, PgConnection};

use crate::support::{SOON, one_connection};
use crate::tap::Tapped;

const INSERT: &str = "insert into note values ($1)";

/// One plain statement, by way of a lease.
type OnLease = for<'l> fn(&'l mut PgLease) -> BoxFuture<'l, Result<(), Error>>;

fn on_the_lease(lease: &mut PgLease) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move { sqlx::query(INSERT).bind(1).execute(lease).await.map(drop) })
}

fn on_its_session(lease: &mut PgLease) -> BoxFuture<'_, Result<(), Error>> {
    // What `&mut *lease` is for a lease by value.
    Box::pin(async move { sqlx::query(INSERT).bind(1).execute(&mut **lease).await.map(drop) })
}

fn on_the_raw_connection(lease: &mut PgLease) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move { sqlx::query(INSERT).bind(1).execute(&mut ***lease).await.map(drop) })
}

async fn of_sqlx(conn: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(INSERT).bind(1).execute(conn).await.map(drop)
}

fn on_a_function_of_sqlx(lease: &mut PgLease) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move { of_sqlx(lease).await })
}

#[rstest]
#[case::lease(on_the_lease, true)]
#[case::session(on_its_session, true)]
#[case::raw(on_the_raw_connection, false)]
#[case::function_of_sqlx(on_a_function_of_sqlx, false)]
#[tokio::test]
async fn l1_a_statement_through_a_lease_or_its_session_is_tracked(
    #[case] ask: OnLease,
    #[case] tracked: bool,
) {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    let mut lease = db.acquire().await.unwrap();
    ask(&mut lease).await.unwrap();
    drop(lease);
    // Nothing was awaited since: a connection that is being verified counts as in use.
    assert_eq!(db.counts().idle == 1, tracked);
    pool.cleanup().await.unwrap();
}

/// A few plain statements, by way of a transaction.
type OnTransaction = for<'t> fn(&'t mut PgTransaction) -> BoxFuture<'t, Result<(), Error>>;

fn on_the_transaction(tx: &mut PgTransaction) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move {
        sqlx::query(INSERT).bind(1).execute(&mut *tx).await?;
        sqlx::query("select * from note").fetch_all(tx).await.map(drop)
    })
}

fn on_the_session(tx: &mut PgTransaction) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move {
        sqlx::query(INSERT).bind(1).execute(&mut **tx).await?;
        sqlx::query("select * from note").fetch_all(&mut **tx).await.map(drop)
    })
}

fn on_the_connection(tx: &mut PgTransaction) -> BoxFuture<'_, Result<(), Error>> {
    Box::pin(async move {
        sqlx::query(INSERT).bind(1).execute(&mut ***tx).await?;
        sqlx::query("select * from note").fetch_all(&mut ***tx).await.map(drop)
    })
}

#[tokio::test]
async fn l4_a_commit_through_the_session_sends_no_statement_more() {
    let tapped = Tapped::new().await;
    let db = &tapped.db;
    sqlx::query("create table note (id int)").execute(db).await.unwrap();
    let sent_for = async |ask: OnTransaction| {
        let is_idle = || db.counts().idle == 1;
        pool_testkit::wait_for_condition("the connection being idle", SOON, is_idle).await.unwrap();
        let mut last = Vec::new();
        // Twice: the first time prepares.
        for _ in 0..2 {
            tapped.sent();
            let mut tx = db.begin().await.unwrap();
            ask(&mut tx).await.unwrap();
            tx.commit().await.unwrap();
            last = tapped.sent();
        }
        last
    };
    let (plain, session, raw) = (
        sent_for(on_the_transaction).await,
        sent_for(on_the_session).await,
        sent_for(on_the_connection).await,
    );
    println!("{plain:?}");
    assert_eq!(plain, session);
    assert_eq!(plain.first().map(String::as_str), Some("Q BEGIN"));
    assert_eq!(plain.last().map(String::as_str), Some("Q COMMIT"));
    let questions = |sent: &[String]| sent.iter().filter(|what| what.starts_with('Q')).count();
    assert_eq!(questions(&plain), 2, "{plain:?}");
    assert!(questions(&raw) > 2, "raw access is asked about before a commit: {raw:?}");
    tapped.pools.close().await.unwrap();
}

/// With both of sqlx's traits in scope, `begin` on a transaction is a savepoint.
#[tokio::test]
async fn l2_a_transaction_begun_in_a_transaction_is_a_savepoint() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    let mut inner = tx.begin().await.unwrap();
    inner.execute("insert into note values (1)").await.unwrap();
    inner.rollback().await.unwrap();
    let mut inner = Acquire::begin(&mut tx).await.unwrap();
    inner.execute("insert into note values (2)").await.unwrap();
    inner.commit().await.unwrap();
    assert!(tx.is_in_transaction());
    sqlx::query("insert into note values (3)").execute(&mut *tx).await.unwrap();
    drop(Connection::begin(&mut **tx).await.unwrap());
    tx.commit().await.unwrap();
    let notes: Vec<i32> = sqlx::query_scalar("select id from note order by id").fetch_all(&db).await.unwrap();
    assert_eq!(notes, [2, 3]);
    pool.cleanup().await.unwrap();
}
