//! Whom to evict: the port that a policy implements. Synchronous and deterministic, with no clock and no hash order, so
//! that every replay chooses alike.

use crate::ids::{ConnectionId, Target};

/// Chooses the idle connection that is closed when the budget is spent and another target waits.
///
/// `touched` and `removed` run on every acquire and release, so they must be O(1). `victim` runs once an eviction.
pub trait EvictionPolicy: Send {
    /// `connection` of `target` is idle from now on: the youngest candidate.
    fn touched(&mut self, connection: ConnectionId, target: &Target);

    /// `connection` was leased or closed: no candidate any more. Called for candidates only.
    fn removed(&mut self, connection: ConnectionId);

    /// The first candidate in the policy's order that `may` accepts, if there is one; the policy may change its state on
    /// the way. The choice stays a candidate until `removed`.
    fn victim(&mut self, may: &dyn Fn(ConnectionId) -> bool) -> Option<ConnectionId>;
}
