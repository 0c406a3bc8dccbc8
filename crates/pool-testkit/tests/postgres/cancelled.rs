//! Cancellation at every await point, with a real server on the other side: each future is polled once, twice and so
//! on, and dropped; whoever comes next must get his own answer on a clean connection.

use pool_testkit::{TestPool, eventually, poll_at_most};
use rstest::rstest;

use crate::support::{SOON, id, one_connection};

#[derive(Clone, Copy, Debug)]
enum What {
    Begin,
    /// With a connect in front of it.
    ColdBegin,
    Acquire,
    ColdAcquire,
    Query,
    Exists,
    List,
    Ensure,
    Drop,
}

async fn cancelled(what: What, polls: usize, pool: &TestPool) -> bool {
    let a = id("a");
    let db = pool.workspace(&a);
    match what {
        What::Begin | What::ColdBegin => poll_at_most(polls, db.begin()).await,
        What::Acquire | What::ColdAcquire => poll_at_most(polls, pool.acquire(&a)).await,
        What::Query => {
            poll_at_most(polls, sqlx::query("select generate_series(1, 1000)").fetch_all(&db)).await
        }
        What::Exists => poll_at_most(polls, pool.workspace_exists(&a)).await,
        What::List => poll_at_most(polls, pool.list_workspaces()).await,
        What::Ensure => poll_at_most(polls, pool.ensure_workspace(&id("b"))).await,
        What::Drop => poll_at_most(polls, pool.drop_workspace(&id("b"))).await,
    }
}

#[rstest]
#[case::begin(What::Begin)]
#[case::cold_begin(What::ColdBegin)]
#[case::acquire(What::Acquire)]
#[case::cold_acquire(What::ColdAcquire)]
#[case::query(What::Query)]
#[case::exists(What::Exists)]
#[case::list(What::List)]
#[case::ensure(What::Ensure)]
#[case::drop(What::Drop)]
#[tokio::test]
async fn l1_w4_a_call_dropped_at_any_await_point_leaves_nothing_to_the_next(#[case] what: What) {
    let (pool, a) = one_connection().await;
    let mut points = 0;
    loop {
        match what {
            What::Drop => pool.ensure_workspace(&id("b")).await.unwrap(),
            What::ColdBegin | What::ColdAcquire => pool.close_workspace(&a).await.unwrap(),
            _ => {}
        }
        let done = Box::pin(cancelled(what, points, &pool)).await;
        // The next question gets its own answer, not the one that the cancelled call left behind.
        assert!(!pool.workspace_exists(&id("nobody")).await.unwrap(), "{what:?} at {points}");
        assert!(pool.workspace_exists(&a).await.unwrap(), "{what:?} at {points}");
        assert!(pool.list_workspaces().await.unwrap().contains(&a), "{what:?} at {points}");
        let mut tx = pool.workspace(&a).begin().await.unwrap();
        let is_new: bool = sqlx::query_scalar(
            "select now() = statement_timestamp() or pg_current_xact_id_if_assigned() is null",
        )
        .fetch_one(&mut tx)
        .await
        .unwrap();
        tx.rollback().await.unwrap();
        assert!(is_new, "{what:?} at {points}");
        eventually("nothing being in use or under way", SOON, || async {
            let stats = pool.stats();
            [stats.workspaces, stats.system].iter().all(|share| {
                let now = share.connections;
                now.in_use + now.opening + now.closing + share.waiting == 0
            })
        })
        .await
        .unwrap();
        let busy = pool.sessions().await.unwrap().into_iter().find(|session| session.state != "idle");
        assert!(busy.is_none(), "{what:?} at {points}: {busy:?}");
        if done {
            break;
        }
        points += 1;
        assert!(points < 1_000, "{what:?} does not come to its end");
    }
    println!("race: {points} cancellation points of {what:?} on a real server");
    assert!(points > 0, "{what:?} has points to be cancelled at");
    pool.cleanup().await.unwrap();
}
