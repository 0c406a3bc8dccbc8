//! What handles, leases and the builder offer beside queries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_postgres::{
    BuildError, CloseReason, ConnectionId, Event, EvictionPolicy, Limits, Lru, Observer, PgPools, Target,
};
use pool_testkit::{TestPool, wait_for_condition};
use rstest::rstest;
use sqlx::{Error, Executor};

use crate::support::{SOON, id, one_connection};

#[tokio::test]
async fn l1_a_transaction_begins_as_its_caller_says_and_leaves_nothing() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    sqlx::query("create table note (id int)").execute(&db).await.unwrap();

    let mut tx = db.begin_with("begin isolation level serializable read only").await.unwrap();
    let level: String = sqlx::query_scalar("select current_setting('transaction_isolation')")
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    assert_eq!(level, "serializable");
    tx.commit().await.unwrap();
    assert_eq!(db.counts().idle, 1, "known to be clean");
    let mut tx = db.begin_with("start transaction read only").await.unwrap();
    let error = sqlx::query("insert into note values (1)").execute(&mut *tx).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("25006"), "{error}");
    tx.rollback().await.unwrap();

    let begun = db.begin_with("select 1").await;
    assert!(matches!(begun, Err(Error::BeginFailed)), "{begun:?}");
    let tx = db.begin_with("set statement_timeout = '77s'; begin").await.unwrap();
    tx.commit().await.unwrap();
    let mut lease = db.acquire().await.unwrap();
    let left = "select current_setting('statement_timeout') || current_setting('transaction_isolation')";
    let left: String = sqlx::query_scalar(left).fetch_one(&mut *lease).await.unwrap();
    assert_eq!(left, "0read committed");
    drop(lease);
    assert_eq!(pool.stats().workspaces.opened, 1, "on one connection, all of it");
    pool.cleanup().await.unwrap();
}

#[rstest]
#[case::idle(false)]
#[case::running_a_query(true)]
#[tokio::test]
async fn b1_a_lease_that_is_closed_has_been_let_go_by_the_server(#[case] is_running: bool) {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    let mut lease = db.acquire().await.unwrap();
    let pid = lease.backend_pid();
    if is_running {
        let sleep = lease.execute("select pg_sleep(60)");
        tokio::time::timeout(Duration::from_millis(50), sleep).await.unwrap_err();
    }
    tokio::time::timeout(SOON, lease.close()).await.unwrap();
    // Not sooner or later: when it returns.
    assert_eq!(db.counts().total(), 0);
    assert!(pool.sessions().await.unwrap().iter().all(|session| session.pid != pid));
    assert_eq!(pool.stats().workspaces.closed, 1);
    db.execute("select 1").await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn c1_closing_a_lease_that_was_cut_returns_at_once() {
    let pool = TestPool::builder()
        .adjust(|builder| builder.close_timeout(Duration::from_millis(100)))
        .build()
        .await
        .unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let lease = pool.acquire(&a).await.unwrap();
    pool.close_workspace(&a).await.unwrap_err();
    tokio::time::timeout(SOON, lease.close()).await.unwrap();
    // A close that is dropped goes on.
    let lease = pool.acquire(&a).await.unwrap();
    let mut close = Box::pin(lease.close());
    assert!(futures_util::poll!(close.as_mut()).is_pending());
    drop(close);
    let is_gone = || pool.workspace(&a).counts().total() == 0;
    wait_for_condition("the connection being closed", SOON, is_gone).await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l1_a_ping_leaves_a_connection_known_clean() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    let mut lease = db.acquire().await.unwrap();
    lease.ping().await.unwrap();
    drop(lease);
    assert_eq!(db.counts().idle, 1);
    let mut tx = db.begin().await.unwrap();
    tx.ping().await.unwrap();
    pool.terminate_all_connections().await.unwrap();
    tx.ping().await.unwrap_err();
    drop(tx);
    let next = || async { db.execute("select 1").await.is_ok() };
    pool_testkit::eventually("a new connection", SOON, next).await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_builder_without_limits_says_what_to_write() {
    let pool = TestPool::new().await.unwrap();
    let error = PgPools::builder(pool.config().clone()).build().await.unwrap_err();
    assert!(matches!(error, BuildError::NoLimits), "{error}");
    assert!(error.to_string().contains(".limits(Limits::new("), "{error}");

    assert!(!pool.pools().is_closed());
    pool.cleanup().await.unwrap();
    assert!(pool.pools().is_closed());
}

#[tokio::test]
async fn the_statistics_can_be_written_down() {
    let pool = TestPool::new().await.unwrap();
    let a = id("a \"quoted\"");
    pool.ensure_workspace(&a).await.unwrap();
    pool.workspace(&a).execute("select 1").await.unwrap();
    let stats = serde_json::to_value(pool.stats()).unwrap();
    assert_eq!(stats["workspaces"]["connections"]["idle"], 1, "{stats}");
    let stats = serde_json::to_value(pool.pools().workspace_stats()).unwrap();
    assert_eq!(stats["by_workspace"][a.as_str()]["answers"]["acquired"], 1, "{stats}");
    pool.cleanup().await.unwrap();
}

/// Written with the names of this crate alone.
#[derive(Default)]
struct Reasons(Mutex<Vec<(Target, CloseReason)>>);

impl Observer for Reasons {
    fn on(&self, event: &Event<'_>) {
        if let Event::Closed { target, reason, .. } = event {
            self.0.lock().unwrap().push(((*target).clone(), *reason));
        }
    }
}

/// One workspace's connections go first, and then the least recently used.
#[derive(Default)]
struct FirstOf {
    target: Option<Target>,
    lru: Lru,
    its: HashMap<ConnectionId, Target>,
}

impl EvictionPolicy for FirstOf {
    fn touched(&mut self, connection: ConnectionId, target: &Target) {
        self.its.insert(connection, target.clone());
        self.lru.touched(connection, target);
    }

    fn removed(&mut self, connection: ConnectionId) {
        self.its.remove(&connection);
        self.lru.removed(connection);
    }

    fn victim(&mut self, may: &dyn Fn(ConnectionId) -> bool) -> Option<ConnectionId> {
        let Self { target, lru, its } = self;
        let preferred = lru.victim(&|connection| may(connection) && its.get(&connection) == target.as_ref());
        preferred.or_else(|| lru.victim(may))
    }
}

#[tokio::test]
async fn e2_a_policy_and_an_observer_need_the_names_of_this_crate_alone() {
    let reasons = Arc::new(Reasons::default());
    let first = Target::from(&id("first"));
    let (observer, victim) = (Arc::clone(&reasons), first.clone());
    let pool = TestPool::builder()
        .limits(Limits::new(7).system(5).per_workspace(1))
        .adjust(move |builder| {
            let policy = move || -> Box<dyn EvictionPolicy> {
                Box::new(FirstOf { target: Some(victim.clone()), ..FirstOf::default() })
            };
            builder.observer(observer).eviction(Arc::new(policy))
        })
        .build()
        .await
        .unwrap();
    for name in ["other", "first", "third"] {
        pool.ensure_workspace(&id(name)).await.unwrap();
        pool.workspace(&id(name)).execute("select 1").await.unwrap();
    }
    let seen = reasons.0.lock().unwrap().clone();
    assert_eq!(seen.first(), Some(&(first, CloseReason::Evicted)), "{seen:?}");
    assert_eq!(CloseReason::Evicted.to_string(), "another workspace needed the slot");
    pool.cleanup().await.unwrap();
}
