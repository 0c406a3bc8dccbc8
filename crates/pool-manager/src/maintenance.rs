//! Closes what has been idle too long, has lived too long or is outdated, and finds idle connections that the server has ended. Two
//! owned tasks that end with the engine.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use pool_core::{CloseReason, ConnectionId, Driver, Registry};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::engine::Engine;
use crate::settings::Settings;
use crate::share::{self, Session, Share, handles_of};

/// How often the server is asked which idle connections it still has, while there are any.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The least pause between two of these questions, however much breaks.
const ASK_PAUSE: Duration = Duration::from_millis(10);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How much later a tick may come than it should, and how much further the wall clock may have gone, before it is believed
/// that the machine slept. A busy runtime, and a clock that is set, may do as much in vain: it costs some checks.
const SLEPT: Duration = Duration::from_secs(5);

/// Two clocks at one moment. The monotonic one stands still while the machine sleeps, on most systems.
#[derive(Clone, Copy)]
struct Clocks {
    monotonic: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        Self { monotonic: share::now(), wall: SystemTime::now() }
    }

    /// Whether the machine seems to have slept on the way to `now`, which was to take `every`.
    fn slept_until(self, now: Self, every: Duration) -> bool {
        let monotonic = now.monotonic.saturating_duration_since(self.monotonic);
        let wall = now.wall.duration_since(self.wall).unwrap_or_default();
        monotonic > every + SLEPT || wall > monotonic + SLEPT
    }
}

pub(crate) async fn maintain<D: Driver>(engine: Weak<Engine<D>>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut miscounts_told = 0;
    let mut clocks = Clocks::now();
    loop {
        ticks.tick().await;
        let Some(engine) = engine.upgrade() else { return };
        let now = Clocks::now();
        if std::mem::replace(&mut clocks, now).slept_until(now, every) {
            tracing::info!(
                "the machine seems to have slept; idle connections are checked before they are used"
            );
            engine.step_both("doubt idle", Registry::doubt_idle);
            engine.health.suspect();
        }
        engine.approach_ceilings();
        let mut miscounts = 0;
        for share in engine.shares() {
            let outdated = outdated(&engine, share);
            let expire = |registry: &mut Registry<_, _>, now| {
                for id in outdated {
                    registry.retire_on_return(id, CloseReason::Outdated, now);
                }
                (registry.expire(now), registry.stats().miscounts)
            };
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

/// The connections that the driver wants replaced. It is asked outside the lock.
fn outdated<D: Driver>(engine: &Engine<D>, share: &Share<D>) -> Vec<ConnectionId> {
    let all = share.with("sessions", |registry, _| {
        let handle = |(id, session): (ConnectionId, &Session<D::Handle>)| Some((id, session.handle.clone()?));
        registry.sessions().filter_map(handle).collect::<Vec<_>>()
    });
    all.into_iter().filter(|(_, handle)| engine.driver.is_outdated(handle)).map(|(id, _)| id).collect()
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
        for (id, handle) in share.with("idle", |registry, _| handles_of::<D>(registry, registry.idle())) {
            asked.push((share, id));
            handles.push(handle);
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
            engine.health.suspect();
            engine.perform(share, share.with("vanished", |registry, now| registry.vanished(&its, now)));
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::in_time(1, 1, false)]
    #[case::a_little_late(3, 3, false)]
    #[case::late(60, 60, true)]
    #[case::the_wall_clock_ran_ahead(1, 3_600, true)]
    #[case::the_wall_clock_was_set_back(1, -3_600, false)]
    fn a_machine_that_slept_is_found_out(#[case] monotonic: u64, #[case] wall: i64, #[case] slept: bool) {
        let before = Clocks::now();
        let by = Duration::from_secs(wall.unsigned_abs());
        let wall = if wall < 0 { before.wall - by } else { before.wall + by };
        let now = Clocks { monotonic: before.monotonic + Duration::from_secs(monotonic), wall };
        assert_eq!(before.slept_until(now, Duration::from_secs(1)), slept);
    }
}
