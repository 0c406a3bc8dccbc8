//! The schedule enumerator: runs every interleaving of a small world through the real registry, checks
//! every law after each step, and tells the shortest story that breaks one.
//!
//! Safety is checked after each step: the registry recounts itself, and the world around it checks what only an
//! outsider can see. Liveness is checked on the whole graph: steps of a world that means well never lead in a
//! circle, and where they end, everybody has been served and every close is over. So each fair schedule from
//! each reachable state serves everybody.
//!
//! ```
//! use pool_explore::enumerate::{Scenario, explore};
//!
//! let report = explore(&Scenario { workspaces: 1, budget: 1, callers: 2, ..Scenario::default() });
//! report.expect("no law is broken");
//! ```

mod closers;
mod fingerprint;
mod laws;
mod outages;
mod parts;
mod possible;
mod search;
mod step;
mod world;

pub use search::{Report, Violation, explore};
pub use step::Step;

/// A small world: who wants what, and what may go wrong how often.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Workspaces; caller `i` wants workspace `i % workspaces`. At most 8.
    pub workspaces: usize,
    /// The budget, in connections.
    pub budget: u32,
    /// The ceiling of one workspace.
    pub per_workspace: u32,
    /// How many opens may be under way at a time.
    pub opens: u32,
    /// Callers, each of whom asks once, and gives back, or gives up.
    pub callers: usize,
    /// How many things may go wrong, of any kind and at any time: an open fails or hangs, a close hangs, a connection
    /// breaks while it is held or is found broken, idle connections run out of time, a database is made, a
    /// workspace or everything is closed.
    pub mishaps: u32,
    /// How often a quantum may pass.
    pub quanta: u32,
    /// Whether the limit of the share may be changed; each time is a mishap.
    pub limits: bool,
    /// Whether a workspace is looked up before a connection of another one is closed for it; that it is missing is a
    /// mishap.
    pub look_ups: bool,
    /// Whether the server may be found not to answer, which is a mishap.
    pub outages: bool,
}

impl Scenario {
    /// A small world in which everything may happen.
    pub const ALL: Self = Self {
        workspaces: 2,
        budget: 1,
        per_workspace: 2,
        opens: 8,
        callers: 3,
        mishaps: 1,
        quanta: 1,
        limits: true,
        look_ups: true,
        outages: true,
    };
}

impl Default for Scenario {
    fn default() -> Self {
        let all = Self::ALL;
        Self { limits: false, look_ups: false, outages: false, ..all }
    }
}
