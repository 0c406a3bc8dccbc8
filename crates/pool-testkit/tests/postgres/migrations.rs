//! Migrations of one workspace, and of all of them within the budget.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use pool_postgres::{Limits, Reset, WorkspaceId};
use pool_testkit::{TestPool, execute_outside, wait_for_condition};
use rstest::rstest;
use sqlx::Row;
use sqlx::migrate::MigrateError;

use crate::support::{SOON, id, migrator};

const NOTE: &str = "create table note (id int); insert into note values (1)";
const MORE: &str = "alter table note add column word text default 'more'";
const WRONG: &str = "create table other (id int); select 1/0";
const SLOW: &str = "create table other (id int); select pg_sleep(60)";

/// A pool with so many connections for workspaces, and two of them at most for each.
async fn pool(connections: u32, reset: Reset) -> TestPool {
    TestPool::builder()
        .limits(Limits::new(connections + 5).system(5).per_workspace(2))
        .adjust(move |pools| pools.configure(|config| config.reset(reset)))
        .build()
        .await
        .unwrap()
}

/// Advisory locks that sessions of the workspaces hold.
async fn locks(pool: &TestPool) -> i64 {
    let locks = "select count(*) from pg_locks l join pg_database d on d.oid = l.database \
                 where l.locktype = 'advisory' and d.datname = any ($1)";
    let databases = pool.databases().await.unwrap();
    sqlx::query_scalar(locks).bind(databases).fetch_one(&pool.system()).await.unwrap()
}

async fn columns(pool: &TestPool, workspace: &WorkspaceId) -> usize {
    let note = sqlx::query("select * from note").fetch_one(&pool.workspace(workspace)).await;
    note.unwrap().len()
}

#[tokio::test]
async fn b1_all_workspaces_are_migrated_within_the_budget_and_failures_stop_no_other() {
    const WORKSPACES: usize = 20;
    let pool = pool(4, Reset::WhenDirty).await;
    let ids = pool.create_test_workspaces(WORKSPACES).await.unwrap();
    let broken = &ids[7];
    execute_outside(pool.config(), &pool.database_of(broken), "create table note (is_in_the_way int)")
        .await
        .unwrap();

    let migrator = migrator(&[NOTE, MORE]);
    let began = Instant::now();
    let report = pool.pools().migrate_all(&migrator, 8).await.unwrap();
    println!("{WORKSPACES} workspaces migrated in {:?}", began.elapsed());
    assert_eq!(report.migrated, WORKSPACES - 1, "{report:?}");
    assert_eq!(report.failures.keys().collect::<Vec<_>>(), [broken]);
    assert!(matches!(report.failures[broken], MigrateError::ExecuteMigration(_, 1)), "{report:?}");
    for id in ids.iter().filter(|id| *id != broken) {
        assert_eq!(columns(&pool, id).await, 2);
    }

    // It can be migrated as soon as it is mended: nobody holds its lock.
    execute_outside(pool.config(), &pool.database_of(broken), "drop table note").await.unwrap();
    tokio::time::timeout(SOON, pool.workspace(broken).migrate(&migrator)).await.unwrap().unwrap();
    assert_eq!(columns(&pool, broken).await, 2);

    let began = Instant::now();
    let again = pool.pools().migrate_all(&migrator, 8).await.unwrap();
    println!("and once more in {:?}", began.elapsed());
    assert!(again.is_complete() && again.migrated == WORKSPACES, "{again:?}");
    let stats = pool.stats().workspaces;
    assert!(stats.peak <= 4, "{stats:?}");
    assert_eq!(locks(&pool).await, 0);
    pool.cleanup().await.unwrap();
}

