//! The conformance suite over the adapter in memory, and the default eviction policy.

use pool_core::Lru;
use pool_testkit::conformance::{check_eviction_policy, memory::MemoryAdapter};

pool_testkit::conformance!(MemoryAdapter);

#[test]
fn e2_the_default_policy_chooses_candidates_and_nothing_else() {
    for seed in 0..5 {
        check_eviction_policy(|| Box::new(Lru::default()), seed);
    }
}
