//! The machine that the pool runs on fails it: it sleeps, or has no file descriptor left.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pool_postgres::{DriverErrorKind, Limits, PgPools, PgWorkspacePool, PostgresConfig, WorkspaceId};
use pool_testkit::eventually;
use pool_testkit::faults::{DedicatedServer, Link, Row};
use pool_testkit::server::config_of;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::support::{
    Failure, Outcome, PASSWORD, ROLE, SOON, behind_a_proxy, open_failure, sessions_of, test_name, told,
};

/// Longer than a background task may be late.
const SLEPT: Duration = Duration::from_secs(7);
/// By then the background tasks have seen that they are late.
const WOKEN: Duration = Duration::from_millis(50);

/// The pool has a thread of its own, which stands still while its sessions are lost, as when a machine is suspended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_after_the_machine_slept_idle_connections_are_checked_and_replaced_unseen() -> Outcome {
    let (server, proxy) = behind_a_proxy(&[]).await?;
    let config = config_of(server.address()).port(proxy.address().port()).application_name("slept");
    let (falls_asleep, asleep) = tokio::sync::oneshot::channel();
    let (keeps, may_go) = std::sync::mpsc::channel::<()>();
    let (tells, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || -> Outcome {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let pools = PgPools::builder(config)
                .limits(Limits::new(9).system(5))
                // Nothing but the sleep has a connection checked.
                .adjust(|settings| settings.check_after = Duration::from_hours(1))
                .build()
                .await?;
            let id = WorkspaceId::new("sleeper")?;
            pools.ensure_workspace(&id).await?;
            let leases = futures_util::future::try_join_all((0..3).map(|_| pools.acquire(&id))).await?;
            drop(leases);
            let _ = falls_asleep.send(());
            std::thread::sleep(SLEPT);
            let woken = Instant::now();
            tokio::time::sleep(WOKEN).await;
            let db = pools.workspace(&id);
            for _ in 0..3 {
                timeout(SOON, one(&db)).await??;
            }
            let recovery = woken.elapsed();
            let is_quiet = || async { pools.stats().connections().closing == 0 };
            eventually("the lost sessions being gone", SOON, is_quiet).await?;
            let stats = pools.stats();
            let _ = tells.send((recovery, i64::from(stats.connections().total() + stats.control)));
            // A thread that waits cannot do anything else.
            while may_go.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            pools.close().await?;
            Ok(())
        })
    });
    asleep.await?;
    proxy.set_everywhere(Some(Link::Lost));
    tokio::time::sleep(SLEPT / 2).await;
    proxy.set_everywhere(None);
    let outcome = told.await;
    let leaked = match &outcome {
        Ok((_, counted)) => {
            let agrees =
                || async { sessions_of(&server, "slept").await.is_ok_and(|sessions| sessions == *counted) };
            eventually("the server counting what the pool counts", SOON, agrees).await?;
            sessions_of(&server, "slept").await? - counted
        }
        Err(_) => 0,
    };
    drop(keeps);
    thread.join().map_err(|_| "the pool's thread panicked")??;
    let (recovery, _) = outcome?;
    leave(Observed {
        fault: "the machine slept while its sessions were lost".into(),
        law: "L3".into(),
        seen: "nothing".into(),
        recovery,
        leaked,
    })
}

/// Tells the process that it is to run out of file descriptors, and where the server is.
const PORT_ENV: &str = "POOL_TEST_FEW_FILES";
const FILES: u32 = 64;

#[tokio::test]
async fn o3_a_process_without_a_file_descriptor_left_serves_from_warm_connections() -> Outcome {
    if let Ok(port) = std::env::var(PORT_ENV) {
        println!("{}", serde_json::to_string(&run_out_of_files(port.parse()?).await?)?);
        return Ok(());
    }
    let server = DedicatedServer::start().await?;
    let role = format!("create role {ROLE} login createdb password '{}'", PASSWORD.replace('\'', "''"));
    pool_testkit::execute_outside(&config_of(server.address()), "postgres", &role).await?;
    let limited = format!("ulimit -n {FILES} && exec \"$0\" --exact --nocapture \"$1\"");
    let mut child = Command::new("sh")
        .args(["-c", &limited])
        .arg(std::env::current_exe()?)
        .arg(format!("machine::{}", test_name()?))
        .env(PORT_ENV, server.address().port().to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    child.stdout.take().ok_or("it is piped")?.read_to_string(&mut said)?;
    assert!(child.wait()?.success(), "{said}");
    let observed =
        said.lines().find_map(|line| line.find('{').map(|at| &line[at..])).ok_or("it has said nothing")?;
    let observed: Observed = serde_json::from_str(observed)?;
    assert_eq!(sessions_of(&server, "files").await?, 0, "sessions after the close");
    leave(observed)
}

async fn run_out_of_files(port: u16) -> Result<Observed, Failure> {
    let config = PostgresConfig::new("127.0.0.1").port(port).user(ROLE).password(PASSWORD);
    let pools =
        PgPools::builder(config.application_name("files")).limits(Limits::new(9).system(5)).build().await?;
    let (warm, cold) = (WorkspaceId::new("warm")?, WorkspaceId::new("cold")?);
    pools.ensure_workspace(&warm).await?;
    pools.ensure_workspace(&cold).await?;
    let (warm, cold) = (pools.workspace(&warm), pools.workspace(&cold));
    one(&warm).await?;

    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    assert!(files.len() < FILES as usize, "{} files", files.len());
    let refusal = cold.acquire().await.unwrap_err();
    assert_eq!(open_failure(&refusal).0, DriverErrorKind::Unreachable, "{refusal}");
    assert!(refusal.to_string().contains("files"), "{refusal}");
    for _ in 0..100 {
        one(&warm).await?;
    }
    drop(files);
    let since = Instant::now();
    eventually("the workspace being served", SOON, || async { one(&cold).await.is_ok() }).await?;
    let recovery = since.elapsed();
    pools.close().await?;
    Ok(Observed {
        fault: "file descriptors used up".into(),
        law: "O3".into(),
        seen: told(&refusal),
        recovery,
        leaked: 0,
    })
}

async fn one(db: &PgWorkspacePool) -> Result<(), sqlx::Error> {
    let one: i32 = sqlx::query_scalar("select 1").fetch_one(db).await?;
    assert_eq!(one, 1);
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Observed {
    fault: String,
    law: String,
    seen: String,
    recovery: Duration,
    leaked: i64,
}

fn leave(observed: Observed) -> Outcome {
    let Observed { fault, law, seen, recovery, leaked } = observed;
    let row = Row { test: test_name()?, fault, law, seen, others: "nothing".into(), recovery, leaked };
    println!("{row}");
    assert_eq!(row.leaked, 0);
    Ok(row.leave()?)
}
