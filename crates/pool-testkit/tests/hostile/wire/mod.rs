//! Servers that are malicious or broken on the wire: each costs a connection, and nothing else.

mod evil;
mod proxy;

use std::collections::HashMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use evil::Evil;
use futures_util::{StreamExt as _, stream};
use pool_postgres::{
    AcquireError, BuildError, DriverErrorKind, Limits, PgPools, PostgresConfig, WorkspaceId,
};
use pool_testkit::{TestPool, eventually, hostile, resident_memory_bytes, run};
use proxy::Proxy;
use rstest::rstest;
use tokio::runtime::Builder;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
/// What servers without an end may cost all together. They send some 60 MB until they are given up.
const MEMORY_MB_MAX: u64 = 64;

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

/// How to reach the server of `pool` through `proxy`, in the same namespace and with the same tag.
fn config_of(proxy: &Proxy, pool: &TestPool) -> PostgresConfig {
    let real = pool.config();
    let system = real.get_system_database().unwrap();
    PostgresConfig::new("127.0.0.1")
        .port(proxy.port)
        .user(real.get_user())
        .password(&hostile::password_of(real))
        .system_database(system.as_str())
        .application_name(&pool.tag())
        .prefix(&pool.prefix())
}

async fn built(config: PostgresConfig) -> PgPools {
    let limits = Limits::new(14).system(5).per_workspace(4);
    let timeouts = |builder: pool_postgres::PgPoolsBuilder| {
        builder.connect_timeout(Duration::from_secs(1)).acquire_timeout(Duration::from_secs(3))
    };
    let checked = |settings: &mut pool_postgres::Settings| settings.check_after = Duration::ZERO;
    timeouts(PgPools::builder(config).limits(limits)).adjust(checked).build().await.unwrap()
}

async fn through(proxy: &Proxy, pool: &TestPool) -> PgPools {
    built(config_of(proxy, pool)).await
}

/// The workspaces that meet each of these, by the database that they ask for.
fn numbered(pool: &TestPool, evils: Vec<Evil>) -> (HashMap<String, Evil>, Vec<(WorkspaceId, String)>) {
    let mut by_database = HashMap::new();
    let mut names = Vec::new();
    for (number, evil) in evils.into_iter().enumerate() {
        let id = id(&format!("evil_{number}"));
        names.push((id.clone(), evil.name.clone()));
        by_database.insert(pool.database_of(&id), evil);
    }
    (by_database, names)
}

/// A proxy with each of these in place of a workspace's database, and those workspaces.
async fn with(pool: &TestPool, evils: Vec<Evil>) -> (Proxy, Vec<(WorkspaceId, String)>) {
    let (by_database, names) = numbered(pool, evils);
    (Proxy::start(Some(pool.config().clone()), by_database).await, names)
}

async fn is_served(pools: &PgPools, good: &WorkspaceId) -> bool {
    sqlx::query_scalar::<_, i32>("select 7")
        .fetch_one(&pools.workspace(good))
        .await
        .is_ok_and(|seven| seven == 7)
}

/// sqlx's decoder panics on worker threads by the hundred, and is contained; nobody wants to read of it.
fn hush() {
    static HUSHED: Once = Once::new();
    HUSHED.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() != Some("tokio-rt-worker") {
                tell(panic);
            }
        }));
    });
}

