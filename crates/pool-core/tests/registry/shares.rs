//! Who is next: slot-time by weight, debts, newcomers, and who yields where permits are short.

use std::time::Duration;

use pool_core::{CloseDebt, CloseReason, Leased, RegistryConfig, Terms, Ticket};
use rstest::rstest;

use crate::world::{CLOSE, LEASE, QUANTUM, SWITCH, World, closes, nothing, opens, target};

/// The slot-time of a turn.
const TURN: Duration = Duration::from_millis(8);

/// Workspaces that want more than they have, on one slot: two callers of each wait at any time, and each holds its
/// connection for the time of a lease.
struct Busy {
    world: World,
    waiting: Vec<(&'static str, Vec<pool_core::Ticket>)>,
    /// Whose turns there were, in order, and how long each held the slot.
    turns: Vec<(&'static str, Duration)>,
}

impl Busy {
    fn new(world: World, names: &[&'static str]) -> Self {
        let mut busy = Self { world, waiting: Vec::new(), turns: Vec::new() };
        for name in names {
            busy.joins(name);
        }
        busy
    }

    fn joins(&mut self, name: &'static str) {
        let tickets = vec![self.world.ask(name), self.world.ask(name)];
        self.waiting.push((name, tickets));
    }

    /// Lets the next `turns` turns pass.
    fn run(&mut self, turns: usize) {
        let end = self.turns.len() + turns;
        while self.turns.len() < end {
            self.world.close_in_time();
            // The slot is its own from the moment at which it is to be opened until the close has ended.
            let began = self.world.now;
            let opened = self.world.open_in_time().remove(0);
            let at = self.waiting.iter().position(|(name, _)| target(name) == opened).unwrap();
            while self.world.closes.is_empty() {
                let (name, tickets) = &mut self.waiting[at];
                let held = self.world.served(tickets.remove(0));
                tickets.push(self.world.ask(name));
                self.world.pass(LEASE);
                self.world.release(held);
            }
            self.turns.push((self.waiting[at].0, self.world.now + CLOSE - began));
        }
    }

    fn had(&self, whose: &str, last: usize) -> Duration {
        let turns = &self.turns[self.turns.len() - last..];
        turns.iter().filter(|(name, _)| *name == whose).map(|(_, time)| *time).sum()
    }
}

#[test]
fn w6_equal_workspaces_that_want_more_than_they_have_take_turns() {
    let mut busy = Busy::new(World::new(1, 1), &["a", "b", "c"]);
    busy.run(30);
    for name in ["a", "b", "c"] {
        let (had, fair) = (busy.had(name, 30), TURN * 10);
        assert!(had >= fair && had <= fair + LEASE, "{name} had {had:?}: {:?}", busy.turns);
    }
}

#[test]
fn w6_the_workspace_that_has_had_least_is_next() {
    let mut world = World::new(1, 1);
    let held = world.lease_in_time("much");
    let little = world.ask("little");
    world.pass(Duration::from_millis(40));
    world.release(held);
    world.close_in_time();
    world.open_in_time();
    let held = world.served(little);
    let waiting = (world.ask("much"), world.ask("little"), world.ask("nothing"));
    let mut order = Vec::new();
    world.pass(QUANTUM);
    world.release(held);
    let mut tickets = vec![("much", waiting.0), ("little", waiting.1), ("nothing", waiting.2)];
    while !tickets.is_empty() {
        world.close_in_time();
        let next = world.open_in_time().remove(0);
        let at = tickets.iter().position(|(name, _)| target(name) == next).unwrap();
        let (name, ticket) = tickets.remove(at);
        order.push(name);
        let held = world.served(ticket);
        world.release(held);
    }
    assert_eq!(order, ["nothing", "little", "much"], "not in the order in which they came");
}

#[test]
fn w6_slot_time_is_by_weight() {
    let mut world = World::new(1, 1);
    let terms = Terms { weight: 3, ceiling: None };
    let effects = world.registry.set_terms(&target("heavy"), terms, world.now);
    world.take(effects);
    let mut busy = Busy::new(world, &["heavy", "light"]);
    busy.run(60);
    let ratio = busy.had("heavy", 60).as_secs_f64() / busy.had("light", 60).as_secs_f64();
    assert!((2.9..=3.1).contains(&ratio), "{ratio}: {:?}", busy.turns);
}

#[test]
fn w6_slot_time_counts_with_the_weight_that_was_set_while_it_was_in_use() {
    let mut world = World::new(3, 3);
    let [a, b, x] = ["a", "b", "x"].map(|name| world.lease_in_time(name));
    let terms = Terms { weight: 1_000, ceiling: None };
    let effects = world.registry.set_terms(&target("a"), terms, world.now);
    world.take(effects);
    let contender = world.ask("contender");
    world.pass(Duration::from_millis(40));
    let gave_up = world.registry.cancel_wait(contender, world.now);
    world.take(gave_up.effects);
    let _waiting = (world.ask("b"), world.ask("a"));
    let effects = world.registry.discard(x.debt, x.conn, world.now);
    world.take(effects);
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["a"]), "it has had next to nothing");
    drop((a, b));
}

#[test]
fn w6_who_wanted_nothing_earns_no_credit() {
    let mut world = World::new(1, 1);
    // It was there at the beginning, and then wanted nothing for a long time.
    let held = world.lease_in_time("late");
    world.release(held);
    let mut busy = Busy::new(world, &["a", "b"]);
    busy.run(100);
    busy.joins("late");
    busy.run(12);
    assert!(busy.had("late", 12) <= TURN * 5, "{:?}", &busy.turns[100..]);
    assert!(busy.had("a", 12) >= TURN * 3, "{:?}", &busy.turns[100..]);
}

#[test]
fn w6_a_debt_outlives_the_entry_of_its_workspace() {
    let mut world = World::new(1, 1);
    let held = world.lease_in_time("greedy");
    let patient = world.ask("patient");
    world.pass(Duration::from_millis(40));
    world.release(held);
    world.close_in_time();
    assert!(!world.registry.view(world.now).workspaces.iter().any(|ws| ws.target == target("greedy")));
    world.open_in_time();
    let held = world.served(patient);
    let _again = (world.ask("greedy"), world.ask("newcomer"));
    world.release(held);
    world.close_in_time();
    assert_eq!(world.opens[0].target(), &target("newcomer"), "although the greedy one came first");
}

#[test]
fn w6_a_turn_is_charged_when_it_is_given() {
    let mut world = World::new(3, 3);
    let held: Vec<_> = ["x", "y", "b"].iter().map(|name| world.lease(name)).collect();
    let a = world.ask("a");
    world.pass(Duration::from_millis(2));
    let [x, y, b]: [_; 3] = held.try_into().unwrap();
    world.release(b);
    world.close_all_owed();
    world.open_all();
    let _held = world.served(a);
    // `a` has had nothing yet, and `b` has had two milliseconds.
    let _waiting = (world.ask("a"), world.ask("a"), world.ask("a"), world.ask("b"));
    for leased in [x, y] {
        world.release(leased);
        world.close_all_owed();
    }
    let next: Vec<_> = world.opens.iter().map(|work| work.target().clone()).collect();
    assert_eq!(next, [target("b"), target("a")]);
}

#[test]
fn w6_an_open_that_failed_has_cost_no_turn() {
    let mut world = World::new(3, 3);
    let _held = (world.lease_in_time("a"), world.lease_in_time("b"));
    let _second = world.ask("a");
    world.fail_first();
    let held = world.lease_in_time("x");
    let other = world.ask("other");
    world.pass(TURN + LEASE);
    let gave_up = world.registry.cancel_wait(other, world.now);
    world.take(gave_up.effects);
    // `a` and `b` have had the same now. `a` asks first.
    world.pass(Duration::from_millis(50));
    let effects = world.registry.retry(&target("a"), world.now);
    world.take(effects);
    let _third = world.ask("b");
    world.pass(SWITCH);
    world.release(held);
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["a"]));
}

