//! What is owed to busy workspaces of equal weight, whatever their world.

use super::case::{Figure, Goal, millis};
use super::world::World;

/// No workspace may be worse off than by this factor in ten cycles (W6).
const SPREAD_MAX: f64 = 1.5;
/// Jain's index among equals.
const JAIN_MIN: f64 = 0.95;
/// The share of the slots' capacity, where permits do not bind.
const GOODPUT_MIN: f64 = 0.75;
/// How many cycles a workspace waits at most.
const CYCLES_MAX: f64 = 1.5;

/// What busy workspaces of equal weight are owed: goodput, equal shares, and a bounded wait.
pub(super) fn goals_of_the_busy(world: &World) -> Vec<Goal> {
    let cycle = millis(world.cycle());
    let goodput = if world.permits_bind() { GOODPUT_MIN.min(world.possible_goodput()) } else { GOODPUT_MIN };
    vec![
        Goal::AtLeast(Figure::Goodput, goodput),
        Goal::AtLeast(Figure::JainSlotTime, JAIN_MIN),
        Goal::AtMost(Figure::Spread, SPREAD_MAX),
        Goal::AtMost(Figure::LongestUnserved, CYCLES_MAX * cycle),
        Goal::AtMost(Figure::LongestWait, CYCLES_MAX * cycle * f64::from(world.turns_of_a_caller())),
    ]
}
