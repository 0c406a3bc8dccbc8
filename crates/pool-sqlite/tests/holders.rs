//! What one holder does, and the next must not see.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pool_sqlite::{AcquireError, Limits, SqliteConfig, SqliteLease, SqlitePools, WorkspaceId};
use pool_testkit::poll_at_most;
use rstest::rstest;
use sqlx::{Acquire as _, Executor as _};
use tempfile::TempDir;
use tokio::task::JoinSet;

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

async fn pools(directory: &TempDir, connections: u32) -> SqlitePools {
    let limits = Limits::new(connections);
    SqlitePools::builder(SqliteConfig::new(directory.path())).limits(limits).build().await.unwrap()
}

/// A pool of one connection, whose workspace `a` has a table `note`.
async fn one_connection() -> (TempDir, SqlitePools) {
    let directory = TempDir::new().unwrap();
    let pools = pools(&directory, 1).await;
    pools.ensure_workspace(&id("a")).await.unwrap();
    sqlx::query("create table note (text)").execute(&pools.workspace(&id("a"))).await.unwrap();
    (directory, pools)
}

async fn lease(pools: &SqlitePools) -> SqliteLease {
    pools.acquire(&id("a")).await.unwrap()
}

#[tokio::test]
async fn l1_after_a_commit_that_was_dropped_the_next_holders_rollback_is_no_ones_else() {
    let (_directory, pools) = one_connection().await;
    let mut expected = 0;
    for polls in 1..12 {
        let tx = pools.workspace(&id("a")).begin().await.unwrap();
        poll_at_most(polls, tx.commit()).await;
        let mut held = lease(&pools).await;
        let begun = (&mut held).begin().await.unwrap();
        drop(begun);
        held.execute("insert into note values ('x')").await.unwrap();
        drop(held);
        expected += 1;
        let count = sqlx::query_scalar::<_, i64>("select count(*) from note");
        assert_eq!(count.fetch_one(&mut lease(&pools).await).await.unwrap(), expected, "after {polls} polls");
    }
}

#[rstest]
#[case::a_ceiling_of_the_file("pragma max_page_count = 1")]
#[case::another_journal("pragma journal_mode = delete")]
#[case::another_journal_of_none("pragma journal_mode = off")]
#[case::no_writes("pragma query_only = on")]
#[tokio::test]
async fn l1_what_a_holder_sets_hinders_no_other(#[case] setting: &'static str) {
    let (_directory, pools) = one_connection().await;
    lease(&pools).await.execute(setting).await.unwrap();
    for _ in 0..200 {
        let mut held = lease(&pools).await;
        sqlx::query("insert into note values (hex(randomblob(400)))").execute(&mut held).await.unwrap();
    }
    let journal: String =
        sqlx::query_scalar("pragma journal_mode").fetch_one(&mut lease(&pools).await).await.unwrap();
    assert_eq!(journal, "wal");
}

#[tokio::test]
async fn l1_a_pragma_that_is_only_prepared_is_taken_back() {
    let (_directory, pools) = one_connection().await;
    lease(&pools).await.prepare(sqlx::SqlStr::from_static("pragma foreign_keys = off")).await.unwrap();
    let are_on: bool =
        sqlx::query_scalar("pragma foreign_keys").fetch_one(&mut lease(&pools).await).await.unwrap();
    assert!(are_on);
}

#[tokio::test]
async fn l1_a_hook_that_a_holder_left_refuses_no_others_commit() {
    let (_directory, pools) = one_connection().await;
    let mut held = lease(&pools).await;
    held.lock_handle().await.unwrap().set_commit_hook(|| false);
    drop(held);
    let mut held = lease(&pools).await;
    sqlx::query("insert into note values ('x')").execute(&mut held).await.unwrap();
}

