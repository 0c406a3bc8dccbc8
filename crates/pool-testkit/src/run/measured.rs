//! What a benchmark has measured, beside what is to be reached: what `cargo xtask measure` shows.

use serde::{Deserialize, Serialize};

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// This, or more.
    AtLeast(f64),
    /// This, or less.
    AtMost(f64),
}

/// One figure of one world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The name of the world.
    pub world: String,
    /// What happens in it.
    pub about: String,
    /// What was measured.
    pub figure: String,
    /// The median of the rounds, or the only value.
    pub value: f64,
    /// The least and the most of the rounds.
    #[serde(default)]
    pub spread: Option<(f64, f64)>,
    /// What is to be reached, if anything is.
    #[serde(default)]
    pub goal: Option<Goal>,
}

impl Measured {
    /// Whether the goal is reached; a figure without a goal has nothing to miss.
    pub fn is_met(&self) -> bool {
        match self.goal {
            None => true,
            Some(Goal::AtLeast(bound)) => self.value >= bound,
            Some(Goal::AtMost(bound)) => self.value <= bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing_to_reach(7.0, None, true)]
    #[case::at_least_reached(0.97, Some(Goal::AtLeast(0.97)), true)]
    #[case::at_least_missed(0.96, Some(Goal::AtLeast(0.97)), false)]
    #[case::at_most_reached(50.0, Some(Goal::AtMost(50.0)), true)]
    #[case::at_most_missed(51.0, Some(Goal::AtMost(50.0)), false)]
    #[case::no_number(f64::NAN, Some(Goal::AtMost(50.0)), false)]
    fn a_goal_is_reached_or_missed(#[case] value: f64, #[case] goal: Option<Goal>, #[case] is_met: bool) {
        let (world, about, figure) = ("w".into(), "a".into(), "f".into());
        let measured = Measured { world, about, figure, value, spread: None, goal };
        assert_eq!(measured.is_met(), is_met);
    }
}
