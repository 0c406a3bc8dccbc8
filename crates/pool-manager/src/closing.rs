//! Closes one workspace, or everything: waits for the leases to come back until a deadline, then ends
//! their sessions behind their holders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_core::{CloseError, Driver, Target};
use tokio::time::{timeout, timeout_at};

use crate::engine::{Engine, SHARES, ShareOf};

/// How long the server is given to confirm that cut sessions are gone.
pub(crate) const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// Keeps a target closed to new work while it lives.
pub(crate) struct CloseGuard<'a, D: Driver> {
    engine: &'a Engine<D>,
    target: Target,
}

impl<'a, D: Driver> CloseGuard<'a, D> {
    pub(crate) fn begin(engine: &'a Engine<D>, target: Target) -> Self {
        let closing = Self { engine, target };
        engine.step(closing.share(), |registry, now| registry.begin_close(&closing.target, now));
        engine.closing.notify_waiters();
        closing
    }

    /// Waits until the target has no connection left; at the deadline, cuts.
    pub(crate) async fn finish(&self) -> Result<(), CloseError> {
        let engine = self.engine;
        let drained = || engine.with(self.share(), |registry, _| registry.is_drained(&self.target));
        finish(engine, &[self.share()], Some(&self.target), drained).await
    }

    fn share(&self) -> ShareOf {
        ShareOf::from(&self.target)
    }
}

impl<D: Driver> Drop for CloseGuard<'_, D> {
    fn drop(&mut self) {
        self.engine.step(self.share(), |registry, now| registry.end_close(&self.target, now));
    }
}

/// Refuses all new work for good, and waits until no connection is left; at the deadline, cuts.
pub(crate) async fn close_all<D: Driver>(engine: &Arc<Engine<D>>) -> Result<(), CloseError> {
    for share in SHARES {
        engine.step(share, pool_core::Registry::close_all);
    }
    engine.closing.notify_waiters();
    let drained = || SHARES.iter().all(|share| engine.with(*share, |registry, _| registry.is_empty()));
    finish(engine, &SHARES, None, drained).await
}

async fn finish<D: Driver>(
    engine: &Engine<D>,
    shares: &[ShareOf],
    target: Option<&Target>,
    drained: impl Fn() -> bool,
) -> Result<(), CloseError> {
    let began = Engine::<D>::now();
    if wait_until(engine, Engine::<D>::after(began, engine.settings.close_timeout), &drained).await {
        return Ok(());
    }
    let leases = cut(engine, shares, target).await;
    // What the cut did not end is on its way to be closed; only leases still in their holders' hands may
    // stay counted.
    let only_leases_left = || held(engine, shares, target, |counts| counts.total() - counts.in_use) == 0;
    let after = engine.settings.close_timeout;
    if !wait_until(engine, Engine::<D>::now() + CONFIRM_LIMIT, only_leases_left).await {
        let connections = held(engine, shares, target, |counts| counts.total() - counts.in_use);
        return Err(CloseError::Unconfirmed { connections, after: after + CONFIRM_LIMIT });
    }
    if leases == 0 { Ok(()) } else { Err(CloseError::Cut { leases, after }) }
}

fn held<D: Driver>(
    engine: &Engine<D>,
    shares: &[ShareOf],
    target: Option<&Target>,
    which: impl Fn(pool_core::Counts) -> u32,
) -> u32 {
    let counts = |share: &ShareOf| {
        engine.with(*share, |registry, _| match target {
            Some(target) => registry.target_counts(target),
            None => registry.stats().connections,
        })
    };
    shares.iter().map(|share| which(counts(share))).sum()
}

async fn wait_until<D: Driver>(engine: &Engine<D>, deadline: Instant, done: impl Fn() -> bool) -> bool {
    loop {
        let mut told = std::pin::pin!(engine.drained.notified());
        // Listening begins before the look, so that nothing is missed between the two.
        told.as_mut().enable();
        if done() {
            return true;
        }
        if timeout_at(deadline.into(), told).await.is_err() {
            return done();
        }
    }
}

/// Ends the sessions of leases that are still out. Their holders see a broken connection.
async fn cut<D: Driver>(engine: &Engine<D>, shares: &[ShareOf], target: Option<&Target>) -> usize {
    let mut handles = Vec::new();
    for share in shares {
        let held = engine.with(*share, |registry, now| {
            let held = registry.in_use(target);
            for id in &held {
                registry.retire_on_return(*id, now);
            }
            held
        });
        let known = held.iter().filter_map(|id| engine.handles.get(&(*share, *id)));
        handles.extend(known.map(|handle| handle.clone()));
    }
    let leases = handles.len();
    if leases > 0 {
        match timeout(CONFIRM_LIMIT, engine.driver.terminate(handles)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, leases, "leases that were held past the deadline could not be cut");
            }
            Err(_) => tracing::warn!(leases, "the driver did not cut leases in time"),
        }
    }
    leases
}
