//! What can happen next in a small world.

use std::fmt;

/// One step: something a caller does, or something that becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The caller asks for a connection.
    Ask(usize),
    /// The caller, having been woken, fetches its answer.
    Fetch(usize),
    /// The caller gives up waiting.
    GiveUp(usize),
    /// The caller gives its connection back.
    Release(usize),
    /// The caller's connection breaks, and is given back as broken.
    Break(usize),
    /// An open under way succeeds.
    OpenSucceeds(usize),
    /// An open under way fails.
    OpenFails(usize),
    /// A close under way is confirmed by the server.
    CloseIsConfirmed(usize),
    /// The pause after a failed open is over.
    RetryIsDue(usize),
    /// The length of a turn passes.
    TurnPasses,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(c) => write!(f, "caller {c} asks"),
            Self::Fetch(c) => write!(f, "caller {c} was woken and fetches its answer"),
            Self::GiveUp(c) => write!(f, "caller {c} gives up"),
            Self::Release(c) => write!(f, "caller {c} gives its connection back"),
            Self::Break(c) => write!(f, "the connection of caller {c} breaks and comes back"),
            Self::OpenSucceeds(i) => write!(f, "open number {i} succeeds"),
            Self::OpenFails(i) => write!(f, "open number {i} fails"),
            Self::CloseIsConfirmed(i) => write!(f, "close number {i} is confirmed"),
            Self::RetryIsDue(i) => write!(f, "the pause of retry number {i} is over"),
            Self::TurnPasses => f.write_str("the length of a turn passes"),
        }
    }
}
