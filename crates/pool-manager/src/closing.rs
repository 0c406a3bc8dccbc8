//! Closes one workspace, or everything: waits for the leases to come back until a deadline, then ends
//! their sessions behind their holders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_core::{CloseError, CloseReason, ConnectionId, Driver, Event, Target};
use tokio::time::{timeout, timeout_at};

use crate::engine::Engine;
use crate::share::{Share, handles_of};

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
        engine
            .step(&closing.target, "begin close", |registry, now| registry.begin_close(&closing.target, now));
        engine.closing.notify_waiters();
        closing
    }

    /// Waits until the target has no connection left; at the deadline, cuts.
    pub(crate) async fn finish(&self) -> Result<(), CloseError> {
        let engine = self.engine;
        let share = engine.share(&self.target);
        let drained = || share.with("is drained", |registry, _| registry.is_drained(&self.target));
        finish(engine, &[share], Some(&self.target), drained).await
    }
}

impl<D: Driver> Drop for CloseGuard<'_, D> {
    fn drop(&mut self) {
        self.engine.step(&self.target, "end close", |registry, now| registry.end_close(&self.target, now));
    }
}

/// Refuses all new work for good, and waits until no connection is left; at the deadline, cuts.
pub(crate) async fn close_all<D: Driver>(engine: &Arc<Engine<D>>) -> Result<(), CloseError> {
    for share in engine.shares() {
        engine.perform(share, share.with("close all", pool_core::Registry::close_all));
    }
    engine.closing.notify_waiters();
    let is_empty = |share: &&Share<D>| share.with("is empty", |registry, _| registry.is_empty());
    let drained = || engine.shares().iter().all(is_empty);
    finish(engine, &engine.shares(), None, drained).await
}

async fn finish<D: Driver>(
    engine: &Engine<D>,
    shares: &[&Share<D>],
    target: Option<&Target>,
    drained: impl Fn() -> bool,
) -> Result<(), CloseError> {
    let began = Engine::<D>::now();
    if wait_until(engine, Engine::<D>::after(began, engine.settings.close_timeout), &drained).await {
        return Ok(());
    }
    let Held { cut, kept } = cut(engine, shares, target).await;
    // What the cut did not end is on its way to be closed; only leases that could not be cut may stay
    // counted.
    let only_leases_left = || held(shares, target, |counts| counts.total() - counts.in_use) == 0;
    let after = engine.settings.close_timeout;
    if !wait_until(engine, Engine::<D>::now() + CONFIRM_LIMIT, only_leases_left).await {
        let connections = held(shares, target, |counts| counts.total() - counts.in_use);
        return Err(CloseError::Unconfirmed { connections, after: after + CONFIRM_LIMIT });
    }
    match (cut, kept) {
        (0, 0) => Ok(()),
        (leases, 0) => Err(CloseError::Cut { leases, after }),
        (_, leases) => Err(CloseError::Held { leases, after }),
    }
}

fn held<D: Driver>(
    shares: &[&Share<D>],
    target: Option<&Target>,
    which: impl Fn(pool_core::Counts) -> u32,
) -> u32 {
    let counts = |share: &&Share<D>| {
        share.with("counts", |registry, _| match target {
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

/// Leases that were still out at the deadline.
struct Held {
    /// Those whose sessions were ended.
    cut: usize,
    /// Those that live on.
    kept: usize,
}

/// Ends the sessions of leases that are still out. Their holders see a broken connection.
async fn cut<D: Driver>(engine: &Engine<D>, shares: &[&Share<D>], target: Option<&Target>) -> Held {
    let (mut leases, mut handles, mut all) = (Vec::new(), Vec::new(), 0);
    let reason = target.map_or(CloseReason::PoolClosed, |_| CloseReason::WorkspaceClosed);
    for share in shares {
        let held = share.with("list leases", |registry, now| {
            let held = registry.in_use(target);
            for id in &held {
                registry.retire_on_return(*id, reason, now);
            }
            all += held.len();
            handles_of::<D>(registry, held)
        });
        for (id, handle) in held {
            leases.push((*share, id));
            handles.push(handle);
        }
    }
    let mut cut = 0;
    if !handles.is_empty() {
        match timeout(CONFIRM_LIMIT, engine.driver.terminate(handles)).await {
            Ok(Ok(())) => {
                cut = leases.len();
                for (share, id) in leases {
                    settle_cut(engine, share, id);
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "leases that were held past the deadline could not be cut");
            }
            Err(_) => tracing::warn!("the driver did not cut leases in time"),
        }
    }
    Held { cut, kept: all - cut }
}

/// The server has said that the session of a lease is gone: it counts no longer, although its holder has it.
fn settle_cut<D: Driver>(engine: &Engine<D>, share: &Share<D>, id: ConnectionId) {
    let Some((whose, effects)) = share.with("cut", |registry, now| registry.cut(id, now)) else { return };
    engine.perform(share, effects);
    engine.emit(&Event::Closed { target: &whose, connection: id, reason: CloseReason::Cut, for_whom: None });
}
