//! The default eviction policy: the least recently used idle connection goes first (law E2).

use crate::ids::ConnectionId;
use crate::links::{Chain, Links};
use crate::policy::EvictionPolicy;

/// Least recently used first.
///
/// ```
/// use pool_core::{ConnectionId, EvictionPolicy, Lru};
///
/// let (a, b) = (ConnectionId::new(0, 0), ConnectionId::new(1, 0));
/// let mut lru = Lru::default();
/// lru.touched(a);
/// lru.touched(b);
/// assert_eq!(lru.victim(), Some(a));
/// ```
#[derive(Debug, Default)]
pub struct Lru {
    links: Links,
    order: Chain,
    ids: Vec<Option<ConnectionId>>,
}

impl EvictionPolicy for Lru {
    fn touched(&mut self, connection: ConnectionId) {
        let index = connection.index() as usize;
        if self.ids.len() <= index {
            self.ids.resize(index + 1, None);
        }
        self.ids[index] = Some(connection);
        self.order.push_back(&mut self.links, connection.index());
    }

    fn removed(&mut self, connection: ConnectionId) {
        self.order.remove(&mut self.links, connection.index());
    }

    fn victim(&self) -> Option<ConnectionId> {
        self.ids[self.order.front()? as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e2_the_victim_is_the_one_that_has_been_idle_longest() {
        let mut lru = Lru::default();
        let ids: Vec<_> = (0..3).map(|index| ConnectionId::new(index, 0)).collect();
        for id in &ids {
            lru.touched(*id);
        }
        lru.removed(ids[0]);
        assert_eq!(lru.victim(), Some(ids[1]));
        lru.touched(ids[0]);
        lru.removed(ids[1]);
        lru.removed(ids[2]);
        assert_eq!(lru.victim(), Some(ids[0]));
    }
}
