//! Prepared statements that a change of the schema has spoiled, and those that are not to be kept.

use std::time::Instant;

use futures_util::future::join_all;
use pool_postgres::{Limits, PgLease, WorkspaceId};
use pool_testkit::{TestPool, execute_outside, wait_for_condition};
use rstest::rstest;
use sqlx::{Executor, Row};

use crate::support::{SOON, id};

const CONNECTIONS: usize = 4;

/// A pool whose workspace `a` has a table, and up to four connections.
async fn four_connections(statements: usize) -> (TestPool, WorkspaceId) {
    let limits = Limits::new(9).system(5).per_workspace(4);
    let pool = TestPool::builder()
        .limits(limits)
        .adjust(move |pools| pools.configure(|config| config.statement_cache_capacity(statements)))
        .build()
        .await
        .unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    let table = "create table note (id int, word varchar(10)); insert into note values (1, 'one')";
    execute_outside(pool.config(), &pool.database_of(&a), table).await.unwrap();
    (pool, a)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    Tracked,
    Raw,
}

async fn columns(lease: &mut PgLease, access: Access) -> Result<usize, sqlx::Error> {
    let all = sqlx::query("select * from note").bind(0_i32);
    let all =
        if access == Access::Raw { all.fetch_one(&mut ***lease).await } else { all.fetch_one(lease).await };
    all.map(|row| row.len())
}

/// Every connection of the workspace is used at the same time.
async fn everywhere(pool: &TestPool, a: &WorkspaceId, access: Access) -> Vec<Result<usize, sqlx::Error>> {
    let leases = join_all((0..CONNECTIONS).map(|_| pool.acquire(a))).await;
    let mut answers = Vec::new();
    for lease in leases {
        let mut lease = lease.unwrap();
        answers.push(columns(&mut lease, access).await);
    }
    answers
}

#[rstest]
#[case::a_new_column(Access::Tracked, "alter table note add column more int")]
#[case::a_new_type(Access::Tracked, "alter table note alter column id type bigint")]
#[case::a_wider_type(Access::Tracked, "alter table note alter column word type text")]
#[case::a_new_table(Access::Tracked, "drop table note; create table note as select 1 as a, 2 as b, 3 as c")]
#[case::raw_a_new_column(Access::Raw, "alter table note add column more int")]
#[case::raw_a_new_type(Access::Raw, "alter table note alter column id type bigint")]
#[case::raw_a_wider_type(Access::Raw, "alter table note alter column word type text")]
#[case::raw_a_column_less(Access::Raw, "alter table note drop column word")]
#[case::raw_a_new_name(Access::Raw, "alter table note rename column word to term")]
#[tokio::test]
async fn l1_a_change_of_the_schema_fails_one_holder_and_none_after_it(
    #[case] access: Access,
    #[case] change: &str,
) {
    let (pool, a) = four_connections(100).await;
    // More than once: the first look at the schema has nothing to compare with.
    for _ in 0..3 {
        for answer in everywhere(&pool, &a, access).await {
            assert_eq!(answer.unwrap(), 2);
        }
        let idle = || pool.workspace(&a).counts().idle == 4;
        wait_for_condition("all four being idle", SOON, idle).await.unwrap();
    }
    execute_outside(pool.config(), &pool.database_of(&a), change).await.unwrap();

    let began = Instant::now();
    let mut failures = 0;
    while let Err(error) = columns(&mut pool.acquire(&a).await.unwrap(), access).await {
        assert!(error.to_string().contains("cached plan must not change result type"), "{error}");
        failures += 1;
        assert!(began.elapsed() < SOON, "{failures} holders have failed");
    }
    println!("{failures} failures in {:?}", began.elapsed());
    // What raw access meets is found when the connection comes back; until then, others meet it, too.
    let failures_max = if access == Access::Raw { CONNECTIONS } else { 1 };
    assert!(failures <= failures_max, "{failures} holders have failed");
    for _ in 0..2 {
        for answer in everywhere(&pool, &a, access).await {
            answer.unwrap();
        }
    }
    assert_eq!(pool.stats().workspaces.opened, 4, "no connection was closed for it");
    pool.cleanup().await.unwrap();
}

/// What one holder's raw access has changed is found when it comes back, before anybody fails.
#[rstest]
#[case::statements_gone("deallocate all")]
#[case::everything_gone("discard all")]
#[tokio::test]
async fn l1_statements_that_raw_access_has_thrown_away_are_prepared_anew(#[case] sql: &'static str) {
    let (pool, a) = four_connections(100).await;
    for access in [Access::Raw, Access::Tracked] {
        let mut lease = pool.acquire(&a).await.unwrap();
        columns(&mut lease, access).await.unwrap();
        (**lease).execute(sql).await.unwrap();
        drop(lease);
        assert_eq!(columns(&mut pool.acquire(&a).await.unwrap(), access).await.unwrap(), 2);
    }
    pool.cleanup().await.unwrap();
}

/// Asked without preparing anything.
async fn prepared(lease: &mut PgLease) -> i64 {
    lease.fetch_one(sqlx::raw_sql("select count(*) from pg_prepared_statements")).await.unwrap().get(0)
}

#[tokio::test]
async fn l1_with_no_statement_cache_nothing_stays_prepared() {
    let (pool, a) = four_connections(0).await;
    let db = pool.workspace(&a);
    let mut lease = pool.acquire(&a).await.unwrap();
    for number in 0..334_i32 {
        let text = format!("select $1::int + {number}");
        let query = || sqlx::query_scalar::<_, i32>(sqlx::AssertSqlSafe(text.as_str())).bind(1);
        let mut tx = db.begin().await.unwrap();
        let sums = [
            query().fetch_one(&mut lease).await.unwrap(),
            query().fetch_one(&db).await.unwrap(),
            query().fetch_one(&mut tx).await.unwrap(),
        ];
        assert_eq!(sums, [number + 1; 3]);
        tx.commit().await.unwrap();
    }
    drop(lease);
    let mut leases = join_all((0..CONNECTIONS).map(|_| pool.acquire(&a))).await;
    for lease in &mut leases {
        assert_eq!(prepared(lease.as_mut().unwrap()).await, 0);
    }
    drop(leases);

    let mut lease = pool.acquire(&a).await.unwrap();
    sqlx::query("select $1").bind(1).execute(&mut **lease).await.unwrap();
    lease.prepare(sqlx::SqlSafeStr::into_sql_str("select 2")).await.unwrap();
    let pid = lease.backend_pid();
    assert!(prepared(&mut lease).await > 0, "raw access prepares by name");
    drop(lease);
    let leases = join_all((0..CONNECTIONS).map(|_| pool.acquire(&a))).await;
    let mut lease = leases.into_iter().flatten().find(|lease| lease.backend_pid() == pid).unwrap();
    assert_eq!(prepared(&mut lease).await, 0);
    drop(lease);
    pool.cleanup().await.unwrap();
}
