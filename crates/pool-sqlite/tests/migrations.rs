//! Migrations of one workspace, and of many within the budget.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use pool_sqlite::{Limits, MigrationReport, SqliteConfig, SqlitePools, WorkspaceId};
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Row, SqlSafeStr};
use tempfile::TempDir;

const NOTE: &str = "create table note (id int); insert into note values (1)";
const MORE: &str = "alter table note add column word text default 'more'";
const WRONG: &str = "create table other (id int); select * from nowhere";
const SLOW: &str = "create table other (id int); \
    with recursive n (i) as (select 1 union all select i + 1 from n) select count(*) from n";

/// A migrator of these statements; one that begins with a `!` must not be in a transaction.
fn migrator(statements: &[&'static str]) -> Migrator {
    let migration = |(number, sql): (i64, &&'static str)| {
        let plain = sql.trim_start_matches('!');
        let without_transaction = plain.len() < sql.len();
        let kind = MigrationType::Simple;
        Migration::new(number, "a test".into(), kind, plain.into_sql_str(), without_transaction)
    };
    Migrator::with_migrations((1..).zip(statements).map(migration).collect())
}

async fn pools(directory: &TempDir) -> SqlitePools {
    let limits = Limits::new(4).per_workspace(2);
    SqlitePools::builder(SqliteConfig::new(directory.path())).limits(limits).build().await.unwrap()
}

async fn with_workspaces(names: &[&str]) -> (TempDir, SqlitePools, Vec<WorkspaceId>) {
    let directory = TempDir::new().unwrap();
    let pools = pools(&directory).await;
    let ids: Vec<WorkspaceId> = names.iter().map(|name| WorkspaceId::new(name).unwrap()).collect();
    try_join_all(ids.iter().map(|id| pools.ensure_workspace(id))).await.unwrap();
    (directory, pools, ids)
}

async fn columns(pools: &SqlitePools, workspace: &WorkspaceId) -> sqlx::Result<usize> {
    let note = sqlx::query("select * from note").fetch_one(&pools.workspace(workspace)).await;
    note.map(|note| note.len())
}

#[tokio::test]
async fn b1_workspaces_are_migrated_within_the_budget_and_failures_stop_no_other() {
    let names: Vec<String> = (0..10).map(|number| format!("w{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_directory, pools, ids) = with_workspaces(&names).await;
    let in_the_way = "create table note (is_in_the_way int)";
    sqlx::query(in_the_way).execute(&pools.workspace(&ids[7])).await.unwrap();

    let migrator = migrator(&[NOTE, MORE]);
    let report = pools.migrate_all(&migrator, 8).await.unwrap();
    assert_eq!((report.migrated, report.failures.len()), (ids.len() - 1, 1), "{report:?}");
    assert!(matches!(report.failures[&ids[7]], MigrateError::ExecuteMigration(_, 1)), "{report:?}");
    for id in ids.iter().filter(|id| **id != ids[7]) {
        assert_eq!(columns(&pools, id).await.unwrap(), 2);
    }
    sqlx::query("drop table note").execute(&pools.workspace(&ids[7])).await.unwrap();
    let again: MigrationReport = pools.migrate_each(ids.clone(), &migrator, 8).collect().await;
    assert!(again.is_complete() && again.migrated == ids.len(), "{again:?}");
    let stats = pools.stats().workspaces;
    assert!(stats.peak <= 4, "{stats:?}");
}

#[tokio::test]
async fn l1_a_migration_that_fails_leaves_nothing_behind() {
    let (_directory, pools, ids) = with_workspaces(&["a"]).await;
    let db = pools.workspace(&ids[0]);
    let error = db.migrate(&migrator(&[NOTE, WRONG])).await.unwrap_err();
    assert!(matches!(error, MigrateError::ExecuteMigration(_, 2)), "{error}");
    columns(&pools, &ids[0]).await.unwrap_err();
    db.migrate(&migrator(&[NOTE, MORE])).await.unwrap();
    assert_eq!(columns(&pools, &ids[0]).await.unwrap(), 2);
}

#[tokio::test]
async fn l1_a_migration_that_is_dropped_is_ended_and_leaves_nothing_behind() {
    let (_directory, pools, ids) = with_workspaces(&["a"]).await;
    let db = pools.workspace(&ids[0]);
    let endless = migrator(&[NOTE, SLOW]);
    tokio::time::timeout(Duration::from_millis(200), db.migrate(&endless)).await.unwrap_err();
    db.migrate(&migrator(&[NOTE, MORE])).await.unwrap();
    assert_eq!(columns(&pools, &ids[0]).await.unwrap(), 2);
}

/// sqlx locks nothing for `SQLite`. Another pool stands for another process.
#[tokio::test]
async fn many_who_migrate_one_database_at_the_same_time_apply_each_migration_once() {
    let (directory, first, ids) = with_workspaces(&["a"]).await;
    first.workspace(&ids[0]).migrate(&migrator(&[NOTE])).await.unwrap();
    let migrator = migrator(&[NOTE, MORE, "insert into note values (2, 'two')"]);
    let all = [first.clone(), self::pools(&directory).await, self::pools(&directory).await];
    let dbs: Vec<_> =
        all.iter().flat_map(|pools| [pools.workspace(&ids[0]), pools.workspace(&ids[0])]).collect();
    let outcomes = join_all(dbs.iter().map(|db| db.migrate(&migrator))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let notes: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&dbs[0]).await.unwrap();
    assert_eq!(notes, 2);
}

#[tokio::test]
async fn a_migration_that_must_not_be_in_a_transaction_is_in_none() {
    let (_directory, pools, ids) = with_workspaces(&["a"]).await;
    pools.workspace(&ids[0]).migrate(&migrator(&[NOTE, "!vacuum", MORE])).await.unwrap();
    assert_eq!(columns(&pools, &ids[0]).await.unwrap(), 2);
}

#[tokio::test]
async fn l1_warm_connections_answer_rightly_after_a_migration() {
    let (_directory, pools, ids) = with_workspaces(&["a"]).await;
    let db = pools.workspace(&ids[0]);
    db.migrate(&migrator(&[NOTE])).await.unwrap();
    let everywhere = async || {
        let mut columns = Vec::new();
        for lease in join_all([db.acquire(), db.acquire()]).await {
            let row = sqlx::query("select * from note").fetch_one(&mut lease.unwrap()).await.unwrap();
            columns.push(row.len());
        }
        columns
    };
    assert_eq!(everywhere().await, [1, 1]);
    db.migrate(&migrator(&[NOTE, MORE])).await.unwrap();
    assert_eq!(everywhere().await, [2, 2]);
}

#[tokio::test]
async fn l1_warm_connections_answer_rightly_after_a_holder_has_changed_the_schema() {
    let (_directory, pools, ids) = with_workspaces(&["a"]).await;
    let db = pools.workspace(&ids[0]);
    db.migrate(&migrator(&[NOTE])).await.unwrap();
    let (mut warm, mut changes) = (db.acquire().await.unwrap(), db.acquire().await.unwrap());
    assert_eq!(sqlx::query("select * from note").fetch_one(&mut warm).await.unwrap().len(), 1);
    sqlx::query(MORE).execute(&mut changes).await.unwrap();
    drop(changes);
    while db.counts().idle < 1 {
        tokio::task::yield_now().await; // it is looked at in the background
    }
    let other = db.acquire().await.unwrap();
    drop(warm);
    assert_eq!(columns(&pools, &ids[0]).await.unwrap(), 2);
    drop(other);
}
