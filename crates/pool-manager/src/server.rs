//! Whether the server answers, as one fact about it and not one for each database. What may be its fault (an open that is
//! slow, a connection that says nothing) has it asked; while it does not answer, nothing is opened, it is asked again and
//! again whether or not the last question has ended, and the first answer ends all that.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use pool_core::{Driver, DriverError, DriverErrorKind, Phase, Registry, Target};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::engine::Engine;
use crate::share::{self, Share};

/// The pause between two questions while there is no answer, doubled from the first to the most.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How often it is seen that the engine is gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What is known of the server, and who wants to know more.
#[derive(Default)]
pub(crate) struct ServerHealth {
    suspicion: Notify,
    success: Notify,
    succeeded_at: Mutex<Option<Instant>>,
    /// How often the server has answered again after it had been lost.
    returns: watch::Sender<u64>,
}

impl ServerHealth {
    /// Something has been seen that may be the fault of the server.
    pub(crate) fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// The server has opened a session, or answered on one.
    pub(crate) fn succeeded(&self) {
        *self.succeeded_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(share::now());
        self.success.notify_waiters();
    }

    /// A server that did something meanwhile is not lost, whatever the pool's own connection says: that may be the one that
    /// is.
    fn has_succeeded_since(&self, moment: Instant) -> bool {
        let at = *self.succeeded_at.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at >= moment)
    }

    /// Changes each time that the server answers again.
    pub(crate) fn returns(&self) -> watch::Receiver<u64> {
        self.returns.subscribe()
    }
}

/// Whether such an error may be the fault of the server rather than of one database.
pub(crate) fn may_concern_all(kind: DriverErrorKind) -> bool {
    use DriverErrorKind::{ConnectionLost, ServerNotReady, TimedOut, Unreachable};
    matches!(kind, ConnectionLost | ServerNotReady | TimedOut | Unreachable)
}

/// Asks the server when it is suspected, until the engine is gone.
pub(crate) async fn watch_over<D: Driver>(engine: Weak<Engine<D>>, health: Arc<ServerHealth>) {
    let mut known_start = 0;
    loop {
        let is_suspected = timeout(LOOK_EVERY, health.suspicion.notified()).await.is_ok();
        if !is_suspected && engine.strong_count() > 0 {
            continue;
        }
        let Some(asked) = engine.upgrade() else { return };
        let asked_at = share::now();
        match ask(&asked).await {
            Ok(start) if start == known_start => {}
            Ok(start) => {
                known_start = start;
                measure_budget(&asked).await;
            }
            Err(error) if may_concern_all(error.kind) && !health.has_succeeded_since(asked_at) => {
                drop(asked);
                let Some(()) = outlast(&engine, &health, Arc::new(error)).await else { return };
                // It may be another one now.
                health.suspect();
            }
            Err(_) => {}
        }
        sleep(PAUSE_MAX).await;
    }
}

/// Returns when a server that does not answer has answered again; none if the engine is gone.
async fn outlast<D: Driver>(
    engine: &Weak<Engine<D>>,
    health: &ServerHealth,
    error: Arc<DriverError>,
) -> Option<()> {
    tracing::warn!(%error, "the server does not answer; until it does, nothing is opened");
    engine.upgrade()?.step_both("server is lost", |registry, now| {
        registry.server_is_lost(Arc::clone(&error), PAUSE_MAX, now)
    });
    let mut questions: JoinSet<Result<u64, DriverError>> = JoinSet::new();
    let mut pause = PAUSE_FIRST;
    let mut next = std::pin::pin!(sleep(pause));
    loop {
        tokio::select! {
            biased;
            // A refusal is an answer: the server is there.
            Some(answer) = questions.join_next() => match answer {
                Ok(Err(error)) if may_concern_all(error.kind) => {}
                Ok(_) => break,
                Err(_) => {}
            },
            () = health.success.notified() => break,
            () = &mut next => {
                let engine = engine.upgrade()?;
                // Nobody else has it any more.
                if Arc::strong_count(&engine) <= questions.len() + 1 {
                    return None;
                }
                questions.spawn(async move { ask(&engine).await });
                pause = (pause * 2).min(PAUSE_MAX);
                next.as_mut().reset(tokio::time::Instant::now() + pause);
            }
        }
    }
    let engine = engine.upgrade()?;
    tracing::info!("the server answers again");
    // In this order: what the next step starts has begun after the return.
    health.returns.send_modify(|returns| *returns += 1);
    engine.step_both("server answers", Registry::server_answers);
    Some(())
}

/// A server that was started again may have another number of connections.
async fn measure_budget<D: Driver>(engine: &Engine<D>) {
    let limits = engine.ceilings().limits();
    if !limits.is_of_server() {
        return;
    }
    let own = engine.shares().into_iter().flat_map(Share::handles).collect();
    let Ok(Ok(Some(capacity))) = timeout(ANSWER_LIMIT, engine.driver.capacity(own)).await else { return };
    match limits.on(capacity).ceilings(engine.driver.control_connections()) {
        Ok(ceilings) => {
            tracing::info!(?capacity, budget = ceilings.total(), "the budget is what the server has");
            engine.set_ceilings(ceilings);
        }
        Err(error) => tracing::warn!(%error, ?capacity, "the budget stays as it was"),
    }
}

async fn ask<D: Driver>(engine: &Engine<D>) -> Result<u64, DriverError> {
    timeout(ANSWER_LIMIT, engine.driver.answers()).await.unwrap_or_else(|_| {
        let address = engine.driver.address(&engine.endpoint(&Target::System));
        let error = DriverError::new(Phase::Check, DriverErrorKind::TimedOut, address);
        Err(error.caused_by(format!("the server has not answered within {ANSWER_LIMIT:?}")))
    })
}
