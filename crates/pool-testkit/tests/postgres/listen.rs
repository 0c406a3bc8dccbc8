//! Listeners: a place of their own in the budget, and their way back.

use std::time::Duration;

use pool_postgres::{
    Limits, ListenError, PgPools, PgPoolsBuilder, PgTransaction, PgWorkspaceListener, WorkspaceId,
};
use pool_testkit::faults::{Link, Proxy};
use pool_testkit::server::{DedicatedServer, config_of};
use pool_testkit::{TestPool, eventually};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::timeout;

use crate::support::{SOON, id};

/// Ends the sessions of listeners, seen from a session with the same database.
const LOSE: &str = "select pg_terminate_backend(pid) from pg_stat_activity \
                    where query ~* '^(un)?listen' and datname = current_database()";

async fn one_place() -> (TestPool, WorkspaceId) {
    let limits = Limits::new(8).system(5);
    let pool =
        TestPool::builder().limits(limits).adjust(|builder| builder.listeners(1)).build().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    (pool, a)
}

async fn heard(listener: &mut PgWorkspaceListener) -> String {
    let notification = timeout(SOON, listener.recv()).await.unwrap().unwrap();
    notification.payload().to_owned()
}

async fn notify(pool: &TestPool, a: &WorkspaceId, payload: &str) {
    let notify = sqlx::query("select pg_notify('Jobs', $1)").bind(payload);
    notify.execute(&pool.workspace(a)).await.unwrap();
}

/// How many sessions with the database the server counts that are not idle leases: listeners.
async fn listening(pool: &TestPool) -> usize {
    let sessions = pool.sessions().await.unwrap();
    sessions.iter().filter(|session| session.last_query.starts_with("LISTEN")).count()
}