fn finite() -> Vec<Evil> {
    let mut rng = fastrand::Rng::with_seed(run::seed());
    let kinds = [
        evil::identities(),
        evil::truncated(),
        evil::too_short(),
        evil::noise(&mut rng),
        evil::mutated(&mut rng),
        evil::authentication(),
        evil::errors(),
    ];
    kinds.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_server_that_breaks_the_protocol_costs_one_connection() {
    hush();
    let pool = TestPool::new().await.unwrap();
    let good = pool.create_test_workspaces(1).await.unwrap().remove(0);
    let (proxy, evils) = with(&pool, finite()).await;
    let pools = through(&proxy, &pool).await;
    let meet = async |(id, name): &(WorkspaceId, String)| {
        let met = Instant::now();
        let outcome = pools.acquire(id).await;
        assert!(met.elapsed() < SOON, "{name}: it has taken {:?}", met.elapsed());
        if let Err(error) = &outcome {
            assert!(matches!(error, AcquireError::OpenFailed { .. }), "{name}: {error}");
        }
        assert!(is_served(&pools, &good).await, "{name}: the good workspace is not served");
        outcome.is_err()
    };
    let failed = stream::iter(&evils).map(meet).buffer_unordered(6);
    let failed = failed.filter(|failed| std::future::ready(*failed)).count().await;
    let opened = pools.stats().workspaces.opened;
    println!("{} conversations, {failed} of them refused, {opened} sessions opened", evils.len());
    assert!(failed > evils.len() / 2, "most of what is said is no PostgreSQL");
    pools.close_workspace(&good).await.unwrap();
    for (id, _) in &evils {
        pools.close_workspace(id).await.unwrap();
    }
    eventually("every slot being free again", SOON, || async {
        pools.stats().workspaces.connections.total() == 0
    })
    .await
    .unwrap();
    assert!(is_served(&pools, &good).await);
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn o1_a_pool_whose_server_breaks_the_protocol_is_not_built_and_nothing_panics() {
    let refused = evil::too_short().into_iter().chain(evil::authentication());
    let mut told = 0;
    for evil in refused.filter(|evil| !evil.name.contains("answer")) {
        let name = evil.name.clone();
        let proxy = Proxy::start(None, HashMap::from([(String::new(), evil)])).await;
        let config = PostgresConfig::new("127.0.0.1").port(proxy.port).password("hunter2");
        let built = PgPools::builder(config).limits(Limits::new(10)).connect_timeout(Duration::from_secs(1));
        let error = built.build().await.expect_err(&name);
        let BuildError::Connect(why) = &error else { panic!("{name}: {error}") };
        assert!(!format!("{error} {why:?}").contains("hunter2"), "{name}");
        told += 1;
    }
    println!("{told} servers were refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn o1_a_control_connection_that_breaks_is_made_again() {
    let pool = TestPool::new().await.unwrap();
    let good = pool.create_test_workspaces(1).await.unwrap().remove(0);
    let (proxy, _) = with(&pool, Vec::new()).await;
    let pools = through(&proxy, &pool).await;
    let before = pool.active_connection_count().await.unwrap();
    for _ in 0..3 {
        let lease = pools.acquire(&good).await.unwrap();
        proxy.poison_the_next_answer();
        // The next who is answered is the control connection, which is asked whether the session is gone.
        lease.discard();
        eventually("the session being seen to be gone", SOON, || async {
            proxy.has_poisoned() && pools.stats().workspaces.connections.total() == 0
        })
        .await
        .unwrap();
        eventually("one control connection, not two", SOON, || async {
            pool.active_connection_count().await.is_ok_and(|count| count == before)
        })
        .await
        .unwrap();
    }
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_a_check_that_is_answered_with_nonsense_replaces_the_connection() {
    let pool = TestPool::new().await.unwrap();
    let good = pool.create_test_workspaces(1).await.unwrap().remove(0);
    let (proxy, _) = with(&pool, Vec::new()).await;
    let pools = through(&proxy, &pool).await;
    for _ in 0..3 {
        assert!(is_served(&pools, &good).await);
        proxy.poison_the_next_answer();
        let lease = pools.acquire(&good).await.unwrap();
        assert!(proxy.has_poisoned(), "it was checked, and the answer was poisoned");
        drop(lease);
    }
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

/// On one thread, so that the servers have no turn while sqlx reads, however busy the machine is: one that sends faster than it
/// is read keeps an unguarded pool from ever yielding, and is what the next test is about.
#[tokio::test]
async fn o1_a_server_that_never_ends_is_given_up() {
    let pool = TestPool::new().await.unwrap();
    let (proxy, evils) = with(&pool, evil::endless()).await;
    let pools = through(&proxy, &pool).await;
    never_ends(pool, pools, &evils).await;
}

#[rstest]
#[case::many_threads(Builder::new_multi_thread())]
#[case::one_thread(Builder::new_current_thread())]
fn o1_a_guarded_pool_gives_up_servers_that_send_faster_than_they_are_read(#[case] mut runtime: Builder) {
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = TestPool::new().await.unwrap();
        let (by_database, evils) = numbered(&pool, evil::endless());
        let proxy = Proxy::flooding(pool.config().clone(), by_database).await;
        let pools = built(config_of(&proxy, &pool).guarded(true)).await;
        never_ends(pool, pools, &evils).await;
    });
}

/// Beyond the size at which the relay pauses, in both directions.
#[tokio::test]
async fn a_guarded_pool_passes_long_questions_and_answers_on_untouched() {
    const LENGTH: usize = 12 << 20;
    let pool = TestPool::new().await.unwrap();
    let good = pool.create_test_workspaces(1).await.unwrap().remove(0);
    let guarded = pool.config().clone().application_name(&pool.tag()).prefix(&pool.prefix()).guarded(true);
    let pools = built(guarded).await;
    let mut rng = fastrand::Rng::with_seed(run::seed());
    let sent: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(LENGTH).collect();
    for _ in 0..2 {
        let answer = sqlx::query_scalar("select $1 || $1").bind(&sent);
        let answer: Vec<u8> = answer.fetch_one(&pools.workspace(&good)).await.unwrap();
        assert!(answer == [&sent[..], &sent[..]].concat(), "{} bytes came back", answer.len());
    }
    assert_eq!(pools.stats().workspaces.opened, 1, "it is the same session still");
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}

/// Each of `evils` is given up in time and takes no memory to speak of, while a good workspace is served.
async fn never_ends(pool: TestPool, pools: PgPools, evils: &[(WorkspaceId, String)]) {
    let good = pool.create_test_workspaces(1).await.unwrap().remove(0);
    let before = resident_memory_bytes().unwrap_or_default();
    let began = Instant::now();
    let meet = async |(id, name): &(WorkspaceId, String)| {
        match pools.acquire(id).await {
            Ok(mut lease) => {
                let answer = sqlx::query("select 1").fetch_all(&mut lease);
                let answer = timeout(Duration::from_millis(500), answer).await;
                println!("{name}: no answer {:?}", began.elapsed());
                assert!(answer.is_err(), "{name}: {answer:?}");
            }
            Err(error) => {
                let AcquireError::OpenFailed { source, .. } = &error else { panic!("{name}: {error}") };
                let expected = [DriverErrorKind::TimedOut, DriverErrorKind::Other];
                assert!(expected.contains(&source.kind), "{name}: {error}");
                println!("{name}: {source} {:?}", began.elapsed());
            }
        }
        assert!(is_served(&pools, &good).await, "{name}: the good workspace is not served");
    };
    stream::iter(evils).for_each_concurrent(None, meet).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    pools.close_workspace(&good).await.unwrap();
    for (id, _) in evils {
        pools.close_workspace(id).await.unwrap();
    }
    let mut most = resident_memory_bytes().unwrap_or_default();
    eventually("every slot being free again", SOON, || {
        most = most.max(resident_memory_bytes().unwrap_or_default());
        std::future::ready(pools.stats().workspaces.connections.total() == 0)
    })
    .await
    .unwrap();
    let grown = most.saturating_sub(before) >> 20;
    println!("over after {:?}, at most {grown} MB more", began.elapsed());
    assert!(grown < MEMORY_MB_MAX, "{grown} MB more than before");
    pools.close().await.unwrap();
    pool.cleanup().await.unwrap();
}
