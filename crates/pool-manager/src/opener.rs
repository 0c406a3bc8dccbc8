//! Performs what the registry asks for: opens, closes, recycles and retries, each in a task of its own,
//! all owned by one dispatcher that joins them. An open outlives the caller that asked for it (law O2).
//! Everything a job owes sits in a guard from the moment it leaves the registry, so that a panic in a
//! driver, a cancel, or the end of the runtime settles it.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use pool_core::{
    CloseDebt, CloseWork, Driver, DriverError, DriverErrorKind, Effects, Endpoint, Event, LostOpen, OpenWork,
    Phase, Registry, Target,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::engine::{Engine, Fact};
use crate::lease::Lease;

/// How many connect timeouts an open that was given up may go on for, keeping its slot. A server that has
/// not answered by then is taken not to count it either.
const ABANDON_AFTER: u32 = 30;

/// How often an open that was given up may be woken before it is dropped all the same. One whose server is
/// merely hung sleeps, and authentication in full takes less than half of this; what is woken more often is
/// fed by a server that is not going to come to an end, and would keep all of it.
const WAKES_MAX: u32 = 2_000;

/// A piece of work that needs to await.
pub(crate) enum Job<D: Driver> {
    Open(OpenWork),
    Close(CloseWork<D::Connection>),
    Recycle(Lease<D>),
    Retry {
        target: Target,
        at: Instant,
    },
    /// A look-up that the facts have answered: never handed to a task.
    Found(Target),
}

/// The jobs that nobody has begun; dropped, they are settled as if there were no runtime.
struct JobQueue<D: Driver> {
    engine: Weak<Engine<D>>,
    jobs: mpsc::UnboundedReceiver<Job<D>>,
}

impl<D: Driver> Drop for JobQueue<D> {
    fn drop(&mut self) {
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            if let Some(engine) = self.engine.upgrade() {
                engine.settle_unrun(job);
            }
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

/// Runs until the engine is gone, or until it is told to stop: then tasks still under way are dropped,
/// and their guards settle what they owe.
pub(crate) async fn dispatch<D: Driver>(
    engine: Weak<Engine<D>>,
    jobs: mpsc::UnboundedReceiver<Job<D>>,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) {
    let mut queue = JobQueue { engine, jobs };
    let mut tasks = JoinSet::new();
    loop {
        // In a fixed order, so that a schedule can be replayed.
        tokio::select! {
            biased;
            _ = &mut stop => break,
            job = queue.jobs.recv() => {
                let Some(job) = job else { break };
                let Some(engine) = queue.engine.upgrade() else { break };
                tasks.spawn(perform(JobGuard { engine, job: Some(job) }));
            }
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the pool panicked; what it owed was settled");
                }
            }
        }
    }
    // The door closes first: what the guards of the tasks ask for is then settled at once.
    queue.jobs.close();
    tasks.shutdown().await;
}

async fn perform<D: Driver>(mut owed: JobGuard<D>) {
    let engine = Arc::clone(&owed.engine);
    match owed.job.take() {
        Some(Job::Open(work)) => OpenJob::new(&engine, work).open().await,
        Some(Job::Close(work)) => close(&engine, work).await,
        Some(Job::Recycle(lease)) => recycle(&engine, lease).await,
        Some(Job::Retry { target, at }) => {
            sleep(at.saturating_duration_since(Engine::<D>::now())).await;
            engine.step(&target, "retry", |registry, now| registry.retry(&target, now));
        }
        Some(job @ Job::Found(_)) => engine.settle_unrun(job),
        None => {}
    }
}

/// What is owed for an open: its report, or, once nobody waits for it any more, that its slot is free.
enum OpenDebt {
    Work(OpenWork),
    Lost(LostOpen),
    Paid,
}

/// Owes the report of an open; dropped early, it reports a failure.
struct OpenJob<'a, D: Driver> {
    engine: &'a Arc<Engine<D>>,
    target: Target,
    address: String,
    debt: OpenDebt,
}

impl<'a, D: Driver> OpenJob<'a, D> {
    fn new(engine: &'a Arc<Engine<D>>, work: OpenWork) -> Self {
        let target = work.target().clone();
        Self { engine, address: target.to_string(), target, debt: OpenDebt::Work(work) }
    }

    async fn open(mut self) {
        let engine = self.engine;
        let endpoint = engine.endpoint(&self.target);
        self.address = engine.driver.address(&endpoint);
        let started = Engine::<D>::now();
        let outcome = self.connect(&endpoint).await;
        let took = Engine::<D>::now().saturating_duration_since(started);
        match outcome {
            Ok(conn) => {
                if let Some(surplus) = self.opened(conn, took) {
                    engine.driver.close(surplus).await;
                }
                note_fact(engine, &endpoint.target).await;
            }
            Err(error) => {
                forget_fact(engine, &endpoint.target, &error).await;
                self.failed(error);
            }
        }
    }

