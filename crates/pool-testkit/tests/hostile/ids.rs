//! Ids: ten thousand of every kind, and the nastiest of them on a real server.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use pool_core::{DatabaseName, DatabaseNaming as _, PrefixNaming, WorkspaceId};
use pool_testkit::{TestError, TestPool, TestPools, hostile, run};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const CASES: u32 = 10_000;
/// So many databases are made for the nastiest ids, chosen by the seed; a server needs a third of a second for
/// each. `POOL_HOSTILE_DATABASES` says another number.
const DATABASES: usize = 40;

fn fail(why: String) -> TestCaseError {
    TestCaseError::fail(why)
}

#[test]
fn i1_i3_ten_thousand_ids_get_a_clear_error_or_a_name_of_their_own() {
    let naming = PrefixNaming::new("p").unwrap();
    let owners: RefCell<HashMap<DatabaseName, String>> = RefCell::default();
    let refused = RefCell::new(0);
    let verdict = hostile::runner(CASES, run::seed()).run(&hostile::ids(), |text| {
        hostile::check_workspace_id(text.as_bytes()).map_err(fail)?;
        let Ok(id) = WorkspaceId::new(&text) else {
            *refused.borrow_mut() += 1;
            return Ok(());
        };
        let name = hostile::check_name(&naming, &id).map_err(fail)?;
        let owner = owners.borrow_mut().entry(name.clone()).or_insert_with(|| text.clone()).clone();
        prop_assert_eq!(owner, text, "both have the name {}", name);
        Ok(())
    });
    verdict.unwrap();
    let (names, refused) = (owners.borrow().len(), *refused.borrow());
    println!("{CASES} ids: {names} names, {refused} refused");
    assert!(names > 5_000 && refused > 100, "the ids are no longer of every kind");
}

#[test]
fn i1_ids_that_are_taken_for_each_other_have_names_of_their_own() {
    let naming = PrefixNaming::new("p").unwrap();
    let verdict = hostile::runner(CASES, run::seed()).run(&hostile::lookalikes(), |(one, other)| {
        let ids = [one, other].map(|id| WorkspaceId::new(id).map_err(|error| fail(error.to_string())));
        let [one, other] = ids;
        let (one, other) = (one?, other?);
        let names = [&one, &other].map(|id| hostile::check_name(&naming, id).map_err(fail));
        let [of_one, of_other] = names;
        prop_assert_ne!(of_one?, of_other?, "{} and {}", one, other);
        Ok(())
    });
    verdict.unwrap();
}

#[test]
fn i1_a_scheme_that_folds_case_is_found_out() {
    struct Folding;
    impl pool_core::DatabaseNaming for Folding {
        fn database(&self, workspace: &WorkspaceId) -> DatabaseName {
            let folded: String = workspace.as_str().to_lowercase().chars().take(15).collect();
            DatabaseName::new(folded).unwrap()
        }
    }
    let found = hostile::runner(CASES, 7).run(&hostile::lookalikes(), |(one, other)| {
        let names = [one, other].map(|id| Folding.database(&WorkspaceId::new(id).unwrap()));
        prop_assert_ne!(&names[0], &names[1]);
        Ok(())
    });
    assert!(found.is_err(), "the pairs collide with a scheme that lets them");
}

/// What a neighbour has, to be seen unchanged.
async fn canary(neighbour: &TestPool) -> Result<(WorkspaceId, String), TestError> {
    let id = neighbour.create_test_workspaces(1).await?.remove(0);
    let db = neighbour.workspace(&id);
    sqlx::raw_sql("create table canary as select 'alive' as song").execute(&db).await.unwrap();
    Ok((id, song(neighbour).await))
}

/// The neighbour's databases, tables and data, in one line.
async fn song(neighbour: &TestPool) -> String {
    let id = WorkspaceId::new("ws_0000").unwrap();
    let sql = "select string_agg(song, ',') || (select string_agg(relname, ',' order by relname) from pg_class \
               where relnamespace = 'public'::regnamespace) from canary";
    let song: String = sqlx::query_scalar(sql).fetch_one(&neighbour.workspace(&id)).await.unwrap();
    format!("{song} {:?}", neighbour.databases().await.unwrap())
}

/// The databases that no test has made, by number, so that one that was dropped and made again is another one.
async fn of_the_server(pool: &TestPool) -> BTreeMap<String, u32> {
    let sql =
        "select datname::text, oid::oid::int4 from pg_database where datname !~ '^(t[0-9a-z]{6}_|.*_ws_)'";
    let rows: Vec<(String, i32)> = sqlx::query_as(sql).fetch_all(&pool.system()).await.unwrap();
    rows.into_iter().map(|(name, oid)| (name, oid.unsigned_abs())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i1_i3_the_nastiest_ids_get_databases_of_their_own_and_harm_nobody() {
    let pools = TestPools::with_room_for(2);
    let (pool, neighbour) =
        (pools.get_or_create("nasty").await.unwrap(), pools.get_or_create("neighbour").await.unwrap());
    let (_, before) = canary(&neighbour).await.unwrap();
    let servers = of_the_server(&pool).await;
    let all = hostile::nastiest_ids();
    let ids = some_of(&all);
    for id in &all {
        assert!(!pool.workspace_exists(id).await.unwrap() && !pool.drop_workspace(id).await.unwrap(), "{id}");
    }
    let visited = stream::iter(&ids).map(|id| visit(&pool, id)).buffer_unordered(4);
    let found: Vec<(String, String)> = visited.try_collect().await.unwrap();

    for (expected, current) in &found {
        assert_eq!(expected, current);
    }
    let expected: BTreeSet<String> = ids.iter().map(|id| pool.database_of(id)).collect();
    let databases: BTreeSet<String> = pool.databases().await.unwrap().into_iter().collect();
    assert_eq!(expected.len(), ids.len(), "each has a name of its own");
    assert_eq!(databases, expected, "these and no others");
    let mut listed = pool.list_workspaces().await.unwrap();
    listed.retain(|id| ids.contains(id));
    assert_eq!(listed.len(), ids.len(), "every one is listed as it was given");
    assert_eq!(song(&neighbour).await, before, "the neighbour has not noticed");
    let after = of_the_server(&pool).await;
    assert!(servers.iter().all(|(name, oid)| after.get(name) == Some(oid)), "{servers:?} became {after:?}");
    println!("{} ids asked for, {} of them with databases", all.len(), databases.len());
    pools.cleanup_all().await.unwrap();
}

fn some_of(all: &[WorkspaceId]) -> Vec<WorkspaceId> {
    let wished = std::env::var("POOL_HOSTILE_DATABASES").ok().and_then(|number| number.parse().ok());
    let mut ids = all.to_vec();
    fastrand::Rng::with_seed(run::seed()).shuffle(&mut ids);
    ids.truncate(wished.unwrap_or(DATABASES));
    ids
}

/// Creates the workspace, looks where it is, and leaves a row there that must be the only one.
async fn visit(pool: &TestPool, id: &WorkspaceId) -> Result<(String, String), sqlx::Error> {
    pool.ensure_workspace(id).await.map_err(|error| sqlx::Error::Configuration(error.into()))?;
    let db = pool.workspace(id);
    sqlx::raw_sql("create table owner (id text)").execute(&db).await?;
    sqlx::query("insert into owner values ($1)").bind(id.as_str()).execute(&db).await?;
    let (owner, current): (String, String) =
        sqlx::query_as("select string_agg(id, '|'), current_database()::text from owner")
            .fetch_one(&db)
            .await?;
    assert_eq!(owner, id.as_str());
    Ok((pool.database_of(id), current))
}