#[test]
fn w6_an_endless_stream_of_newcomers_keeps_nobody_out() {
    let mut world = World::new(1, 1);
    let held = world.lease_in_time("old");
    let mut newcomer = world.ask("new0");
    world.pass(Duration::from_millis(40));
    world.release(held);
    let _old = world.ask("old");
    for i in 1.. {
        world.close_in_time();
        if world.open_in_time() == [target("old")] {
            return;
        }
        assert!(i < 30, "the old one waits, and {i} newcomers were served");
        let held = world.served(newcomer);
        newcomer = world.ask(&format!("new{i}"));
        world.pass(LEASE);
        world.release(held);
    }
}

#[test]
fn w2_where_permits_are_short_those_that_have_served_longest_yield_first() {
    let config = RegistryConfig { quantum: Some(QUANTUM), opens: 1, ..RegistryConfig::new(5, 1) };
    let mut world = World::with(config);
    for name in ["a", "b", "c"] {
        world.idle_in_time(name);
    }
    let (ends, hangs) = (world.lease_in_time("d"), world.lease_in_time("e"));
    let [a, b, c] = ["a", "b", "c"].map(|name| world.hit(name));
    let mut queues = ["a", "b", "c"].map(|name| vec![world.ask(name), world.ask(name)]);
    let _quiet = ["q1", "q2", "q3"].map(|name| world.ask(name));
    let effects = world.registry.discard(ends.debt, ends.conn, world.now);
    world.take(effects);
    world.close_in_time();
    assert_eq!(world.asked, opens(&["q1"]), "it takes the only permit");
    let effects = world.registry.discard(hangs.debt, hangs.conn, world.now);
    world.take(effects);
    let (_, mut hung) = world.closes.remove(0).split();
    // A slot is on its way, and there is no permit for another one: these two serve on.
    let mut next = Vec::new();
    for (leased, queue) in [a, b].into_iter().zip(&mut queues) {
        world.release(leased);
        assert_eq!(world.asked, nothing());
        next.push(world.served(queue.remove(0)));
    }
    // The slot does not come. By the time that another one is free, a permit is.
    let effects = world.registry.close_is_slow(&mut hung, world.now);
    world.take(effects);
    world.release(c);
    assert_eq!(world.asked, nothing(), "two others have served longer, and come back soon");
    let [a, b]: [_; 2] = next.try_into().unwrap();
    world.release(a);
    assert_eq!(world.asked, closes(&["a"], CloseReason::Yielded));
    world.release(b);
    assert_eq!(world.asked, nothing(), "one yields for one permit");
    let effects = world.registry.closed(hung, world.now);
    world.take(effects);
}