    /// Connects. An open that nobody waits for any more goes on for the sake of the count: the server may have a backend
    /// for it already.
    async fn connect(&mut self, endpoint: &Endpoint) -> Result<D::Connection, DriverError> {
        let engine = self.engine;
        let limit = engine.settings.connect_timeout;
        let mut returns = engine.health.returns();
        let mut connect = std::pin::pin!(engine.driver.connect(endpoint));
        let waited_for = tokio::select! {
            biased;
            outcome = self.waited_for(connect.as_mut(), limit) => outcome,
            _ = returns.changed() => None,
        };
        if let Some(outcome) = waited_for {
            return outcome;
        }
        // Unless it was given up: the server has been lost and has answered again since it began, and may be another one.
        self.lose("open overtaken", Registry::open_overtaken);
        let abandoned = timeout(limit.saturating_mul(ABANDON_AFTER), while_quiet(connect));
        tokio::select! {
            biased;
            outcome = abandoned => match outcome {
                Ok(Some(outcome)) => outcome,
                Ok(None) | Err(_) => Err(self.timed_out(limit)),
            },
            () = engine.is_being_closed(&endpoint.target) => Err(self.timed_out(limit)),
        }
    }

    /// What takes long gives up its permit, and the server is asked whether it is there; what takes too long is told to
    /// those who wait, who may open another.
    async fn waited_for(
        &mut self,
        mut connect: Pin<&mut impl Future<Output = Result<D::Connection, DriverError>>>,
        limit: Duration,
    ) -> Option<Result<D::Connection, DriverError>> {
        // `timeout` and not a `select!` with a `sleep`: a server that never stops sending uses up the task's
        // budget, with which a sleep beside it would not wake either.
        let slow_after = self.engine.settings.slow_open_after.min(limit);
        if let Ok(outcome) = timeout(slow_after, &mut connect).await {
            return Some(outcome);
        }
        self.is_slow();
        if let Ok(outcome) = timeout(limit.saturating_sub(slow_after), &mut connect).await {
            return Some(outcome);
        }
        self.given_up(limit);
        None
    }

    fn timed_out(&self, limit: Duration) -> DriverError {
        let error = DriverError::new(Phase::Connect, DriverErrorKind::TimedOut, self.address.as_str());
        error.caused_by(format!("gave up after {limit:?}"))
    }

    fn is_slow(&mut self) {
        let OpenDebt::Work(work) = &mut self.debt else { return };
        self.engine.step(&self.target, "open is slow", |registry, now| registry.open_is_slow(work, now));
        self.engine.health.suspect();
    }

    fn given_up(&mut self, limit: Duration) {
        let error = Arc::new(self.timed_out(limit));
        let told = Arc::clone(&error);
        self.lose("open given up", |registry, work, now| registry.open_given_up(work, told, now));
        self.engine.emit(&Event::OpenFailed { target: &self.target, error: &error });
    }

    /// Nobody waits any more for an open that is still waited for: from now on its slot is all that is owed.
    fn lose(
        &mut self,
        name: &'static str,
        how: impl FnOnce(&mut Registry<D::Connection>, OpenWork, Instant) -> (LostOpen, Effects<D::Connection>),
    ) {
        let work = match self.pay() {
            OpenDebt::Work(work) => work,
            other => return self.debt = other,
        };
        let share = self.engine.share(&self.target);
        let (lost, effects) = share.with(name, |registry, now| how(registry, work, now));
        self.debt = OpenDebt::Lost(lost);
        self.engine.perform(share, effects);
    }

    /// Reports the connection; returns it if there is no place for it, to be closed before the job ends.
    fn opened(&mut self, conn: D::Connection, took: Duration) -> Option<D::Connection> {
        let engine = self.engine;
        let handle = engine.driver.handle(&conn);
        engine.health.succeeded();
        let debt = self.pay();
        let share = engine.share(&self.target);
        let admitted = share.with("opened", |registry, now| {
            let retire_at = engine.settings.max_lifetime.map(|lifetime| {
                let jitter = (lifetime / 10).mul_f64(fastrand::f64());
                Engine::<D>::after(now, lifetime.saturating_sub(jitter))
            });
            let (id, effects) = match debt {
                OpenDebt::Work(work) => registry.opened(work, conn, retire_at, now),
                OpenDebt::Lost(lost) => registry
                    .lost_opened(lost, conn, retire_at, now)
                    .map_err(|(lost, conn)| (OpenDebt::Lost(lost), conn))?,
                OpenDebt::Paid => return Err((OpenDebt::Paid, conn)),
            };
            share.remember(id, handle);
            Ok(effects)
        });
        match admitted {
            Ok(effects) => {
                engine.perform(share, effects);
                engine.emit(&Event::Opened { target: &self.target, took });
                None
            }
            Err((debt, surplus)) => {
                self.debt = debt;
                Some(surplus)
            }
        }
    }

