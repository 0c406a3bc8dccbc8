//! A password that changes while the pool runs, and a provider that cannot give one.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_postgres::{
    AcquireError, BuildError, DriverError, DriverErrorKind, Limits, PgLease, PgPools, Phase, WorkspaceId,
};
use pool_testkit::faults::DedicatedServer;
use pool_testkit::server::config_of;
use pool_testkit::{eventually, execute_outside, wait_for_condition};
use rstest::rstest;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const ROLE: &str = "app";
/// Far longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(30);
const FIRST: &str = "s3cr3t-first";
const SECOND: &str = "s3cr3t-second";

/// What the provider does when it is asked.
#[derive(Clone, Copy)]
enum Answer {
    Password(&'static str),
    Fail,
    Hang,
    Panic,
    PanicAtOnce,
}

#[derive(Debug)]
struct Sealed;

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the vault is sealed")
    }
}

impl Error for Sealed {}

#[derive(Clone)]
struct Provider(Arc<Mutex<Answer>>);

impl Provider {
    fn answers(&self, answer: Answer) {
        *self.0.lock().unwrap() = answer;
    }

    fn ask(&self) -> impl Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + use<> {
        let answer = *self.0.lock().unwrap();
        assert!(!matches!(answer, Answer::PanicAtOnce), "{SECOND} is not to be seen");
        async move {
            match answer {
                Answer::Password(password) => Ok(password.to_owned()),
                Answer::Hang => std::future::pending().await,
                Answer::Fail => Err(Sealed.into()),
                Answer::Panic | Answer::PanicAtOnce => panic!("{SECOND} is not to be seen"),
            }
        }
    }
}

/// A server with a role whose password changes, and a pool that asks for it. Workspace `a` has a lease, `b` an idle connection,
/// and `cold` none.
struct World {
    held: Option<PgLease>,
    pools: PgPools,
    provider: Provider,
    server: DedicatedServer,
}

fn id(name: &str) -> WorkspaceId {
    WorkspaceId::new(name).unwrap()
}

async fn build(
    server: &DedicatedServer,
    provider: &Provider,
    connect_timeout: Duration,
) -> Result<PgPools, BuildError> {
    let asked = provider.clone();
    let config = config_of(server.address()).user(ROLE).password_provider(move || asked.ask());
    let builder = PgPools::builder(config).limits(Limits::new(12).system(4).per_workspace(4));
    builder.acquire_timeout(SOON).connect_timeout(connect_timeout).build().await
}

impl World {
    async fn new(connect_timeout: Duration) -> Self {
        let server = DedicatedServer::start().await.unwrap();
        let role = format!("create role {ROLE} login createdb password '{FIRST}'");
        execute_outside(&config_of(server.address()), "postgres", &role).await.unwrap();
        let provider = Provider(Arc::new(Mutex::new(Answer::Password(FIRST))));
        let pools = build(&server, &provider, connect_timeout).await.unwrap();
        for name in ["a", "b", "cold"] {
            pools.ensure_workspace(&id(name)).await.unwrap();
        }
        let held = Some(pools.acquire(&id("a")).await.unwrap());
        let world = Self { held, pools, provider, server };
        world.is_served("b").await.unwrap();
        world
    }

    async fn server_changes_the_password(&self) {
        let alter = format!("alter role {ROLE} password '{SECOND}'");
        execute_outside(&config_of(self.server.address()), "postgres", &alter).await.unwrap();
    }

    async fn is_served(&self, name: &str) -> Result<(), sqlx::Error> {
        sqlx::query("select 1").execute(&self.pools.workspace(&id(name))).await.map(drop)
    }

    async fn warm_ones_are_served(&mut self) {
        sqlx::query("select 1").execute(self.held.as_mut().unwrap()).await.unwrap();
        self.is_served("b").await.unwrap();
    }

    /// Why a workspace without a connection is not served.
    async fn refusal(&self) -> (Arc<DriverError>, bool) {
        match self.pools.acquire(&id("cold")).await.unwrap_err() {
            AcquireError::OpenFailed { source, retryable, .. } => (source, retryable),
            other => panic!("{other}"),
        }
    }

    async fn heals(&self) {
        eventually("a new session", SOON, || async { self.is_served("cold").await.is_ok() }).await.unwrap();
    }

