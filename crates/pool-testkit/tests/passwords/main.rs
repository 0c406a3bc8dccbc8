//! Passwords with every special character: they work, and are nowhere to be seen. And passwords that change (`rotation`).
//!
//! A binary of its own, since everything that it logs is searched.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod rotation;

use std::error::Error;
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use pool_postgres::{BuildError, DriverErrorKind, Limits, PgPools, PostgresConfig};
use pool_testkit::{TestPool, hostile, run};
use proptest::test_runner::TestCaseError;
use sqlx::AssertSqlSafe;
use tracing_subscriber::fmt::MakeWriter;

const CASES: u32 = 2_000;
/// Begins every password here, so that any trace of one is recognised.
const MARK: &str = "s3cr3t-";
const WRONG: &str = "s3cr3t-wrong";

/// Every sign of ASCII, escapes that are none, other scripts.
const NASTY: [&str; 6] = [
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ",
    "%41%zz%00%",
    "p@h:1/d?sslmode=disable#x",
    "'; drop role postgres; --",
    "\\'$$\\\\ ",
    "caf\u{e9} \u{fb01} \u{65e5}\u{672c} \u{a0}",
];

#[test]
fn i3_two_thousand_passwords_work_in_urls_and_variables_and_are_not_shown() {
    let verdict = hostile::runner(CASES, run::seed()).run(&hostile::passwords(), |password| {
        hostile::check_postgres_config(password.as_bytes()).map_err(TestCaseError::fail)
    });
    verdict.unwrap();
}

/// So that the fuzz targets cannot rot: what they ask, of bytes that are changed at random.
#[test]
fn i3_the_seeded_corpus_keeps_the_properties_of_the_fuzz_targets() {
    let corpus: [&[u8]; 6] = [
        b"acme",
        b"\0",
        b"postgres://u:p@h:1/d?sslmode=disable",
        b"?x=y&z#f",
        b"/@[::1]:70000",
        "\u{202e}%zz".as_bytes(),
    ];
    let mut rng = fastrand::Rng::with_seed(run::seed());
    for _ in 0..CASES {
        let mut bytes = rng.choice(corpus).unwrap().to_vec();
        for _ in 0..rng.usize(0..6) {
            bytes.insert(
                rng.usize(0..=bytes.len()),
                if rng.bool() { rng.u8(b' '..=b'~') } else { rng.u8(..) },
            );
        }
        let verdict =
            hostile::check_workspace_id(&bytes).and_then(|()| hostile::check_postgres_config(&bytes));
        verdict.unwrap_or_else(|broken| panic!("{broken}: {bytes:?}"));
    }
}

/// Everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// How `error` and all behind it are shown.
fn shown(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    let mut all = String::new();
    while let Some(error) = next {
        all = [all, error.to_string(), format!("{error:?}")].join("\n");
        next = error.source();
    }
    all
}

/// What whoever unwraps `error` writes.
fn panic_message(error: BuildError) -> String {
    let unwrap = |outcome: Result<(), BuildError>| outcome.unwrap();
    let panic = std::panic::catch_unwind(AssertUnwindSafe(|| unwrap(Err(error)))).unwrap_err();
    panic.downcast::<String>().map(|message| *message).unwrap_or_default()
}

/// The arguments of every process on this machine, where the system shows them.
fn process_list() -> String {
    let Ok(entries) = std::fs::read_dir("/proc") else { return String::new() };
    let lines = entries.flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).collect()
}

async fn build(pool: &TestPool, role: &str, url_password: &str) -> Result<PgPools, BuildError> {
    let real = pool.config();
    // A host is written as it is; only the path of a socket is encoded.
    let is_socket = real.host().starts_with('/');
    let host = if is_socket { hostile::percent_encoded(real.host()) } else { real.host().to_owned() };
    let (port, system) = (real.get_port(), real.get_system_database().unwrap());
    let password = hostile::percent_encoded(url_password);
    let url = format!("postgres://{role}:{password}@{host}:{port}/{system}");
    let config = PostgresConfig::from_url(&url).unwrap().application_name(&pool.tag());
    PgPools::builder(config).limits(Limits::new(6).system(5)).build().await
}