#[tokio::test]
async fn i2_connections_that_a_holder_has_exchanged_serve_nobody() {
    let directory = TempDir::new().unwrap();
    let pools = pools(&directory, 4).await;
    for name in ["a", "b"] {
        pools.ensure_workspace(&id(name)).await.unwrap();
        sqlx::query("create table name (n)").execute(&pools.workspace(&id(name))).await.unwrap();
        sqlx::query("insert into name values (?)")
            .bind(name)
            .execute(&pools.workspace(&id(name)))
            .await
            .unwrap();
    }
    let (mut a, mut b) = (pools.acquire(&id("a")).await.unwrap(), pools.acquire(&id("b")).await.unwrap());
    std::mem::swap(&mut **a, &mut **b);
    drop((a, b));
    for name in ["a", "b"] {
        let read = sqlx::query_scalar("select n from name").fetch_one(&pools.workspace(&id(name))).await;
        assert_eq!(read.map(|read: String| read).unwrap(), name);
    }
}

#[tokio::test]
async fn o3_pools_that_open_a_fresh_database_together_are_all_served() {
    let directory = TempDir::new().unwrap();
    let both = [pools(&directory, 8).await, pools(&directory, 8).await];
    for round in 0..40 {
        let fresh = id(&format!("w{round}"));
        both[0].ensure_workspace(&fresh).await.unwrap();
        let mut callers = JoinSet::new();
        for pools in both.iter().chain(&both) {
            let (pools, fresh) = (pools.clone(), fresh.clone());
            callers.spawn(async move { pools.acquire(&fresh).await.map(drop) });
        }
        for served in callers.join_all().await {
            served.unwrap();
        }
    }
}

#[tokio::test]
async fn o4_a_database_whose_removal_was_cut_short_is_served_no_more() {
    let (directory, pools) = one_connection().await;
    drop(lease(&pools).await);
    std::fs::remove_file(directory.path().join("app_ws_a.ws")).unwrap();
    pools.acquire(&id("a")).await.unwrap_err();
}

#[cfg(unix)]
#[tokio::test]
async fn a_template_may_be_write_protected_but_not_in_use() {
    use std::os::unix::fs::PermissionsExt;

    let (directory, first) = one_connection().await;
    let files = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let template =
        files.into_iter().find(|path| path.extension().is_some_and(|end| end == "sqlite")).unwrap();
    let config = SqliteConfig::new(directory.path().join("copies")).template(&template);
    let pools = SqlitePools::builder(config).limits(Limits::new(2)).build().await.unwrap();
    sqlx::query("insert into note values ('x')").execute(&first.workspace(&id("a"))).await.unwrap();
    let refused = pools.ensure_workspace(&id("a")).await.unwrap_err();
    assert!(refused.to_string().contains("is in use"), "{refused}");
    first.close().await.unwrap();
    std::fs::set_permissions(&template, PermissionsExt::from_mode(0o444)).unwrap();
    pools.ensure_workspace(&id("a")).await.unwrap();
    let copies = std::fs::read_dir(directory.path().join("copies")).unwrap().map(|entry| entry.unwrap());
    let is_protected = |entry: &std::fs::DirEntry| entry.metadata().unwrap().permissions().readonly();
    assert!(!copies.into_iter().any(|entry| is_protected(&entry)));
    sqlx::query("insert into note values ('y')").execute(&pools.workspace(&id("a"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn o3_an_open_that_meets_a_drop_finds_the_next_database_or_none() {
    let directory = TempDir::new().unwrap();
    let (maker, user) = (pools(&directory, 4).await, pools(&directory, 8).await);
    maker.ensure_workspace(&id("a")).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let mut users = JoinSet::new();
    for _ in 0..6 {
        let (user, is_over) = (user.clone(), Arc::clone(&is_over));
        users.spawn(async move {
            let mut kinds = std::collections::BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) {
                match user.acquire(&id("a")).await {
                    Ok(lease) => lease.discard(),
                    Err(AcquireError::OpenFailed { source, .. }) => {
                        kinds.insert(format!("{:?}", source.kind));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            kinds
        });
    }
    for _ in 0..400 {
        maker.drop_workspace(&id("a")).await.unwrap();
        maker.ensure_workspace(&id("a")).await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    // It was not there at that moment, or it was dropped under a new connection.
    let expected = ["ConnectionLost", "DatabaseMissing"];
    for kinds in users.join_all().await {
        assert!(kinds.iter().all(|kind| expected.contains(&kind.as_str())), "{kinds:?}");
    }
}