#[tokio::test]
async fn b1_a_listener_hears_its_workspace_in_a_place_of_its_own() {
    let (pool, a) = one_place().await;
    let limit = pool.stats().limit();
    assert_eq!(
        (pool.stats().control, limit),
        (2, 8),
        "the place counts from the beginning, within the budget"
    );
    let mut listener = pool.pools().listener(&a).await.unwrap();
    listener.listen("Jobs").await.unwrap();
    notify(&pool, &a, "one").await;
    assert_eq!(heard(&mut listener).await, "one");
    let stats = pool.stats();
    let counted = stats.connections().total() + stats.control;
    assert_eq!(pool.active_connection_count().await.unwrap(), counted, "as the server counts");

    let refused = pool.pools().listener(&a).await.unwrap_err();
    assert!(matches!(refused, ListenError::NoPlace { places: 1 }), "{refused}");
    assert!(refused.to_string().contains(".listeners(2)"), "{refused}");
    drop(listener);
    let mut next = pool.pools().listener(&a).await.unwrap();
    next.listen("Jobs").await.unwrap();
    eventually("one session that listens", SOON, || async { listening(&pool).await == 1 }).await.unwrap();
    notify(&pool, &a, "two").await;
    assert_eq!(heard(&mut next).await, "two");
    drop(next);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn b1_a_listener_whose_session_is_lost_listens_again_and_says_so() {
    let (pool, a) = one_place().await;
    let mut listener = pool.pools().listener(&a).await.unwrap();
    listener.listen("Jobs").await.unwrap();
    sqlx::query(LOSE).execute(&pool.workspace(&a)).await.unwrap();
    assert_eq!(listener.reconnects(), 0);
    let hears = async {
        let mut waiting = Box::pin(listener.recv());
        // What is sent before it listens again is lost, so it is sent again and again.
        loop {
            notify(&pool, &a, "again").await;
            if let Ok(heard) = timeout(Duration::from_millis(50), &mut waiting).await {
                return heard.unwrap().payload().to_owned();
            }
        }
    };
    assert_eq!(timeout(SOON, hears).await.expect("it listens again"), "again");
    assert_eq!((listener.reconnects(), listening(&pool).await), (1, 1));
    drop(listener);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn c2_a_close_ends_listeners_and_tells_them() {
    let (pool, a) = one_place().await;
    let mut listener = pool.pools().listener(&a).await.unwrap();
    listener.listen("Jobs").await.unwrap();
    pool.pools().close().await.unwrap();
    assert_eq!(pool.active_connection_count().await.unwrap(), 0, "nothing is left on the server");
    let told = timeout(SOON, listener.recv()).await.expect("it is told").unwrap_err();
    assert!(matches!(told, sqlx::Error::PoolClosed), "{told}");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn c2_a_pool_that_is_closing_has_no_new_listeners() {
    let (pool, a) = one_place().await;
    let held = pool.acquire(&a).await.unwrap();
    let pools = pool.pools().clone();
    let closing = tokio::spawn(async move { pools.close().await });
    eventually("the close", SOON, || async { pool.pools().is_closed() }).await.unwrap();
    let told = pool.pools().listener(&a).await.unwrap_err();
    assert!(matches!(told, ListenError::Sqlx(sqlx::Error::PoolClosed)), "{told}");
    drop(held);
    closing.await.unwrap().unwrap();
    pool.cleanup().await.unwrap();
}

/// Whatever finds out that the session is lost, and what was asked for before.
#[tokio::test]
async fn a_listener_listens_after_a_loss_to_what_it_was_told_to_and_to_nothing_else() {
    let (pool, a) = one_place().await;
    let mut listener = pool.pools().listener(&a).await.unwrap();
    listener.listen("Left").await.unwrap();
    listener.unlisten("Left").await.unwrap();
    sqlx::query(LOSE).execute(&pool.workspace(&a)).await.unwrap();
    let again = async {
        while listener.listen("Jobs").await.is_err() {
            tokio::task::yield_now().await; // so that the limit is seen
        }
        listener
    };
    let mut listener = timeout(SOON, again).await.expect("it finds its way back");
    assert_eq!(listener.reconnects(), 1);
    sqlx::query("select pg_notify('Left', 'no')").execute(&pool.workspace(&a)).await.unwrap();
    notify(&pool, &a, "yes").await;
    assert_eq!(heard(&mut listener).await, "yes");
    drop(listener);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_pool_that_guards_its_sessions_has_no_listeners_and_says_so() {
    let guarded = |builder: PgPoolsBuilder| builder.listeners(1).configure(|config| config.guarded(true));
    let pool = TestPool::builder().adjust(guarded).build().await.unwrap();
    let told = pool.pools().listener(&id("a")).await.unwrap_err();
    assert!(matches!(told, ListenError::Guarded), "{told}");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn o4_a_listener_of_a_database_that_is_not_there_is_told_so_and_leaves_its_place() {
    let (pool, a) = one_place().await;
    for _ in 0..2 {
        let told = pool.pools().listener(&id("missing")).await.unwrap_err();
        let ListenError::Sqlx(sqlx::Error::Database(error)) = &told else { panic!("{told}") };
        assert_eq!(error.code().as_deref(), Some("3D000"));
    }
    drop(pool.pools().listener(&a).await.unwrap());
    pool.cleanup().await.unwrap();
}

/// What holds back every session that is to begin in a database, until the transaction is rolled back.
fn lock(database: &str) -> String {
    format!("alter database \"{database}\" rename to \"{database}_elsewhere\"")
}

/// Sessions that wait for the lock on their database before they begin.
async fn at_the_door(pool: &TestPool, a: &WorkspaceId) -> i64 {
    let waiting = "select count(*) from pg_locks where locktype = 'object' and classid = 'pg_database'::regclass \
                   and objid = (select oid from pg_database where datname = $1) and not granted";
    let waiting = sqlx::query_scalar(waiting).bind(pool.database_of(a));
    waiting.fetch_one(&pool.system()).await.unwrap()
}

/// A place for a listener, and a transaction with a lock on the database of `a`: a session that waits for that does not see that its
/// client has gone.
async fn behind_a_lock() -> (TestPool, WorkspaceId, PgTransaction) {
    let limits = Limits::new(8).system(5);
    let adjust = |builder: PgPoolsBuilder| builder.listeners(1).connect_timeout(Duration::from_secs(1));
    let pool = TestPool::builder().limits(limits).adjust(adjust).build().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let mut locks = pool.system().begin().await.unwrap();
    sqlx::query(AssertSqlSafe(lock(&pool.database_of(&a)))).execute(&mut *locks).await.unwrap();
    (pool, a, locks)
}

async fn one_waits(pool: &TestPool, a: &WorkspaceId) {
    eventually("one session that waits", SOON, || async { at_the_door(pool, a).await == 1 }).await.unwrap();
}

#[tokio::test]
async fn b1_a_listener_that_is_dropped_while_it_connects_has_its_place_until_the_server_has_let_go_of_it() {
    let (pool, a, locks) = behind_a_lock().await;
    let (pools, whose) = (pool.pools().clone(), a.clone());
    let dropped = tokio::spawn(async move { pools.listener(&whose).await.map(drop) });
    one_waits(&pool, &a).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());

    for _ in 0..2 {
        let refused = timeout(SOON, pool.pools().listener(&a)).await.unwrap().unwrap_err();
        assert!(matches!(refused, ListenError::Sqlx(sqlx::Error::PoolTimedOut)), "{refused}");
        assert_eq!(at_the_door(&pool, &a).await, 1, "no other was asked for");
    }
    locks.rollback().await.unwrap();
    timeout(SOON, pool.pools().listener(&a)).await.unwrap().unwrap().listen("Jobs").await.unwrap();
    pool.cleanup().await.unwrap();
}

/// What the server does not say is not so.
#[tokio::test]
async fn b1_the_place_of_a_listener_is_not_free_while_the_server_cannot_be_asked() {
    let server = DedicatedServer::start().await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], server.address().port()).into()).await.unwrap();
    let config = config_of(server.address());
    let pools = PgPools::builder(config.clone().port(proxy.address().port()));
    let pools = pools.limits(Limits::new(8).system(5)).listeners(1).connect_timeout(Duration::from_secs(1));
    let pools = pools.build().await.unwrap();
    let a = id("a");
    pools.ensure_workspace(&a).await.unwrap();
    let mut outside = PgConnection::connect_with(&config.connect_options("postgres")).await.unwrap();
    let lock = format!("begin; {}", lock(pools.database(&a).as_str()));
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut outside).await.unwrap();
    let waiting = "select count(*) from pg_locks where locktype = 'object' and not granted";
    timeout(SOON, pools.listener(&a)).await.unwrap().unwrap_err();
    assert_eq!(sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut outside).await.unwrap(), 1);

    proxy.set("postgres", Link::Dark);
    for _ in 0..2 {
        timeout(SOON, pools.listener(&a)).await.unwrap().unwrap_err();
        let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut outside);
        assert_eq!(waiting.await.unwrap(), 1, "no other was asked for");
    }
    proxy.set("postgres", Link::Up);
    outside.close().await.unwrap();
    let is_heard = || async { pools.listener(&a).await.is_ok() };
    eventually("a listener", SOON, is_heard).await.unwrap();
    pools.close().await.unwrap();
}

