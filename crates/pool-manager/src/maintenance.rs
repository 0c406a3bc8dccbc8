//! Closes what has been idle too long or has lived too long. One owned task that ends with the engine.

use std::sync::Weak;
use std::time::Duration;

use pool_core::{Driver, Registry};
use tokio::time::{MissedTickBehavior, interval};

use crate::engine::Engine;
use crate::settings::Settings;

pub(crate) async fn maintain<D: Driver>(engine: Weak<Engine<D>>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(engine) = engine.upgrade() else { return };
        for share in engine.shares() {
            engine.perform(share.with("expire", Registry::expire));
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
