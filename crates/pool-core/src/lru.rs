//! The default eviction policy: the least recently used idle connection goes first (law E2).

use crate::ids::{ConnectionId, Target};
use crate::links::{Chain, Links};
use crate::policy::EvictionPolicy;

/// Least recently used first.
///
/// ```
/// use pool_core::{ConnectionId, EvictionPolicy, Lru, Target};
///
/// let (a, b) = (ConnectionId::new(0, 0), ConnectionId::new(1, 0));
/// let mut lru = Lru::default();
/// lru.touched(a, &Target::System);
/// lru.touched(b, &Target::System);
/// assert_eq!(lru.victim(&|_| true), Some(a));
/// assert_eq!(lru.victim(&|id| id != a), Some(b));
/// ```
#[derive(Debug, Default)]
pub struct Lru {
    links: Links,
    order: Chain,
    ids: Vec<Option<ConnectionId>>,
}

impl EvictionPolicy for Lru {
    fn touched(&mut self, connection: ConnectionId, _: &Target) {
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

    fn victim(&mut self, may: &dyn Fn(ConnectionId) -> bool) -> Option<ConnectionId> {
        self.order.iter(&self.links).filter_map(|index| self.ids[index as usize]).find(|id| may(*id))
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
            lru.touched(*id, &Target::System);
        }
        lru.removed(ids[0]);
        assert_eq!(lru.victim(&|_| true), Some(ids[1]));
        lru.touched(ids[0], &Target::System);
        lru.removed(ids[1]);
        lru.removed(ids[2]);
        assert_eq!(lru.victim(&|_| true), Some(ids[0]));
    }
}
