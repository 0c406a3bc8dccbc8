//! Failure: what breaks is told to those whom it concerns, to nobody else, and the pool works on after it.

mod names;
mod sessions;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use pool_postgres::{
    AcquireError, CatalogError, CloseError, PgPools, PgWorkspacePool, Stage, WorkspaceId, acquire_error,
};
use pool_testkit::{TestError, TestPool, TestPools, eventually};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::ids::{AGREE_IN_63_BYTES, strange_ids};
use crate::support::mishap::{MISHAPS, create_mark, is_lost, is_missing, state};
use crate::support::{
    Outcome, SOON, assert_is_missing, assert_stats_are_nothing, assert_stats_are_true, assert_works,
    backend_pid, current_database, database_of, error_of, finish, hold, hold_system, outside, settled,
    terminate,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_connection_detection() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(5).await?;

    sessions::ended_after_a_while_at_rest_nobody_notices(&pool, &ids).await?;
    sessions::ended_after_their_last_use_one_caller_may_notice(&pool, &ids).await?;
    let held = sessions::ended_in_use_their_holders_are_told(&pool, &ids).await?;

    // Their slots come back, and so does the service.
    settled(&pool).await?;
    for id in &ids {
        let pid = backend_pid(&pool.workspace(id)).await?;
        assert!(!held.contains(&pid), "{id}");
    }
    let everything: Vec<_> = ids.iter().cycle().take(15).cloned().collect();
    drop(hold(&pool, &everything).await?);
    assert_stats_are_true(&pool, &ids, "after terminations").await?;
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspace_database_deleted_externally() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(2).await?;
    let (gone, other) = (&ids[0], &ids[1]);
    let (db, database) = (pool.workspace(gone), database_of(&pool, gone)?);
    let drop_it = format!("drop database {database} with (force)");
    let others_backend = backend_pid(&pool.workspace(other)).await?;

    dropped_under_an_idle_connection(&pool, gone, &drop_it).await?;
    // `ensure` does not believe what it knew: the database is created again, empty, and opened at once.
    pool.ensure_workspace(gone).await?;
    assert_eq!(current_database(&db).await?, database);
    let note: Option<String> = sqlx::query_scalar("select to_regclass('note')::text").fetch_one(&db).await?;
    assert_eq!(note, None, "it is another database");

    dropped_under_a_lease(&pool, gone, &drop_it).await?;
    // Created again from outside, it is found when the pause after the failure is over.
    outside(&pool, &format!("create database {database} template template0")).await?;
    let found = || async { current_database(&db).await.is_ok_and(|name| name == database) };
    eventually("the database being found again", SOON, found).await?;

    // Dropped before the pool was asked to drop it: that is no error, there was nothing to drop.
    outside(&pool, &drop_it).await?;
    assert!(!pool.drop_workspace(gone).await?);
    assert_eq!(backend_pid(&pool.workspace(other)).await?, others_backend, "the other one did not notice");
    settled(&pool).await?;
    assert_stats_are_true(&pool, &ids, "after the drops").await?;
    pool.cleanup().await?;
    Ok(())
}

async fn dropped_under_an_idle_connection(pool: &TestPool, id: &WorkspaceId, drop_it: &str) -> Outcome {
    let db = pool.workspace(id);
    sqlx::query("create table note (n int)").execute(&db).await?;
    outside(pool, drop_it).await?;
    // The session that was ended may meet one caller, if it was used a moment ago.
    if let Err(error) = backend_pid(&db).await {
        assert!(is_lost(&error) || acquire_error(&error).is_some_and(is_missing), "{error}");
    }
    assert_is_missing(pool, id).await?;
    assert_eq!(pool.list_workspaces().await?.iter().filter(|listed| *listed == id).count(), 0);
    Ok(())
}

