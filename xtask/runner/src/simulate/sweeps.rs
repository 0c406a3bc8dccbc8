//! The sweeps among the outcomes: one world at several points, which tables and plots show together.

use super::Outcome;

/// The points of one sweep.
pub struct Sweep<'a> {
    /// What is swept.
    pub name: &'static str,
    /// From small to large.
    pub points: Vec<&'a Outcome>,
}

/// The sweeps that were run, in their order.
pub fn sweeps(outcomes: &[Outcome]) -> Vec<Sweep<'_>> {
    let mut sweeps: Vec<Sweep> = Vec::new();
    for outcome in outcomes {
        let Some((name, _)) = outcome.case.sweep else { continue };
        match sweeps.last_mut() {
            Some(sweep) if sweep.name == name => sweep.points.push(outcome),
            _ => sweeps.push(Sweep { name, points: vec![outcome] }),
        }
    }
    sweeps
}

/// What a sweep is about.
pub fn title(sweep: &str) -> &str {
    match sweep {
        "slots" => "Slots",
        "workspaces" => "Busy workspaces",
        "query-ms" => "Queries, in ms",
        "connect-ms" => "Connects, in ms",
        "permits" => "Connects at a time",
        other => other,
    }
}
