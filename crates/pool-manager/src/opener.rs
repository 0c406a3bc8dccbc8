//! Performs what the registry asks for: opens, closes, recycles and retries, each in a task of its own,
//! all owned by one dispatcher that joins them. An open outlives the caller that asked for it (law O2).
//! Everything a task owes sits in a guard before the first await.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use pool_core::{CloseDebt, CloseWork, Driver, DriverError, DriverErrorKind, Event, OpenWork, Phase, Target};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::engine::{Engine, ShareOf};
use crate::lease::Lease;

/// A piece of work that needs to await.
pub(crate) enum Job<D: Driver> {
    Open { share: ShareOf, work: OpenWork },
    Close { share: ShareOf, work: CloseWork<D::Connection> },
    Recycle(Lease<D>),
    Retry { share: ShareOf, target: Target, at: Instant },
}

/// Runs until the engine is gone, or until it is told to stop: then tasks still under way are dropped,
/// and their guards settle what they owe.
pub(crate) async fn dispatch<D: Driver>(
    engine: Weak<Engine<D>>,
    mut jobs: mpsc::UnboundedReceiver<Job<D>>,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) {
    let mut tasks = JoinSet::new();
    loop {
        // In a fixed order, so that a schedule can be replayed.
        tokio::select! {
            biased;
            _ = &mut stop => break,
            job = jobs.recv() => {
                let Some(job) = job else { break };
                let Some(engine) = engine.upgrade() else { break };
                tasks.spawn(perform(engine, job));
            }
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the pool panicked; what it owed was settled");
                }
            }
        }
    }
    jobs.close();
    tasks.shutdown().await;
    // What was sent before the door closed is settled as if there were no runtime.
    while let Some(job) = jobs.recv().await {
        if let Some(engine) = engine.upgrade() {
            engine.perform_orphan(job);
        }
    }
}

async fn perform<D: Driver>(engine: Arc<Engine<D>>, job: Job<D>) {
    match job {
        Job::Open { share, work } => open(engine, share, work).await,
        Job::Close { share, work } => close(engine, share, work).await,
        Job::Recycle(lease) => recycle(engine, lease).await,
        Job::Retry { share, target, at } => {
            sleep(at.saturating_duration_since(Engine::<D>::now())).await;
            engine.step(share, |registry, now| registry.retry(&target, now));
        }
    }
}

/// Owes the report of an open; dropped early, it reports a failure.
struct OpenGuard<D: Driver> {
    engine: Arc<Engine<D>>,
    share: ShareOf,
    work: Option<OpenWork>,
}

impl<D: Driver> OpenGuard<D> {
    fn is_slow(&mut self) {
        let Some(work) = self.work.as_mut() else { return };
        self.engine.step(self.share, |registry, _| registry.open_is_slow(work));
    }

    fn opened(mut self, conn: D::Connection, took: Duration) {
        let Some(work) = self.work.take() else { return };
        let engine = &self.engine;
        let target = work.target().clone();
        let handle = engine.driver.handle(&conn);
        let effects = engine.with(self.share, |registry, now| {
            let retire_at = engine.settings.max_lifetime.map(|lifetime| {
                let jitter = (lifetime / 10).mul_f64(fastrand::f64());
                Engine::<D>::after(now, lifetime - jitter)
            });
            let (id, effects) = registry.opened(work, conn, retire_at, now);
            engine.handles.insert((self.share, id), handle);
            effects
        });
        engine.tell(&Event::Opened { target: &target, took });
        engine.perform(self.share, effects);
    }

    fn failed(&mut self, error: DriverError) {
        let Some(work) = self.work.take() else { return };
        let error = Arc::new(error);
        self.engine.tell(&Event::OpenFailed { target: work.target(), error: &error });
        self.engine.step(self.share, |registry, now| registry.open_failed(work, error, now));
        self.engine.drained.notify_waiters();
    }
}

impl<D: Driver> Drop for OpenGuard<D> {
    fn drop(&mut self) {
        if let Some(work) = &self.work {
            let place = self.engine.driver.place(&self.engine.endpoint(work.target()));
            let error = DriverError::new(Phase::Connect, DriverErrorKind::Other, place);
            self.failed(error.caused_by("the open was abandoned"));
        }
    }
}

async fn open<D: Driver>(engine: Arc<Engine<D>>, share: ShareOf, work: OpenWork) {
    let endpoint = engine.endpoint(work.target());
    let settings = engine.settings.clone();
    let started = Engine::<D>::now();
    let mut owed = OpenGuard { engine: Arc::clone(&engine), share, work: Some(work) };
    let connect = timeout(settings.connect_timeout, engine.driver.connect(&endpoint));
    tokio::pin!(connect);
    let outcome = tokio::select! {
        biased;
        outcome = &mut connect => outcome,
        () = sleep(settings.slow_open_after) => {
            owed.is_slow();
            connect.await
        }
    };
    let took = Engine::<D>::now().saturating_duration_since(started);
    match outcome {
        Ok(Ok(conn)) => owed.opened(conn, took),
        Ok(Err(error)) => {
            forget_fact(&engine, &endpoint.target, &error).await;
            owed.failed(error);
        }
        Err(_) => {
            let place = engine.driver.place(&endpoint);
            let error = DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, place);
            owed.failed(error.caused_by(format!("gave up after {:?}", settings.connect_timeout)));
        }
    }
}

/// A database that was believed to exist has been dropped by somebody else.
async fn forget_fact<D: Driver>(engine: &Engine<D>, target: &Target, error: &DriverError) {
    if let (Target::Workspace(id), DriverErrorKind::DatabaseMissing) = (target, error.kind) {
        engine.facts.invalidate(id).await;
    }
}

/// Owes the report of a close.
struct CloseGuard<D: Driver> {
    engine: Arc<Engine<D>>,
    share: ShareOf,
    debt: Option<CloseDebt>,
}

impl<D: Driver> Drop for CloseGuard<D> {
    fn drop(&mut self) {
        let Some(debt) = self.debt.take() else { return };
        self.engine.handles.remove(&(self.share, debt.connection()));
        self.engine.tell(&Event::Closed { target: debt.target(), reason: debt.reason() });
        self.engine.step(self.share, |registry, now| registry.closed(debt, now));
        self.engine.drained.notify_waiters();
    }
}

async fn close<D: Driver>(engine: Arc<Engine<D>>, share: ShareOf, work: CloseWork<D::Connection>) {
    let (conn, debt) = work.split();
    let _owed = CloseGuard { engine: Arc::clone(&engine), share, debt: Some(debt) };
    engine.driver.close(conn).await;
}

async fn recycle<D: Driver>(engine: Arc<Engine<D>>, mut lease: Lease<D>) {
    let limit = engine.settings.recycle_timeout;
    match timeout(limit, engine.driver.recycle(&mut lease)).await {
        Ok(Ok(())) => lease.release_clean(),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a returned connection could not be made clean and is closed");
            lease.discard();
        }
        Err(_) => lease.discard(),
    }
}