async fn dropped_under_a_lease(pool: &TestPool, id: &WorkspaceId, drop_it: &str) -> Outcome {
    let mut lease = pool.workspace(id).acquire().await?;
    outside(pool, drop_it).await?;
    let error = error_of(sqlx::query("select 1").execute(&mut lease).await);
    assert!(is_lost(&error), "{error}");
    drop(lease);
    assert_is_missing(pool, id).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_database_name() -> Outcome {
    let pool = TestPool::new().await?;
    let good = pool.create_test_workspaces(1).await?.remove(0);
    let missing = WorkspaceId::new("missing")?;

    names::a_storm_for_one_without_a_database_is_told(&pool, &missing).await?;
    // The other workspace is served meanwhile, and this one as soon as its database exists.
    assert_eq!(current_database(&pool.workspace(&good)).await?, database_of(&pool, &good)?);
    pool.ensure_workspace(&missing).await?;
    assert_eq!(current_database(&pool.workspace(&missing)).await?, database_of(&pool, &missing)?);

    // A system database that does not exist, and names that could not be any.
    let sessions = pool.active_connection_count().await?;
    names::a_system_database_must_exist(&pool).await?;
    names::impossible_names_are_refused(&pool).await?;
    assert_eq!(pool.active_connection_count().await?, sessions, "what was refused left no session");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recover_from_connection_errors() -> Outcome {
    let pool = TestPool::builder().adjust(|b| b.acquire_timeout(Duration::from_secs(2))).build().await?;
    let id = pool.create_test_workspaces(1).await?.remove(0);
    create_mark(&pool.workspace(&id)).await?;

    // What callers meet one at a time.
    for mishap in MISHAPS {
        mishap.happen(pool.pools(), &id).await?;
        assert_works(&pool, &id, &format!("{mishap:?}")).await?;
    }

    the_server_gives_a_query_up(&pool, &id).await?;
    sessions::all_ended_in_use_their_holders_are_told(&pool, &id).await?;
    assert_works(&pool, &id, "the loss of every session").await?;
    the_server_takes_no_logins_for_a_while(&pool, &id).await?;

    // A pool that is too busy: who came too late is told, and the next one is served.
    let leases = hold(&pool, &vec![id.clone(); 10]).await?;
    let error = pool.acquire(&id).await.unwrap_err();
    let stage = Stage::WorkspaceCeiling;
    assert!(matches!(error, AcquireError::TimedOut { waiting_for, .. } if waiting_for == stage), "{error}");
    drop(leases);
    assert_works(&pool, &id, "a timeout").await?;
    pool.cleanup().await?;
    Ok(())
}

async fn the_server_gives_a_query_up(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    let mut lease = pool.workspace(id).acquire().await?;
    sqlx::raw_sql("set statement_timeout = 10").execute(&mut **lease).await?;
    let error = error_of(sqlx::query("select pg_sleep(60)").execute(&mut lease).await);
    assert_eq!(state(&error).as_deref(), Some("57014"));
    lease.discard();
    assert_works(pool, id, "a statement timeout").await
}

async fn the_server_takes_no_logins_for_a_while(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    let (db, database) = (pool.workspace(id), database_of(pool, id)?);
    pool.close_workspace(id).await?;
    outside(pool, &format!("alter database {database} allow_connections false")).await?;
    for _ in 0..3 {
        let error = error_of(pool.acquire(id).await);
        let AcquireError::OpenFailed { source, .. } = &error else { panic!("{error}") };
        assert!(source.to_string().contains("not currently accepting connections"), "{error}");
    }
    outside(pool, &format!("alter database {database} allow_connections true")).await?;
    let back = || async { backend_pid(&db).await.is_ok() };
    eventually("the database being open again", SOON, back).await?;
    assert_works(pool, id, "refused logins").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_failures() -> Outcome {
    const TASKS: i32 = 25;
    const ROUNDS: i32 = 8;
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(10).await?;
    let (lucky, unlucky) = ids.split_at(5);
    for id in &ids {
        let db = pool.workspace(id);
        create_mark(&db).await?;
        sqlx::query("create table entry (task int, round int, primary key (task, round))")
            .execute(&db)
            .await?;
    }

    let mut tasks: JoinSet<Outcome> = JoinSet::new();
    for task in 0..TASKS {
        let at = usize::try_from(task)?;
        tasks.spawn(suffer(pool.pools().clone(), unlucky[at % unlucky.len()].clone(), at, ROUNDS));
        tasks.spawn(enter(pool.workspace(&lucky[at % lucky.len()]), task, ROUNDS));
    }
    // Any error of one of the lucky half ends the case here.
    finish(tasks).await?;

    let mut rows = 0_i64;
    for id in lucky {
        let count = sqlx::query_scalar::<_, i64>("select count(*) from entry");
        rows += count.fetch_one(&pool.workspace(id)).await?;
    }
    assert_eq!(rows, i64::from(TASKS * ROUNDS), "every entry of the lucky half is there, once");
    let stats = pool.stats().workspaces;
    assert!(stats.open_failures > 0 && stats.peak <= 15, "{stats:?}");
    settled(&pool).await?;
    for id in unlucky {
        let marks: Vec<i32> = sqlx::query_scalar("select n from mark").fetch_all(&pool.workspace(id)).await?;
        assert_eq!(marks, [1], "{id} serves again, and nothing that failed was kept");
    }
    assert_stats_are_true(&pool, &ids, "after the failures").await?;
    pool.cleanup().await?;
    Ok(())
}

/// As many mishaps as `rounds`, the one after the other, `from` another one in each task.
async fn suffer(pools: PgPools, id: WorkspaceId, from: usize, rounds: i32) -> Outcome {
    for mishap in MISHAPS.into_iter().cycle().skip(from).take(usize::try_from(rounds)?) {
        mishap.happen(&pools, &id).await?;
    }
    Ok(())
}

/// An entry in each of `rounds`, none of which is lost.
async fn enter(db: PgWorkspacePool, task: i32, rounds: i32) -> Outcome {
    for round in 0..rounds {
        let mut tx = db.begin().await?;
        let insert = sqlx::query("insert into entry values ($1, $2)").bind(task).bind(round);
        insert.execute(&mut tx).await?;
        tx.commit().await?;
        let count = sqlx::query_scalar("select count(*) from entry where task = $1").bind(task);
        let rows: i64 = count.fetch_one(&db).await?;
        assert_eq!(rows, i64::from(round + 1), "task {task}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_handles_partially_failed_state() -> Outcome {
    let pool = TestPool::builder().adjust(|b| b.close_timeout(Duration::from_millis(300))).build().await?;
    let ids = pool.create_test_workspaces(8).await?;
    for id in &ids {
        backend_pid(&pool.workspace(id)).await?;
    }
    let name = |at: usize| database_of(&pool, &ids[at]);
    let [dropped, ended, undroppable, held, busy] = [0, 1, 2, 3, 4];

    // One workspace is gone already, one has lost its session, one cannot be dropped.
    outside(&pool, &format!("drop database {} with (force)", name(dropped)?)).await?;
    let lease = pool.acquire(&ids[ended]).await?;
    terminate(&pool, &[lease.backend_pid()]).await?;
    drop(lease);
    outside(&pool, &format!("alter database {} is_template true", name(undroppable)?)).await?;

    // Each is handled on its own: a failure of one is told, and leaves it in working order.
    pool.close_workspace(&ids[ended]).await?;
    assert!(!pool.drop_workspace(&ids[dropped]).await?);
    assert!(pool.drop_workspace(&ids[ended]).await?);
    let error = pool.drop_workspace(&ids[undroppable]).await.unwrap_err();
    assert!(matches!(error, CatalogError::Driver { .. }), "{error}");
    assert!(error.to_string().contains("cannot drop a template database"), "{error}");
    assert_eq!(current_database(&pool.workspace(&ids[undroppable])).await?, name(undroppable)?);

    // All of it at once: one database cannot be dropped, either.
    a_cleanup_cuts_what_is_not_given_back(&pool, &ids[held], &ids[busy]).await?;
    assert!(pool.databases().await?.contains(&name(undroppable)?));

    // What stood in the way is gone: the same call finishes the work.
    outside(&pool, &format!("alter database {} is_template false", name(undroppable)?)).await?;
    let told = pool.cleanup().await.unwrap_err();
    let two = CloseError::Cut { leases: 2, after: Duration::from_millis(300) }.to_string();
    assert!(matches!(&told, TestError::Close { source, .. } if source.to_string() == two), "{told}");
    assert_eq!(pool.databases().await?, Vec::<String>::new());
    pool.verify_no_leaked_connections().await?;
    assert_stats_are_nothing(&pool);
    Ok(())
}

/// One lease is not given back, and one query never ends.
async fn a_cleanup_cuts_what_is_not_given_back(
    pool: &TestPool,
    held: &WorkspaceId,
    busy: &WorkspaceId,
) -> Outcome {
    let mut kept = pool.acquire(held).await?;
    let db = pool.workspace(busy);
    let endless = tokio::spawn(async move { sqlx::query("select pg_sleep(600)").execute(&db).await });
    let at_work = || async { pool.workspace(busy).counts().in_use == 1 };
    eventually("the endless query being at work", SOON, at_work).await?;
    error_of(pool.cleanup().await);
    assert_eq!(pool.sessions().await?, [], "no session is left, whatever failed");
    let cut = error_of(sqlx::query("select 1").execute(&mut kept).await);
    assert!(is_lost(&cut), "{cut}");
    assert!(endless.await?.is_err_and(|cut| is_lost(&cut)));
    drop(kept);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_connection_retry() -> Outcome {
    let pool = TestPool::builder().adjust(|b| b.acquire_timeout(Duration::from_secs(1))).build().await?;
    let ids = pool.create_test_workspaces(3).await?;
    for round in 0..2 {
        let system = sessions::all_of_the_pools_own_are_ended(&pool, &ids[0]).await?;
        // The next caller has a new one, and what needs the driver's own works, too: closes are confirmed.
        let again = backend_pid(&pool.system()).await?;
        assert!(!system.contains(&again), "round {round}");
        let id = WorkspaceId::new(format!("round_{round}"))?;
        pool.ensure_workspace(&id).await?;
        backend_pid(&pool.workspace(&id)).await?;
        pool.close_workspace(&id).await?;
        assert!(pool.drop_workspace(&id).await?);
        // The connection that was idle is counted until the server says that it is gone.
        settled(&pool).await?;
    }

    sessions::the_drivers_own_is_made_anew(&pool, &ids[1]).await?;

    // Too many for the system share: told what for, with the numbers; served when there is room again.
    let leases = hold_system(&pool).await?;
    let late = WorkspaceId::new("late")?;
    let error = pool.ensure_workspace(&late).await.unwrap_err();
    assert!(matches!(error, CatalogError::Acquire(AcquireError::TimedOut { .. })), "{error}");
    assert!(error.to_string().contains("the catalog") && error.to_string().contains("3 of 3"), "{error}");
    drop(leases);
    pool.ensure_workspace(&late).await?;
    settled(&pool).await?;
    pool.cleanup().await?;
    Ok(())
}

/// A workspace that knows who it is.
async fn create_once(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    assert!(!pool.workspace_exists(id).await?, "{id} before it was created");
    pool.ensure_workspace(id).await?;
    assert!(pool.workspace_exists(id).await?, "{id}");
    let db = pool.workspace(id);
    sqlx::query("create table me (id text)").execute(&db).await?;
    sqlx::query("insert into me values ($1)").bind(id.as_str()).execute(&db).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edge_cases() -> Outcome {
    let pool = TestPool::new().await?;
    for (refused, says) in [("", "empty"), (&*"x".repeat(256), "256 bytes"), ("a\0b", "NUL")] {
        let error = WorkspaceId::new(refused).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let ids: Vec<_> = strange_ids().iter().map(WorkspaceId::new).collect::<Result<_, _>>()?;
    try_join_all(ids.iter().map(|id| create_once(&pool, id))).await?;

    let mut databases = BTreeSet::new();
    for id in &ids {
        let db = pool.workspace(id);
        let mine: Vec<String> = sqlx::query_scalar("select id from me").fetch_all(&db).await?;
        assert_eq!(mine, [id.as_str()], "what each wrote, and nobody else");
        let database = current_database(&db).await?;
        assert_eq!(database, database_of(&pool, id)?, "{id}: the name is kept whole");
        databases.insert(database);
    }
    assert_eq!(databases.len(), ids.len(), "a database for each");
    assert_eq!(pool.databases().await?.into_iter().collect::<BTreeSet<_>>(), databases, "and no other");
    let listed: BTreeSet<_> = pool.list_workspaces().await?.into_iter().collect();
    assert_eq!(listed, ids.iter().cloned().collect(), "each is listed under its own id");

    // One is dropped, and the one beside it stays.
    let [one, other] = AGREE_IN_63_BYTES;
    for (gone, stays) in [("a-b", "a_b"), (one, other), ("caf\u{e9}", "cafe\u{301}")] {
        assert!(pool.drop_workspace(&WorkspaceId::new(gone)?).await?);
        let stays = WorkspaceId::new(stays)?;
        let mine: String = sqlx::query_scalar("select id from me").fetch_one(&pool.workspace(&stays)).await?;
        assert_eq!(mine, stays.as_str());
    }
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn double_cleanup_idempotency() -> Outcome {
    let pools = TestPools::with_room_for(2);
    let (pool, other) = (pools.get_or_create("one").await?, pools.get_or_create("two").await?);
    let ids = pool.create_test_workspaces(3).await?;
    let held = pool.acquire(&ids[0]).await?;
    one_workspace_goes_once(&pool, &ids[1]).await?;

    // Of the pool: again, at once, in between, and after a first one that was given up half-way.
    assert!(timeout(Duration::from_millis(50), pool.cleanup()).await.is_err(), "a lease is still held");
    assert!(matches!(pool.acquire(&ids[2]).await, Err(AcquireError::Closed)), "it is closing all the same");
    drop(held);
    let (first, second, closed) = tokio::join!(pool.cleanup(), pool.cleanup(), pool.close());
    first.and(second)?;
    closed?;
    for _ in 0..3 {
        pool.close().await?;
        pool.cleanup().await?;
        pool.verify_no_leaked_connections().await?;
        pool.close_workspace(&ids[0]).await?;
        assert_stats_are_nothing(&pool);
    }
    assert_eq!((pool.sessions().await?, pool.databases().await?), (vec![], vec![]));

    after_a_failure_nothing_is_left_to_tell(&pools, &other).await?;
    assert_eq!(pools.count().await, 0);
    Ok(())
}

/// Closed twice, dropped six times at once, beside one that never was.
async fn one_workspace_goes_once(pool: &TestPool, id: &WorkspaceId) -> Outcome {
    let never = WorkspaceId::new("never")?;
    for _ in 0..2 {
        pool.close_workspace(id).await?;
        pool.close_workspace(&never).await?;
        assert!(!pool.drop_workspace(&never).await?);
    }
    let dropped = try_join_all((0..6).map(|_| pool.drop_workspace(id))).await?;
    assert_eq!(dropped.iter().filter(|dropped| **dropped).count(), 1, "it was there once: {dropped:?}");
    Ok(())
}

async fn after_a_failure_nothing_is_left_to_tell(pools: &TestPools, pool: &TestPool) -> Outcome {
    let id = pool.create_test_workspaces(1).await?.remove(0);
    let lease = pool.acquire(&id).await?;
    terminate(pool, &[lease.backend_pid()]).await?;
    drop(lease);
    for _ in 0..2 {
        pools.cleanup_all().await?;
        pool.cleanup().await?;
        pool.verify_no_leaked_connections().await?;
        assert_stats_are_nothing(pool);
    }
    Ok(())
}