    fn failed(&mut self, error: DriverError) {
        match self.pay() {
            OpenDebt::Work(work) => {
                self.engine.health.failed(error.kind);
                let error = Arc::new(error);
                let told = Arc::clone(&error);
                let step = |registry: &mut Registry<_>, now| registry.open_failed(work, told, now);
                self.engine.step(&self.target, "open failed", step);
                self.engine.emit(&Event::OpenFailed { target: &self.target, error: &error });
            }
            // It was told when it was given up.
            OpenDebt::Lost(lost) => {
                self.engine
                    .step(&self.target, "lost open ended", |registry, now| registry.lost_ended(lost, now));
            }
            OpenDebt::Paid => {}
        }
    }

    /// What is owed, which the caller pays.
    fn pay(&mut self) -> OpenDebt {
        std::mem::replace(&mut self.debt, OpenDebt::Paid)
    }
}

impl<D: Driver> Drop for OpenJob<'_, D> {
    fn drop(&mut self) {
        if !matches!(self.debt, OpenDebt::Paid) {
            let error = DriverError::new(Phase::Connect, DriverErrorKind::Other, self.address.as_str());
            self.failed(error.caused_by("the open was abandoned"));
        }
    }
}

/// Waits for `work` as long as it sleeps most of the time; none if it does not.
async fn while_quiet<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    let mut wakes = 0;
    std::future::poll_fn(|context| {
        wakes += 1;
        if wakes > WAKES_MAX { Poll::Ready(None) } else { work.as_mut().poll(context).map(Some) }
    })
    .await
}

/// A database that could be opened exists.
async fn note_fact<D: Driver>(engine: &Engine<D>, target: &Target) {
    if let Target::Workspace(id) = target
        && engine.facts.get(id).await.is_none()
    {
        engine.facts.insert(id.clone(), Fact::Seen).await;
    }
}

/// A database that was believed to exist has been dropped by somebody else.
async fn forget_fact<D: Driver>(engine: &Engine<D>, target: &Target, error: &DriverError) {
    if let (Target::Workspace(id), DriverErrorKind::DatabaseMissing) = (target, error.kind) {
        engine.facts.invalidate(id).await;
    }
}

/// Owes the report of a close.
struct CloseJob<'a, D: Driver> {
    engine: &'a Arc<Engine<D>>,
    debt: Option<CloseDebt>,
}

impl<D: Driver> CloseJob<'_, D> {
    fn is_slow(&mut self) {
        let Some(debt) = self.debt.as_mut() else { return };
        let target = debt.target().clone();
        self.engine.step(&target, "close is slow", |registry, now| registry.close_is_slow(debt, now));
    }
}

impl<D: Driver> Drop for CloseJob<'_, D> {
    fn drop(&mut self) {
        if let Some(debt) = self.debt.take() {
            self.engine.report_closed(debt);
        }
    }
}

async fn close<D: Driver>(engine: &Arc<Engine<D>>, work: CloseWork<D::Connection>) {
    let (conn, debt) = work.split();
    let mut owed = CloseJob { engine, debt: Some(debt) };
    let mut closing = std::pin::pin!(engine.driver.close(conn));
    tokio::select! {
        biased;
        () = &mut closing => return,
        () = sleep(engine.settings.slow_open_after) => owed.is_slow(),
    }
    closing.await;
}

/// Owes a lease that is being made clean; dropped early, or in a panic, it is closed instead.
struct RecycleJob<D: Driver>(Option<Lease<D>>);

impl<D: Driver> Drop for RecycleJob<D> {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.discard_unclean();
        }
    }
}

async fn recycle<D: Driver>(engine: &Arc<Engine<D>>, lease: Lease<D>) {
    let mut owed = RecycleJob(Some(lease));
    let Some(lease) = owed.0.as_mut() else { return };
    let outcome = match timeout(engine.settings.recycle_timeout, engine.driver.recycle(lease)).await {
        // A connection that needed no cleaning has not been asked whether it lives.
        Ok(Ok(())) if lease.unchecked => {
            timeout(engine.settings.check_timeout, engine.driver.check(lease)).await
        }
        outcome => outcome,
    };
    match outcome {
        Ok(Ok(())) => {
            if let Some(lease) = owed.0.take() {
                lease.release_clean();
            }
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a returned connection could not be made clean and is closed");
            if error.kind.may_concern_all()
                && let Some(lease) = owed.0.take()
            {
                lease.discard_broken();
            }
        }
        Err(_) => {
            tracing::debug!("a returned connection was not clean in time and is closed");
            engine.health.suspect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn work_that_is_woken_without_end_is_given_up() {
        let endless = std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!(while_quiet(pin!(endless)).await, None);
    }

    #[tokio::test]
    async fn work_that_sleeps_is_waited_for() {
        let quiet = async {
            for _ in 0..WAKES_MAX / 2 {
                tokio::task::yield_now().await;
            }
            7
        };
        assert_eq!(while_quiet(pin!(quiet)).await, Some(7));
    }
}
