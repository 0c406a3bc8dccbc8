//! A place in the queue as a future: what every shell does with a [`Ticket`], over whatever lock it has. It has no runtime and
//! no clock: the door brings the moment.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::{AcquireError, DriverError, Pressure, Stage};
use crate::registry::{CancelledWait, Claim, Registry};
use crate::token::{Effects, Leased, Ticket};

/// One registry behind one lock, and whoever performs what it asks for after the lock is released.
pub trait Door {
    /// What is pooled.
    type Connection;
    /// What ends a session from outside.
    type Session;

    /// Runs the section `name` of code on the registry, under the lock.
    fn with<R>(
        &self,
        name: &'static str,
        section: impl FnOnce(&mut Registry<Self::Connection, Self::Session>, Instant) -> R,
    ) -> R;

    /// Performs what a transition has asked for. Called without the lock.
    fn perform(&self, effects: Effects<Self::Connection>);
}

/// A place in the queue. Dropping it gives the place up, and whatever was granted to it goes to the next (law W4).
#[must_use = "a place in the queue that is dropped is given up"]
pub struct QueuedAcquire<D: Door> {
    door: D,
    ticket: Option<Ticket>,
}

/// The last look at a place, when the time of its caller is over.
pub enum LastLook<C> {
    /// An answer had just come.
    Answered(Result<Leased<C>, AcquireError>),
    /// There was none, and the place is given up.
    GivenUp {
        /// What was missing.
        waiting_for: Stage,
        /// How full things were.
        pressure: Pressure,
        /// Why the last open for the target failed, if it did.
        last_failure: Option<Arc<DriverError>>,
    },
}

impl<D: Door> QueuedAcquire<D> {
    /// The place that `ticket` is for.
    pub fn new(door: D, ticket: Ticket) -> Self {
        Self { door, ticket: Some(ticket) }
    }

    /// Looks at the queue for the last time: a grant that has just come is taken, and the place is given up otherwise. None
    /// after the future was ready.
    pub fn last_look(mut self) -> Option<LastLook<D::Connection>> {
        let ticket = self.ticket.take()?;
        let mut waker = None;
        let (last, gave_up) =
            self.door.with("last look", |registry, now| match registry.claim(ticket, &mut waker, now) {
                Claim::Leased(leased) => (Some(LastLook::Answered(Ok(leased))), None),
                Claim::Failed(error) => (Some(LastLook::Answered(Err(error))), None),
                Claim::Waiting(ticket) => (None, Some(registry.cancel_wait(ticket, now))),
            });
        last.or_else(|| {
            let CancelledWait { waiting_for, pressure, last_failure, effects, .. } = gave_up?;
            self.door.perform(effects);
            Some(LastLook::GivenUp { waiting_for, pressure, last_failure })
        })
    }
}

impl<D: Door + Unpin> Future for QueuedAcquire<D> {
    type Output = Result<Leased<D::Connection>, AcquireError>;

    /// # Panics
    /// When it is polled after it was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(ticket) = this.ticket.take() else { unreachable!("polled after it was ready") };
        // The waker left before comes back in here, and is dropped after the lock is released.
        let mut waker = Some(context.waker().clone());
        match this.door.with("claim", |registry, now| registry.claim(ticket, &mut waker, now)) {
            Claim::Waiting(ticket) => {
                this.ticket = Some(ticket);
                Poll::Pending
            }
            Claim::Leased(leased) => Poll::Ready(Ok(leased)),
            Claim::Failed(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<D: Door> Drop for QueuedAcquire<D> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let gave_up = self.door.with("cancel wait", |registry, now| registry.cancel_wait(ticket, now));
        self.door.perform(gave_up.effects);
    }
}
