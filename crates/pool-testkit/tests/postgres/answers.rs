//! Every statement gets its own answer, whatever a holder did to the connection before.

use std::time::Duration;

use futures_util::TryStreamExt;
use pool_core::{Driver as _, Endpoint, Target};
use pool_postgres::{Limits, PgConn, PgDriver, PgPools, PgSession, PostgresConfig, WorkspaceId};
use pool_testkit::faults::{DedicatedServer, Proxy};
use pool_testkit::server::config_of;
use pool_testkit::{TestPool, eventually};
use rstest::rstest;
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::support::{SOON, id, one_connection};

/// Several holders one after another each ask for a number of their own.
async fn answers_are_right(pool: &TestPool, a: &WorkspaceId) {
    for number in 0..4_i32 {
        let mut lease = pool.acquire(a).await.unwrap();
        let echo = format!("select {number}");
        let answer = sqlx::query_scalar::<_, i32>(sqlx::AssertSqlSafe(echo)).fetch_all(&mut lease).await;
        assert_eq!(answer.unwrap(), [number]);
    }
}

#[derive(Clone, Copy, Debug)]
enum Mishap {
    CopyInDropped,
    CopyInRefused,
    CopyOutDropped,
    CopyOutRefused,
    NotificationsUnread,
}

async fn meet(conn: &mut PgConnection, mishap: Mishap) {
    match mishap {
        Mishap::CopyInDropped => {
            let mut copy = conn.copy_in_raw("copy note from stdin").await.unwrap();
            copy.send(&b"1\n"[..]).await.unwrap();
        }
        Mishap::CopyInRefused => {
            conn.copy_in_raw("copy nowhere from stdin").await.map(drop).unwrap_err();
        }
        Mishap::CopyOutDropped => {
            let mut rows =
                conn.copy_out_raw("copy (select generate_series(1, 100)) to stdout").await.unwrap();
            rows.try_next().await.unwrap();
        }
        Mishap::CopyOutRefused => {
            conn.copy_out_raw("copy nowhere to stdout").await.map(drop).unwrap_err();
        }
        Mishap::NotificationsUnread => {
            conn.execute("listen news").await.unwrap();
            conn.execute("notify news, 'x'").await.unwrap_err();
        }
    }
}

#[rstest]
#[case::copy_in_dropped(Mishap::CopyInDropped)]
#[case::copy_in_refused(Mishap::CopyInRefused)]
#[case::copy_out_dropped(Mishap::CopyOutDropped)]
#[case::copy_out_refused(Mishap::CopyOutRefused)]
#[case::notifications_unread(Mishap::NotificationsUnread)]
#[tokio::test]
async fn l4_no_holder_reads_an_answer_that_another_one_left(#[case] mishap: Mishap) {
    let (pool, a) = one_connection().await;
    sqlx::query("create table note (id int)").execute(&pool.workspace(&a)).await.unwrap();
    for _ in 0..3 {
        meet(&mut pool.acquire(&a).await.unwrap(), mishap).await;
        answers_are_right(&pool, &a).await;
    }
    pool.cleanup().await.unwrap();
}

/// A COMMIT is not taken to have succeeded because of what another statement was answered.
#[tokio::test]
async fn l4_a_commit_gets_its_own_answer() {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    let table = "create table note (id int primary key deferrable initially deferred)";
    sqlx::query(table).execute(&db).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    tx.execute("insert into note values (1), (1)").await.unwrap();
    {
        let mut rows = (**tx).copy_out_raw("copy (select 1) to stdout").await.unwrap();
        rows.try_next().await.unwrap().unwrap();
    }
    // One statement reads what is left of the copy, so that every later one is an answer behind.
    for _ in 0..2 {
        let _ = (**tx).execute(sqlx::raw_sql("select 1")).await;
    }
    tx.commit().await.unwrap_err();
    answers_are_right(&pool, &a).await;
    pool.cleanup().await.unwrap();
}

