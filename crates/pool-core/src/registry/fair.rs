//! Whose turn it is: the targets that want a slot, ordered by the slot-time that they have had.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng 1996) over slots. Each target has a *virtual time*: the slot-time it
//! has had while somebody waited, divided by its weight. The target with the least is next, so equals that want more
//! than they have get equal time (max-min). A target that comes to want starts at the virtual time of the share, so
//! wanting nothing earns no credit. A target that leaves with a debt is remembered until the others have caught up.
//! Each newcomer that is served moves the virtual time of the share on by its part of a turn, so that an endless stream
//! of newcomers cannot keep out those that have been served before. Debts and credits are bounded in turns.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::ids::Target;

/// Slot-time by weight, in nanoseconds times [`SCALE`].
pub(super) type Virtual = u128;

/// A weight of one; large enough that dividing by a weight loses nothing that matters.
const SCALE: u128 = 1 << 16;
/// How many turns a target may be ahead of the share's virtual time, or behind it.
const TURNS_MAX: u128 = 8;

/// Where a target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stand {
    /// It wants no slot, or may have none.
    #[default]
    None,
    /// It takes a slot that is free; nothing is closed for it yet.
    Later(Key),
    /// It takes the next slot; a connection of another is closed for it.
    Ready(Key),
}

/// A place in the order: the least virtual time first, and among equals the one that came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    at: Virtual,
    came: u64,
}

/// The account of one target.
#[derive(Debug)]
pub(super) struct Account {
    used: Virtual,
    /// What was charged in advance, for the turns that it has been given and has not used up.
    ahead: Virtual,
    /// The contended time up to which slot-time has been charged.
    charged: Duration,
    weight: u32,
    stand: Stand,
    /// It came with less than others have had, and has not been served since.
    is_new: bool,
}

impl Account {
    pub(super) fn stands(&self) -> bool {
        self.stand != Stand::None
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stand, Stand::Ready(_))
    }

    /// What it has had, and is going to have with the turns that it has been given.
    pub(super) fn had(&self) -> Virtual {
        self.used + self.ahead
    }

    /// What it has had up to now.
    pub(super) fn used(&self) -> Virtual {
        self.used
    }

    pub(super) fn set_weight(&mut self, weight: u32) {
        self.weight = weight;
    }
}

/// The order of one share.
#[derive(Debug, Default)]
pub(super) struct Fair {
    ready: BTreeSet<(Key, u32)>,
    later: BTreeSet<(Key, u32)>,
    virtual_time: Virtual,
    /// How long somebody has stood ready, in all: only then does a slot that one target has cost another.
    contended: Duration,
    contended_at: Option<Instant>,
    came: u64,
    debts: HashMap<Target, Virtual>,
    debts_kept: usize,
}

impl Fair {
    /// An account for a target that comes, with the debt that it left.
    pub(super) fn account(&mut self, target: &Target, weight: u32) -> Account {
        let debt = if self.debts.is_empty() { None } else { self.debts.remove(target) };
        Account {
            used: debt.unwrap_or_default().max(self.virtual_time),
            ahead: 0,
            charged: self.contended,
            weight,
            stand: Stand::None,
            is_new: false,
        }
    }

    /// Remembers what a target that goes owes. Costs memory only until the others have caught up.
    pub(super) fn close_account(&mut self, target: Target, account: &Account) {
        if account.used > self.virtual_time {
            self.debts.insert(target, account.used);
            if self.debts.len() > 2 * self.debts_kept + 64 {
                let now = self.virtual_time;
                self.debts.retain(|_, used| *used > now);
                self.debts_kept = self.debts.len();
            }
        }
    }

    /// Lets the contended time go on to `now`.
    #[inline]
    pub(super) fn tick(&mut self, now: Instant) {
        if let Some(at) = self.contended_at {
            self.contended += now.saturating_duration_since(at);
            self.contended_at = Some(now);
        }
    }

    /// Charges a target for the slots that it has had since it was charged last: `serving` ones, and others that were on
    /// their way out. Without a serving one it has left its turn, and what it has not used is not charged.
    #[inline]
    pub(super) fn charge(&self, account: &mut Account, serving: u32, leaving: u32) {
        if account.charged != self.contended || serving == 0 && account.ahead > 0 {
            self.charge_up(account, serving, leaving);
        }
    }

    fn charge_up(&self, account: &mut Account, serving: u32, leaving: u32) {
        let slots = serving + leaving;
        let time = self.contended.saturating_sub(account.charged).as_nanos() * u128::from(slots);
        let cost = time * SCALE / u128::from(account.weight);
        account.used += cost;
        account.ahead = if serving == 0 { 0 } else { account.ahead.saturating_sub(cost) };
        account.charged = self.contended;
    }

