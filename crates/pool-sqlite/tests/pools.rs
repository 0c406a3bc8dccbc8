//! `SqlitePools` as an application has it.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use pool_sqlite::{
    AcquireError, BuildError, DriverErrorKind, Limits, SqliteConfig, SqlitePools, WorkspaceId, acquire_error,
};
use tempfile::TempDir;

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

async fn pools(config: SqliteConfig) -> SqlitePools {
    let limits = Limits::new(4).per_workspace(4);
    SqlitePools::builder(config).limits(limits).build().await.unwrap()
}

/// A pool over a directory of its own, with a workspace `a` that has a table `note`.
async fn with_notes() -> (TempDir, SqlitePools) {
    let directory = TempDir::new().unwrap();
    let pools = pools(SqliteConfig::new(directory.path())).await;
    pools.ensure_workspace(&id("a")).await.unwrap();
    let db = pools.workspace(&id("a"));
    sqlx::query("create table note (text)").execute(&db).await.unwrap();
    (directory, pools)
}

async fn count(pools: &SqlitePools) -> i64 {
    sqlx::query_scalar("select count(*) from note").fetch_one(&pools.workspace(&id("a"))).await.unwrap()
}

#[tokio::test]
async fn readers_beside_a_writer_wait_for_nothing_and_cannot_write() {
    let (_directory, pools) = with_notes().await;
    let db = pools.workspace(&id("a"));
    let mut writer = db.begin().await.unwrap();
    sqlx::query("insert into note values ('x')").execute(&mut *writer).await.unwrap();
    let mut reader = db.acquire_read_only().await.unwrap();
    let seen: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&mut reader).await.unwrap();
    assert_eq!(seen, 0, "the writer has not committed");
    sqlx::query("insert into note values ('y')").execute(&mut reader).await.unwrap_err();
    writer.commit().await.unwrap();
    drop(reader);
    for _ in 0..8 {
        sqlx::query("insert into note values ('z')").execute(&db).await.unwrap();
    }
    assert_eq!(count(&pools).await, 9, "no connection is left read-only");
}

#[tokio::test]
async fn l2_a_transaction_that_is_dropped_is_rolled_back_and_lets_others_write() {
    let (_directory, pools) = with_notes().await;
    let db = pools.workspace(&id("a"));
    let mut tx = db.begin().await.unwrap();
    sqlx::query("insert into note values ('x')").execute(&mut tx).await.unwrap();
    drop(tx);
    sqlx::query("insert into note values ('y')").execute(&db).await.unwrap();
    assert_eq!(count(&pools).await, 1);
}

#[tokio::test]
async fn a_dropped_workspace_leaves_no_file() {
    let (directory, pools) = with_notes().await;
    sqlx::query("insert into note values ('x')").execute(&pools.workspace(&id("a"))).await.unwrap();
    assert!(pools.drop_workspace(&id("a")).await.unwrap());
    assert!(!pools.drop_workspace(&id("a")).await.unwrap());
    let left = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), [".lock"]);
    let error = pools.acquire(&id("a")).await.unwrap_err();
    let AcquireError::OpenFailed { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind, DriverErrorKind::DatabaseMissing);
}

#[tokio::test]
async fn o4_a_database_that_another_process_has_replaced_is_not_served_from_the_old_file() {
    let (directory, pools) = with_notes().await;
    sqlx::query("insert into note values ('old')").execute(&pools.workspace(&id("a"))).await.unwrap();
    // Another pool stands for another process: it knows nothing of this one's connections.
    let other = self::pools(SqliteConfig::new(directory.path())).await;
    other.drop_workspace(&id("a")).await.unwrap();
    other.ensure_workspace(&id("a")).await.unwrap();
    sqlx::query("create table note (text)").execute(&other.workspace(&id("a"))).await.unwrap();
    assert_eq!(count(&pools).await, 0);
}

