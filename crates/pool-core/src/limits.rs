//! The hard ceilings, in connections. [`Limits`] is what somebody wishes; [`Ceilings`] is a wish that has
//! been checked and divided into the two shares, and the only form the manager works with.

use thiserror::Error;

use crate::ids::Target;

/// The default ceiling of one workspace.
pub const PER_WORKSPACE_DEFAULT: u32 = 10;
/// The default number of simultaneous opens. Fewer leave a busy server idle between the steps of a connect; more take slots from
/// connections that could serve, and make every switch take longer.
pub const OPENS_DEFAULT: u32 = 12;

/// The default bound of a workspace's queue: a caller behind ten thousand others has no use for a connection any more.
pub const WAITING_PER_WORKSPACE_DEFAULT: u32 = 10_000;

/// Why limits cannot hold.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitsError {
    /// A budget of zero.
    #[error("the budget must be at least one connection")]
    NoBudget,
    /// The budget was to be what the server has.
    #[error(
        "the server has nothing to spare: of its connections that are not reserved, others have all but the headroom of {headroom} or less, or it was not asked"
    )]
    NothingToSpare {
        /// What is left to others.
        headroom: u32,
    },
    /// The system share takes it all.
    #[error(
        "a budget of {total} with {system} reserved for the system leaves nothing for workspaces: raise the budget above {system}, or set `system` lower"
    )]
    NothingForWorkspaces {
        /// The budget.
        total: u32,
        /// The reserved share, given or by default.
        system: u32,
    },
    /// The driver's own connections take the whole system share.
    #[error(
        "a system share of {system} is too small: the driver itself needs {control} of it, so give at least {}",
        control + 1
    )]
    SystemTooSmall {
        /// The reserved share.
        system: u32,
        /// What the driver keeps.
        control: u32,
    },
    /// Zero, or more than all workspaces have together.
    #[error(
        "{per_workspace} connections per workspace cannot hold: all workspaces together have {workspaces}, so give 1 to {workspaces}"
    )]
    PerWorkspace {
        /// The wish.
        per_workspace: u32,
        /// The workspaces' share.
        workspaces: u32,
    },
    /// Nobody could ever be served but by a connection that is idle already.
    #[error("at least one caller must be allowed to wait for a workspace")]
    NoWaiting,
    /// A weight of zero.
    #[error("the weight of {target} cannot be 0: it would never be served; give 1 or more")]
    Weight {
        /// Whose.
        target: Target,
    },
    /// Zero, or more than all workspaces have together.
    #[error(
        "{target} cannot have a ceiling of {ceiling}: all workspaces together have {workspaces}, so give 1 to {workspaces}"
    )]
    Ceiling {
        /// Whose.
        target: Target,
        /// The wish.
        ceiling: u32,
        /// The workspaces' share.
        workspaces: u32,
    },
    /// Nothing could ever be opened.
    #[error("at least one simultaneous open is needed")]
    NoOpens,
}

/// Wished ceilings. There is no default for the budget itself: only its owner knows how many connections
/// the server can spare.
///
/// ```
/// use pool_core::Limits;
///
/// let ceilings = Limits::new(90).per_workspace(10).system(9).ceilings(0)?;
/// assert_eq!(ceilings.workspaces() + ceilings.system(), 90);
/// # Ok::<(), pool_core::LimitsError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    total: u32,
    per_workspace: Option<u32>,
    system: Option<u32>,
    opens: u32,
    waiting: u32,
    /// How many connections are left to others, where the budget is what the server has.
    headroom: Option<u32>,
}

/// What a server can hold, and holds for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// The most connections that anybody without special rights can have, all together.
    pub connections: u32,
    /// How many of them others have now: neither the asking pool nor its driver.
    pub others: u32,
}

impl Limits {
    /// A budget of `total` connections over all databases of the server, the system share and the
    /// driver's own connections included.
    pub const fn new(total: u32) -> Self {
        Self {
            total,
            per_workspace: None,
            system: None,
            opens: OPENS_DEFAULT,
            waiting: WAITING_PER_WORKSPACE_DEFAULT,
            headroom: None,
        }
    }

    /// A budget of what the server has when it is asked, at build and after it was started again: its connections that are not
    /// reserved, less those that others have then, less `headroom` for those who come later. Two pools that ask at once
    /// both count on what neither has yet; give each a budget of its own, or headroom for the other.
    pub const fn of_server(headroom: u32) -> Self {
        let mut limits = Self::new(0);
        limits.headroom = Some(headroom);
        limits
    }

    /// Whether the server is to be asked for the budget.
    pub const fn is_of_server(&self) -> bool {
        self.headroom.is_some()
    }

