//! What a run has shown, in numbers.

use std::time::Duration;

use super::meter::Meter;
use super::world::World;

/// How long callers waited; zero for those that were served at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Half of them waited no longer.
    pub p50: Duration,
    /// Nine of ten waited no longer.
    pub p90: Duration,
    /// Ninety-nine of a hundred waited no longer.
    pub p99: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Waits {
    fn of(mut waits: Vec<Duration>) -> Self {
        waits.sort_unstable();
        let at = |percent: usize| {
            let nth = (waits.len() * percent).div_ceil(100).saturating_sub(1);
            waits.get(nth).copied().unwrap_or_default()
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

/// The figures of one world, from the end of its warm-up to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Leases that began.
    pub grants: u64,
    /// Opens that began.
    pub connects: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Leases a second.
    pub grants_per_second: f64,
    /// The time that connections were leased, as a share of the time of the slots that the workload could use.
    pub goodput: f64,
    /// Connects for each lease.
    pub connects_per_grant: f64,
    /// Jain's index of the slot-time of the workload's workspaces, each divided by its weight: 1 if all had the same,
    /// 1/n if one of n had everything. Slot-time is the time that a connection counts for its workspace, in any state.
    pub jain_slot_time: f64,
    /// The same of the time that their connections were leased.
    pub jain_lease_time: f64,
    /// How often the least slot-time for its weight goes into the most; the worst of all spans of ten cycles.
    pub spread: f64,
    /// The longest time for which a workspace had waiting callers and none of them was served.
    pub longest_unserved: Duration,
    /// The waits of the workload's callers.
    pub waits: Waits,
    /// Their times from the question to the return of the connection.
    pub latencies: Waits,
    /// The waits of the quiet workspace's caller.
    pub quiet: Waits,
    /// The most connections that counted at a time.
    pub peak: u32,
}

impl Figures {
    pub(super) fn of(meter: Meter, world: &World) -> Self {
        let seconds = world.duration().as_secs_f64();
        let leased: f64 = meter.lease_time.measured().iter().map(Duration::as_secs_f64).sum();
        let slots = f64::from(world.usable_slots());
        let per_weight = |times: Vec<Duration>| -> Vec<f64> {
            let workload = times.iter().zip(0..world.workspaces);
            workload.map(|(time, workspace)| time.as_secs_f64() / world.weight(workspace)).collect()
        };
        let spreads = meter.slot_time.parts().map(|part| spread(&per_weight(part)));
        Self {
            grants: meter.grants,
            connects: meter.connects,
            refused: meter.refused,
            grants_per_second: count(meter.grants) / seconds,
            goodput: leased / (slots * seconds),
            connects_per_grant: count(meter.connects) / count(meter.grants.max(1)),
            jain_slot_time: jain(&per_weight(meter.slot_time.measured())),
            jain_lease_time: jain(&per_weight(meter.lease_time.measured())),
            spread: spreads.fold(1.0, f64::max),
            longest_unserved: meter.longest_unserved,
            waits: Waits::of(meter.workload_waits),
            latencies: Waits::of(meter.latencies),
            quiet: Waits::of(meter.quiet_waits),
            peak: meter.peak,
        }
    }
}

/// Jain's index: the square of the sum over n times the sum of the squares.
fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (length(values) * squares) }
}

fn spread(values: &[f64]) -> f64 {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    if most == 0.0 { 1.0 } else { most / least }
}

fn length(values: &[f64]) -> f64 {
    f64::from(u32::try_from(values.len()).unwrap_or(u32::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "no run grants 2^52 leases")]
fn count(of: u64) -> f64 {
    of as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_tells_equal_from_unequal() {
        assert!((jain(&[2.0, 2.0, 2.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[1.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
        assert!((spread(&[1.0, 3.0]) - 3.0).abs() < 1e-12);
        assert!(spread(&[0.0, 3.0]).is_infinite());
    }

    #[test]
    fn percentiles_are_waits_that_were() {
        let waits = Waits::of((1..=200).rev().map(Duration::from_millis).collect());
        let at = Duration::from_millis;
        assert_eq!(waits, Waits { p50: at(100), p90: at(180), p99: at(198), max: at(200) });
        assert_eq!(Waits::of(Vec::new()), Waits::default());
    }
}