    /// The processes that serve the role.
    async fn backends(&self) -> Vec<i32> {
        let options = config_of(self.server.address()).connect_options("postgres");
        let mut conn = PgConnection::connect_with(&options).await.unwrap();
        let pids = format!("select pid from pg_stat_activity where usename = '{ROLE}' order by pid");
        let pids = sqlx::query_scalar(AssertSqlSafe(pids)).fetch_all(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        pids
    }

    /// The process that serves the lease.
    fn held_by(&self) -> i32 {
        self.held.as_ref().unwrap().backend_pid()
    }

    /// Waits until `left` are all that is left of the processes `before`.
    async fn are_left(&self, before: &[i32], left: &[i32]) {
        let are_left = || async {
            let now = self.backends().await;
            before.iter().filter(|pid| now.contains(pid)).eq(left)
        };
        eventually("the sessions from before being replaced", SOON, are_left).await.unwrap();
    }
}

/// The cause that the provider gave, wherever it stands behind `error`.
fn is_from_the_provider(error: &(dyn Error + 'static)) -> bool {
    error.is::<Sealed>() || error.source().is_some_and(is_from_the_provider)
}

#[tokio::test]
async fn o8_a_rotated_password_needs_no_restart() {
    let mut world = World::new(SOON).await;
    let before = world.backends().await;
    assert!(before.len() >= 4, "the pool's own, the catalog's, and two of workspaces: {before:?}");
    world.server_changes_the_password().await;
    world.provider.answers(Answer::Password(SECOND));
    world.warm_ones_are_served().await;
    assert_eq!(world.backends().await, before, "no session is opened, so nobody has asked");

    world.is_served("cold").await.unwrap();
    world.are_left(&before, &[world.held_by()]).await;
    world.warm_ones_are_served().await;
    world.held = None;
    world.are_left(&before, &[]).await;
    world.pools.close().await.unwrap();
    assert_eq!(world.backends().await, Vec::<i32>::new());
}

#[rstest]
#[case::the_server_changes_first(true)]
#[case::the_provider_changes_first(false)]
#[tokio::test]
async fn o8_a_password_that_is_refused_is_asked_about_again_until_it_is_the_right_one(
    #[case] server_first: bool,
) {
    let mut world = World::new(SOON).await;
    let before = world.backends().await;
    if server_first {
        world.server_changes_the_password().await;
    } else {
        world.provider.answers(Answer::Password(SECOND));
    }
    let (refusal, _) = world.refusal().await;
    assert_eq!(refusal.kind, DriverErrorKind::Refused, "{refusal}");
    world.warm_ones_are_served().await;
    assert_eq!(world.backends().await, before, "nothing is closed before a session could be opened");
    if server_first {
        world.provider.answers(Answer::Password(SECOND));
    } else {
        world.server_changes_the_password().await;
    }
    world.heals().await;
    world.are_left(&before, &[world.held_by()]).await;
}

#[tokio::test]
async fn o8_a_provider_that_fails_is_told_with_its_cause_and_heals() {
    let mut world = World::new(SOON).await;
    world.provider.answers(Answer::Fail);
    let (refusal, retryable) = world.refusal().await;
    assert_eq!((refusal.phase, refusal.kind), (Phase::Connect, DriverErrorKind::NoCredentials));
    assert!(retryable && is_from_the_provider(&*refusal), "{refusal:?}");
    assert!(refusal.to_string().contains("the vault is sealed"), "{refusal}");
    world.warm_ones_are_served().await;
    world.provider.answers(Answer::Password(FIRST));
    world.heals().await;

    world.provider.answers(Answer::Fail);
    let Err(BuildError::Connect(why)) = build(&world.server, &world.provider, SOON).await else { panic!() };
    assert_eq!(why.kind, DriverErrorKind::NoCredentials, "{why}");
}

#[tokio::test]
async fn o8_a_provider_that_hangs_costs_a_connect_timeout_and_no_slot() {
    let mut world = World::new(Duration::from_secs(1)).await;
    world.provider.answers(Answer::Hang);
    let (refusal, _) = world.refusal().await;
    assert_eq!(refusal.kind, DriverErrorKind::NoCredentials, "{refusal}");
    assert!(refusal.to_string().contains("no answer within 900ms"), "{refusal}");
    let is_free = || world.pools.stats().connections().opening == 0;
    wait_for_condition("the slot being free", SOON, is_free).await.unwrap();
    world.warm_ones_are_served().await;
    world.provider.answers(Answer::Password(FIRST));
    world.heals().await;
}

#[rstest]
#[case::when_it_is_polled(Answer::Panic)]
#[case::when_it_is_called(Answer::PanicAtOnce)]
#[tokio::test]
async fn o8_a_provider_that_panics_fails_the_open_and_nothing_else(#[case] panic: Answer) {
    let mut world = World::new(SOON).await;
    world.provider.answers(panic);
    let (refusal, retryable) = world.refusal().await;
    assert_eq!((refusal.kind, retryable), (DriverErrorKind::NoCredentials, true), "{refusal}");
    let told = format!("{refusal} {refusal:?}");
    assert!(told.contains("panicked") && !told.contains(SECOND), "{told}");
    world.warm_ones_are_served().await;
    world.provider.answers(Answer::Password(FIRST));
    world.heals().await;
}
