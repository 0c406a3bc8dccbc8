//! Closes what has been idle too long or has lived too long, and finds idle connections that the server has ended. Two
//! owned tasks that end with the engine.

use std::sync::{Arc, Weak};
use std::time::Duration;

use pool_core::{ConnectionId, Driver, Registry};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::engine::Engine;
use crate::settings::Settings;
use crate::share::Share;

/// How often the server is asked which idle connections it still has, while there are any.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The least pause between two of these questions, however much breaks.
const ASK_PAUSE: Duration = Duration::from_millis(10);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

pub(crate) async fn maintain<D: Driver>(engine: Weak<Engine<D>>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut miscounts_told = 0;
    loop {
        ticks.tick().await;
        let Some(engine) = engine.upgrade() else { return };
        engine.approach_ceilings();
        let mut miscounts = 0;
        for share in engine.shares() {
            let expire = |registry: &mut Registry<_>, now| (registry.expire(now), registry.stats().miscounts);
            let (effects, found) = share.with("expire", expire);
            engine.perform(share, effects);
            miscounts += found;
        }
        if miscounts > miscounts_told {
            tracing::error!(miscounts, "the pool found its own counts wrong, which is a bug of it");
            miscounts_told = miscounts;
        }
    }
}

/// A quarter of the shortest time that matters, so that nothing outstays it by more than that; between
/// 10 ms and 1 s.
pub(crate) fn period(settings: &Settings) -> Duration {
    let times = [settings.idle_timeout, settings.max_lifetime];
    let shortest = times.into_iter().flatten().min().unwrap_or(Duration::MAX);
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// Asks once a second, and at once after a breakage, which idle connections have died. One question is under way at a
/// time; a breakage during one is remembered by `breakage`, and leads to the next.
pub(crate) async fn find_departed<D: Driver>(engine: Weak<Engine<D>>, breakage: Arc<Notify>) {
    loop {
        // It does not matter which of the two it was.
        let _ = timeout(ASK_EVERY, breakage.notified()).await;
        let Some(engine) = engine.upgrade() else { return };
        if timeout(ANSWER_LIMIT, ask(&engine)).await.is_err() {
            tracing::debug!("the driver did not say in time which idle connections are there");
        }
        drop(engine);
        sleep(ASK_PAUSE).await;
    }
}

/// Asks about the idle connections of both shares in one question, and reports those that are gone.
async fn ask<D: Driver>(engine: &Engine<D>) {
    let mut asked: Vec<(&Share<D>, ConnectionId)> = Vec::new();
    let mut handles = Vec::new();
    for share in engine.shares() {
        for id in share.with("idle", |registry, _| registry.idle()) {
            if let Some(handle) = share.handle(id) {
                asked.push((share, id));
                handles.push(handle);
            }
        }
    }
    if handles.is_empty() {
        return;
    }
    let places = match engine.driver.departed(handles).await {
        Ok(places) => places,
        Err(error) => {
            tracing::debug!(%error, "the server was not asked which idle connections are there");
            return;
        }
    };
    for share in engine.shares() {
        let departed = places.iter().filter_map(|place| asked.get(*place));
        let its: Vec<_> = departed.filter(|(of, _)| std::ptr::eq(*of, share)).map(|(_, id)| *id).collect();
        if !its.is_empty() {
            engine.perform(share, share.with("vanished", |registry, now| registry.vanished(&its, now)));
        }
    }
}