#[test]
fn w6_a_quiet_workspace_gets_the_first_slot_whose_quantum_ends() {
    let mut world = World::new(2, 1);
    let (first, second) = (world.lease_in_time("loud1"), world.lease_in_time("loud2"));
    let (next, _other) = (world.ask("loud1"), world.ask("loud2"));
    let _quiet = world.ask("quiet");
    let _another = world.ask("another");
    world.release(second);
    assert_eq!(world.asked, nothing(), "its quantum has not ended");
    world.release(first);
    assert_eq!(world.asked, closes(&["loud1"], CloseReason::Yielded));
    world.waits(next);
    world.close_in_time();
    assert_eq!(world.asked, opens(&["quiet"]));
}

/// A caller that waits for a workspace, and has another slot of it in some state.
#[rstest]
#[case::in_use(|world: &mut World| drop(world.lease_in_time("a")))]
#[case::on_its_way_out(|world: &mut World| {
    let held = world.lease_in_time("a");
    let effects = world.registry.discard(held.debt, held.conn, world.now);
    world.take(effects);
})]
fn w6_a_workspace_that_has_a_slot_is_no_newcomer(#[case] has_a_slot: fn(&mut World)) {
    let mut world = World::new(4, 4);
    let [x, _y, _rival, old] = ["x", "y", "rival", "old"].map(|name| world.lease_in_time(name));
    // Somebody waits for a moment, which `old` has to pay for.
    let contender = world.ask("contender");
    world.pass(Duration::from_micros(200));
    let gave_up = world.registry.cancel_wait(contender, world.now);
    world.take(gave_up.effects);
    let effects = world.registry.discard(old.debt, old.conn, world.now);
    world.take(effects);
    world.close_in_time();
    has_a_slot(&mut world);
    let mut owed = std::mem::take(&mut world.closes);
    // Queues so long that nobody is patient.
    let _waiting = ["a"; 6].map(|name| world.ask(name));
    let _rivals = ["rival"; 6].map(|name| world.ask(name));
    world.release(x);
    world.close_all_owed();
    assert_eq!(world.asked, opens(&["a"]));
    let _more = (world.ask("old"), world.ask("late"));
    // A newcomer that is served moves the time of the share on, so that `late` would owe as much as `old`.
    assert_eq!(world.registry.view(world.now).ready[..2], [target("late"), target("old")]);
    world.closes.append(&mut owed);
}

