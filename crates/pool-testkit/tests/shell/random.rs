//! Random schedules, replayable by seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pool_core::{AcquireError, Answers, DriverErrorKind, WorkspaceId};
use pool_testkit::fakes::{FakeServer, Gate};
use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

use crate::events::Ledger;
use crate::support::{Manager, busy, id, start};

/// What a caller of a random schedule does with its connection.
async fn one_caller(manager: Manager, server: FakeServer, mut dice: fastrand::Rng) -> Vec<(String, Answers)> {
    let mut answered = Vec::new();
    for _ in 0..4 {
        let name = format!("w{}", dice.u32(..5));
        let patience = Duration::from_micros(dice.u64(..20_000));
        let answer = timeout(patience, manager.acquire(&id(&name))).await;
        answered.push((name.clone(), counted(&answer)));
        match answer {
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
    answered
}

/// As the pool is to count what a caller was answered.
fn counted<T, E>(answer: &Result<Result<T, E>, Elapsed>) -> Answers {
    let mut answers = Answers::default();
    match answer {
        Ok(Ok(_)) => answers.acquired = 1,
        Ok(Err(_)) => answers.errors = 1,
        Err(_) => answers.given_up = 1,
    }
    answers
}

/// Law S3: the pool counts as its callers do, workspace by workspace, and its sums agree.
fn check_answers(manager: &Manager, by_callers: Vec<(String, Answers)>) {
    let mut expected: BTreeMap<WorkspaceId, Answers> = BTreeMap::new();
    for (name, answers) in by_callers {
        let sum = expected.entry(id(&name)).or_default();
        *sum = *sum + answers;
    }
    let stats = manager.workspace_stats();
    let told = stats.by_workspace.iter().map(|(id, stats)| (id.clone(), stats.answers));
    let told: BTreeMap<_, _> = told.map(|(id, answers)| (id, Answers { hits: 0, ..answers })).collect();
    assert_eq!((told, stats.forgotten), (expected, Answers::default()));
    let all = manager.stats().workspaces;
    let sum = stats.by_workspace.values().fold(Answers::default(), |sum, stats| sum + stats.answers);
    assert_eq!(
        [sum.acquired, sum.hits, sum.errors, sum.given_up],
        [all.acquired, all.hits, all.errors, all.given_up]
    );
}

/// For each of three budgets: a thousand schedules in all.
const SEEDS: u64 = 334;

#[rstest]
fn s3_random_schedules_keep_the_laws_and_count_every_answer_once(#[values(1, 2, 3)] budget: u32) {
    for seed in 0..SEEDS {
        println!("budget {budget}, seed {seed}");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let ledger = Arc::new(Ledger::default());
            let observer = Arc::clone(&ledger);
            let names = ["w0", "w1", "w2", "w3", "w4"];
            let (server, manager) = start(budget, &names, |s| s.observer = Some(observer)).await;
            let mut dice = fastrand::Rng::with_seed(seed);
            server.connect_takes(Duration::from_micros(dice.u64(..3_000)));
            server.close_takes(Duration::from_micros(dice.u64(..3_000)));
            server.script("fake_ws_w0", (0..3).map(|_| Gate::Fail(DriverErrorKind::Unreachable)));
            let callers: JoinSet<Vec<(String, Answers)>> =
                (0..20).map(|_| one_caller(manager.clone(), server.clone(), dice.fork())).collect();
            let answered = callers.join_all().await.concat();
            sleep(Duration::from_secs(10)).await;
            let stats = manager.stats().workspaces;
            assert_eq!(busy(&manager), 0, "{stats:?}");
            assert_eq!(stats.opened, stats.closed + u64::from(stats.connections.idle), "{stats:?}");
            assert!(stats.peak <= budget, "{stats:?}");
            check_answers(&manager, answered);
            manager.close().await.unwrap();
            ledger.agrees_with(&manager.stats().workspaces);
            assert_eq!(server.sessions(), 0);
        });
    }
}