/// Makes the role, or gives it another password. The password travels as a value, so that no statement holds it.
async fn set_password(pool: &TestPool, role: &str, verb: &str, password: &str) {
    let mut system = pool.system().acquire().await.unwrap();
    let statement = format!(
        "do $do$ begin execute format('{verb} role %I login password %L', '{role}', current_setting('hostile.password')); end $do$"
    );
    sqlx::raw_sql("set password_encryption = 'scram-sha-256'").execute(&mut system).await.unwrap();
    sqlx::query("select set_config('hostile.password', $1, false)")
        .bind(password)
        .execute(&mut system)
        .await
        .unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut system).await.unwrap();
    system.discard();
}

/// Tries the password and a wrong one; returns everything that was shown.
async fn try_both(pool: &TestPool, role: &str, password: &str) -> String {
    let right = build(pool, role, password).await.unwrap();
    let mut all = format!("{right:?}");
    let user: String =
        sqlx::query_scalar("select current_user::text").fetch_one(&right.system()).await.unwrap();
    assert_eq!(user, role);
    all += &process_list();
    right.close().await.unwrap();
    match build(pool, role, WRONG).await {
        Ok(trusting) => {
            println!("the server trusts whoever connects, so a wrong password proves nothing");
            trusting.close().await.unwrap();
        }
        Err(error) => {
            let BuildError::Connect(why) = &error else { panic!("{}", shown(&error)) };
            assert_eq!(why.kind, DriverErrorKind::Refused);
            all += &shown(&error);
            all += &panic_message(error);
        }
    }
    all
}

#[tokio::test]
async fn i3_nasty_passwords_open_a_session_and_leave_no_trace() {
    let pool = TestPool::new().await.unwrap();
    let role = format!("{}_hostile", pool.prefix());
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    // A scoped subscriber would miss what was first logged on another test's thread while there was none.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let tried = AssertUnwindSafe(async {
        let mut verb = "create";
        let mut all = String::new();
        for nasty in NASTY {
            let password = format!("{MARK}{nasty}");
            set_password(&pool, &role, verb, &password).await;
            verb = "alter";
            all += &try_both(&pool, &role, &password).await;
        }
        all
    })
    .catch_unwind()
    .await;
    let forget = format!("drop role if exists {role}");
    let forgotten = sqlx::raw_sql(AssertSqlSafe(forget)).execute(&pool.system()).await;
    let all = tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) + &log.text();
    forgotten.unwrap();
    assert!(log.text().contains("password_encryption"), "sqlx's log is among what was searched");
    let at = all.find(MARK).map(|at| all[..at].chars().rev().take(200).collect::<Vec<_>>());
    assert!(
        at.is_none(),
        "a password is shown behind {:?}",
        at.map(|before| before.iter().rev().collect::<String>())
    );
    pool.cleanup().await.unwrap();
}

#[tokio::test]
async fn i3_a_password_that_cannot_be_prepared_is_refused_without_a_word_of_it() {
    let pool = TestPool::new().await.unwrap();
    let role = format!("{}_control", pool.prefix());
    set_password(&pool, &role, "create", "s3cr3t-plain").await;
    let outcomes = [build(&pool, &role, "s3cr3t-\u{7}").await, build(&pool, &role, "s3cr3t-\u{1f642}").await];
    sqlx::raw_sql(AssertSqlSafe(format!("drop role {role}"))).execute(&pool.system()).await.unwrap();
    for outcome in outcomes {
        let Err(error) = outcome else { continue };
        let told = shown(&error);
        let shows =
            [MARK, "\u{7}", "u{7}", "\u{1f642}", "1f642"].into_iter().find(|part| told.contains(part));
        assert_eq!(shows, None, "{told}");
    }
    pool.cleanup().await.unwrap();
}
