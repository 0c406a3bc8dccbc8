//! Code that was written for sqlx's own pool, on a lease, a transaction or a handle.

use std::time::Duration;

use futures_util::future::BoxFuture;
use pool_postgres::{AcquireError, DriverErrorKind, Limits, PgWorkspacePool, acquire_error, into_sqlx};
use pool_testkit::TestPool;
use sqlx::postgres::{PgAdvisoryLock, PgDatabaseError};
use sqlx::{Acquire, Connection, Error, Executor, PgConnection, PgExecutor, Postgres, Transaction};

use crate::support::{id, one_connection};

async fn on_a_connection(conn: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("select 1").fetch_one(conn).await
}

async fn on_an_executor<'e>(executor: impl PgExecutor<'e>) -> sqlx::Result<i32> {
    sqlx::query_scalar("select 2").fetch_one(executor).await
}

async fn on_any_connection<C: Connection>(conn: &mut C) -> sqlx::Result<()> {
    conn.ping().await
}

async fn on_what_acquires<'a>(from: impl Acquire<'a, Database = Postgres>) -> sqlx::Result<i32> {
    let mut conn = from.acquire().await?;
    sqlx::query_scalar("select 3").fetch_one(&mut *conn).await
}

async fn in_a_transaction_of_sqlx(tx: &mut Transaction<'_, Postgres>) -> sqlx::Result<i32> {
    sqlx::query_scalar("select 4").fetch_one(&mut **tx).await
}

/// A function of sqlx's users, in which every way of the pool returns a `sqlx::Error`.
async fn every_way(db: &PgWorkspacePool) -> sqlx::Result<()> {
    let mut lease = db.acquire().await.map_err(into_sqlx)?;
    sqlx::query("select 1").execute(&mut lease).await?;
    sqlx::query("select 1").execute(&mut *lease).await?;
    assert_eq!(on_a_connection(&mut lease).await?, 1);
    assert_eq!(on_an_executor(&mut lease).await?, 2);
    assert_eq!(on_an_executor(&mut *lease).await?, 2);
    on_any_connection(&mut **lease).await?;
    assert_eq!(on_what_acquires(&mut lease).await?, 3);
    assert_eq!(on_what_acquires(&mut *lease).await?, 3);
    let mut of_sqlx = Acquire::begin(&mut lease).await?;
    assert_eq!(in_a_transaction_of_sqlx(&mut of_sqlx).await?, 4);
    of_sqlx.commit().await?;
    let sum: Result<i32, Error> = lease
        .transaction(|tx| -> BoxFuture<'_, Result<i32, Error>> { Box::pin(in_a_transaction_of_sqlx(tx)) })
        .await;
    assert_eq!(sum?, 4);
    drop(lease);

    assert_eq!(on_an_executor(db).await?, 2);
    assert_eq!(on_what_acquires(db).await?, 3);
    let mut raw = Acquire::acquire(db).await?;
    assert_eq!(on_a_connection(&mut raw).await?, 1);
    drop(raw);

    let mut tx = db.begin().await?;
    assert_eq!(on_a_connection(&mut tx).await?, 1);
    assert_eq!(on_an_executor(&mut tx).await?, 2);
    assert_eq!(on_an_executor(&mut *tx).await?, 2);
    on_any_connection(&mut **tx).await?;
    assert_eq!(on_what_acquires(&mut tx).await?, 3);
    let mut savepoint = tx.begin().await?;
    assert_eq!(in_a_transaction_of_sqlx(&mut savepoint).await?, 4);
    savepoint.commit().await?;
    tx.commit().await
}

/// In a future that may be sent to another thread, the compiler takes a function that is generic over `Acquire` with a handle, and
/// with no `&mut`, not even with sqlx's own.
async fn in_a_handler(db: &PgWorkspacePool) -> sqlx::Result<()> {
    let mut lease = db.acquire().await.map_err(into_sqlx)?;
    sqlx::query("select 1").execute(&mut lease).await?;
    sqlx::query("select 1").execute(&mut *lease).await?;
    assert_eq!(on_a_connection(&mut lease).await?, 1);
    assert_eq!(on_an_executor(&mut *lease).await?, 2);
    on_any_connection(&mut **lease).await?;
    let mut of_sqlx = Acquire::begin(&mut lease).await?;
    assert_eq!(in_a_transaction_of_sqlx(&mut of_sqlx).await?, 4);
    of_sqlx.commit().await?;
    drop(lease);
    assert_eq!(on_an_executor(db).await?, 2);
    assert_eq!(on_what_acquires(db).await?, 3);
    let mut tx = db.begin().await?;
    sqlx::query("select 1").execute(&mut *tx).await?;
    let mut savepoint = tx.begin().await?;
    assert_eq!(in_a_transaction_of_sqlx(&mut savepoint).await?, 4);
    savepoint.commit().await?;
    tx.commit().await
}

#[tokio::test]
async fn what_was_written_for_sqlx_works_on_leases_transactions_and_handles() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    every_way(&db).await.unwrap();
    tokio::spawn(async move { in_a_handler(&db).await }).await.unwrap().unwrap();
    assert_eq!(pool.stats().workspaces.opened, 1, "one connection for all of it");
    pool.cleanup().await.unwrap();
}

