//! A backend is ended behind the pool's back.

use std::time::Instant;

use sqlx::Executor;

use crate::support::{Observed, Others, Outcome, PATIENT, World, is_loss, told_by_statement};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_a_backend_terminated_while_idle_is_replaced_unseen() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let pid = world.lease().await?.backend_pid();

    world.terminate(pid).await?;
    let since = Instant::now();
    let recovery = world.back_at_once(since).await?;
    assert_ne!(world.lease().await?.backend_pid(), pid);
    let observed =
        Observed { fault: "backend terminated while idle", law: "L3", seen: "nothing".into(), recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_a_backend_terminated_in_use_is_told_to_its_holder_and_replaced() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let mut lease = world.lease().await?;

    world.terminate(lease.backend_pid()).await?;
    let since = Instant::now();
    let error = lease.execute("select 1").await.unwrap_err();
    assert!(is_loss(&error), "{error}");
    drop(lease);
    let recovery = world.back_at_once(since).await?;
    let seen = told_by_statement(&error);
    let observed = Observed { fault: "backend terminated in use", law: "L3", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_a_backend_terminated_in_a_transaction_leaves_nothing_of_it() -> Outcome {
    let world = World::direct(PATIENT).await?;
    let bystander = world.watch();
    let db = world.pools.workspace(&world.hit);
    sqlx::query("create table note (id int)").execute(&db).await?;
    let mut tx = db.begin().await?;
    sqlx::query("insert into note values (1)").execute(&mut tx).await?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut tx).await?;

    world.terminate(pid).await?;
    let since = Instant::now();
    let error = sqlx::query("insert into note values (2)").execute(&mut tx).await.unwrap_err();
    assert!(is_loss(&error), "{error}");
    tx.commit().await.unwrap_err();
    let recovery = world.back_at_once(since).await?;
    let notes: i64 = sqlx::query_scalar("select count(*) from note").fetch_one(&db).await?;
    assert_eq!(notes, 0, "nothing of the transaction is left");
    let seen = format!("{}; the commit fails, too", told_by_statement(&error));
    let observed = Observed { fault: "backend terminated in a transaction", law: "L1", seen, recovery };
    world.finish(bystander, Others::Spared, observed).await
}