/// What a holder may have put in front of `pg_catalog`.
const IMPOSTORS: &str = "
    create schema fake;
    create function fake.now() returns timestamptz language sql as 'select timestamptz ''epoch''';
    create function fake.statement_timestamp() returns timestamptz language sql as 'select timestamptz ''epoch''';
    create function fake.always(timestamptz, timestamptz) returns boolean language sql as 'select true';
    create function fake.always(name, text) returns boolean language sql as 'select true';
    create operator fake.= (leftarg = timestamptz, rightarg = timestamptz, function = fake.always);
    create operator fake.= (leftarg = name, rightarg = text, function = fake.always);
    create domain fake.text as pg_catalog.text check (false);
    create function fake.pg_advisory_unlock_all() returns integer language sql as 'select 1 / 0';";

#[tokio::test]
async fn l4_a_holders_own_schema_cannot_answer_for_the_server() {
    let (pool, a) = one_connection().await;
    let mut lease = pool.acquire(&a).await.unwrap();
    let pid = lease.backend_pid();
    let own_pid = format!("create function fake.pg_backend_pid() returns int language sql as 'select {pid}'");
    (**lease).execute(IMPOSTORS).await.unwrap();
    (**lease).execute(sqlx::AssertSqlSafe(own_pid)).await.unwrap();
    (**lease).execute("create table note (id int)").await.unwrap();
    (**lease).execute("set search_path = fake, pg_catalog, public").await.unwrap();
    (**lease).execute("begin; insert into public.note values (1)").await.unwrap();
    drop(lease);

    let mut next = pool.acquire(&a).await.unwrap();
    let is_inside: bool =
        sqlx::query_scalar("select pg_catalog.pg_current_xact_id_if_assigned() is not null")
            .fetch_one(&mut next)
            .await
            .unwrap();
    assert!(!is_inside, "the next holder stands in the transaction of the one before");
    drop(next);
    pool.cleanup().await.unwrap();
}

/// Has `session` begin a query that does not end by itself, and gives that up once the server is at work on it. Then ends all
/// other sessions of the name `tag`, a control connection among them.
async fn give_up_without_control(session: &mut PgSession, config: &PostgresConfig, tag: &str) {
    let pid = session.backend_pid();
    let system = config.get_system_database().unwrap();
    let options = config.clone().application_name("pk:outsider").connect_options(system.as_str());
    let mut outside = PgConnection::connect_with(&options).await.unwrap();
    {
        // It is one message: a server that is at work on it runs it, and does not wait for the next one.
        let mut endless = std::pin::pin!(session.execute("select pg_sleep(600)"));
        let begun = async {
            let is_at_work =
                "select state is not distinct from 'active' from pg_stat_activity where pid = $1";
            let ask = || sqlx::query_scalar::<_, bool>(is_at_work).bind(pid);
            while !ask().fetch_one(&mut outside).await.unwrap() {}
        };
        tokio::select! {
            biased;
            ended = &mut endless => panic!("an endless query has ended: {ended:?}"),
            begun = tokio::time::timeout(SOON, begun) => begun.unwrap(),
        }
    }
    let others = "select pg_terminate_backend(pid, 10000) from pg_stat_activity \
                  where starts_with(application_name, $1) and pid <> $2";
    sqlx::query(others).bind(tag).bind(pid).execute(&mut outside).await.unwrap();
}

#[tokio::test]
async fn l4_a_cancel_that_nobody_confirms_costs_the_connection() {
    let server = DedicatedServer::start().await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], server.address().port()).into()).await.unwrap();
    let config = config_of(server.address()).port(proxy.address().port()).application_name("cancels");
    let limits = Limits::new(6).system(5).per_workspace(1);
    let pools = PgPools::builder(config).limits(limits).build().await.unwrap();
    let a = id("a");
    pools.ensure_workspace(&a).await.unwrap();
    let mut lease = pools.acquire(&a).await.unwrap();
    let before = lease.backend_pid();

    // Any question, as about what is idle, has the control connection made anew, and the new one would confirm the cancel.
    proxy.refuse().await.unwrap();
    give_up_without_control(&mut lease, &config_of(server.address()), "cancels").await;
    drop(lease);
    let is_on_its_way_out = || std::future::ready(pools.workspace(&a).counts().closing == 1);
    eventually("the connection being on its way out", SOON, is_on_its_way_out).await.unwrap();
    proxy.listen().await.unwrap();

    // Whoever asks before the server has answered again may be told that it is lost.
    let is_served = || async { pools.acquire(&a).await.is_ok() };
    eventually("the workspace being served again", SOON, is_served).await.unwrap();
    let next = pools.acquire(&a).await.unwrap().backend_pid();
    assert_ne!(next, before, "a cancel may still be on its way to that one");
    pools.close().await.unwrap();
}

