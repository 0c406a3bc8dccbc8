//! Performance: the seed's generous targets, and the figures themselves on lines that can be grepped. How
//! fast things are in comparison is for the benches to say; here they must only not be slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_postgres::{Limits, WorkspaceId};
use pool_testkit::run::{figure, figure_series};
use pool_testkit::{TestPool, eventually, measure_operation_time, resident_memory_bytes};
use tokio::task::JoinSet;

use crate::support::{Outcome, current_database};

const MIB: f64 = 1024.0 * 1024.0;

/// Whatever is measured here is far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn float(count: usize) -> f64 {
    count as f64
}

fn memory_mib() -> f64 {
    #[allow(clippy::cast_precision_loss)]
    resident_memory_bytes().map_or(0.0, |bytes| bytes as f64 / MIB)
}

#[tokio::test]
async fn connection_reuse_performance() -> Outcome {
    const OPERATIONS: usize = 500;
    let pool = TestPool::new().await?;
    let id = pool.create_test_workspaces(1).await?.remove(0);
    let db = pool.workspace(&id);
    current_database(&db).await?;

    let (took, result) = measure_operation_time("reuse duration", async {
        for _ in 0..OPERATIONS {
            sqlx::query("select 1").execute(&db).await?;
        }
        Ok::<_, sqlx::Error>(())
    })
    .await;
    result?;
    let each = took / u32::try_from(OPERATIONS)?;
    figure("Reuse operations", each.as_secs_f64() * 1e3, "ms each");
    assert!(each < Duration::from_millis(10), "{each:?} per operation");
    assert_eq!(pool.stats().workspaces.opened, 1, "all on one connection");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn high_workspace_count() -> Outcome {
    const WORKSPACES: usize = 100;
    let pool = TestPool::new().await?;
    let (took, ids) =
        measure_operation_time("100 workspaces duration", pool.create_test_workspaces(WORKSPACES)).await;
    let ids = ids?;
    let each = took / u32::try_from(WORKSPACES)?;
    figure("Workspace creation operations", each.as_secs_f64() * 1e3, "ms each");
    for id in &ids {
        assert!(current_database(&pool.workspace(id)).await?.ends_with(id.as_str()));
    }
    assert!(took < Duration::from_mins(1), "{WORKSPACES} workspaces took {took:?}");
    assert!(each < Duration::from_millis(500), "{each:?} per workspace");
    assert_eq!(pool.databases().await?.len(), WORKSPACES);
    assert!(pool.stats().workspaces.peak <= pool.stats().workspaces.limit);
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn rapid_create_destroy_cycles() -> Outcome {
    const CYCLES: usize = 10;
    const WORKSPACES: usize = 5;
    let pool = TestPool::new().await?;
    let mut memory = Vec::new();
    for cycle in 0..CYCLES {
        for id in pool.create_test_workspaces(WORKSPACES).await? {
            current_database(&pool.workspace(&id)).await?;
            assert!(pool.drop_workspace(&id).await?);
        }
        assert_eq!(pool.stats().workspaces.targets, 0, "cycle {cycle} left nothing behind in the pool");
        memory.push((float(cycle + 1), memory_mib()));
    }
    figure_series("Memory over cycles", "cycle", "MiB", &memory);
    // The first cycles fill caches; from then on it is to stay where it is.
    let growth = memory[CYCLES - 1].1 - memory[2].1;
    figure("Memory growth after warm-up", growth, "MiB");
    assert!(growth < 16.0, "memory grew by {growth:.1} MiB: {memory:?}");
    assert_eq!(pool.databases().await?, Vec::<String>::new());
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn idle_connection_cleanup_overhead() -> Outcome {
    const OPERATIONS: usize = 300;
    let mut each = Vec::new();
    for idle_timeout in [None, Some(Duration::from_millis(40))] {
        let pool =
            TestPool::builder().adjust(move |builder| builder.idle_timeout(idle_timeout)).build().await?;
        let ids = pool.create_test_workspaces(5).await?;
        for id in &ids {
            current_database(&pool.workspace(id)).await?;
        }
        // One workspace stays busy while the clean-up looks after the others.
        let db = pool.workspace(&ids[0]);
        let began = Instant::now();
        for _ in 0..OPERATIONS {
            sqlx::query("select 1").execute(&db).await?;
        }
        each.push(began.elapsed() / u32::try_from(OPERATIONS)?);
        if idle_timeout.is_some() {
            eventually("idle connections being closed", Duration::from_secs(10), || async {
                pool.stats().workspaces.connections.total() == 0
            })
            .await?;
        }
        pool.cleanup().await?;
    }
    figure("Idle clean-up off, operations", each[0].as_secs_f64() * 1e3, "ms each");
    figure("Idle clean-up on, operations", each[1].as_secs_f64() * 1e3, "ms each");
    assert!(each[1] < Duration::from_millis(10), "{:?} per operation with the clean-up on", each[1]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_query_performance() -> Outcome {
    const TASKS: usize = 20;
    const EACH: usize = 100;
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(5).await?;
    let mut tasks: JoinSet<Result<(), sqlx::Error>> = JoinSet::new();
    let began = Instant::now();
    for i in 0..TASKS {
        let db = pool.workspace(&ids[i % ids.len()]);
        tasks.spawn(async move {
            for _ in 0..EACH {
                sqlx::query("select count(*) from pg_class").execute(&db).await?;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let qps = float(TASKS * EACH) / began.elapsed().as_secs_f64();
    figure("Concurrent queries, QPS", qps, "queries/s");
    assert!(qps > 100.0, "{qps:.0} queries per second");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn memory_efficiency() -> Outcome {
    const WORKSPACES: usize = 100;
    let before = memory_mib();
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(WORKSPACES).await?;
    let handles: Vec<_> = ids.iter().map(|id| pool.workspace(id)).collect();
    for db in &handles {
        current_database(db).await?;
    }
    let used = memory_mib() - before;
    figure("Memory for 100 workspaces", used, "MiB");
    assert!(used < 100.0, "{used:.1} MiB");
    let stats = pool.stats().workspaces;
    assert!(stats.targets <= stats.limit, "a workspace without a connection has no entry: {stats:?}");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test]
async fn connection_pool_warmup_time() -> Outcome {
    const WORKSPACES: usize = 9;
    let (took, pool) = measure_operation_time("warm-up duration, the server included", TestPool::new()).await;
    let pool = pool?;
    // What else the machine does can only add to what a creation costs: the shortest of several tells.
    let (mut created, mut queried) = (Vec::new(), Vec::new());
    for id in (0..WORKSPACES).map(|n| WorkspaceId::new(format!("first_{n}"))) {
        let id = id?;
        let (took, result) =
            measure_operation_time("new workspace duration", pool.ensure_workspace(&id)).await;
        result?;
        created.push(took);
        let (took, name) =
            measure_operation_time("first query duration", current_database(&pool.workspace(&id))).await;
        assert!(name?.ends_with(id.as_str()));
        queried.push(took);
    }
    let (created, queried) = (shortest(created), shortest(queried));
    assert!(created < Duration::from_millis(500), "a new workspace took {created:?}");
    assert!(queried < Duration::from_millis(500), "its first query took {queried:?}");
    assert!(took < Duration::from_secs(30), "the pool took {took:?}");
    pool.cleanup().await?;
    Ok(())
}

/// The shortest of `times`.
fn shortest(times: Vec<Duration>) -> Duration {
    times.into_iter().min().unwrap_or_default()
}

/// The least squares line through `points`, and how much of their variance it explains.
fn fit(points: &[(f64, f64)]) -> (f64, f64, f64) {
    let n = float(points.len());
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (mean_x, mean_y) = (mean(|p| p.0), mean(|p| p.1));
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let slope = covariance / variance;
    let intercept = mean_y - slope * mean_x;
    let unexplained: f64 = points.iter().map(|(x, y)| (y - intercept - slope * x).powi(2)).sum();
    let total: f64 = points.iter().map(|(_, y)| (y - mean_y).powi(2)).sum();
    (slope, intercept, 1.0 - unexplained / total)
}

#[tokio::test]
async fn linear_scaling() -> Outcome {
    let pool = TestPool::new().await?;
    let ids = pool.create_test_workspaces(80).await?;
    let mut points = Vec::new();
    for size in [10, 20, 40, 80] {
        // A round over `size` workspaces: what does not fit into the budget is opened anew.
        let began = Instant::now();
        for id in &ids[..size] {
            current_database(&pool.workspace(id)).await?;
        }
        points.push((float(size), began.elapsed().as_secs_f64() * 1e3));
    }
    let (slope, intercept, explained) = fit(&points);
    println!("fit duration: {intercept:.2} ms + {slope:.3} ms per workspace, r2 {explained:.3}");
    figure("Scaling duration", slope, "ms per workspace");
    figure_series("Scaling duration", "workspaces", "ms", &points);
    // Linear means that eight times the workspaces take about eight times as long; a quadratic cost
    // would take sixty-four times.
    let ratio = points[3].1 / points[0].1;
    assert!(ratio < 32.0, "8 times the workspaces took {ratio:.1} times as long: {points:?}");
    pool.cleanup().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_under_sustained_load() -> Outcome {
    const TASKS: usize = 16;
    const SECONDS: usize = 5;
    let pool = Arc::new(TestPool::builder().limits(Limits::new(20).system(5)).build().await?);
    let ids = Arc::new(pool.create_test_workspaces(10).await?);
    let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let stop = Instant::now() + Duration::from_secs(SECONDS as u64);
    let mut tasks: JoinSet<Result<(), sqlx::Error>> = JoinSet::new();
    for i in 0..TASKS {
        let (pool, ids, done) = (Arc::clone(&pool), Arc::clone(&ids), Arc::clone(&done));
        tasks.spawn(async move {
            let db = pool.workspace(&ids[i % ids.len()]);
            while Instant::now() < stop {
                sqlx::query("select 1").execute(&db).await?;
                done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let mut rates = Vec::new();
    for second in 0..SECONDS {
        let before = done.load(std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let rate = done.load(std::sync::atomic::Ordering::Relaxed) - before;
        rates.push((float(second + 1), float(rate)));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / float(SECONDS);
    figure("Sustained load, ops/sec", mean, "ops/sec");
    figure_series("Sustained load, ops/sec", "second", "ops/sec", &rates);
    assert!(mean > 500.0, "{mean:.0} operations per second");
    let slowest = rates.iter().map(|(_, rate)| *rate).fold(f64::MAX, f64::min);
    assert!(slowest > mean / 5.0, "it did not hold: {rates:?}");
    pool.cleanup().await?;
    Ok(())
}
