//! Whose turn it is: the targets that want a slot, ordered by the slot-time that they have had.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng 1996) over slots. Each target has a *virtual time*: the slot-time it
//! has had while some target stood ready, divided by its weight. The target with the least is next, so equals that want more
//! than they have get equal time (max-min). A target that comes to want starts at the virtual time of the share, so
//! wanting nothing earns no credit. A target that leaves with a debt is remembered until the others have caught up.
//! Each newcomer that is served moves the virtual time of the share on by its part of a turn, so that an endless stream
//! of newcomers cannot keep out those that have been served before. Debts are at most eight turns; there is no credit.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::ids::Target;

/// Slot-time by weight, in nanoseconds times [`SCALE`].
pub(super) type Virtual = u128;

/// A weight of one; large enough that dividing by a weight loses nothing that matters.
const SCALE: u128 = 1 << 16;
/// How many turns a target may be ahead of the share's virtual time when it comes to stand.
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
    /// The most that any target had used when it was served, and what newcomers have moved it on by.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WorkspaceId;

    const TURN: Duration = Duration::from_millis(10);
    const MS: Duration = Duration::from_millis(1);

    fn target(number: u32) -> Target {
        Target::Workspace(WorkspaceId::new(format!("w{number}")).unwrap())
    }

    /// Somebody who stands ready, so that slot-time is contended from `now` on.
    fn contended(fair: &mut Fair, now: Instant) {
        let mut rival = fair.account(&target(999), 1);
        fair.stand(999, &mut rival, Wish::Ready, TURN, true, now);
    }

    #[test]
    fn slot_time_is_charged_by_slot_and_weight_while_somebody_stands_ready() {
        let (mut fair, now) = (Fair::default(), Instant::now());
        let (mut single, mut double) = (fair.account(&target(1), 1), fair.account(&target(2), 2));
        fair.tick(now);
        fair.charge(&mut single, 1, 0);
        assert_eq!(single.used(), 0, "nobody waits");
        contended(&mut fair, now);
        fair.tick(now + 6 * MS);
        fair.charge(&mut single, 1, 1);
        fair.charge(&mut double, 1, 0);
        assert_eq!((single.used(), double.used()), (2 * scaled(6 * MS), scaled(3 * MS)));
        fair.charge(&mut single, 1, 1);
        assert_eq!(single.used(), 2 * scaled(6 * MS), "a moment is charged once");
    }

    #[test]
    fn a_turn_is_charged_in_advance_by_weight_and_given_back() {
        let (mut fair, now) = (Fair::default(), Instant::now());
        let mut account = fair.account(&target(1), 2);
        fair.serve(1, &mut account, TURN, 4, now);
        assert_eq!((account.used(), account.had()), (0, scaled(TURN) / 2));
        Fair::refund(&mut account, TURN);
        assert_eq!(account.had(), 0);
        Fair::refund(&mut account, TURN);
        assert_eq!(account.had(), 0, "no more than was charged");
        fair.serve(1, &mut account, TURN, 4, now);
        fair.serve(1, &mut account, TURN, 4, now);
        Fair::refund(&mut account, TURN);
        assert_eq!(account.had(), scaled(TURN) / 2, "one of two");
    }

    #[test]
    fn what_is_used_is_taken_from_what_was_charged_in_advance_and_the_rest_is_let_go() {
        let (mut fair, now) = (Fair::default(), Instant::now());
        let mut account = fair.account(&target(1), 1);
        fair.serve(1, &mut account, TURN, 4, now);
        contended(&mut fair, now);
        fair.tick(now + 4 * MS);
        fair.charge(&mut account, 1, 0);
        assert_eq!((account.used(), account.had()), (scaled(4 * MS), scaled(TURN)));
        fair.charge(&mut account, 0, 0);
        assert_eq!(account.had(), scaled(4 * MS), "it has left its turn");
    }

    #[test]
    fn a_debt_outlives_its_account_until_the_others_have_caught_up() {
        let mut fair = Fair::default();
        let mut account = fair.account(&target(1), 1);
        account.used = scaled(5 * MS);
        fair.close_account(target(1), &account);
        assert_eq!(fair.account(&target(2), 1).used(), 0);
        assert_eq!(fair.account(&target(1), 1).used(), scaled(5 * MS));
        assert_eq!(fair.account(&target(1), 1).used(), 0, "it is taken along");
        account.used = 0;
        fair.close_account(target(3), &account);
        assert!(fair.debts.is_empty(), "who owes nothing is not remembered");
    }

    #[test]
    fn debts_that_the_others_have_caught_up_with_are_forgotten_now_and_then() {
        let mut fair = Fair::default();
        let mut account = fair.account(&target(0), 1);
        for number in 0..64 {
            account.used = scaled(MS) + u128::from(number);
            fair.close_account(target(number), &account);
        }
        assert_eq!((fair.debts.len(), fair.debts_kept), (64, 0), "so few are not looked through");
        fair.virtual_time = scaled(MS) + 32;
        account.used = scaled(2 * MS);
        fair.close_account(target(64), &account);
        // Those of more than 32, and the last one.
        assert_eq!((fair.debts.len(), fair.debts_kept), (31 + 1, 32));
        for number in 100..196 {
            account.used = scaled(3 * MS);
            fair.close_account(target(number), &account);
        }
        assert_eq!(fair.debts.len(), 32 + 96, "twice as many, and some, are allowed");
        fair.virtual_time = scaled(3 * MS);
        account.used = scaled(4 * MS);
        fair.close_account(target(200), &account);
        assert_eq!(fair.debts.len(), 1);
    }

    #[test]
    fn who_comes_starts_within_a_turn_of_who_is_next_and_owes_no_more_than_some_turns() {
        let (mut fair, now) = (Fair::default(), Instant::now());
        let mut first = fair.account(&target(1), 1);
        first.used = scaled(100 * MS);
        fair.virtual_time = scaled(95 * MS);
        fair.stand(1, &mut first, Wish::Ready, TURN, false, now);
        let mut new = fair.account(&target(2), 1);
        new.used = 0;
        fair.stand(2, &mut new, Wish::Ready, TURN, true, now);
        assert_eq!(new.used(), scaled(95 * MS));
        assert!(new.is_new && new.is_ready());
        let mut debtor = fair.account(&target(3), 1);
        debtor.used = scaled(900 * MS);
        fair.stand(3, &mut debtor, Wish::Later, TURN, true, now);
        assert_eq!(debtor.used(), scaled(95 * MS) + TURNS_MAX * scaled(TURN));
        assert!(!debtor.is_new && !debtor.is_ready() && debtor.stands());
        assert_eq!(fair.ready().collect::<Vec<_>>(), [2, 1]);
        assert_eq!((fair.later().collect::<Vec<_>>(), fair.first_later()), (vec![3], Some(3)));
    }

    #[test]
    fn who_was_charged_while_standing_is_put_where_it_belongs() {
        let (mut fair, now) = (Fair::default(), Instant::now());
        let (mut first, mut second) = (fair.account(&target(1), 1), fair.account(&target(2), 1));
        for wish in [Wish::Ready, Wish::Later] {
            fair.stand(1, &mut first, wish, TURN, false, now);
            fair.stand(2, &mut second, wish, TURN, false, now);
            let order = |fair: &Fair| fair.ready().chain(fair.later()).collect::<Vec<_>>();
            let before = order(&fair);
            let account = if before[0] == 1 { &mut first } else { &mut second };
            account.used += scaled(TURN);
            fair.reorder(before[0], account);
            assert_eq!(order(&fair), [before[1], before[0]]);
            assert!(!fair.is_empty());
        }
    }

    #[test]
    fn a_new_one_that_is_served_moves_the_time_of_the_share_on() {
        let (mut fair, now) = (Fair::default(), Instant::now());
        contended(&mut fair, now);
        let mut new = fair.account(&target(1), 1);
        fair.stand(1, &mut new, Wish::Ready, TURN, true, now);
        fair.serve(1, &mut new, TURN, 4, now);
        assert_eq!(fair.virtual_time, scaled(TURN) / 5, "four slots and one rival");
        assert!(!new.stands());
    }

    #[test]
    fn a_difference_is_so_many_turns_rounded_down() {
        assert_eq!(turns(3 * scaled(TURN) - 1, TURN), 2);
        assert_eq!(turns(3 * scaled(TURN), TURN), 3);
        assert_eq!(turns(7, Duration::ZERO), 7);
    }
}
