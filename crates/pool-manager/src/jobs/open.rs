//! An open, from the debt to its report.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use pool_core::{
    Driver, DriverError, DriverErrorKind, Effects, Endpoint, Event, LostOpen, OpenWork, Phase, Registry,
    Target,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::effects::stranded;
use crate::engine::{Engine, Fact};
use crate::share::{Session, ShareRegistry};

/// How many connect timeouts an open that was given up may go on for, keeping its slot. A server that has
/// not answered by then is taken not to count it either.
const ABANDON_AFTER: u32 = 30;

/// How often an open that was given up may be woken before it is dropped all the same. One whose server is
/// merely hung sleeps, and authentication in full takes less than half of this; what is woken more often is
/// fed by a server that is not going to come to an end, and would keep all of it.
const WAKES_MAX: u32 = 2_000;

/// Performs an open, and reports it.
pub(super) async fn open<D: Driver>(engine: &Arc<Engine<D>>, work: OpenWork) {
    OpenJob::new(engine, work).open().await;
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
        self.address = engine.address(&self.target);
        let Some(endpoint) = engine.endpoint(&self.target) else {
            let missing = DriverErrorKind::DatabaseMissing;
            return self.failed(DriverError::new(Phase::Connect, missing, self.address.as_str()));
        };
        let started = Engine::<D>::now();
        let _shown = engine.roster.opening(&self.target, started);
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
        how: impl FnOnce(&mut ShareRegistry<D>, OpenWork, Instant) -> (LostOpen, Effects<D::Connection>),
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
        let runtime = Handle::current().id();
        let session = Session { handle: engine.driver.handle(&conn), runtime, holder: None };
        engine.health.succeeded();
        let debt = self.pay();
        let share = engine.share(&self.target);
        let admitted = share.with("opened", |registry, now| {
            let retire_at = engine.settings.max_lifetime.map(|lifetime| {
                let jitter = (lifetime / 10).mul_f64(fastrand::f64());
                Engine::<D>::after(now, lifetime.saturating_sub(jitter))
            });
            let (connection, effects) = match debt {
                OpenDebt::Work(work) => registry.opened(work, conn, session, retire_at, now),
                OpenDebt::Lost(lost) => registry
                    .lost_opened(lost, conn, session, retire_at, now)
                    .map_err(|(lost, conn)| (OpenDebt::Lost(lost), conn))?,
                OpenDebt::Paid => return Err((OpenDebt::Paid, conn)),
            };
            Ok((connection, effects))
        });
        match admitted {
            Ok((connection, effects)) => {
                // Before anybody is woken whom it may serve.
                engine.emit(&Event::Opened { target: &self.target, connection, took });
                engine.perform(share, effects);
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
                let step = |registry: &mut Registry<_, _>, now| registry.open_failed(work, told, now);
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
            let error = stranded(std::mem::take(&mut self.address));
            self.failed(error);
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
