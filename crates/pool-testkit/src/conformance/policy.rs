//! The suite of eviction policies: pure, so it needs no adapter.

use std::collections::BTreeSet;

use pool_core::{ConnectionId, EvictionPolicy, Target, WorkspaceId};

/// How many steps are taken, and how many connections there are at most.
const STEPS: usize = 20_000;
const CONNECTIONS: u32 = 40;

/// Takes random steps with two policies of one kind, from `seed`, and holds what they say against the set of candidates: a victim
/// is a candidate that may go, there is one whenever a candidate may, and both policies always choose alike.
///
/// ```
/// use pool_core::Lru;
/// pool_testkit::conformance::check_eviction_policy(|| Box::new(Lru::default()), 7);
/// ```
///
/// # Panics
/// If one of these does not hold (laws E1, E2), with the step.
pub fn check_eviction_policy(new: impl Fn() -> Box<dyn EvictionPolicy>, seed: u64) {
    let (mut policy, mut twin) = (new(), new());
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut candidates: BTreeSet<ConnectionId> = BTreeSet::new();
    let mut serial = 0;
    for step in 0..STEPS {
        let chosen = dice.usize(..candidates.len().max(1));
        let chosen = candidates.iter().nth(chosen).copied();
        match (dice.u8(..4), chosen) {
            (0 | 1, _) if candidates.len() < CONNECTIONS as usize => {
                let free = (0..CONNECTIONS).find(|index| candidates.iter().all(|id| id.index() != *index));
                let id = ConnectionId::new(free.unwrap_or(CONNECTIONS), serial);
                serial += 1;
                let target = target(dice.u32(..8));
                policy.touched(id, &target);
                twin.touched(id, &target);
                candidates.insert(id);
            }
            (2, Some(id)) => {
                policy.removed(id);
                twin.removed(id);
                candidates.remove(&id);
            }
            _ => {
                let (modulus, wanted) = (dice.u32(1..4), dice.u32(..4));
                let may = move |id: ConnectionId| id.index() % modulus == wanted % modulus;
                let victims = [policy.victim(&may), twin.victim(&may)];
                assert_eq!(victims[0], victims[1], "step {step}: two of a kind chose differently");
                let is_sound = match victims[0] {
                    Some(id) => candidates.contains(&id) && may(id),
                    None => !candidates.iter().any(|id| may(*id)),
                };
                assert!(is_sound, "step {step}: {:?} of the candidates {candidates:?}", victims[0]);
            }
        }
    }
}

fn target(number: u32) -> Target {
    WorkspaceId::new(format!("w{number}")).map_or(Target::System, Target::Workspace)
}
