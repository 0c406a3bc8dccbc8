//! How one chosen case ended: what runs, rounds and reports all speak of.

use std::time::Duration;

use crate::plan::Case;

/// How a chosen case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It ran and was content.
    Passed,
    /// It ran and was not, or it died before it could tell.
    Failed,
    /// It did not run, for this reason.
    Skipped(String),
}

/// What is known of one chosen case.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// Which one.
    pub case: Case,
    /// How it ended.
    pub ending: Ending,
    /// How long it took, where the runner says so.
    pub time: Option<Duration>,
    /// What it wrote.
    pub output: String,
}
