//! Performs what a transition asks for, after the door of the share has closed: wakes callers, and hands each job to the
//! dispatcher. A job that nobody will perform, since there is no runtime any more, is settled here, and so is what that
//! asks for in turn.

use std::collections::VecDeque;
use std::sync::Arc;

use pool_core::{
    CloseDebt, CloseWork, Driver, DriverError, DriverErrorKind, Effects, Event, Phase, Registry, Target,
};
use thiserror::Error;
use tokio::runtime;
use tokio::sync::oneshot;

use crate::engine::Engine;
use crate::job::{Job, Orderer, Returned};
use crate::share::{Share, ShareRegistry, note_holder};

/// The cause of an open that failed because nobody was left to perform it.
#[derive(Debug, Error)]
#[error(
    "the runtime that the pool's background tasks ran on has ended; they start again with the next acquire inside of one"
)]
struct Stranded;

/// Whether an open failed because the runtime ended on which it was to be performed.
pub(crate) fn is_stranded(error: &DriverError) -> bool {
    error.source.as_ref().is_some_and(|cause| cause.is::<Stranded>())
}

/// The failure of an open that nobody performs.
pub(crate) fn stranded(address: String) -> DriverError {
    DriverError::new(Phase::Connect, DriverErrorKind::Other, address).caused_by(Stranded)
}

impl<D: Driver> Engine<D> {
    /// Performs what a transition of `share` asked for.
    pub(crate) fn perform(&self, share: &Share<D>, effects: Effects<D::Connection>) {
        self.perform_for(Orderer::Leaves, share, effects);
    }

    /// The same for `by`.
    pub(crate) fn perform_for(&self, by: Orderer, share: &Share<D>, effects: Effects<D::Connection>) {
        if effects.is_empty() {
            return;
        }
        let mut unrun = VecDeque::new();
        self.submit(by, share, effects, &mut unrun);
        self.settle(unrun);
    }

    fn settle(&self, mut unrun: VecDeque<Job<D>>) {
        while let Some(job) = unrun.pop_front() {
            let (share, effects) = self.settle_one(job);
            self.submit(Orderer::Leaves, share, effects, &mut unrun);
        }
    }

    fn submit(
        &self,
        by: Orderer,
        share: &Share<D>,
        effects: Effects<D::Connection>,
        unrun: &mut VecDeque<Job<D>>,
    ) {
        let Effects { opens, closes, dead, wakes, drained, retry_at, due_at, look_ups } = effects;
        let opens = opens.into_iter().map(|work| Job::Open(work));
        let closes = closes.into_iter().map(|work| Job::Close { work, waited_for: None });
        let retry = retry_at.map(|(target, at)| Job::Retry { target, at });
        for job in opens.chain(closes).chain(retry) {
            unrun.extend(self.order(job, by).err());
        }
        for target in look_ups {
            if self.is_seen(&target) {
                unrun.push_back(Job::Found(target));
            } else {
                unrun.extend(self.ask_about(target).err());
            }
        }
        if let Some(at) = due_at {
            share.promise(at);
        }
        wakes.wake();
        if drained {
            self.drained.notify_waiters();
        }
        drop(dead);
    }

    fn order(&self, job: Job<D>, by: Orderer) -> Result<(), Job<D>> {
        match &*self.outlets() {
            Some(outlets) => outlets.order(job, by),
            None => Err(job),
        }
    }

    /// Where nobody takes questions, the look-up becomes a retry, which is settled without effect: `Registry::begin_again` asks again.
    fn ask_about(&self, target: Target) -> Result<(), Job<D>> {
        let asked = match &*self.outlets() {
            Some(outlets) => outlets.ask_about(target),
            None => Err(target),
        };
        asked.map_err(|target| Job::Retry { target, at: Self::now() })
    }

    fn settle_one(&self, job: Job<D>) -> (&Share<D>, Effects<D::Connection>) {
        match job {
            Job::Open(work) => {
                // Plugged-in code is not asked for anything here: it may be what has just panicked.
                let error = Arc::new(stranded(work.target().to_string()));
                let share = self.share(work.target());
                (share, share.with("open failed", |registry, now| registry.open_failed(work, error, now)))
            }
            Job::Close { work, .. } => self.abandon(work),
            Job::Recycle(Returned { target, conn, debt, .. }) => {
                let share = self.share(&target);
                (share, share.with("discard", |registry, now| registry.discard(debt, conn, now)))
            }
            Job::Retry { target, .. } => (self.share(&target), Effects::default()),
            Job::Found(target) => {
                let share = self.share(&target);
                let found = |registry: &mut Registry<_, _>, now| registry.looked_up(&target, None, now);
                (share, share.with("looked up", found))
            }
        }
    }

    /// Has a connection closed, and tells when that is over.
    pub(crate) fn close(&self, work: CloseWork<D::Connection>) -> oneshot::Receiver<()> {
        let (waited_for, is_over) = oneshot::channel();
        let job = Job::Close { work, waited_for: Some(waited_for) };
        if let Err(job) = self.order(job, Orderer::Leaves) {
            self.settle_unrun(job);
        }
        is_over
    }

    /// Settles a job that nobody will perform any more.
    pub(crate) fn settle_unrun(&self, job: Job<D>) {
        self.settle(VecDeque::from([job]));
    }

    /// A runtime has ended, and with it the connections that were opened on it.
    pub(crate) fn runtime_ended(&self, runtime: runtime::Id) {
        for share in self.shares() {
            let effects = share.with("orphaned", |registry, now| {
                let its = registry.sessions().filter(|(_, session)| session.runtime == runtime);
                let ids: Vec<_> = its.map(|(id, _)| id).collect();
                if ids.is_empty() { Effects::default() } else { registry.orphaned(&ids, now) }
            });
            self.perform(share, effects);
        }
    }

    /// Drops a connection that cannot be closed in the proper way; the server sees its socket close.
    fn abandon(&self, work: CloseWork<D::Connection>) -> (&Share<D>, Effects<D::Connection>) {
        let (conn, debt) = work.split();
        drop(conn);
        self.closed(debt)
    }

    fn closed(&self, debt: CloseDebt) -> (&Share<D>, Effects<D::Connection>) {
        let (target, connection, reason) = (debt.target().clone(), debt.connection(), debt.reason());
        let for_whom = debt.for_whom().cloned();
        let share = self.share(&target);
        let effects = share.with("closed", |registry, now| registry.closed(debt, now));
        self.emit(&Event::Closed { target: &target, connection, reason, for_whom: for_whom.as_ref() });
        (share, effects)
    }

    /// Reports that the server no longer counts a connection.
    pub(crate) fn report_closed(&self, debt: CloseDebt) {
        let (share, effects) = self.closed(debt);
        self.perform(share, effects);
    }

    /// Hands a connection that is not known to be clean to the task that makes it so.
    pub(crate) fn recycle(&self, returned: Returned<D::Connection>) {
        let connection = returned.debt.connection();
        let let_go = |registry: &mut ShareRegistry<D>, _| note_holder::<D>(registry, connection, None);
        self.share(&returned.target).with("let go", let_go);
        if let Err(job) = self.order(Job::Recycle(returned), Orderer::Leaves) {
            self.settle_unrun(job);
        }
    }
}