#[tokio::test]
async fn i3_what_a_removal_that_was_cut_short_has_left_does_not_come_back() {
    let (directory, pools) = with_notes().await;
    pools.close().await.unwrap();
    // The pointer was removed, and then the process ended.
    std::fs::remove_file(directory.path().join("app_ws_a.ws")).unwrap();
    let pools = self::pools(SqliteConfig::new(directory.path())).await;
    assert!(!pools.workspace_exists(&id("a")).await.unwrap());
    pools.ensure_workspace(&id("a")).await.unwrap();
    let tables = "select count(*) from sqlite_schema";
    let tables: i64 = sqlx::query_scalar(tables).fetch_one(&pools.workspace(&id("a"))).await.unwrap();
    assert_eq!((tables, files(&directory, ".sqlite").len()), (0, 1));
}

/// The files in a directory whose names end so.
fn files(directory: &TempDir, suffix: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().ends_with(suffix)).collect()
}

#[tokio::test]
async fn o4_a_session_that_outlives_its_database_leaves_the_next_one_alone() {
    let (_directory, pools) = with_notes().await;
    let mut held = pools.acquire(&id("a")).await.unwrap();
    sqlx::query("insert into note values ('old')").execute(&mut held).await.unwrap();
    let directory = pools.config().clone();
    let other = self::pools(directory).await;
    for _ in 0..20 {
        other.drop_workspace(&id("a")).await.unwrap();
        other.ensure_workspace(&id("a")).await.unwrap();
        sqlx::query("create table note (text)").execute(&other.workspace(&id("a"))).await.unwrap();
        let next = pools.acquire(&id("a")).await.unwrap();
        // Its last session closes beside one of the next database, which is in use.
        std::mem::replace(&mut held, next).discard();
        sqlx::query("insert into note values ('new')").execute(&mut held).await.unwrap();
        assert_eq!(count(&pools).await, 1);
    }
}

#[tokio::test]
async fn a_new_workspace_begins_as_a_copy_of_the_template() {
    let (directory, pools) = with_notes().await;
    pools.close().await.unwrap();
    let template = files(&directory, ".sqlite").remove(0);
    let pools = self::pools(SqliteConfig::new(directory.path()).template(template)).await;
    pools.ensure_workspace(&id("b")).await.unwrap();
    sqlx::query("insert into note values ('x')").execute(&pools.workspace(&id("b"))).await.unwrap();
    assert_eq!(count(&pools).await, 0, "the template is another database");
}

#[tokio::test]
async fn o3_a_file_that_is_no_database_is_told_by_the_acquire() {
    let (directory, pools) = with_notes().await;
    pools.ensure_workspace(&id("b")).await.unwrap();
    let is_b = |path: &std::path::PathBuf| path.to_str().unwrap().contains("_ws_b.");
    let file = files(&directory, ".sqlite").into_iter().find(is_b).unwrap();
    std::fs::write(file, "no database ".repeat(100)).unwrap();
    let error = pools.acquire(&id("b")).await.unwrap_err();
    assert!(error.to_string().contains("not a database"), "{error}");
    assert_eq!(count(&pools).await, 0, "the others are served");
}

#[tokio::test]
async fn w5_plain_statements_through_a_lease_keep_the_connection_clean() {
    let (_directory, pools) = with_notes().await;
    // The connection that made the table is made clean in the background.
    while pools.workspace(&id("a")).counts().idle == 0 {
        tokio::task::yield_now().await;
    }
    let before = pools.stats().workspaces;
    for _ in 0..50 {
        let mut lease = pools.acquire(&id("a")).await.unwrap();
        sqlx::query("insert into note values ('x')").execute(&mut *lease).await.unwrap();
    }
    let after = pools.stats().workspaces;
    assert_eq!((after.opened - before.opened, after.hits - before.hits), (0, 50), "{after:?}");
}

#[tokio::test]
async fn a_system_pool_is_refused_and_limits_must_be_given() {
    let directory = TempDir::new().unwrap();
    let refused = SqlitePools::builder(SqliteConfig::new(directory.path())).build().await;
    assert!(matches!(refused, Err(BuildError::NoLimits)), "{refused:?}");
    let pools = pools(SqliteConfig::new(directory.path())).await;
    let stats = pools.stats();
    assert_eq!((stats.workspaces.limit, stats.system.limit, stats.limit()), (4, 0, 4));
    let error = sqlx::query("select 1").execute(&pools.workspace(&id("nobody"))).await.unwrap_err();
    assert!(matches!(acquire_error(&error), Some(AcquireError::OpenFailed { .. })), "{error}");
}
