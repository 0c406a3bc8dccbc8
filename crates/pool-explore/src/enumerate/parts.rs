//! What a small world owns: its callers, the work that the registry asked for, and what has happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::time::Instant;

use pool_core::{CloseDebt, ConnectionId, LeaseDebt, LostOpen, OpenWork, Target, Ticket};

pub(super) type Conn = u32;

/// Whether a waiting caller has been woken.
#[derive(Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn is_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn lower(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) enum Caller {
    New,
    /// `asked` orders the callers of a workspace: who was put back at the front has a negative one.
    Waiting {
        ticket: Ticket,
        woken: Arc<Flag>,
        asked: i64,
    },
    /// `fresh` while the check before the first use may still find the connection broken.
    Holding {
        conn: Conn,
        debt: LeaseDebt,
        fresh: bool,
    },
    Done,
}

pub(super) enum Open {
    UnderWay {
        work: OpenWork,
        slow: bool,
        /// Whether the server has been lost and has answered again since it began.
        outlived: bool,
        /// The database was made after it began, so that its failure means nothing.
        outdated: bool,
    },
    /// Given up by those who waited for it.
    Lost(LostOpen),
}

impl Open {
    pub(super) fn target(&self) -> &Target {
        match self {
            Self::UnderWay { work, .. } => work.target(),
            Self::Lost(lost) => lost.target(),
        }
    }

    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::UnderWay { slow: true, .. })
    }

    pub(super) fn is_outdated(&self) -> bool {
        matches!(self, Self::UnderWay { outdated: true, .. })
    }

    pub(super) fn is_outlived(&self) -> bool {
        matches!(self, Self::UnderWay { outlived: true, .. })
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

pub(super) struct Close {
    pub(super) conn: Conn,
    pub(super) debt: CloseDebt,
    pub(super) slow: bool,
}

/// A connection that the server counts.
pub(super) struct Live {
    pub(super) conn: Conn,
    pub(super) id: ConnectionId,
    pub(super) target: Target,
    pub(super) opened: Instant,
    /// When it was last given back, as far as the world knows.
    pub(super) returned: Instant,
}

/// What has happened, which is what errors may tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct History {
    /// Workspaces of which an open has failed, one bit for each.
    pub(super) failed: u8,
    /// Workspaces of which a connection has proved broken in its check.
    pub(super) broken: u8,
    /// Workspaces that somebody has begun to close.
    pub(super) closed: u8,
    pub(super) all_closed: bool,
    /// Workspaces for which an open has succeeded.
    pub(super) served: u8,
    pub(super) limit_lowered: bool,
    /// Whether the server has been lost.
    pub(super) outage: bool,
    /// Workspaces of which an open has been given up.
    pub(super) lost: u8,
}

/// Somebody who closes a workspace, or everything.
pub(super) struct Closer {
    pub(super) target: Option<Target>,
    pub(super) told: bool,
    /// The leases that it is going to cut, once its time is over.
    pub(super) listed: Option<Vec<ConnectionId>>,
    pub(super) has_cut: bool,
    pub(super) is_confirmed: bool,
}