    /// The same with the budget that a server has. A fixed budget stays.
    pub const fn on(mut self, capacity: Capacity) -> Self {
        if let Some(headroom) = self.headroom {
            self.total = capacity.connections.saturating_sub(capacity.others).saturating_sub(headroom);
        }
        self
    }

    /// The budget.
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// At most this many connections to one workspace (default: 10, or the workspaces' share if smaller).
    pub const fn per_workspace(mut self, connections: u32) -> Self {
        self.per_workspace = Some(connections);
        self
    }

    /// Reserves this many for the system database and the driver's own use (default: a tenth of the
    /// budget, at least 5, at most 20). Workspace traffic never uses them, nor system traffic more. Of them the driver for
    /// `PostgreSQL` has one for itself and one kept free for its replacement, if there are three; a slow creation leaves
    /// room for other questions if there are four.
    pub const fn system(mut self, connections: u32) -> Self {
        self.system = Some(connections);
        self
    }

    /// At most this many connections being opened at a time in each share (default: 12).
    pub const fn simultaneous_opens(mut self, opens: u32) -> Self {
        self.opens = opens;
        self
    }

    /// At most this many callers waiting for one workspace; more are refused at once with
    /// [`AcquireError::QueueFull`](crate::AcquireError::QueueFull) (default: 10,000).
    pub const fn waiting_per_workspace(mut self, callers: u32) -> Self {
        self.waiting = callers;
        self
    }

    /// Checks the wish and divides it. `control` is the number of connections that the driver keeps for
    /// itself; they come out of the system share.
    ///
    /// # Errors
    /// [`LimitsError`] says which ceiling cannot hold, with the numbers.
    pub fn ceilings(self, control: u32) -> Result<Ceilings, LimitsError> {
        let system = self.system.unwrap_or((self.total / 10).clamp(5, 20));
        let ceilings = self.divide(system, control)?;
        if system <= control { Err(LimitsError::SystemTooSmall { system, control }) } else { Ok(ceilings) }
    }

    /// The same for an adapter without a system database: the driver's own connections are all that workspaces do not have.
    ///
    /// # Errors
    /// As [`Limits::ceilings`].
    pub fn ceilings_without_system(self, control: u32) -> Result<Ceilings, LimitsError> {
        self.divide(control, control)
    }

    fn divide(self, system: u32, control: u32) -> Result<Ceilings, LimitsError> {
        let Self { total, opens, waiting, .. } = self;
        if let (0, Some(headroom)) = (total, self.headroom) {
            return Err(LimitsError::NothingToSpare { headroom });
        }
        if total == 0 {
            return Err(LimitsError::NoBudget);
        }
        if system >= total {
            return Err(LimitsError::NothingForWorkspaces { total, system });
        }
        let workspaces = total - system;
        let per_workspace = self.per_workspace.unwrap_or(PER_WORKSPACE_DEFAULT.min(workspaces));
        if per_workspace == 0 || per_workspace > workspaces {
            return Err(LimitsError::PerWorkspace { per_workspace, workspaces });
        }
        if opens == 0 {
            return Err(LimitsError::NoOpens);
        }
        if waiting == 0 {
            return Err(LimitsError::NoWaiting);
        }
        Ok(Ceilings { wish: self, workspaces, per_workspace, system, control, reserve: 0 })
    }
}

/// Checked ceilings. The two shares add up to the budget, so neither can starve the other (law B3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    wish: Limits,
    workspaces: u32,
    per_workspace: u32,
    system: u32,
    control: u32,
    reserve: u32,
}

impl Ceilings {
    /// The same with `wished` connections of the system share kept free for the moment in which the driver replaces one of
    /// its own; fewer where no lease would be left.
    pub fn with_reserve(self, wished: u32) -> Self {
        let reserve = wished.min((self.system - self.control).saturating_sub(1));
        Self { reserve, ..self }
    }

    /// The wish that was divided.
    pub fn limits(&self) -> Limits {
        self.wish
    }

    /// The whole budget.
    pub fn total(&self) -> u32 {
        self.workspaces + self.system
    }

    /// What all workspaces share.
    pub fn workspaces(&self) -> u32 {
        self.workspaces
    }

    /// What one workspace may have.
    pub fn per_workspace(&self) -> u32 {
        self.per_workspace
    }

    /// The reserved share, the driver's own connections included.
    pub fn system(&self) -> u32 {
        self.system
    }

    /// The driver's own connections, part of the system share.
    pub fn control(&self) -> u32 {
        self.control
    }

    /// What is kept free for the replacement of those, part of the system share.
    pub fn reserve(&self) -> u32 {
        self.reserve
    }