/// Both globs, and the one name that both have.
mod with_both_globs {
    use pool_postgres::PgTransaction;
    #[allow(clippy::wildcard_imports)]
    use pool_postgres::*;
    #[allow(clippy::wildcard_imports)]
    use sqlx::postgres::*;

    pub async fn name(db: &PgWorkspacePool) -> Result<PgRow, sqlx::Error> {
        let mut tx: PgTransaction = db.begin().await?;
        let row = sqlx::query("select current_database()::text").fetch_one(&mut *tx).await?;
        tx.commit().await.map(|()| row)
    }
}

#[tokio::test]
async fn the_names_of_sqlx_and_of_this_crate_go_together() {
    let (pool, a) = one_connection().await;
    let row = with_both_globs::name(&pool.workspace(&a)).await.unwrap();
    assert_eq!(sqlx::Row::get::<String, _>(&row, 0), pool.database_of(&a));
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_an_advisory_lock_of_sqlx_takes_leases_and_transactions() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    let lock = PgAdvisoryLock::new("drop in");
    let mut guard = lock.acquire(db.acquire().await.unwrap()).await.unwrap();
    on_a_connection(&mut guard).await.unwrap();
    let mut lease = guard.release_now().await.unwrap();
    drop(lock.acquire(&mut lease).await.unwrap());
    drop(lock.acquire(&mut *lease).await.unwrap());
    // Kept by mistake: the connection gives it up when it comes back.
    drop(lock.acquire(lease).await.unwrap().leak());
    let mut tx = db.begin().await.unwrap();
    let held = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    assert_eq!(sqlx::query_scalar::<_, i64>(held).fetch_one(&mut *tx).await.unwrap(), 0);
    let guard = lock.acquire(&mut tx).await.unwrap();
    drop(guard);
    tx.commit().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_failed_acquire_is_what_users_of_sqlx_match() {
    let pool = TestPool::builder()
        .limits(Limits::new(7).system(5).per_workspace(1))
        .adjust(|builder| builder.acquire_timeout(Duration::from_secs(1)))
        .build()
        .await
        .unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let (db, nowhere) = (pool.workspace(&a), pool.workspace(&id("nowhere")));

    let held = db.acquire().await.unwrap();
    assert!(matches!(db.execute("select 1").await, Err(Error::PoolTimedOut)));
    assert!(matches!(db.begin().await.map(drop), Err(Error::PoolTimedOut)));
    assert!(matches!(Acquire::acquire(&db).await.map(drop), Err(Error::PoolTimedOut)));
    assert!(matches!(db.acquire().await, Err(AcquireError::TimedOut { .. })), "the inherent one tells more");
    drop(held);

    for error in [
        nowhere.execute("select 1").await.unwrap_err(),
        nowhere.begin().await.map(drop).unwrap_err(),
        Acquire::acquire(&nowhere).await.map(drop).unwrap_err(),
    ] {
        let of_server = error.as_database_error().unwrap();
        assert_eq!(of_server.code().as_deref(), Some("3D000"), "{error}");
        assert!(of_server.message().contains("does not exist"), "{error}");
        assert_eq!(of_server.downcast_ref::<PgDatabaseError>().routine(), Some("InitPostgres"));
        assert!(error.to_string().contains("nowhere"), "{error}");
        assert!(matches!(acquire_error(&error), Some(AcquireError::OpenFailed { .. })), "{error}");
    }

    // With the budget spent, the catalog is asked before a connection is closed for it: no server has refused anything.
    let b = id("b");
    pool.ensure_workspace(&b).await.unwrap();
    pool.workspace(&b).execute("select 1").await.unwrap();
    let error = pool.workspace(&id("nowhere else")).execute("select 1").await.unwrap_err();
    assert!(matches!(error, Error::Io(_)), "{error}");
    let Some(AcquireError::OpenFailed { source, .. }) = acquire_error(&error) else { panic!("{error}") };
    assert_eq!(source.kind, DriverErrorKind::DatabaseMissing);

    let error = Acquire::begin(&db).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("db.begin()"), "{error}");
    pool.cleanup().await.unwrap();
    assert!(matches!(db.execute("select 1").await, Err(Error::PoolClosed)));
}

/// The server answers COMMIT with a rollback where a statement has failed, which sqlx's own transaction does not tell.
#[tokio::test]
async fn l4_a_commit_after_a_failed_statement_is_an_error_where_the_transaction_is_ours() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();
    let insert = "insert into note values (1)";

    let mut tx = db.begin().await.unwrap();
    sqlx::query(insert).execute(&mut *tx).await.unwrap();
    sqlx::query("select 1/0").execute(&mut *tx).await.unwrap_err();
    let error = tx.commit().await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("25P02"), "{error}");

    let mut lease = db.acquire().await.unwrap();
    let mut tx = Acquire::begin(&mut lease).await.unwrap();
    sqlx::query(insert).execute(&mut *tx).await.unwrap();
    sqlx::query("select 1/0").execute(&mut *tx).await.unwrap_err();
    tx.commit().await.expect("sqlx's own does not see it, as the documentation says");
    let rows: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&mut *lease).await.unwrap();
    assert_eq!(rows, 0);
    drop(lease);
    pool.cleanup().await.unwrap();
}
