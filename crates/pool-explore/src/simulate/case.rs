//! A world with what is to be reached in it, and the verdict of a run.

use std::fmt;
use std::time::Duration;

use pool_core::Broken;

use super::figures::Figures;
use super::run::run;
use super::world::World;

/// A world, what it is compared with, and what is to be reached.
#[derive(Clone, Debug)]
pub struct Case {
    /// For the command line: words and dashes.
    pub name: String,
    /// The sweep that it is a point of, with the value that is swept; none for a world of its own.
    pub sweep: Option<(&'static str, f64)>,
    /// What happens in it, for people.
    pub about: String,
    /// The world.
    pub world: World,
    /// What it is compared with.
    pub peer: Option<Peer>,
    /// What is to be reached.
    pub goals: Vec<Goal>,
}

/// What a world is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The same world with one connection for each workspace.
    OneEach,
    /// A fresh connection for each request, on the same slots and the same server.
    FreshConnections,
    /// The same world without the ids that have no database.
    NoUnknownIds,
}

/// A figure that a goal may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Of the slots' capacity.
    Goodput,
    /// Connects for each lease.
    ConnectsPerGrant,
    /// Jain's index of slot-time.
    JainSlotTime,
    /// Jain's index of lease-time.
    JainLeaseTime,
    /// The most slot-time over the least, in ten cycles.
    Spread,
    /// The longest time that a workspace waited without a grant, in milliseconds.
    LongestUnserved,
    /// The longest wait of a caller, in milliseconds.
    LongestWait,
    /// The quiet one's median wait, in milliseconds.
    QuietP50,
    /// The quiet one's wait at the 99th percentile, in milliseconds.
    QuietP99,
    /// The quiet one's longest wait, in milliseconds.
    QuietMax,
    /// Grants a second.
    GrantsPerSecond,
    /// Grants a second as a multiple of the peer's.
    GrantsOfPeer,
    /// The time of a request at the 90th percentile as a multiple of the peer's.
    LatencyOfPeer,
}

impl Figure {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 13] = [
        Self::Goodput,
        Self::ConnectsPerGrant,
        Self::JainSlotTime,
        Self::JainLeaseTime,
        Self::Spread,
        Self::LongestUnserved,
        Self::LongestWait,
        Self::QuietP50,
        Self::QuietP99,
        Self::QuietMax,
        Self::GrantsPerSecond,
        Self::GrantsOfPeer,
        Self::LatencyOfPeer,
    ];

    /// What it is called in a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Goodput => "goodput",
            Self::ConnectsPerGrant => "connects per grant",
            Self::JainSlotTime => "Jain, slot-time",
            Self::JainLeaseTime => "Jain, lease-time",
            Self::Spread => "most / least slot-time",
            Self::LongestUnserved => "longest unserved, ms",
            Self::LongestWait => "longest wait, ms",
            Self::QuietP50 => "quiet p50, ms",
            Self::QuietP99 => "quiet p99, ms",
            Self::QuietMax => "quiet max, ms",
            Self::GrantsPerSecond => "grants a second",
            Self::GrantsOfPeer => "grants, of the peer's",
            Self::LatencyOfPeer => "p90 time, of the peer's",
        }
    }
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// No less than that.
    AtLeast(Figure, f64),
    /// No more than that.
    AtMost(Figure, f64),
}

impl Goal {
    /// What it is about.
    pub fn figure(&self) -> Figure {
        match self {
            Self::AtLeast(figure, _) | Self::AtMost(figure, _) => *figure,
        }
    }

    /// The number to be reached.
    pub fn bound(&self) -> f64 {
        match self {
            Self::AtLeast(_, bound) | Self::AtMost(_, bound) => *bound,
        }
    }

    fn is_met(&self, value: f64) -> bool {
        match self {
            Self::AtLeast(_, bound) => value >= *bound,
            Self::AtMost(_, bound) => value <= *bound,
        }
    }
}

/// A goal beside what was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// What was to be reached.
    pub goal: Goal,
    /// What was.
    pub value: f64,
}

impl Verdict {
    /// Whether the goal was reached.
    pub fn is_met(&self) -> bool {
        self.goal.is_met(self.value)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if matches!(self.goal, Goal::AtLeast(..)) { "at least" } else { "at most" };
        let (name, bound) = (self.goal.figure().name(), self.goal.bound());
        write!(f, "{name}: {:.3}, to reach: {sign} {bound:.3}", self.value)
    }
}

/// A case that was run.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Its figures.
    pub figures: Figures,
    /// Grants a second of what it is compared with.
    pub peer_grants_per_second: Option<f64>,
    /// The time of a request at the 90th percentile, of what it is compared with.
    pub peer_latency: Option<Duration>,
    /// The goals, each beside what was reached.
    pub verdicts: Vec<Verdict>,
}

impl Case {
    /// Runs the world and what it is compared with, and judges.
    ///
    /// # Errors
    /// The first law that was broken in one of them.
    pub fn run(&self) -> Result<Judged, Broken> {
        let world = &self.world;
        let figures = run(world)?;
        let peer = match self.peer {
            Some(Peer::OneEach) => Some(run(&World { per_workspace: 1, ..world.clone() })?),
            Some(Peer::NoUnknownIds) => Some(run(&World { unknown_ids: 0, ..world.clone() })?),
            Some(Peer::FreshConnections) | None => None,
        };
        let is_fresh = self.peer == Some(Peer::FreshConnections);
        let fresh = is_fresh.then(|| world.fresh_connections_per_second());
        let mut judged = Judged {
            figures,
            peer_grants_per_second: peer.map(|peer| peer.grants_per_second).or(fresh),
            peer_latency: peer.map(|peer| peer.latencies.p90),
            verdicts: Vec::new(),
        };
        let verdict = |goal: &Goal| Some(Verdict { goal: *goal, value: judged.value(goal.figure())? });
        judged.verdicts = self.goals.iter().filter_map(verdict).collect();
        Ok(judged)
    }
}

impl Judged {
    /// A figure, where there is one: none for what has no peer.
    pub fn value(&self, figure: Figure) -> Option<f64> {
        let Figures { waits, quiet, .. } = self.figures;
        Some(match figure {
            Figure::Goodput => self.figures.goodput,
            Figure::ConnectsPerGrant => self.figures.connects_per_grant,
            Figure::JainSlotTime => self.figures.jain_slot_time,
            Figure::JainLeaseTime => self.figures.jain_lease_time,
            Figure::Spread => self.figures.spread,
            Figure::LongestUnserved => millis(self.figures.longest_unserved),
            Figure::LongestWait => millis(waits.max),
            Figure::QuietP50 => millis(quiet.p50),
            Figure::QuietP99 => millis(quiet.p99),
            Figure::QuietMax => millis(quiet.max),
            Figure::GrantsPerSecond => self.figures.grants_per_second,
            Figure::GrantsOfPeer => self.figures.grants_per_second / self.peer_grants_per_second?,
            Figure::LatencyOfPeer => millis(self.figures.latencies.p90) / millis(self.peer_latency?),
        })
    }

    /// The goals that were missed.
    pub fn missed(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|verdict| !verdict.is_met())
    }
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