/// A driver whose control connection has been lost, and a connection on which a query goes on for nobody. There is no pool around
/// them that would ask anything over that one: what is asked next, the test asks.
async fn given_up_without_control(pool: &TestPool) -> (PgDriver, PgConn) {
    let (config, system) = (pool.config().clone(), pool.config().get_system_database().unwrap());
    let driver = PgDriver::start(config.clone(), system.as_str(), SOON).await.unwrap();
    let endpoint = Endpoint { target: Target::System, database: system };
    let mut conn = driver.connect(&endpoint).await.unwrap();
    give_up_without_control(&mut conn, &config, &pool.tag()).await;
    (driver, conn)
}

#[tokio::test]
async fn l4_a_cancel_that_nobody_confirms_makes_nothing_clean() {
    let pool = TestPool::new().await.unwrap();
    let (driver, mut conn) = given_up_without_control(&pool).await;
    let refused = driver.recycle(&mut conn).await.unwrap_err();
    assert!(refused.to_string().contains("the server has not confirmed a cancel"), "{refused}");
    driver.close(conn).await;
    driver.shutdown().await;
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn l4_a_cancel_that_is_confirmed_over_a_new_control_connection_keeps_the_session() {
    let pool = TestPool::new().await.unwrap();
    let (driver, mut conn) = given_up_without_control(&pool).await;
    let pid = conn.backend_pid();
    assert_eq!(driver.answers().await.unwrap(), 1, "how often the control connection was made anew");
    driver.recycle(&mut conn).await.unwrap();
    let session: &mut PgSession = &mut conn;
    let answer = session.fetch_one("select pg_backend_pid()").await.unwrap();
    assert_eq!(answer.get::<i32, _>(0), pid, "nothing but the query was cancelled");
    driver.close(conn).await;
    driver.shutdown().await;
    pool.cleanup().await.unwrap();
}

/// How long what sqlx can no longer follow may hold anybody up.
const AT_ONCE: Duration = Duration::from_millis(500);

const COPY: &str = "copy note from stdin";
const BATCH: &str = "select 1; copy note from stdin; select 2";

async fn one_connection_with_a_table() -> (TestPool, WorkspaceId) {
    let (pool, a) = one_connection().await;
    sqlx::query("create table note (id int)").execute(&pool.workspace(&a)).await.unwrap();
    (pool, a)
}

/// sqlx does not expect a COPY: it waits for the server from then on, and the server for rows.
#[rstest]
#[case::commit(COPY, true)]
#[case::rollback(COPY, false)]
#[case::commit_after_a_batch(BATCH, true)]
#[case::rollback_after_a_batch(BATCH, false)]
#[tokio::test]
async fn l4_a_transaction_that_cannot_be_followed_ends_at_once(
    #[case] sql: &'static str,
    #[case] commit: bool,
) {
    let (pool, a) = one_connection_with_a_table().await;
    let mut tx = pool.workspace(&a).begin().await.unwrap();
    tx.execute("insert into note values (1)").await.unwrap();
    tx.execute(sqlx::raw_sql(sql)).await.unwrap_err();

    let end = async { if commit { tx.commit().await } else { tx.rollback().await } };
    let error = tokio::time::timeout(AT_ONCE, end).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("is closed"), "{error}");
    tokio::time::timeout(AT_ONCE, answers_are_right(&pool, &a)).await.unwrap();
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from note").fetch_one(&pool.workspace(&a)).await;
    assert_eq!(rows.unwrap(), 0, "it was rolled back");
    pool.cleanup().await.unwrap();
}

