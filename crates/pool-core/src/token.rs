//! What the registry asks of the world, and what the world owes the registry. The debts ([`OpenWork`], [`LostOpen`],
//! [`CloseWork`], [`CloseDebt`], [`LeaseDebt`], [`Ticket`]) are must-use, cannot be cloned, have private fields, and each is consumed
//! by one final report. As long as every debt is paid, the count cannot drift from the truth.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::budget::Slot;
use crate::events::CloseReason;
use crate::ids::{ConnectionId, Target};

/// A connection to be opened. Paid with [`Registry::opened`](crate::Registry::opened) or
/// [`Registry::open_failed`](crate::Registry::open_failed), or exchanged for a [`LostOpen`].
#[derive(Debug)]
#[must_use = "an open that is never reported keeps its budget slot"]
pub struct OpenWork {
    pub(crate) target: Target,
    pub(crate) workspace: u32,
    pub(crate) slot: Slot,
    pub(crate) holds_permit: bool,
    /// How many opens had been started in the share, with this one.
    pub(crate) number: u64,
    pub(crate) began: Instant,
    /// The turn that was charged for it in advance.
    pub(crate) turn: Duration,
}

impl OpenWork {
    /// Which database to connect to.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// An open that nobody waits for any more, since it has taken too long. It keeps its slot, because the server may count it,
/// and nothing else. Paid with [`Registry::lost_opened`](crate::Registry::lost_opened) or
/// [`Registry::lost_ended`](crate::Registry::lost_ended).
#[derive(Debug)]
#[must_use = "a lost open that is never reported keeps its budget slot"]
pub struct LostOpen {
    pub(crate) target: Target,
    pub(crate) slot: Slot,
    /// As that of its work.
    pub(crate) number: u64,
}

impl LostOpen {
    /// Which database it was for.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// A connection to be closed. Split it, close the connection, and report the debt.
#[derive(Debug)]
#[must_use = "a close that is never reported keeps its budget slot"]
pub struct CloseWork<C> {
    pub(crate) conn: C,
    pub(crate) debt: CloseDebt,
}

impl<C> CloseWork<C> {
    /// The connection, to be closed outside the lock, and the debt to report when the server has let go.
    pub fn split(self) -> (C, CloseDebt) {
        (self.conn, self.debt)
    }

    /// Whose connection it is.
    pub fn target(&self) -> &Target {
        &self.debt.target
    }

    /// Which connection it is.
    pub fn connection(&self) -> ConnectionId {
        self.debt.id
    }

    /// Why it is closed.
    pub fn reason(&self) -> CloseReason {
        self.debt.reason
    }
}

/// The report owed for a connection being closed. Paid with
/// [`Registry::closed`](crate::Registry::closed).
#[derive(Debug)]
#[must_use = "a close that is never reported keeps its budget slot"]
pub struct CloseDebt {
    pub(crate) target: Target,
    pub(crate) id: ConnectionId,
    pub(crate) workspace: u32,
    pub(crate) slot: Slot,
    pub(crate) reason: CloseReason,
    pub(crate) for_whom: Option<Target>,
    pub(crate) is_slow: bool,
    pub(crate) began: Instant,
}

impl CloseDebt {
    /// Whose connection it was.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Which connection it was.
    pub fn connection(&self) -> ConnectionId {
        self.id
    }

    /// Why it is closed.
    pub fn reason(&self) -> CloseReason {
        self.reason
    }

