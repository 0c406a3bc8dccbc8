//! Performs what the registry asks for: opens, closes, recycles and retries, each in a task of its own,
//! all owned by one dispatcher that joins them. An open outlives the caller that asked for it (law O2).
//! Everything a job owes sits in a guard from the moment it leaves the registry, so that a panic in a
//! driver, a cancel, or the end of the runtime settles it.

mod close;
mod open;
mod recycle;

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pool_core::Driver;
use tokio::runtime;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use crate::effects::stranded;
use crate::engine::Engine;
use crate::job::{Job, Ordered};

/// How long tasks on other runtimes are waited for at the end: one that is not driven never gets there.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(1);

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
        // Who had begun to send when the way was closed comes to the end of it.
        loop {
            match self.jobs.try_recv() {
                Ok(Ordered { job, .. }) => engine.settle_unrun(job),
                Err(TryRecvError::Empty) => std::thread::yield_now(),
                Err(TryRecvError::Disconnected) => break,
            }
        }
        if !self.is_told_to_end {
            engine.runtime_ended(self.runtime);
            let error = Arc::new(stranded("the pool".to_owned()));
            engine.step_both("nobody is left", |registry, now| registry.nobody_is_left(&error, now));
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
    // Those on other runtimes, which may not be driven for a while.
    let mut elsewhere = JoinSet::new();
    let mut runtimes = HashSet::new();
    loop {
        // In a fixed order, so that a schedule can be replayed.
        tokio::select! {
            biased;
            _ = &mut stop => break,
            order = queue.jobs.recv() => {
                let Some(Ordered { job, runtime }) = order else { break };
                let Some(engine) = queue.engine.upgrade() else { break };
                let performed = perform(JobGuard { engine, job: Some(job) });
                let Some(runtime) = runtime.filter(|runtime| runtime.id() != queue.runtime) else {
                    tasks.spawn(performed);
                    continue;
                };
                if runtimes.insert(runtime.id()) {
                    let guest = Guest { engine: queue.engine.clone(), runtime: runtime.id() };
                    elsewhere.spawn_on(guest.stay(), &runtime);
                }
                elsewhere.spawn_on(performed, &runtime);
            }
            Some(ended) = tasks.join_next() => tell_of_panic(ended),
            Some(ended) = elsewhere.join_next() => tell_of_panic(ended),
        }
    }
    queue.is_told_to_end = true;
    // The door closes first: what the guards of the tasks ask for is then settled at once.
    queue.jobs.close();
    tasks.shutdown().await;
    let _ = timeout(ELSEWHERE_LIMIT, elsewhere.shutdown()).await;
}

fn tell_of_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of the pool panicked; what it owed was settled");
    }
}

async fn perform<D: Driver>(mut owed: JobGuard<D>) {
    let engine = Arc::clone(&owed.engine);
    match owed.job.take() {
        Some(Job::Open(work)) => open::open(&engine, work).await,
        Some(Job::Close { work, waited_for }) => {
            close::close(&engine, work).await;
            drop(waited_for);
        }
        Some(Job::Recycle(returned)) => recycle::recycle(&engine, returned).await,
        Some(Job::Retry { target, at }) => {
            sleep(at.saturating_duration_since(Engine::<D>::now())).await;
            engine.step(&target, "retry", |registry, now| registry.retry(&target, now));
        }
        Some(job @ Job::Found(_)) => engine.settle_unrun(job),
        None => {}
    }
}
