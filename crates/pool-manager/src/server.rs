//! Whether the server answers, and whether it lets anybody in, as one fact about it and not one for each database. What may
//! be its fault (an open that is slow or was refused, a connection that says nothing) has it asked; while it does not answer,
//! nothing is opened, it is asked again and again whether or not the last question has ended, and the first answer ends all
//! that.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pool_core::{Driver, DriverError, DriverErrorKind, Phase, Registry, Target};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::engine::Engine;
use crate::health::ServerHealth;
use crate::share::{self, ShareRegistry};

/// The pause between two questions while there is no answer, doubled from the first to the most.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// The same while nobody is let in: each question is a login.
const LOGIN_PAUSE_FIRST: Duration = Duration::from_millis(500);
const LOGIN_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often it is seen that the engine is gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What the server is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Whether it answers. A refusal is an answer, too: the server is there.
    Answers,
    /// Whether it lets anybody in.
    Admits,
}

/// Asks the server when it is suspected, until the engine is gone.
pub(crate) async fn watch_over<D: Driver>(engine: Weak<Engine<D>>, health: Arc<ServerHealth>) {
    let mut known_start = 0;
    loop {
        let question = tokio::select! {
            biased;
            // First, since every caller adds another login.
            () = health.has_refused() => Question::Admits,
            () = health.is_suspected() => Question::Answers,
            () = sleep(LOOK_EVERY) => {
                if engine.strong_count() == 0 { return }
                continue;
            }
        };
        let Some(asked) = engine.upgrade() else { return };
        let asked_at = share::now();
        match ask(&asked, question).await {
            Ok(Some(start)) if start != known_start => {
                known_start = start;
                measure_budget(&asked).await;
            }
            Err(error) if question.is_proved_by(&error, &health, asked_at) => {
                drop(asked);
                let Some(()) = outlast(&engine, &health, Arc::new(error), question).await else { return };
                // It may be another one now.
                health.suspect();
                continue;
            }
            // Whoever is silent when asked for a login is asked for an answer.
            Err(_) if question == Question::Admits => health.suspect(),
            Ok(_) | Err(_) => {}
        }
        sleep(PAUSE_MAX).await;
    }
}

/// Returns when a server that does not answer, or refuses everybody, has answered again, or lets in; none if the engine is
/// gone.
async fn outlast<D: Driver>(
    engine: &Weak<Engine<D>>,
    health: &ServerHealth,
    error: Arc<DriverError>,
    question: Question,
) -> Option<()> {
    tracing::warn!(%error, "the server does not answer or refuses everybody; until it does not, nothing is opened");
    let (mut pause, pause_max) = question.pauses();
    engine.upgrade()?.step_both("server is lost", |registry, now| {
        registry.server_is_lost(Arc::clone(&error), pause_max, now)
    });
    let mut questions: JoinSet<Result<Option<u64>, DriverError>> = JoinSet::new();
    let mut next = std::pin::pin!(sleep(pause));
    loop {
        tokio::select! {
            biased;
            Some(answer) = questions.join_next() => match answer {
                Ok(Ok(_)) => break,
                Ok(Err(error)) if question == Question::Answers && !error.kind.may_concern_all() => break,
                _ => {}
            },
            () = health.success(), if question == Question::Answers => break,
            () = &mut next => {
                let engine = engine.upgrade()?;
                // Nobody else has it any more.
                if Arc::strong_count(&engine) <= questions.len() + 1 {
                    return None;
                }
                questions.spawn(async move { ask(&engine, question).await });
                pause = (pause * 2).min(pause_max);
                next.as_mut().reset(tokio::time::Instant::now() + pause);
            }
        }
    }
    let engine = engine.upgrade()?;
    tracing::info!("the server answers again, and lets in");
    // In this order: what the next step starts has begun after the return.
    health.returned();
    engine.step_both("server answers", Registry::server_answers);
    Some(())
}

impl Question {
    /// Whether `error` proves that the server is lost, or refuses everybody, when it was asked this at `asked_at`.
    fn is_proved_by(self, error: &DriverError, health: &ServerHealth, asked_at: Instant) -> bool {
        match self {
            Self::Answers => error.kind.may_concern_all() && !health.has_succeeded_since(asked_at),
            Self::Admits => error.kind == DriverErrorKind::Refused,
        }
    }

    /// The first pause between two, and the longest.
    fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Answers => (PAUSE_FIRST, PAUSE_MAX),
            Self::Admits => (LOGIN_PAUSE_FIRST, LOGIN_PAUSE_MAX),
        }
    }
}

/// A server that was started again may have another number of connections.
async fn measure_budget<D: Driver>(engine: &Engine<D>) {
    let limits = engine.ceilings().limits();
    if !limits.is_of_server() {
        return;
    }
    let own = engine.shares().into_iter().flat_map(|share| share.with("handles", all_handles::<D>)).collect();
    let Ok(Ok(Some(capacity))) = timeout(ANSWER_LIMIT, engine.driver.capacity(own)).await else { return };
    match engine.divide(limits.on(capacity)) {
        Ok(ceilings) => {
            tracing::info!(?capacity, budget = ceilings.total(), "the budget is what the server has");
            engine.set_ceilings(ceilings);
        }
        Err(error) => tracing::warn!(%error, ?capacity, "the budget stays as it was"),
    }
}

fn all_handles<D: Driver>(registry: &mut ShareRegistry<D>, _: Instant) -> Vec<D::Handle> {
    registry.sessions().filter_map(|(_, session)| session.handle.clone()).collect()
}

/// The answer, and the number by which a server that was started again is known, if that was asked for.
async fn ask<D: Driver>(engine: &Engine<D>, question: Question) -> Result<Option<u64>, DriverError> {
    let answer = async {
        match question {
            Question::Answers => engine.driver.answers().await.map(Some),
            Question::Admits => engine.driver.admits().await.map(|()| None),
        }
    };
    let limit = match question {
        Question::Answers => ANSWER_LIMIT,
        Question::Admits => engine.settings.connect_timeout,
    };
    timeout(limit, answer).await.unwrap_or_else(|_| {
        let address = engine.address(&Target::System);
        let error = DriverError::new(Phase::Check, DriverErrorKind::TimedOut, address);
        Err(error.caused_by(format!("the server has not answered within {limit:?}")))
    })
}
