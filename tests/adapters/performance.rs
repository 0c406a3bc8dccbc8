//! Performance: the seed's generous targets in the adapter's own kind of time. In memory that is virtual: what is measured is how
//! often the pool waits for what a server does, exactly.

use std::time::Duration;

use pool_core::WorkspaceId;
use pool_testkit::run::{figure, figure_series, replaced};
use pool_testkit::{eventually, resident_memory_bytes};
use tokio::time::Instant;

use super::rig::{BUDGET, CEILING, Outcome, Rig, SOON, Suite, all_at_once};

/// Whatever is measured here is far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn float(count: usize) -> f64 {
    count as f64
}

fn each(took: Duration, operations: usize) -> Duration {
    took / u32::try_from(operations).unwrap_or(u32::MAX)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Operations of as many tasks at once, each at a workspace of its own while there are enough; returns how many a second.
async fn load<A: Suite>(rig: &Rig<A>, ids: &[WorkspaceId], tasks: usize, operations: usize) -> Outcome<f64> {
    let began = Instant::now();
    all_at_once(tasks, |task| {
        let (rig, id) = (rig.clone(), ids[task % ids.len()].clone());
        async move {
            for _ in 0..operations {
                rig.serves(&id).await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok(float(tasks * operations) / began.elapsed().as_secs_f64())
}

pub async fn connection_reuse_performance<A: Suite>() -> Outcome {
    const OPERATIONS: usize = 500;
    let rig = Rig::<A>::new().await?;
    let id = rig.workspaces(1).await?.remove(0);
    rig.serves(&id).await?;
    let began = Instant::now();
    for _ in 0..OPERATIONS {
        rig.serves(&id).await?;
    }
    let each = each(began.elapsed(), OPERATIONS);
    figure("Reuse operations", milliseconds(each), "ms each");
    assert!(each < Duration::from_millis(10), "{each:?} per operation");
    assert_eq!(rig.pools.stats().workspaces.opened, 1, "all on one connection");
    rig.end().await
}

pub async fn high_workspace_count<A: Suite>() -> Outcome {
    const WORKSPACES: usize = 100;
    let rig = Rig::<A>::new().await?;
    let began = Instant::now();
    let ids = rig.workspaces(WORKSPACES).await?;
    let each = each(began.elapsed(), WORKSPACES);
    figure("Workspace creation operations", milliseconds(each), "ms each");
    assert!(each < Duration::from_millis(500), "{each:?} per workspace");
    for id in &ids {
        rig.serves(id).await?;
    }
    assert_eq!(rig.pools.list_workspaces().await?.len(), WORKSPACES);
    let stats = rig.pools.stats().workspaces;
    assert!(stats.peak <= stats.limit, "{stats:?}");
    rig.end().await
}

pub async fn rapid_create_destroy_cycles<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    for cycle in 0..10 {
        for id in rig.workspaces(5).await? {
            rig.serves(&id).await?;
            assert!(rig.pools.drop_workspace(&id).await?);
        }
        assert_eq!(rig.pools.stats().workspaces.targets, 0, "cycle {cycle} left nothing behind in the pool");
    }
    assert_eq!(rig.pools.list_workspaces().await?, []);
    rig.end().await
}

pub async fn idle_connection_cleanup_overhead<A: Suite>() -> Outcome {
    const OPERATIONS: usize = 300;
    let mut times = Vec::new();
    for idle_timeout in [None, Some(Duration::from_millis(40))] {
        let rig = Rig::<A>::sized(BUDGET, CEILING, |settings| settings.idle_timeout = idle_timeout).await?;
        let ids = rig.workspaces(5).await?;
        drop(rig.hold(&ids).await?);
        // One workspace stays busy while the clean-up looks after the others.
        let began = Instant::now();
        for _ in 0..OPERATIONS {
            rig.serves(&ids[0]).await?;
        }
        times.push(each(began.elapsed(), OPERATIONS));
        if idle_timeout.is_some() {
            let gone = || async { rig.pools.stats().workspaces.connections.total() == 0 };
            eventually("idle connections being closed", SOON, gone).await?;
        }
        rig.end().await?;
    }
    figure("Idle clean-up off, operations", milliseconds(times[0]), "ms each");
    figure("Idle clean-up on, operations", milliseconds(times[1]), "ms each");
    assert!(times[1] < Duration::from_millis(10), "{:?} per operation with the clean-up on", times[1]);
    Ok(())
}

pub async fn concurrent_query_performance<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(5).await?;
    let rate = load(&rig, &ids, 20, 100).await?;
    figure("Concurrent queries, QPS", rate, "queries/s");
    assert!(rate > 100.0, "{rate:.0} queries per second");
    rig.end().await
}

pub async fn memory_efficiency<A: Suite>() -> Outcome {
    const WORKSPACES: usize = 100;
    let memory = || resident_memory_bytes().map_or(0, |bytes| bytes >> 20);
    let before = memory();
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(WORKSPACES).await?;
    for id in &ids {
        rig.serves(id).await?;
    }
    let used = memory().saturating_sub(before);
    assert!(used < 100, "{used} MiB");
    let stats = rig.pools.stats().workspaces;
    assert!(stats.targets <= stats.limit, "a workspace without a connection has no entry: {stats:?}");
    rig.end().await
}

pub async fn connection_pool_warmup_time<A: Suite>() -> Outcome {
    let began = Instant::now();
    let rig = Rig::<A>::new().await?;
    let (mut made, mut served) = (Vec::new(), Vec::new());
    for number in 0..9 {
        let (id, began) = (WorkspaceId::new(format!("first_{number}"))?, Instant::now());
        rig.pools.ensure_workspace(&id).await?;
        made.push(began.elapsed());
        let began = Instant::now();
        rig.serves(&id).await?;
        served.push(began.elapsed());
    }
    // What else the machine does can only add to what one costs: the shortest of several tells.
    let shortest = |times: Vec<Duration>| times.into_iter().min().unwrap_or_default();
    let (made, served) = (shortest(made), shortest(served));
    figure("New workspace", milliseconds(made), "ms");
    figure("First query", milliseconds(served), "ms");
    assert!(made < Duration::from_millis(500) && served < Duration::from_millis(500), "{made:?}, {served:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    rig.end().await
}

pub async fn linear_scaling<A: Suite>() -> Outcome {
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(80).await?;
    let mut points = Vec::new();
    for size in [10, 20, 40, 80] {
        // A round over `size` workspaces: what does not fit into the budget is opened anew.
        let began = Instant::now();
        for id in &ids[..size] {
            rig.serves(id).await?;
        }
        points.push((float(size), milliseconds(began.elapsed())));
    }
    figure_series("Scaling duration", "workspaces", "ms", &points);
    // Eight times the workspaces take about eight times as long; a quadratic cost would take sixty-four times.
    let ratio = points[3].1 / points[0].1;
    assert!(ratio < 32.0, "8 times the workspaces took {ratio:.1} times as long: {points:?}");
    rig.end().await
}

pub async fn throughput_under_sustained_load<A: Suite>() -> Outcome {
    const ROUNDS: usize = 5;
    let rig = Rig::<A>::new().await?;
    let ids = rig.workspaces(10).await?;
    if A::IS_VIRTUAL {
        replaced("in virtual time a server never tires: every round takes as long as the first");
    }
    let mut rates = Vec::new();
    for round in 0..ROUNDS {
        rates.push((float(round + 1), load(&rig, &ids, 16, 100).await?));
    }
    figure_series("Sustained load, ops/sec", "round", "ops/sec", &rates);
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / float(ROUNDS);
    let slowest = rates.iter().map(|(_, rate)| *rate).fold(f64::MAX, f64::min);
    assert!(mean > 500.0, "{mean:.0} operations per second");
    assert!(slowest > mean / 5.0, "it did not hold: {rates:?}");
    rig.end().await
}