/// Three that have served for a quantum. All permits are taken, and a slot was on its way, so that the first two came back
/// and serve on; now the slot does not come.
struct Overdue {
    world: World,
    /// The first one, and the ticket of the next caller of its workspace.
    first: Option<(Leased<u32>, Ticket)>,
    last: Leased<u32>,
    hung: CloseDebt,
}

impl Overdue {
    fn new(opens: u32, lease: Duration) -> Self {
        let config = RegistryConfig { quantum: Some(QUANTUM), opens, ..RegistryConfig::new(4 + opens, 1) };
        let mut world = World::with(config);
        // The first lease is measured.
        let measured = world.lease_in_time("other");
        world.pass(lease);
        world.release(measured);
        let [a, b, last] = ["a", "b", "c"].map(|name| world.lease_in_time(name));
        let others: Vec<_> = (0..opens).map(|i| world.lease_in_time(&format!("other{i}"))).collect();
        let hangs = world.hit("other");
        let [[a1, a2], [b1, _], _] = ["a", "b", "c"].map(|name| [world.ask(name), world.ask(name)]);
        let _quiet: Vec<_> = (0..opens + 2).map(|i| world.ask(&format!("quiet{i}"))).collect();
        for leased in others {
            let effects = world.registry.discard(leased.debt, leased.conn, world.now);
            world.take(effects);
            world.close_in_time();
        }
        assert_eq!(world.opens.len(), opens as usize);
        let effects = world.registry.discard(hangs.debt, hangs.conn, world.now);
        world.take(effects);
        let (_, mut hung) = world.closes.remove(0).split();
        let [a, _b] = [(a, a1), (b, b1)].map(|(leased, next)| {
            world.release(leased);
            assert_eq!(world.asked, nothing());
            world.served(next)
        });
        let effects = world.registry.close_is_slow(&mut hung, world.now);
        world.take(effects);
        Self { world, first: Some((a, a2)), last, hung }
    }

    /// Whether the last one yields when it comes back.
    fn last_yields(self) -> bool {
        let Self { mut world, last, hung, .. } = self;
        world.release(last);
        let asked = std::mem::replace(&mut world.asked, nothing());
        let effects = world.registry.closed(hung, world.now);
        world.take(effects);
        assert!(asked == nothing() || asked == closes(&["c"], CloseReason::Yielded), "{asked:?}");
        asked != nothing()
    }
}

#[test]
fn w2_one_that_would_have_to_wait_too_long_for_those_that_have_served_longer_yields_in_their_place() {
    // One is wanted, and leases are so long that two more permits are free by the time that one of those has come back.
    assert!(Overdue::new(2, 3 * LEASE).last_yields());
}

#[rstest]
#[case::usual(2 * LEASE, false)]
#[case::long(2 * LEASE + Duration::from_nanos(1), true)]
fn w2_one_whose_lease_takes_longer_than_two_usual_ones_is_not_waited_for(
    #[case] leased_for: Duration,
    #[case] yields: bool,
) {
    let mut overdue = Overdue::new(1, LEASE);
    overdue.world.pass(leased_for);
    assert_eq!(overdue.last_yields(), yields);
}

#[test]
fn w2_one_that_was_idle_meanwhile_is_not_waited_for() {
    let mut overdue = Overdue::new(1, LEASE);
    let (leased, next) = overdue.first.take().unwrap();
    let world = &mut overdue.world;
    let gave_up = world.registry.cancel_wait(next, world.now);
    world.take(gave_up.effects);
    world.release(leased);
    assert_eq!(world.asked, nothing());
    let _again = world.hit("a");
    assert!(overdue.last_yields());
}

#[test]
fn w2_as_many_yield_as_permits_will_be_free_by_then() {
    let config = RegistryConfig { quantum: Some(QUANTUM), opens: 5, ..RegistryConfig::new(7, 1) };
    let mut world = World::with(config);
    let loud = ["loud1", "loud2"].map(|name| world.lease_in_time(name));
    let _next = ["loud1", "loud2"].map(|name| world.ask(name));
    let _opening: Vec<_> = (0..5).map(|i| world.ask(&format!("opening{i}"))).collect();
    let _quiet = ["quiet1", "quiet2"].map(|name| world.ask(name));
    // All permits are taken. A close takes a quarter of what an open takes, so that two are free when it is over.
    world.pass(QUANTUM);
    for (leased, name) in loud.into_iter().zip(["loud1", "loud2"]) {
        world.release(leased);
        assert_eq!(world.asked, closes(&[name], CloseReason::Yielded));
    }
}
