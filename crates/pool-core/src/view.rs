//! Who holds what, who waits, and what is being opened, at one moment: what is looked at when a pool is full.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::ids::{ConnectionId, Target};

/// Where in the source a caller asked for a connection.
pub type CallSite = &'static Location<'static>;

/// Who holds what, who waits, and what is being opened. Each list begins with what has lasted longest. `Display` makes a table of
/// it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PoolView {
    /// The connections in use.
    pub leases: Vec<LeaseView>,
    /// The callers that wait.
    pub waiting: Vec<WaitView>,
    /// The opens under way, those included that nobody waits for any more.
    pub opening: Vec<OpenView>,
}

/// A connection in use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeaseView {
    /// Whose database it is connected to.
    pub target: Target,
    /// Which connection it is.
    pub connection: ConnectionId,
    /// How long it has been in use.
    pub lasting: Duration,
    /// Where its holder asked for it. None where nobody holds it: it is being made clean, or on its way to its caller.
    pub at: Option<CallSite>,
}

/// A caller that waits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WaitView {
    /// What it asked for.
    pub target: Target,
    /// How long it has waited.
    pub lasting: Duration,
    /// Where it asked.
    pub at: CallSite,
}

/// An open under way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenView {
    /// To whose database.
    pub target: Target,
    /// How long it has taken.
    pub lasting: Duration,
}

impl LeaseView {
    /// What [`PoolView::leases`] holds.
    pub fn new(target: Target, connection: ConnectionId, lasting: Duration, at: Option<CallSite>) -> Self {
        Self { target, connection, lasting, at }
    }
}

impl WaitView {
    /// What [`PoolView::waiting`] holds.
    pub fn new(target: Target, lasting: Duration, at: CallSite) -> Self {
        Self { target, lasting, at }
    }
}

impl OpenView {
    /// What [`PoolView::opening`] holds.
    pub fn new(target: Target, lasting: Duration) -> Self {
        Self { target, lasting }
    }
}

impl fmt::Display for PoolView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "in use: {}", self.leases.len())?;
        for LeaseView { target, connection, lasting, at } in &self.leases {
            write!(f, "  {target}, connection {connection}, {lasting:.1?}, ")?;
            match at {
                Some(at) => writeln!(f, "asked for at {at}")?,
                None => writeln!(f, "held by nobody")?,
            }
        }
        writeln!(f, "waiting: {}", self.waiting.len())?;
        for WaitView { target, lasting, at } in &self.waiting {
            writeln!(f, "  {target}, {lasting:.1?}, asked for at {at}")?;
        }
        writeln!(f, "opening: {}", self.opening.len())?;
        for OpenView { target, lasting } in &self.opening {
            writeln!(f, "  {target}, {lasting:.1?}")?;
        }
        Ok(())
    }
}
