//! Closing, lifetimes, and sums that agree.

use std::time::{Duration, Instant};

use pool_core::{Acquire, AcquireError, Claim, CloseReason, Effects, Leased, Lru, Registry, RegistryConfig};

use crate::world::{Asked, Conn, World, broke, nothing, target};

#[test]
fn c1_a_closed_registry_refuses_work_fails_waiters_and_closes_what_comes_back() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let ticket = world.ask("b");
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    assert_eq!(world.asked, Asked { drained: true, ..nothing() }, "only the lease is left to wait for");
    assert!(matches!(world.claim(ticket), Claim::Failed(AcquireError::Closed)));
    assert!(matches!(world.refusal("a"), AcquireError::Closed));
    world.release(held);
    assert_eq!(world.close_all_owed()[0].1, CloseReason::PoolClosed);
    assert!(world.registry.is_empty());
}

#[test]
fn c1_a_closed_registry_is_drained_when_its_last_close_has_ended() {
    let mut world = World::new(2, 2);
    world.idle("a");
    world.idle("b");
    let effects = world.registry.close_all(world.now);
    world.take(effects);
    assert!(!world.asked.drained);
    for is_last in [false, true] {
        let (_, debt) = world.closes.remove(0).split();
        let effects = world.registry.closed(debt, world.now);
        world.take(effects);
        assert_eq!(world.asked, Asked { drained: is_last, ..nothing() });
    }
}

#[test]
fn c3_closing_twice_changes_nothing() {
    let mut world = World::new(1, 1);
    world.idle("a");
    for _ in 0..2 {
        let effects = world.registry.close_all(world.now);
        world.take(effects);
    }
    assert_eq!(world.close_all_owed().len(), 1);
}

#[test]
fn c1_a_workspace_being_closed_refuses_work_until_it_is_done() {
    let mut world = World::new(2, 2);
    let held = world.lease("a");
    let effects = world.registry.begin_close(&target("a"), world.now);
    world.take(effects);
    assert!(matches!(world.refusal("a"), AcquireError::WorkspaceClosing { .. }));
    world.release(held);
    world.close_all_owed();
    assert!(world.registry.is_drained(&target("a")));
    let effects = world.registry.end_close(&target("a"), world.now);
    world.take(effects);
    world.lease("a");
}

#[test]
fn a_connection_past_its_lifetime_is_closed_on_return() {
    let mut world = World::new(1, 1);
    let ticket = world.ask("a");
    let work = world.opens.remove(0);
    let retire_at = Some(world.now + Duration::from_mins(1));
    let (_, effects) = world.registry.opened(work, 7, (), retire_at, world.now);
    world.take(effects);
    let leased = world.served(ticket);
    world.pass(Duration::from_mins(1));
    world.release(leased);
    assert_eq!(world.close_all_owed(), [(7, CloseReason::Lifetime)]);
}

#[test]
fn s1_s2_every_snapshot_adds_up() {
    let mut world = World::new(3, 2);
    let held = world.lease("a");
    world.idle("b");
    let _opening = world.ask("c");
    let stats = world.registry.stats();
    let counts = stats.connections;
    assert_eq!((counts.in_use, counts.idle, counts.opening, counts.closing), (1, 1, 1, 0));
    assert_eq!(stats.opened, stats.closed + u64::from(counts.in_use + counts.idle + counts.closing));
    world.release(held);
}

#[test]
fn c1_b2_a_lease_that_was_cut_counts_no_longer_and_its_return_changes_nothing() {
    type Return = fn(&mut World, Leased<Conn>) -> Effects<Conn>;
    let returns: [Return; 3] = [
        |world, leased| world.registry.release(leased.debt, leased.conn, world.now),
        |world, leased| world.registry.discard(leased.debt, leased.conn, world.now),
        |world, leased| {
            let (again, effects) = world.registry.replace(leased.debt, leased.conn, broke(), world.now);
            assert!(matches!(again, Acquire::Queued(..)), "{again:?}");
            effects
        },
    ];
    for give_back in returns {
        let mut world = World::new(1, 1);
        let held = world.lease("a");
        let effects = world.registry.begin_close(&target("a"), world.now);
        world.take(effects);
        let listed = world.registry.in_use(None);
        let (whose, effects) = world.registry.cut(listed[0], world.now).unwrap();
        assert_eq!(whose, target("a"));
        world.take(effects);
        assert_eq!(world.asked, Asked { drained: true, ..nothing() });
        assert!(world.registry.is_drained(&target("a")));
        let effects = world.registry.end_close(&target("a"), world.now);
        world.take(effects);
        // Another connection is in its place, in the budget and in the table, when the holder comes back.
        let next = world.lease("a");
        let before = world.registry.stats();
        let effects = give_back(&mut world, held);
        world.take(effects);
        assert_eq!(world.asked, Asked { dead: vec![1], ..nothing() });
        let after = world.registry.stats();
        assert_eq!((after.connections, after.closed), (before.connections, before.closed));
        assert!(world.registry.cut(listed[0], world.now).is_none(), "it is another connection's place now");
        world.release(next);
    }
}

#[test]
fn c1_a_grant_that_was_cut_before_it_was_fetched_is_refused() {
    let mut world = World::new(1, 1);
    let held = world.lease("a");
    let ticket = world.ask("a");
    world.release(held);
    let effects = world.registry.begin_close(&target("a"), world.now);
    world.take(effects);
    let listed = world.registry.in_use(None);
    let (_, effects) = world.registry.cut(listed[0], world.now).unwrap();
    world.take(effects);
    assert_eq!(world.asked, Asked { dead: vec![1], drained: true, ..nothing() });
    let answer = world.claim(ticket);
    assert!(matches!(answer, Claim::Failed(AcquireError::WorkspaceClosing { .. })), "{answer:?}");
}

#[test]
fn c1_what_ends_a_session_is_known_until_the_session_is_being_closed() {
    let mut registry: Registry<&str, &str> =
        Registry::new(RegistryConfig::new(2, 2), Box::new(Lru::default()));
    let now = Instant::now();
    let Acquire::Queued(ticket, effects) = registry.acquire(&target("a"), now) else { panic!("not queued") };
    let work = effects.opens.into_iter().next().unwrap();
    let (id, effects) = registry.opened(work, "connection", "session", None, now);
    effects.wakes.wake();
    assert_eq!(registry.session(id), Some(&"session"), "it is granted");
    let Claim::Leased(leased) = registry.claim(ticket, &mut None, now) else { panic!("not served") };
    assert_eq!(registry.sessions().collect::<Vec<_>>(), [(id, &"session")]);
    assert!(registry.release(leased.debt, leased.conn, now).is_empty());
    assert_eq!(registry.session(id), Some(&"session"), "it is idle");
    let closes = registry.begin_close(&target("a"), now).closes;
    assert_eq!((registry.session(id), registry.sessions().count()), (None, 0));
    for work in closes {
        let effects = registry.closed(work.split().1, now);
        assert!(effects.drained);
    }
}
