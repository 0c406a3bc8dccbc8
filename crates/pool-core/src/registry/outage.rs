//! The server as a whole. Whether it answers is one fact, not one for each target: while it does not, nothing is opened,
//! and callers that no live connection can serve are told at once. When it answers again, nothing that was seen meanwhile
//! is held against anybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::open::open_error;
use super::{Existence, Registry};
use crate::error::{AcquireError, DriverError};
use crate::health::Health;
use crate::ids::Target;
use crate::token::{Effects, LostOpen, OpenWork};

/// That the server does not answer.
#[derive(Debug)]
pub(super) struct Outage {
    error: Arc<DriverError>,
    asked_again_in: Duration,
    since: Instant,
}

impl<C, S> Registry<C, S> {
    /// The server does not answer, or refuses everybody, as `error` says. Nothing is opened until
    /// [`Registry::server_answers`], and callers that no live connection can serve are told so, and that the server is asked
    /// again after `asked_again_in`. Opens under way go on. Idle connections are checked before their next use. Costs a
    /// pass over the targets.
    pub fn server_is_lost(
        &mut self,
        error: Arc<DriverError>,
        asked_again_in: Duration,
        now: Instant,
    ) -> Effects<C> {
        self.outage = Some(Outage { error, asked_again_in, since: now });
        self.note_breakage(now);
        self.all_change(now)
    }

    /// The server answers again: every pause is over, and what has been lost meanwhile holds nobody back. Opens that
    /// began before are to be given up with [`Registry::open_overtaken`], for their server may be gone. Costs a pass over the
    /// targets.
    pub fn server_answers(&mut self, now: Instant) -> Effects<C> {
        if self.outage.take().is_none() {
            return Effects::default();
        }
        self.failures.clear();
        self.lost.forgive(self.next_open);
        self.note_breakage(now);
        self.all_change(now)
    }

    /// Nobody is left to do what has been asked: all who wait are told, as `error` says, and may ask again where somebody is.
    /// Costs a pass over the targets.
    pub fn nobody_is_left(&mut self, error: &Arc<DriverError>, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        for ws in self.all_workspaces() {
            let told = open_error(&self.workspace(ws).target, error, Duration::ZERO);
            self.fail_waiters(ws, &told, &mut effects);
            self.review(ws, now);
        }
        effects
    }

    /// Whoever was to do what had been asked is gone, and somebody else will do what is asked from now on: retries, look-ups,
    /// and the call at a promised moment. Nothing that was seen before is held against anybody. Costs a pass over the targets.
    pub fn begin_again(&mut self, now: Instant) -> Effects<C> {
        self.outage = None;
        self.failures.clear();
        self.promised = None;
        for (_, workspace) in &mut self.workspaces {
            if workspace.existence == Existence::Asked {
                workspace.existence = Existence::Unknown;
            }
        }
        let mut effects = self.all_change(now);
        for ws in self.all_workspaces() {
            self.ask_whether_it_exists(ws, &mut effects);
        }
        effects
    }

    /// An open that began before the server was lost and answered again: nobody waits for it any more, and its target may
    /// open another at once. It has not failed.
    pub fn open_overtaken(&mut self, work: OpenWork, now: Instant) -> (LostOpen, Effects<C>) {
        let (ws, lost) = self.lose_open(work, now);
        let mut effects = Effects::default();
        self.settle(ws, now, &mut effects);
        (lost, effects)
    }

    /// Whether callers can be served, as far as is known.
    pub fn health(&self, now: Instant) -> Health {
        match &self.outage {
            _ if self.closed => Health::Closed,
            Some(Outage { error, since, .. }) => Health::Unavailable {
                lasting: now.saturating_duration_since(*since),
                error: Arc::clone(error),
            },
            None => Health::Serving,
        }
    }

    /// What a caller of `target` is told while the server is lost, if it is.
    pub(super) fn outage_error(&self, target: &Target) -> Option<AcquireError> {
        self.outage.as_ref().map(|outage| open_error(target, &outage.error, outage.asked_again_in))
    }

    fn all_change(&mut self, now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        self.hold_back_the_hung(now, &mut effects);
        for ws in self.all_workspaces() {
            self.fail_the_hopeless(ws, now, &mut effects);
            self.review(ws, now);
        }
        self.start_opens(now, &mut effects);
        effects
    }
}