    /// How many leases the system pool can hand out.
    pub fn system_leases(&self) -> u32 {
        self.system - self.control - self.reserve
    }

    /// How many callers may wait for one workspace.
    pub fn waiting_per_workspace(&self) -> u32 {
        self.wish.waiting
    }

    /// How many opens may be under way in each share.
    pub fn opens(&self) -> u32 {
        self.wish.opens
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::small_gets_at_least_five(20, 5)]
    #[case::a_tenth(90, 9)]
    #[case::large_gets_at_most_twenty(1_000, 20)]
    fn the_system_share_defaults_to_a_tenth_within_bounds(#[case] total: u32, #[case] system: u32) {
        let ceilings = Limits::new(total).ceilings(1).unwrap();
        assert_eq!(ceilings.system(), system);
        assert_eq!(ceilings.total(), total);
    }

    #[rstest]
    #[case::nothing_of_its_own(0, 10)]
    #[case::two_of_its_own(2, 8)]
    fn without_a_system_database_workspaces_have_all_but_what_is_the_drivers(
        #[case] control: u32,
        #[case] workspaces: u32,
    ) {
        let ceilings = Limits::new(10).system(5).ceilings_without_system(control).unwrap().with_reserve(1);
        assert_eq!((ceilings.workspaces(), ceilings.system(), ceilings.total()), (workspaces, control, 10));
        assert_eq!((ceilings.system_leases(), ceilings.reserve(), ceilings.control()), (0, 0, control));
        let nothing_left = LimitsError::NothingForWorkspaces { total: 10, system: 10 };
        assert_eq!(Limits::new(10).ceilings_without_system(10), Err(nothing_left));
        assert_eq!(Limits::new(0).ceilings_without_system(0), Err(LimitsError::NoBudget));
    }

    #[test]
    fn ceilings_are_what_was_wished() {
        let wish =
            Limits::new(90).per_workspace(81).system(9).simultaneous_opens(3).waiting_per_workspace(11);
        let ceilings = wish.ceilings(2).unwrap();
        assert_eq!((ceilings.workspaces(), ceilings.per_workspace()), (81, 81));
        assert_eq!((ceilings.control(), ceilings.system_leases()), (2, 7));
        assert_eq!((ceilings.opens(), ceilings.waiting_per_workspace()), (3, 11));
        assert_eq!((ceilings.limits(), wish.is_of_server()), (wish, false));
        assert!(Limits::of_server(0).is_of_server());
    }

    #[rstest]
    #[case::there_is_place(5, 1, 3)]
    #[case::just_enough(3, 1, 1)]
    #[case::the_last_lease_stays(2, 0, 1)]
    fn a_reserve_comes_out_of_the_system_share_and_leaves_a_lease(
        #[case] system: u32,
        #[case] reserve: u32,
        #[case] leases: u32,
    ) {
        let ceilings = Limits::new(20).system(system).ceilings(1).unwrap().with_reserve(1);
        assert_eq!((ceilings.reserve(), ceilings.system_leases()), (reserve, leases));
        assert_eq!((ceilings.system(), ceilings.total()), (system, 20));
    }

    #[rstest]
    #[case::alone(97, 0, 5, 92)]
    #[case::others(97, 40, 5, 52)]
    #[case::nothing_left(97, 97, 5, 0)]
    fn a_budget_of_the_server_is_what_others_and_the_headroom_leave(
        #[case] connections: u32,
        #[case] others: u32,
        #[case] headroom: u32,
        #[case] budget: u32,
    ) {
        let capacity = Capacity { connections, others };
        assert_eq!(Limits::of_server(headroom).on(capacity).total(), budget);
        assert_eq!(Limits::new(7).on(capacity).total(), 7, "a fixed one stays");
    }

    #[rstest]
    #[case::no_budget(Limits::new(0), "budget")]
    #[case::nothing_to_spare(Limits::of_server(3), "headroom of 3")]
    #[case::nothing_left(Limits::new(5), "leaves nothing")]
    #[case::system_too_large(Limits::new(20).system(20), "leaves nothing")]
    #[case::system_eaten_by_the_driver(Limits::new(20).system(1), "driver")]
    #[case::no_connection_per_workspace(Limits::new(20).per_workspace(0), "per workspace")]
    #[case::per_workspace_over_the_share(Limits::new(20).per_workspace(16), "15")]
    #[case::no_opens(Limits::new(20).simultaneous_opens(0), "open")]
    #[case::nobody_may_wait(Limits::new(20).waiting_per_workspace(0), "wait")]
    fn limits_that_cannot_hold_are_refused_with_the_reason(#[case] limits: Limits, #[case] says: &str) {
        let error = limits.ceilings(1).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
