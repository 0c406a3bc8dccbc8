//! Whom to evict: the port that a policy implements. Synchronous, O(1) and deterministic, with no clock
//! and no hash order, so that every replay chooses alike.

use crate::ids::ConnectionId;

/// Chooses the idle connection that is closed when the budget is spent and another workspace waits.
pub trait EvictionPolicy: Send {
    /// `connection` is idle from now on: the youngest candidate.
    fn touched(&mut self, connection: ConnectionId);

    /// `connection` was leased or closed: no candidate any more. Told only of candidates.
    fn removed(&mut self, connection: ConnectionId);

    /// The candidate to close next, if there is one. The choice stays a candidate until `removed`.
    fn victim(&self) -> Option<ConnectionId>;
}
