//! New workspaces that begin with migrations: a template, made once, and copied.

use futures_util::future::{join_all, try_join_all};
use pool_postgres::{BuildError, CatalogError, DriverErrorKind, Limits, PgPools, PgPoolsBuilder};
use pool_testkit::{TestPool, eventually, execute_outside};
use sqlx::migrate::MigrateError;
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use crate::support::{SOON, id, migrator};

const NOTE: &str = "create table note (id int); insert into note values (1)";
const MORE: &str = "alter table note add column word text default 'more'";
const WRONG: &str = "select 1/0";
const SLOW: &str = "select pg_sleep(1)";

/// Another pool of the same application, whose new workspaces begin so.
fn beginning_with(pool: &TestPool, statements: &[&'static str]) -> PgPoolsBuilder {
    let limits = Limits::new(3).system(2);
    PgPools::builder(pool.config().clone()).limits(limits).migrations(migrator(statements))
}

async fn templates(pool: &TestPool) -> Vec<String> {
    let mark = format!("{}_template_", pool.prefix());
    let mut all = pool.databases().await.unwrap();
    all.retain(|name| name.starts_with(&mark));
    all
}

#[tokio::test]
async fn i4_new_workspaces_begin_with_the_migrations_of_a_template_that_was_made_once() {
    let pool = TestPool::new().await.unwrap();
    let builders = (0..3).map(|_| beginning_with(&pool, &[NOTE, MORE]));
    let processes = try_join_all(builders.map(PgPoolsBuilder::build)).await.unwrap();
    assert_eq!(templates(&pool).await.len(), 1);
    for (at, pools) in processes.iter().enumerate() {
        let a = id(&format!("a{at}"));
        pools.ensure_workspace(&a).await.unwrap();
        let note: (i32, String) =
            sqlx::query_as("select id, word from note").fetch_one(&pools.workspace(&a)).await.unwrap();
        assert_eq!(note, (1, "more".to_owned()));
        let applied = "select count(*) from _sqlx_migrations";
        pools.workspace(&a).migrate(&migrator(&[NOTE, MORE])).await.unwrap();
        let applied: i64 = sqlx::query_scalar(applied).fetch_one(&pools.workspace(&a)).await.unwrap();
        assert_eq!(applied, 2, "and there was nothing to do");
    }
    assert_eq!(processes[0].list_workspaces().await.unwrap().len(), 3, "a template is no workspace");
    join_all(processes.iter().map(PgPools::close)).await.into_iter().for_each(Result::unwrap);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn i4_a_migration_that_fails_fails_the_build_and_leaves_no_database() {
    let pool = TestPool::new().await.unwrap();
    let error = beginning_with(&pool, &[NOTE, WRONG]).build().await.unwrap_err();
    let BuildError::Template { database, source: MigrateError::ExecuteMigration(_, 2) } = &error else {
        panic!("{error:?}")
    };
    assert!(error.to_string().contains(database.as_str()), "{error}");
    assert_eq!(templates(&pool).await, [""; 0]);
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn i4_a_template_of_somebody_who_was_cut_short_is_made_anew() {
    let pool = TestPool::new().await.unwrap();
    let cut_short = tokio::spawn(beginning_with(&pool, &[NOTE, SLOW]).build());
    let is_at_it = || async { templates(&pool).await.iter().any(|name| name.ends_with("_new")) };
    eventually("half a template", SOON, is_at_it).await.unwrap();
    cut_short.abort();
    assert!(cut_short.await.unwrap_err().is_cancelled());
    let pools = timeout(SOON, beginning_with(&pool, &[NOTE, SLOW]).build()).await.unwrap().unwrap();
    let names = templates(&pool).await;
    assert!(names.len() == 1 && !names[0].ends_with("_new"), "{names:?}");
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn i4_nobody_can_connect_to_a_template_so_it_can_always_be_copied() {
    let pool = TestPool::new().await.unwrap();
    let pools = beginning_with(&pool, &[NOTE]).build().await.unwrap();
    let template = &templates(&pool).await[0];
    let error = PgConnection::connect_with(&pool.config().connect_options(template)).await.unwrap_err();
    assert!(error.to_string().contains("not currently accepting connections"), "{error}");
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn i4_templates_with_other_migrations_stay_until_they_are_dropped() {
    let pool = TestPool::new().await.unwrap();
    let old = beginning_with(&pool, &[NOTE]).build().await.unwrap();
    let new = beginning_with(&pool, &[NOTE, MORE]).build().await.unwrap();
    let a = id("a");
    old.ensure_workspace(&a).await.unwrap();
    let words = "select count(*) from information_schema.columns where table_name = 'note'";
    let columns: i64 = sqlx::query_scalar(words).fetch_one(&old.workspace(&a)).await.unwrap();
    assert_eq!(columns, 1, "each version has its own");
    // Of one who was cut short, and of one who is at it.
    let left = format!("create database \"{}_template_0123456789abcdef_new\"", pool.prefix());
    execute_outside(pool.config(), "postgres", &left).await.unwrap();
    let making = tokio::spawn(beginning_with(&pool, &[SLOW]).build());
    eventually("another template", SOON, || async { templates(&pool).await.len() == 4 }).await.unwrap();
    assert_eq!(new.drop_other_templates(&migrator(&[NOTE, MORE])).await.unwrap(), 2);
    let other = timeout(SOON, making).await.unwrap().unwrap().unwrap();
    assert_eq!(templates(&pool).await.len(), 2, "its own, and the one that was being made");

    new.ensure_workspace(&id("b")).await.unwrap();
    let error = old.ensure_workspace(&id("c")).await.unwrap_err();
    let CatalogError::Driver { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind, DriverErrorKind::Other, "it is not the workspace that is missing: {error}");
    join_all([old.close(), new.close(), other.close()]).await.into_iter().for_each(Result::unwrap);
    pool.cleanup().await.unwrap();
}

/// As the server counts, while a migration runs, and when the pool is built.
#[tokio::test]
async fn b1_a_template_is_made_within_the_budget() {
    let pool = TestPool::new().await.unwrap();
    let tag = format!("maker-{}", pool.prefix());
    let config = pool.config().clone().application_name(&tag);
    let sessions = async || {
        let counted = "select count(*) from pg_stat_activity where starts_with(application_name, $1)";
        let counted = sqlx::query_scalar::<_, i64>(counted).bind(&tag);
        counted.fetch_one(&pool.system()).await.unwrap()
    };
    // One more than it takes, for the successor of a control connection that was late.
    let building = PgPools::builder(config).limits(Limits::new(4).system(3)).migrations(migrator(&[SLOW]));
    let building = tokio::spawn(building.build());
    let mut most = 0;
    while !building.is_finished() {
        most = most.max(sessions().await);
    }
    let pools = building.await.unwrap().unwrap();
    assert!((3..=4).contains(&most), "{most}");
    eventually("the control connection alone", SOON, || async { sessions().await == 1 }).await.unwrap();
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}