    /// Puts the target `ws` where it is to stand. One that comes starts at the virtual time of the share, within `turn`
    /// of who is next; one that stood keeps its place among its equals.
    pub(super) fn stand(
        &mut self,
        ws: u32,
        account: &mut Account,
        wish: Wish,
        turn: Duration,
        has_nothing: bool,
        now: Instant,
    ) {
        let is_there = matches!(
            (wish, account.stand),
            (Wish::None, Stand::None) | (Wish::Later, Stand::Later(_)) | (Wish::Ready, Stand::Ready(_))
        );
        if is_there {
            return;
        }
        self.tick(now);
        let key = match self.remove(ws, account) {
            Some(key) => key,
            None => self.arrive(account, turn, has_nothing),
        };
        match wish {
            Wish::None => {}
            Wish::Later => {
                self.later.insert((key, ws));
                account.stand = Stand::Later(key);
            }
            Wish::Ready => {
                self.ready.insert((key, ws));
                account.stand = Stand::Ready(key);
            }
        }
        self.contended_at = (!self.ready.is_empty()).then_some(now);
    }

    fn arrive(&mut self, account: &mut Account, turn: Duration, has_nothing: bool) -> Key {
        let turn = scaled(turn);
        let next = self.ready.first().map_or(0, |(key, _)| key.at);
        let floor = self.virtual_time.max(next.saturating_sub(turn));
        account.is_new = has_nothing && account.used <= floor;
        account.used = account.used.clamp(floor, floor + TURNS_MAX * turn);
        self.came += 1;
        Key { at: account.had(), came: self.came }
    }

    fn remove(&mut self, ws: u32, account: &mut Account) -> Option<Key> {
        match std::mem::take(&mut account.stand) {
            Stand::None => None,
            Stand::Later(key) => {
                self.later.remove(&(key, ws));
                Some(key)
            }
            Stand::Ready(key) => {
                self.ready.remove(&(key, ws));
                Some(key)
            }
        }
    }

    /// `ws` is served: it stands no more, and the virtual time of the share goes on. The turn is charged in advance, so
    /// that the target does not take the next slot, too, before it has used this one.
    pub(super) fn serve(&mut self, ws: u32, account: &mut Account, turn: Duration, slots: u32, now: Instant) {
        self.tick(now);
        self.remove(ws, account);
        self.virtual_time = self.virtual_time.max(account.used());
        if std::mem::take(&mut account.is_new) && !self.ready.is_empty() {
            let rivals = u128::from(slots) + self.ready.len() as u128;
            self.virtual_time += scaled(turn) / rivals.max(1);
        }
        account.ahead += scaled(turn) / u128::from(account.weight);
        self.contended_at = (!self.ready.is_empty()).then_some(now);
    }

    /// Gives back a turn that was charged in advance, for an open that came to nothing.
    pub(super) fn refund(account: &mut Account, turn: Duration) {
        account.ahead = account.ahead.saturating_sub(scaled(turn) / u128::from(account.weight));
    }

    /// Puts `ws`, whose account was charged after it came to stand, where it belongs now.
    pub(super) fn reorder(&mut self, ws: u32, account: &mut Account) {
        let had = account.had();
        match &mut account.stand {
            Stand::Ready(key) if key.at != had => {
                self.ready.remove(&(*key, ws));
                key.at = had;
                self.ready.insert((*key, ws));
            }
            Stand::Later(key) if key.at != had => {
                self.later.remove(&(*key, ws));
                key.at = had;
                self.later.insert((*key, ws));
            }
            _ => {}
        }
    }

    pub(super) fn first_ready(&self) -> Option<u32> {
        self.ready.first().map(|(_, ws)| *ws)
    }

    pub(super) fn first_later(&self) -> Option<u32> {
        self.later.first().map(|(_, ws)| *ws)
    }

    /// Those that stand ready, in their order.
    pub(super) fn ready(&self) -> impl Iterator<Item = u32> {
        self.ready.iter().map(|(_, ws)| *ws)
    }

    /// Those that take a free slot only, in their order.
    pub(super) fn later(&self) -> impl Iterator<Item = u32> {
        self.later.iter().map(|(_, ws)| *ws)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.later.is_empty()
    }

    pub(super) fn ready_len(&self) -> u32 {
        super::u32_of(self.ready.len())
    }
}

/// Where a target is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    None,
    Later,
    Ready,
}

/// How many turns a difference of virtual times is, rounded down.
pub(super) fn turns(ahead: Virtual, turn: Duration) -> u32 {
    u32::try_from(ahead / scaled(turn).max(1)).unwrap_or(u32::MAX)
}

fn scaled(time: Duration) -> Virtual {
    time.as_nanos() * SCALE
}
