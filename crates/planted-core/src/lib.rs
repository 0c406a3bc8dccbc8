//! `pool-core` with bugs planted in it: its sources as they stand, changed in the places that `build/bugs.rs` names. Nothing is
//! wrong before [`plant`] is called, and then only on that thread. So the product has no branch for tests, and the checks
//! of `pool-explore` are proved to bite (`planted-explore`).

pub use registry::planted::{Bug, plant};

include!(concat!(env!("OUT_DIR"), "/planted/lib.rs"));
