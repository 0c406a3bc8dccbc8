//! Performs what the registry asks for: opens, closes, recycles and retries, each in a task of its own,
//! all owned by one dispatcher that joins them. An open outlives the caller that asked for it (law O2).
//! Everything a job owes sits in a guard from the moment it leaves the registry, so that a panic in a
//! driver, a cancel, or the end of the runtime settles it.

mod close;
mod open;
mod recycle;

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use pool_core::Driver;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::effects::stranded;
use crate::engine::Engine;
use crate::job::{Job, Ordered};

/// The jobs that nobody has begun; dropped, they are settled as if there were no runtime.
pub(crate) struct JobQueue<D: Driver> {
    engine: Weak<Engine<D>>,
    jobs: mpsc::UnboundedReceiver<Ordered<D>>,
    /// Whether the end comes because the pool is closed, and not with a runtime.
    is_told_to_end: bool,
    runtime: runtime::Id,
}

impl<D: Driver> JobQueue<D> {
    /// What `jobs` brings for `engine`, to a dispatcher on `runtime`.
    pub(crate) fn new(
        engine: Weak<Engine<D>>,
        jobs: mpsc::UnboundedReceiver<Ordered<D>>,
        runtime: runtime::Id,
    ) -> Self {
        Self { engine, jobs, is_told_to_end: false, runtime }
    }
}

impl<D: Driver> Drop for JobQueue<D> {
    fn drop(&mut self) {
        self.jobs.close();
        let Some(engine) = self.engine.upgrade() else { return };
        engine.set_stranded(!self.is_told_to_end);
        while let Ok(Ordered { job, .. }) = self.jobs.try_recv() {
            engine.settle_unrun(job);
        }
        if !self.is_told_to_end {
            engine.runtime_ended(self.runtime);
            let error = Arc::new(stranded("the pool".to_owned()));
            engine.step_both("nobody is left", |registry, _| registry.nobody_is_left(&error));
        }
    }
}

/// A job that a task was made for; dropped before the task has begun, it is settled, too.
struct JobGuard<D: Driver> {
    engine: Arc<Engine<D>>,
    job: Option<Job<D>>,
}

impl<D: Driver> Drop for JobGuard<D> {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.engine.settle_unrun(job);
        }
    }
}

/// Stands for a runtime on which connections have been opened: when that ends, so do they.
struct Guest<D: Driver> {
    engine: Weak<Engine<D>>,
    runtime: runtime::Id,
}

impl<D: Driver> Guest<D> {
    async fn stay(self) {
        std::future::pending::<()>().await;
    }
}

impl<D: Driver> Drop for Guest<D> {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.runtime_ended(self.runtime);
        }
    }
}

/// Runs until the engine is gone, or until it is told to stop: then tasks still under way are dropped,
/// and their guards settle what they owe.
pub(crate) async fn dispatch<D: Driver>(mut queue: JobQueue<D>, mut stop: oneshot::Receiver<()>) {
    let mut tasks = JoinSet::new();
    let mut runtimes = HashSet::from([queue.runtime]);
    loop {
        // In a fixed order, so that a schedule can be replayed.
        tokio::select! {
            biased;
            _ = &mut stop => break,
            order = queue.jobs.recv() => {
                let Some(Ordered { job, runtime }) = order else { break };
                let Some(engine) = queue.engine.upgrade() else { break };
                let performed = perform(JobGuard { engine, job: Some(job) });
                let Some(runtime) = runtime else {
                    tasks.spawn(performed);
                    continue;
                };
                if runtimes.insert(runtime.id()) {
                    let guest = Guest { engine: queue.engine.clone(), runtime: runtime.id() };
                    tasks.spawn_on(guest.stay(), &runtime);
                }
                tasks.spawn_on(performed, &runtime);
            }
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    tracing::error!(%error, "a task of the pool panicked; what it owed was settled");
                }
            }
        }
    }
    queue.is_told_to_end = true;
    // The door closes first: what the guards of the tasks ask for is then settled at once.
    queue.jobs.close();
    tasks.shutdown().await;
}

async fn perform<D: Driver>(mut owed: JobGuard<D>) {
    let engine = Arc::clone(&owed.engine);
    match owed.job.take() {
        Some(Job::Open(work)) => open::open(&engine, work).await,
        Some(Job::Close(work)) => close::close(&engine, work).await,
        Some(Job::Recycle(returned)) => recycle::recycle(&engine, returned).await,
        Some(Job::Retry { target, at }) => {
            sleep(at.saturating_duration_since(Engine::<D>::now())).await;
            engine.step(&target, "retry", |registry, now| registry.retry(&target, now));
        }
        Some(job @ Job::Found(_)) => engine.settle_unrun(job),
        None => {}
    }
}
