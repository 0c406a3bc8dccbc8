//! The schedule enumerator: runs every interleaving of a small world through the real registry, checks
//! every law after each step, and tells the shortest story that breaks one.
//!
//! ```
//! use pool_testkit::explore::{Scenario, explore};
//!
//! let report = explore(&Scenario { workspaces: 1, budget: 1, callers: 2, ..Scenario::default() });
//! report.expect("no law is broken");
//! ```

mod search;
mod step;
mod world;

pub use pool_core::registry::Bug;
pub use search::{Report, Violation, explore};
pub use step::Step;

/// A small world: who wants what, and what may go wrong how often.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Workspaces; caller `i` wants workspace `i % workspaces`.
    pub workspaces: u32,
    /// The budget, in connections.
    pub budget: u32,
    /// The ceiling of one workspace.
    pub per_workspace: u32,
    /// Callers, each of whom asks once, and gives back, breaks or gives up.
    pub callers: u32,
    /// How many opens may fail.
    pub failures: u32,
    /// How many connections may break while they are held.
    pub breakages: u32,
    /// How often the time of a turn may pass.
    pub turns: u32,
    /// A bug to plant in the registry.
    pub bug: Option<Bug>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            workspaces: 2,
            budget: 1,
            per_workspace: 2,
            callers: 3,
            failures: 1,
            breakages: 1,
            turns: 1,
            bug: None,
        }
    }
}