#[tokio::test]
async fn c2_a_close_gives_up_a_listener_that_connects_and_leaves_nothing_once_the_server_goes_on() {
    let (pool, a, locks) = behind_a_lock().await;
    let (pools, whose) = (pool.pools().clone(), a.clone());
    let connects = tokio::spawn(async move { pools.listener(&whose).await.map(drop) });
    one_waits(&pool, &a).await;
    locks.rollback().await.unwrap();
    pool.pools().close().await.unwrap();
    assert_eq!(pool.active_connection_count().await.unwrap(), 0, "whatever it had come to");
    let _ = timeout(SOON, connects).await.expect("it is told or served, and does not hang");
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn c2_a_close_does_not_wait_for_a_session_that_the_server_holds_up() {
    let (pool, a) = one_place().await;
    let mut locks = PgConnection::connect_with(&pool.config().connect_options("postgres")).await.unwrap();
    let lock = format!("begin; {}", lock(&pool.database_of(&a)));
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut locks).await.unwrap();
    let (pools, whose) = (pool.pools().clone(), a.clone());
    let connects = tokio::spawn(async move { pools.listener(&whose).await.map(drop) });
    one_waits(&pool, &a).await;
    timeout(SOON, pool.pools().close()).await.expect("it does not hang").unwrap();
    let told = timeout(SOON, connects).await.expect("it is told").unwrap().unwrap_err();
    assert!(matches!(told, ListenError::Sqlx(sqlx::Error::PoolClosed)), "{told}");
    locks.close().await.unwrap();
    pool.cleanup().await.unwrap();
}
