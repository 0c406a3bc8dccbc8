//! Prepared statements that a change of the schema has spoiled, behind raw access, whose errors nobody sees.

use futures_util::future::join_all;
use pool_postgres::{Limits, PgLease, WorkspaceId};
use pool_testkit::{TestPool, execute_outside};
use rstest::rstest;
use sqlx::{AssertSqlSafe, Error, Executor};

use crate::support::id;

const CONNECTIONS: usize = 4;

const SCHEMA: &str = "
    create table note (id int, word varchar(10));
    insert into note values (1, 'one');
    create table later (id int, word varchar(10), more int);
    insert into later values (1, 'one', 2);
    create function answer() returns int language sql as 'select 42'";

/// More columns than are looked at after every lease.
const MANY_COLUMNS: &str = "do $$ begin for number in 1..7 loop execute (select format('create table wide_%s (%s)', number, \
     string_agg('c' || n || ' int', ', ')) from generate_series(1, 1000) n); end loop; end $$";

async fn four_connections() -> (TestPool, WorkspaceId) {
    let limits = Limits::new(9).system(5).per_workspace(4);
    let pool = TestPool::builder().limits(limits).build().await.unwrap();
    let a = id("a");
    pool.ensure_workspace(&a).await.unwrap();
    execute_outside(pool.config(), &pool.database_of(&a), SCHEMA).await.unwrap();
    (pool, a)
}

async fn ask(lease: &mut PgLease) -> Result<(), Error> {
    sqlx::query("select * from note where id > $1").bind(0_i32).fetch_one(&mut ***lease).await?;
    sqlx::query("select answer(), $1::int").bind(0_i32).fetch_one(&mut ***lease).await.map(drop)
}

/// Every connection is used at the same time, by raw access alone. Those that failed, by the pid of their backend.
async fn everywhere(pool: &TestPool, a: &WorkspaceId) -> Vec<i32> {
    let mut failed = Vec::new();
    for lease in join_all((0..CONNECTIONS).map(|_| pool.acquire(a))).await {
        let mut lease = lease.unwrap();
        if let Err(error) = ask(&mut lease).await {
            assert!(error.to_string().contains("cached plan must not change result type"), "{error}");
            failed.push(lease.backend_pid());
        }
    }
    failed
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Others,
    RawAccess,
}

async fn change(pool: &TestPool, a: &WorkspaceId, by: By, sql: &str) {
    match by {
        By::Others => execute_outside(pool.config(), &pool.database_of(a), sql).await.unwrap(),
        By::RawAccess => {
            let mut lease = pool.acquire(a).await.unwrap();
            (**lease).execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
        }
    }
}

#[rstest]
#[case::a_new_column("alter table note add column more int")]
#[case::a_new_type("alter table note alter column id type bigint")]
#[case::a_wider_type("alter table note alter column word type text")]
#[case::a_column_less("alter table note drop column word")]
#[case::a_new_name("alter table note rename column word to term")]
#[case::another_table("alter table note rename to earlier; alter table later rename to note")]
#[case::another_function(
    "drop function answer(); create function answer() returns text language sql as 'select ''42'''"
)]
#[tokio::test]
async fn l1_behind_raw_access_a_change_of_the_schema_fails_one_holder_of_each_connection(
    #[case] sql: &str,
    #[values(By::Others, By::RawAccess)] by: By,
    #[values(0, 1)] many: usize,
) {
    let (pool, a) = four_connections().await;
    if many == 1 {
        execute_outside(pool.config(), &pool.database_of(&a), MANY_COLUMNS).await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(everywhere(&pool, &a).await, [0; 0]);
    }
    change(&pool, &a, by, sql).await;

    let mut failed = Vec::new();
    for _ in 0..4 {
        failed.extend(everywhere(&pool, &a).await);
    }
    failed.sort_unstable();
    let failures = failed.len();
    failed.dedup();
    assert_eq!(failed.len(), failures, "a connection has failed more than one holder: {failed:?}");
    assert_eq!(pool.stats().workspaces.opened, 4, "no connection was closed for it");
    pool.cleanup().await.unwrap();
}