    /// The target that stood first for its slot, where it made room.
    pub fn for_whom(&self) -> Option<&Target> {
        self.for_whom.as_ref()
    }
}

/// A connection handed out, with the debt to bring it back.
#[derive(Debug)]
#[must_use = "a lease that is never returned keeps its connection in use"]
pub struct Leased<C> {
    /// The connection itself.
    pub conn: C,
    /// The debt: release or discard it.
    pub debt: LeaseDebt,
    /// Whether it was idle so long, or so near a breakage, that it should be checked before use.
    pub check_first: bool,
    /// How long the caller stood in the queue; none if it was served at once.
    pub waited: Option<Duration>,
}

/// The report owed for a connection in use, whose slot stays in the registry: it travels in a debt only while a connection is
/// being opened or closed. Paid with [`Registry::release`](crate::Registry::release),
/// [`Registry::discard`](crate::Registry::discard) or [`Registry::discard_broken`](crate::Registry::discard_broken).
#[derive(Debug)]
#[must_use = "a lease that is never returned keeps its connection in use"]
pub struct LeaseDebt {
    pub(crate) id: ConnectionId,
}

impl LeaseDebt {
    /// Which connection it is about.
    pub fn connection(&self) -> ConnectionId {
        self.id
    }
}

/// A place in a queue. Paid with [`Registry::claim`](crate::Registry::claim) until that is final, or with
/// [`Registry::cancel_wait`](crate::Registry::cancel_wait).
#[derive(Debug)]
#[must_use = "a ticket that is dropped keeps its place, and may keep a connection"]
pub struct Ticket {
    pub(crate) waiter: u32,
}

/// Callers to be woken, after the lock is released.
#[derive(Debug, Default)]
#[must_use = "a caller that is not woken waits for ever"]
pub struct Wakes(pub(crate) Vec<Waker>);

impl Wakes {
    /// Wakes them all. A waker that panics keeps no other from being woken, and its panic ends here, where the panic
    /// hook has told of it: whoever wakes may be a `Drop`.
    pub fn wake(self) {
        for waker in self.0 {
            drop(catch_unwind(AssertUnwindSafe(|| waker.wake())));
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the world must do after a transition. Empty vectors do not allocate, so the warm path is free.
#[derive(Debug)]
#[must_use = "the registry counts on every effect being performed"]
pub struct Effects<C> {
    /// Connections to open.
    pub opens: Vec<OpenWork>,
    /// Connections to close.
    pub closes: Vec<CloseWork<C>>,
    /// Connections whose sessions the server has ended, and that count no longer: to be dropped.
    pub dead: Vec<C>,
    /// Callers to wake.
    pub wakes: Wakes,
    /// Something that is being closed has no connection left but those in use, if any.
    pub drained: bool,
    /// When [`Registry::retry`](crate::Registry::retry) is due, and for whom.
    pub retry_at: Option<(Target, Instant)>,
    /// When [`Registry::due`](crate::Registry::due) is due.
    pub due_at: Option<Instant>,
    /// Targets of which [`Registry::looked_up`](crate::Registry::looked_up) is to say whether they exist.
    pub look_ups: Vec<Target>,
}

/// What [`Effects`] ask for, in plain values, to be compared as a whole: one thing too many is then as wrong as one too
/// few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EffectsDescription<C> {
    /// Whose connections to open.
    pub opens: Vec<Target>,
    /// Whose connections to close, and why.
    pub closes: Vec<(Target, CloseReason)>,
    /// The connections to drop.
    pub dead: Vec<C>,
    /// How many callers to wake.
    pub wakes: usize,
    /// See [`Effects::drained`].
    pub drained: bool,
    /// See [`Effects::retry_at`].
    pub retry_at: Option<(Target, Instant)>,
    /// See [`Effects::due_at`].
    pub due_at: Option<Instant>,
    /// See [`Effects::look_ups`].
    pub look_ups: Vec<Target>,
}

impl<C> Default for Effects<C> {
    fn default() -> Self {
        Self {
            opens: Vec::new(),
            closes: Vec::new(),
            dead: Vec::new(),
            wakes: Wakes::default(),
            drained: false,
            retry_at: None,
            due_at: None,
            look_ups: Vec::new(),
        }
    }
}

impl<C> Effects<C> {
    /// A connection that counts no longer is to be dropped, and nothing else.
    pub(crate) fn dead(conn: C) -> Self {
        Self { dead: vec![conn], ..Self::default() }
    }

    /// What is asked for, in plain values.
    pub fn describe(&self) -> EffectsDescription<C>
    where
        C: Clone,
    {
        EffectsDescription {
            opens: self.opens.iter().map(|work| work.target.clone()).collect(),
            closes: self.closes.iter().map(|work| (work.target().clone(), work.reason())).collect(),
            dead: self.dead.clone(),
            wakes: self.wakes.len(),
            drained: self.drained,
            retry_at: self.retry_at.clone(),
            due_at: self.due_at,
            look_ups: self.look_ups.clone(),
        }
    }

    /// Whether there is nothing to do, as after most returns.
    #[inline]
    pub fn is_empty(&self) -> bool {
        let Self { opens, closes, dead, wakes, drained, retry_at, due_at, look_ups } = self;
        let owes_nothing = opens.is_empty() && closes.is_empty() && dead.is_empty() && look_ups.is_empty();
        owes_nothing && wakes.is_empty() && !drained && retry_at.is_none() && due_at.is_none()
    }

    /// These effects and `others`, to be performed together.
    pub fn append(&mut self, others: Self) {
        let Self { opens, closes, dead, wakes, drained, retry_at, due_at, look_ups } = others;
        self.opens.extend(opens);
        self.closes.extend(closes);
        self.dead.extend(dead);
        self.wakes.0.extend(wakes.0);
        self.drained |= drained;
        // Both come from one target's transition, which owes one retry.
        self.retry_at = self.retry_at.take().or(retry_at);
        // Which of the two transitions came first is not known here; a call that comes early does no harm.
        self.due_at = self.due_at.into_iter().chain(due_at).min();
        self.look_ups.extend(look_ups);
    }
}
