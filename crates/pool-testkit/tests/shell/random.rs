//! Random schedules, replayable by seed.

use std::time::Duration;

use pool_core::{AcquireError, DriverErrorKind};
use pool_testkit::fakes::{FakeServer, Gate};
use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::{Manager, busy, id, start};

/// What a caller of a random schedule does with its connection.
async fn one_caller(manager: Manager, server: FakeServer, mut dice: fastrand::Rng) {
    for _ in 0..4 {
        let name = format!("w{}", dice.u32(..5));
        let patience = Duration::from_micros(dice.u64(..20_000));
        match timeout(patience, manager.acquire(&id(&name))).await {
            Ok(Ok(mut lease)) => {
                assert_eq!(lease.database(), format!("fake_ws_{name}"));
                let nonce = dice.u64(..);
                assert_eq!(lease.ask(nonce), nonce, "the answer to somebody else's question");
                if dice.u32(..5) == 0 {
                    lease.ask_and_leave(dice.u64(..));
                }
                sleep(Duration::from_micros(dice.u64(..5_000))).await;
                if dice.u32(..20) == 0 {
                    server.kill_sessions_of(&format!("fake_ws_{name}"));
                }
            }
            Ok(Err(AcquireError::OpenFailed { .. } | AcquireError::WorkspaceClosing { .. })) | Err(_) => {}
            Ok(Err(error)) => panic!("{error}"),
        }
        if dice.u32(..30) == 0 {
            let _ = timeout(patience, manager.close_workspace(&id(&name))).await;
        }
    }
}

/// For each of three budgets: a thousand schedules in all.
const SEEDS: u64 = 334;

#[rstest]
fn random_schedules_keep_the_laws(#[values(1, 2, 3)] budget: u32) {
    for seed in 0..SEEDS {
        println!("budget {budget}, seed {seed}");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (server, manager) = start(budget, &["w0", "w1", "w2", "w3", "w4"], |_| ()).await;
            let mut dice = fastrand::Rng::with_seed(seed);
            server.connect_takes(Duration::from_micros(dice.u64(..3_000)));
            server.close_takes(Duration::from_micros(dice.u64(..3_000)));
            server.script("fake_ws_w0", (0..3).map(|_| Gate::Fail(DriverErrorKind::Unreachable)));
            let callers: JoinSet<()> =
                (0..20).map(|_| one_caller(manager.clone(), server.clone(), dice.fork())).collect();
            callers.join_all().await;
            sleep(Duration::from_secs(10)).await;
            let stats = manager.stats().workspaces;
            assert_eq!(busy(&manager), 0, "{stats:?}");
            assert_eq!(stats.opened, stats.closed + u64::from(stats.connections.idle), "{stats:?}");
            assert!(stats.peak <= budget, "{stats:?}");
            manager.close().await.unwrap();
            assert_eq!(server.sessions(), 0);
        });
    }
}