/// What nobody saw is waited for, but not for ever.
#[rstest]
#[case::raw_commit(true, true)]
#[case::raw_rollback(true, false)]
#[case::dropped_commit(false, true)]
#[case::dropped_rollback(false, false)]
#[tokio::test]
async fn l4_the_end_of_a_transaction_is_bounded_when_not_all_was_seen(
    #[case] is_raw: bool,
    #[case] commit: bool,
) {
    let (pool, a) = one_connection_with_a_table().await;
    let mut tx = pool.workspace(&a).begin().await.unwrap();
    if is_raw {
        (**tx).execute(COPY).await.unwrap_err();
    } else {
        let mut copy = std::pin::pin!(tx.execute("select pg_sleep(0.1); copy note from stdin"));
        assert!(futures_util::poll!(copy.as_mut()).is_pending());
    }
    let end = async { if commit { tx.commit().await } else { tx.rollback().await } };
    tokio::time::timeout(Duration::from_secs(8), end).await.unwrap().unwrap_err();
    tokio::time::timeout(AT_ONCE, answers_are_right(&pool, &a)).await.unwrap();
    pool.cleanup().await.unwrap();
}

/// An error that sqlx finds before anything is sent says nothing of the connection.
#[tokio::test]
async fn l4_a_transaction_goes_on_after_a_statement_that_was_not_sent() {
    let (pool, a) = one_connection_with_a_table().await;
    let mut tx = pool.workspace(&a).begin().await.unwrap();
    tx.execute("insert into note values (1)").await.unwrap();
    let unknown = sqlx::postgres::PgTypeInfo::with_name("nowhere");
    let sql = sqlx::SqlSafeStr::into_sql_str("select $1");
    tx.prepare_with(sql, &[unknown]).await.map(drop).unwrap_err();
    tx.commit().await.unwrap();
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from note").fetch_one(&pool.workspace(&a)).await;
    assert_eq!(rows.unwrap(), 1);
    pool.cleanup().await.unwrap();
}

#[rstest]
#[case::lease(COPY, true)]
#[case::handle(COPY, false)]
#[case::lease_batch(BATCH, true)]
#[case::handle_batch(BATCH, false)]
#[tokio::test]
async fn l4_a_connection_that_cannot_be_followed_is_closed_at_once(
    #[case] sql: &'static str,
    #[case] lease: bool,
) {
    let (pool, a) = one_connection_with_a_table().await;
    let db = pool.workspace(&a);
    for _ in 0..2 {
        if lease {
            db.acquire().await.unwrap().execute(sqlx::raw_sql(sql)).await.unwrap_err();
        } else {
            db.execute(sqlx::raw_sql(sql)).await.unwrap_err();
        }
        tokio::time::timeout(AT_ONCE, answers_are_right(&pool, &a)).await.unwrap();
    }
    pool.cleanup().await.unwrap();
}

/// A statement that a holder has prepared under a name of sqlx's answers for no other.
#[rstest]
#[case::tracked(false, false)]
#[case::raw(true, false)]
#[case::tracked_of_a_later_name(false, true)]
#[case::raw_of_a_later_name(true, true)]
#[tokio::test]
async fn l4_a_holders_prepared_statement_does_not_answer_for_another(
    #[case] is_raw: bool,
    #[case] is_later: bool,
) {
    let (pool, a) = one_connection().await;
    let db = pool.workspace(&a);
    for round in 0..4 {
        for (sql, answer) in [("select $1::bigint", 7_i64), ("select $1::bigint + 1", 8)] {
            assert_eq!(sqlx::query_scalar::<_, i64>(sql).bind(7_i64).fetch_one(&db).await.unwrap(), answer);
        }
        let mut lease = db.acquire().await.unwrap();
        let names =
            "select pg_catalog.max(pg_catalog.substr(name, 8)::int) from pg_catalog.pg_prepared_statements";
        let name = lease.fetch_one(sqlx::raw_sql(names)).await.unwrap().get::<i32, _>(0);
        let sql = if is_later {
            format!("prepare sqlx_s_{}(bigint) as select 666::bigint", name + 1)
        } else {
            format!("deallocate sqlx_s_{name}; prepare sqlx_s_{name}(bigint) as select 666::bigint")
        };
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        if is_raw { (**lease).execute(sql).await } else { lease.execute(sql).await }.unwrap();
        drop(lease);
        let other = sqlx::query_scalar::<_, i64>("select $1::bigint + 2").bind(round);
        assert_eq!(other.fetch_one(&db).await.unwrap(), round + 2);
    }
    assert_eq!(pool.stats().workspaces.opened, 1, "no connection was closed for it");
    pool.cleanup().await.unwrap();
}
