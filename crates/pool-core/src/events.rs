//! What observers are told, as it happens.

use std::fmt;
use std::time::Duration;

use crate::error::{AcquireError, DriverError};
use crate::ids::{ConnectionId, Target};

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
    /// Older than the maximum lifetime.
    Lifetime,
    /// Its holder had it closed on purpose.
    Discarded,
    /// Broken, or not to be made clean.
    Broken,
    /// Its workspace is being closed.
    WorkspaceClosed,
    /// The manager is being closed.
    PoolClosed,
    /// It was held past the deadline of a close, and its session was ended behind its holder.
    Cut,
    /// The runtime ended on which it was opened.
    RuntimeEnded,
    /// What it was opened with is no longer what others are opened with ([`Driver::is_outdated`](crate::Driver::is_outdated)).
    Outdated,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evicted => "another workspace needed the slot",
            Self::Yielded => "it was another workspace's turn",
            Self::LimitLowered => "the limit was lowered",
            Self::IdleTimeout => "idle for too long",
            Self::Lifetime => "too old",
            Self::Discarded => "discarded by its holder",
            Self::Broken => "broken",
            Self::WorkspaceClosed => "its workspace was closed",
            Self::PoolClosed => "the pool was closed",
            Self::Cut => "held past the deadline of a close",
            Self::RuntimeEnded => "its runtime ended",
            Self::Outdated => "opened with what has changed since",
        })
    }
}

/// What happened, for observers. Borrowed, so that telling costs no allocation.
///
/// A caller that has begun to wait is told of once more: as acquired, failed, timed out, or gone. A connection is opened,
/// acquired and released any number of times, and closed; a lease that was cut is released all the same when its holder brings it
/// back, after its close. Events of one connection that happen on several threads may be told in another order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A caller stands in the queue, or waits for the check of an idle connection.
    WaitStarted {
        /// For whom.
        target: &'a Target,
    },
    /// A caller got a lease.
    Acquired {
        /// For whom.
        target: &'a Target,
        /// On which connection.
        connection: ConnectionId,
        /// How long that took.
        waited: Duration,
    },
    /// A caller was told an error other than that its time ran out.
    Failed {
        /// For whom.
        target: &'a Target,
        /// How long it waited.
        waited: Duration,
        /// What it was told.
        error: &'a AcquireError,
    },
    /// A caller gave up: its time ran out.
    TimedOut {
        /// For whom.
        target: &'a Target,
        /// How long it waited.
        waited: Duration,
    },
    /// A caller went away while it waited: its future was dropped.
    GaveUp {
        /// For whom.
        target: &'a Target,
        /// How long it waited.
        waited: Duration,
    },
    /// A holder let go.
    Released {
        /// Whose connection it is.
        target: &'a Target,
        /// Which.
        connection: ConnectionId,
        /// How long it was held.
        held: Duration,
    },
    /// A connection that came back was made clean.
    Recycled {
        /// Whose connection it is.
        target: &'a Target,
        /// Which.
        connection: ConnectionId,
        /// How long that took.
        took: Duration,
    },
    /// A connection was opened.
    Opened {
        /// To whom.
        target: &'a Target,
        /// Which.
        connection: ConnectionId,
        /// How long it took.
        took: Duration,
    },
    /// An open failed.
    OpenFailed {
        /// To whom.
        target: &'a Target,
        /// The cause.
        error: &'a DriverError,
    },
    /// A connection is gone, as the server sees it.
    Closed {
        /// Whose it was.
        target: &'a Target,
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: CloseReason,
        /// The target that stood first for its slot, where it made room.
        for_whom: Option<&'a Target>,
    },
}
