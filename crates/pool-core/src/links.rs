//! Doubly linked lists over small dense ids: every operation is O(1) and, once the table has grown,
//! free of allocation. The registry keeps its queues in them: waiters, idle connections, turns.

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    prev: u32,
    next: u32,
    linked: bool,
}

/// The nodes of any number of lists; an id is in at most one of them at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    nodes: Vec<Node>,
}

/// One list: its ends and its length. Meaningless without its [`Links`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    front: u32,
    back: u32,
    len: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { front: NONE, back: NONE, len: 0 }
    }
}

impl Links {
    pub(crate) fn is_linked(&self, id: u32) -> bool {
        self.nodes.get(id as usize).is_some_and(|node| node.linked)
    }

    fn node(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    fn grow_to(&mut self, id: u32) {
        let free = Node { prev: NONE, next: NONE, linked: false };
        if self.nodes.len() <= id as usize {
            self.nodes.resize(id as usize + 1, free);
        }
    }
}

impl Chain {
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.front != NONE).then_some(self.front)
    }

    pub(crate) fn back(&self) -> Option<u32> {
        (self.back != NONE).then_some(self.back)
    }

    pub(crate) fn push_back(&mut self, links: &mut Links, id: u32) {
        links.grow_to(id);
        debug_assert!(!links.is_linked(id), "{id} is in a list already");
        *links.node(id) = Node { prev: self.back, next: NONE, linked: true };
        match self.back {
            NONE => self.front = id,
            back => links.node(back).next = id,
        }
        self.back = id;
        self.len += 1;
    }

    pub(crate) fn push_front(&mut self, links: &mut Links, id: u32) {
        links.grow_to(id);
        debug_assert!(!links.is_linked(id), "{id} is in a list already");
        *links.node(id) = Node { prev: NONE, next: self.front, linked: true };
        match self.front {
            NONE => self.back = id,
            front => links.node(front).prev = id,
        }
        self.front = id;
        self.len += 1;
    }

    /// Takes `id`, which is in this list, out of it.
    pub(crate) fn remove(&mut self, links: &mut Links, id: u32) {
        let Node { prev, next, linked } = *links.node(id);
        debug_assert!(linked, "{id} is in no list");
        match prev {
            NONE => self.front = next,
            prev => links.node(prev).next = next,
        }
        match next {
            NONE => self.back = prev,
            next => links.node(next).prev = prev,
        }
        *links.node(id) = Node { prev: NONE, next: NONE, linked: false };
        self.len -= 1;
    }

    pub(crate) fn pop_back(&mut self, links: &mut Links) -> Option<u32> {
        let id = self.back()?;
        self.remove(links, id);
        Some(id)
    }

    pub(crate) fn iter<'a>(&self, links: &'a Links) -> impl Iterator<Item = u32> + 'a {
        let step = |id: u32| (id != NONE).then_some(id);
        std::iter::successors(step(self.front), move |id| step(links.nodes[*id as usize].next))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_chain_behaves_like_a_deque(steps in proptest::collection::vec((0_u8..4, 0_u32..8), 0..64)) {
            let (mut links, mut chain, mut model) = (Links::default(), Chain::default(), VecDeque::new());
            for (step, id) in steps {
                match step {
                    0 if !links.is_linked(id) => {
                        chain.push_back(&mut links, id);
                        model.push_back(id);
                    }
                    1 if !links.is_linked(id) => {
                        chain.push_front(&mut links, id);
                        model.push_front(id);
                    }
                    2 if links.is_linked(id) => {
                        chain.remove(&mut links, id);
                        model.retain(|other| *other != id);
                    }
                    3 => prop_assert_eq!(chain.pop_back(&mut links), model.pop_back()),
                    _ => {}
                }
                prop_assert_eq!(chain.iter(&links).collect::<VecDeque<_>>(), model.clone());
                prop_assert_eq!(chain.len() as usize, model.len());
                prop_assert_eq!((chain.front(), chain.back()), (model.front().copied(), model.back().copied()));
            }
        }
    }
}
