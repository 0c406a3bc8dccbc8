//! Whether callers can be served, for health checks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::DriverError;

/// Whether callers can be served, as far as is known without a question to the server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Health {
    /// Nothing is known that would keep callers from being served. One database may still be missing or broken.
    Serving,
    /// The server as a whole does not answer, or refuses everybody. It is asked again and again until that is over.
    Unavailable {
        /// How long that has been known.
        lasting: Duration,
        /// What the server, or the network, said first.
        error: Arc<DriverError>,
    },
    /// The pool is closed, or is being closed, for good.
    Closed,
}

impl Health {
    /// Whether work can be sent here.
    pub fn is_serving(&self) -> bool {
        matches!(self, Self::Serving)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("serving"),
            Self::Unavailable { lasting, error } => write!(f, "unavailable for {lasting:.1?}: {error}"),
            Self::Closed => f.write_str("closed"),
        }
    }
}
