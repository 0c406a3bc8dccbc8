//! Snapshots whose sums agree, and the events that observers are told.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Add;
use std::time::Duration;

use crate::ids::{Target, WorkspaceId};

/// Connections by state. The sum is what counts against a ceiling (law S1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Counts {
    /// Held by callers, or being made clean after they let go.
    pub in_use: u32,
    /// Ready to be handed out.
    pub idle: u32,
    /// Being opened.
    pub opening: u32,
    /// Being closed; over when the server has let go.
    pub closing: u32,
}

impl Counts {
    /// All of them.
    pub fn total(self) -> u32 {
        self.in_use + self.idle + self.opening + self.closing
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            in_use: self.in_use + other.in_use,
            idle: self.idle + other.idle,
            opening: self.opening + other.opening,
            closing: self.closing + other.closing,
        }
    }
}

/// One share (the workspaces', or the system's) at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ShareStats {
    /// The ceiling of the share.
    pub limit: u32,
    /// Connections by state.
    pub connections: Counts,
    /// The most that ever counted at a time.
    pub peak: u32,
    /// Callers in the queues.
    pub waiting: u32,
    /// Targets with a connection, a waiter or a close under way.
    pub targets: u32,
    /// Connections opened since the start.
    pub opened: u64,
    /// Connections closed since the start, the server's word included.
    pub closed: u64,
    /// Of the closed, those closed to make room for another workspace.
    pub evicted: u64,
    /// Opens that failed.
    pub open_failures: u64,
    /// Leases handed out, as in [`Answers`].
    pub acquired: u64,
    /// Of those, the ones served by an idle connection at once.
    pub hits: u64,
    /// Callers that were told an error.
    pub errors: u64,
    /// Callers that went away, or whose time was over.
    pub given_up: u64,
    /// How often the registry found one of its own counts wrong: zero, or a bug of this library.
    pub miscounts: u64,
}

/// What callers were answered since the start. Each acquire that has come to its end is counted once (law S3); a
/// `try_acquire` that found nothing idle is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Answers {
    /// Leases handed out; a connection that proved broken before its caller saw it is none.
    pub acquired: u64,
    /// Of those, the ones that an idle connection served at once. The others have stood in the queue.
    pub hits: u64,
    /// Callers that were told an error.
    pub errors: u64,
    /// Callers that had no answer, or did not fetch it: their time was over, or they went away.
    pub given_up: u64,
}

impl Answers {
    /// All of them: every acquire that has ended.
    pub fn total(self) -> u64 {
        self.acquired + self.errors + self.given_up
    }

    /// The leases that had to wait.
    pub fn waits(self) -> u64 {
        self.acquired - self.hits
    }

    pub(crate) fn add_lease(&mut self, was_hit: bool) {
        self.acquired += 1;
        self.hits += u64::from(was_hit);
    }

    pub(crate) fn take_lease(&mut self, was_hit: bool) {
        self.acquired = self.acquired.saturating_sub(1);
        self.hits = self.hits.saturating_sub(u64::from(was_hit));
    }
}

impl Add for Answers {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            acquired: self.acquired + other.acquired,
            hits: self.hits + other.hits,
            errors: self.errors + other.errors,
            given_up: self.given_up + other.given_up,
        }
    }
}

/// One target at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TargetStats {
    /// Its connections, by state.
    pub connections: Counts,
    /// Callers in its queue.
    pub waiting: u32,
    /// What its callers were answered.
    pub answers: Answers,
}

/// All workspaces at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct WorkspaceStats {
    /// Each workspace that is remembered, in the order of the ids: all that have a connection or a waiter, and thousands
    /// besides.
    pub by_workspace: BTreeMap<WorkspaceId, TargetStats>,
    /// What those were answered that have been forgotten.
    pub forgotten: Answers,
}

/// A consistent snapshot of the whole manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PoolStats {
    /// The workspaces' share.
    pub workspaces: ShareStats,
    /// The system share, without the driver's own connections.
    pub system: ShareStats,
    /// Connections that the driver keeps for itself, out of the system share.
    pub control: u32,
    /// What is kept free of the system share for the moment in which one of those is replaced.
    pub control_reserve: u32,
}

impl PoolStats {
    /// Both shares together.
    pub fn connections(&self) -> Counts {
        self.workspaces.connections + self.system.connections
    }

    /// The whole budget.
    pub fn limit(&self) -> u32 {
        self.workspaces.limit + self.system.limit + self.control + self.control_reserve
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// Idle, and another workspace needed the slot.
    Evicted,
    /// Its workspace had callers waiting, but it was another workspace's turn.
    Yielded,
    /// There are more connections than the limit, which was lowered.
    LimitLowered,
    /// Idle longer than the idle timeout.
    IdleTimeout,
    /// Older than the maximum lifetime, or outdated ([`Driver::is_outdated`](crate::Driver::is_outdated)).
    Lifetime,
    /// Its holder had it closed on purpose.
    Discarded,
    /// Broken, or not to be made clean.
    Broken,
    /// Its workspace is being closed.
    WorkspaceClosed,
    /// The manager is being closed.
    PoolClosed,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evicted => "another workspace needed the slot",
            Self::Yielded => "it was another workspace's turn",
            Self::LimitLowered => "the limit was lowered",
            Self::IdleTimeout => "idle for too long",
            Self::Lifetime => "too old, or outdated",
            Self::Discarded => "discarded by its holder",
            Self::Broken => "broken",
            Self::WorkspaceClosed => "its workspace was closed",
            Self::PoolClosed => "the pool was closed",
        })
    }
}

/// What happened, for observers. Borrowed, so that telling costs no allocation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A connection was opened.
    Opened {
        /// To whom.
        target: &'a Target,
        /// How long it took.
        took: Duration,
    },
    /// An open failed.
    OpenFailed {
        /// To whom.
        target: &'a Target,
        /// The cause.
        error: &'a crate::error::DriverError,
    },
    /// A connection is gone, as the server sees it.
    Closed {
        /// Whose it was.
        target: &'a Target,
        /// Why.
        reason: CloseReason,
    },
    /// A caller got a lease.
    Acquired {
        /// For whom.
        target: &'a Target,
        /// How long it stood in the queue.
        waited: Duration,
    },
    /// A caller gave up: its time ran out.
    TimedOut {
        /// For whom.
        target: &'a Target,
        /// How long it waited.
        waited: Duration,
    },
}
