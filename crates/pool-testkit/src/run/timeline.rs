//! How many sessions each suite had, over time: thinned to a bounded number of points, and never below a peak.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Twice as many points as are wished for: when there are more, each two become one.
const POINTS_MAX: usize = 2000;

/// A stretch of time, and the sample with the most sessions in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// When it begins, since the run began.
    pub at_ms: u64,
    /// Sessions by suite.
    pub by_suite: BTreeMap<String, u32>,
}

/// The points in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    points: Vec<Point>,
    /// How many samples make a point; it doubles each time that there are too many points.
    per_point: u32,
    /// Samples in the last point.
    in_last: u32,
}

impl Timeline {
    /// Adds a sample, which must be later than those before.
    pub fn push(&mut self, sample: Point) {
        self.per_point = self.per_point.max(1);
        match self.points.last_mut() {
            Some(last) if self.in_last < self.per_point => {
                last.cover(sample);
                self.in_last += 1;
            }
            _ => {
                self.points.push(sample);
                self.in_last = 1;
            }
        }
        if self.points.len() > POINTS_MAX {
            self.thin();
        }
    }

    /// The points, at most 2000.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    fn thin(&mut self) {
        let mut halved: Vec<Point> = Vec::with_capacity(POINTS_MAX);
        for (number, point) in std::mem::take(&mut self.points).into_iter().enumerate() {
            match halved.last_mut() {
                Some(last) if number % 2 == 1 => last.cover(point),
                _ => halved.push(point),
            }
        }
        self.points = halved;
        self.per_point *= 2;
        // The last point may cover less than the others; the next sample begins a new one.
        self.in_last = self.per_point;
    }
}

impl Point {
    /// All sessions together.
    pub fn total(&self) -> u32 {
        self.by_suite.values().sum()
    }

    /// Of two samples the one with more sessions stays as it was: suites do not have their peaks at the same
    /// moment, so the most of each would add up to more than there ever was.
    pub fn cover(&mut self, later: Self) {
        if later.total() > self.total() {
            self.by_suite = later.by_suite;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, count: u32) -> Point {
        Point { at_ms, by_suite: BTreeMap::from([("s".to_owned(), count)]) }
    }

    #[test]
    fn few_samples_are_kept_as_they_are() {
        let mut timeline = Timeline::default();
        let samples: Vec<Point> = (0..5).map(|i| sample(i * 10, 1)).collect();
        samples.iter().cloned().for_each(|sample| timeline.push(sample));
        assert_eq!(timeline.points(), samples);
    }

    #[test]
    fn a_long_run_keeps_its_order_its_peak_and_a_bounded_number_of_points() {
        let mut timeline = Timeline::default();
        for i in 0..100_000 {
            timeline.push(sample(i * 10, if i == 77_777 { 42 } else { 1 }));
        }
        let points = timeline.points();
        assert!((POINTS_MAX / 3..=POINTS_MAX).contains(&points.len()), "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].at_ms < pair[1].at_ms));
        let peaks: Vec<&Point> = points.iter().filter(|point| point.by_suite["s"] == 42).collect();
        assert_eq!(peaks.len(), 1);
        assert!(peaks[0].at_ms <= 777_770 && peaks[0].at_ms + 2_000 > 777_770, "{}", peaks[0].at_ms);
    }
}
