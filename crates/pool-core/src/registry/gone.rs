//! Sessions that have ended on the server although nobody closed them here.

use std::time::Instant;

use super::planted::Bug;
use super::{ConnState, Registry};
use crate::ids::ConnectionId;
use crate::stats::CloseReason;
use crate::token::Effects;

impl<C> Registry<C> {
    /// The connections that are idle, for a driver that can tell which of them still exist. Costs a pass over the
    /// connections.
    pub fn idle(&self) -> Vec<ConnectionId> {
        let idle = self.conns.iter().filter(|(_, entry)| matches!(entry.state, ConnState::Idle { .. }));
        idle.map(|(_, entry)| entry.id).collect()
    }

    /// The server has ended the sessions of `gone`, which were idle when it was asked. Those that are still idle are
    /// closed, and the others that are idle at this moment are checked before their next use. A connection that was
    /// leased meanwhile is left to its holder (law E1), who will find it broken.
    pub fn vanished(&mut self, gone: &[ConnectionId], now: Instant) -> Effects<C> {
        let mut effects = Effects::default();
        for id in gone {
            if let Some(id) = self.idle_now(*id) {
                effects.closes.push(self.retire_idle(id, CloseReason::Broken));
            }
        }
        if !effects.closes.is_empty() {
            self.note_breakage(now);
        }
        effects
    }

    /// The connection that `id` means, if it is idle: an index alone may be that of a later connection.
    fn idle_now(&self, id: ConnectionId) -> Option<ConnectionId> {
        let entry = self.conns.get(id.index() as usize)?;
        let is_it = entry.id == id || self.has_bug(Bug::StaleToken);
        (is_it && matches!(entry.state, ConnState::Idle { .. })).then_some(entry.id)
    }
}