/// Whatever the sessions' resets are: a lock of the session would outlive a session that is kept as it is.
#[rstest]
#[case::failed(WRONG, Reset::WhenDirty)]
#[case::failed_without_resets(WRONG, Reset::Never)]
#[case::dropped(SLOW, Reset::WhenDirty)]
#[case::dropped_without_resets(SLOW, Reset::Never)]
#[tokio::test]
async fn l1_a_migration_that_did_not_end_well_leaves_no_lock(
    #[case] second: &'static str,
    #[case] reset: Reset,
) {
    let pool = pool(2, reset).await;
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let db = pool.workspace(&a);
    let did_not_end = migrator(&[NOTE, second]);
    let limit = if second == SLOW { Duration::from_millis(500) } else { SOON };
    let outcome = tokio::time::timeout(limit, db.migrate(&did_not_end)).await;
    assert_eq!(outcome.is_err(), second == SLOW);
    if let Ok(outcome) = outcome {
        assert!(matches!(outcome, Err(MigrateError::ExecuteMigration(_, 2))), "{outcome:?}");
    }

    // At once, on the other connection; the first migration was applied, and is not applied again.
    let began = Instant::now();
    tokio::time::timeout(SOON, db.migrate(&migrator(&[NOTE, MORE]))).await.unwrap().unwrap();
    println!("the lock was to be had after {:?}", began.elapsed());
    assert_eq!(columns(&pool, &a).await, 2);
    let other: Option<String> =
        sqlx::query_scalar("select to_regclass('other')::text").fetch_one(&db).await.unwrap();
    assert_eq!(other, None, "it was rolled back");
    assert_eq!(locks(&pool).await, 0);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_warm_connections_answer_rightly_after_a_migration() {
    let pool = pool(2, Reset::WhenDirty).await;
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let db = pool.workspace(&a);
    db.migrate(&migrator(&[NOTE])).await.unwrap();
    let everywhere = async || {
        let leases = join_all([db.acquire(), db.acquire()]).await;
        let mut columns = Vec::new();
        for lease in leases {
            let row = sqlx::query("select * from note").fetch_one(&mut *lease.unwrap()).await.unwrap();
            columns.push(row.len());
        }
        columns
    };
    let is_idle = || db.counts().idle == 2;
    for _ in 0..2 {
        assert_eq!(everywhere().await, [1, 1]);
        wait_for_condition("both being idle", SOON, is_idle).await.unwrap();
    }
    let before = pool.stats().workspaces.opened;
    db.migrate(&migrator(&[NOTE, MORE])).await.unwrap();
    assert_eq!(everywhere().await, [2, 2]);
    // A run that has nothing to apply lets them keep their statements.
    wait_for_condition("both being idle", SOON, is_idle).await.unwrap();
    db.migrate(&migrator(&[NOTE, MORE])).await.unwrap();
    assert_eq!(everywhere().await, [2, 2]);
    assert_eq!(pool.stats().workspaces.opened, before, "no connection was closed for it");
    pool.cleanup().await.unwrap();
}

/// One workspace after another; whoever has seen enough drops the rest, and those that were told of are done.
#[tokio::test]
async fn l2_each_migration_is_told_of_and_the_rest_may_be_dropped() {
    let pool = pool(4, Reset::WhenDirty).await;
    let ids = pool.create_test_workspaces(8).await.unwrap();
    let migrator = migrator(&[NOTE]);
    let mut told = Vec::new();
    {
        let mut outcomes = std::pin::pin!(pool.pools().migrate_each(ids.clone(), &migrator, 2));
        while let Some((workspace, outcome)) = outcomes.next().await {
            outcome.unwrap();
            told.push(workspace);
            if told.len() == 3 {
                break;
            }
        }
    }
    for id in &told {
        assert_eq!(columns(&pool, id).await, 1);
    }
    let rest = pool.pools().clone();
    let report = tokio::spawn(async move { rest.migrate_all(&migrator, 2).await }).await.unwrap().unwrap();
    assert!(report.is_complete() && report.migrated == 8, "{report:?}");
    assert_eq!(locks(&pool).await, 0);
    pool.cleanup().await.unwrap();
}

/// As with sqlx's own pool, in a future that is sent to another thread.
#[tokio::test]
async fn l1_a_migrator_of_sqlx_runs_on_a_handle() {
    let pool = pool(2, Reset::WhenDirty).await;
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    for statements in [&[NOTE, WRONG], &[NOTE, MORE]] {
        let db = pool.workspace(&a);
        let migrator = migrator(statements);
        let run = tokio::spawn(async move { migrator.run(&db).await }).await.unwrap();
        assert_eq!(run.is_ok(), statements[1] == MORE, "{run:?}");
    }
    assert_eq!(columns(&pool, &a).await, 2);
    pool.cleanup().await.unwrap();
}
