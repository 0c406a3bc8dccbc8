//! Contestants by turns: in each round every one of them works for a while, so that whatever else the machine does meets
//! all of them. A ratio is taken within a round, and the median of the rounds is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Fault;
use crate::progress::Progress;

/// What the tasks of one contestant share in one round.
#[derive(Clone, Default)]
pub struct Round {
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Round {
    /// Whether tasks are to end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Has the tasks end; says how many requests have failed.
    pub fn end(&self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.failed.load(Ordering::Relaxed)
    }

    /// Counts a request.
    pub fn count<T, E: std::fmt::Display>(&self, outcome: Result<T, E>) {
        match outcome {
            Ok(_) => self.done.fetch_add(1, Ordering::Relaxed),
            Err(why) => {
                if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    eprintln!("\n  a request failed: {why}");
                }
                0
            }
        };
    }
}

type Start = Box<dyn Fn(&Round, &mut JoinSet<()>) + Send>;

/// How long everything takes.
#[derive(Clone, Copy)]
pub struct Times {
    /// What each contestant works in all, while it is measured.
    pub measured: Duration,
    /// What it works before that, in each round.
    pub lead_in: Duration,
}

/// Contestants, and the rates of those that have worked.
pub struct Contest {
    world: &'static str,
    contestants: Vec<(String, Start)>,
}

/// Requests a second, of each contestant in each round.
pub struct Rates {
    rates: Vec<Vec<f64>>,
    /// Requests that failed, of each contestant.
    pub failed: Vec<u64>,
}

/// The median of some values between the least and the most.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Contest {
    /// Without contestants.
    pub fn new(world: &'static str) -> Self {
        Self { world, contestants: Vec::new() }
    }

    /// One more; `start` starts its tasks, which end when the round is over.
    pub fn with(mut self, name: &str, start: impl Fn(&Round, &mut JoinSet<()>) + Send + 'static) -> Self {
        self.contestants.push((name.to_owned(), Box::new(start)));
        self
    }

    /// Has all of them work by turns; every second round goes backwards.
    pub async fn run(&self, times: Times, progress: &mut Progress) -> Result<Rates, Fault> {
        let rounds = u32::try_from(times.measured.as_secs() / 2).unwrap_or(u32::MAX).clamp(3, 10);
        let mut rates = Rates {
            rates: vec![Vec::new(); self.contestants.len()],
            failed: vec![0; self.contestants.len()],
        };
        for nth in 0..rounds {
            let mut order: Vec<usize> = (0..self.contestants.len()).collect();
            if nth % 2 == 1 {
                order.reverse();
            }
            for contestant in order {
                let (name, start) = &self.contestants[contestant];
                progress.tell(&format!("{}: round {} of {rounds}, {name}", self.world, nth + 1));
                let (rate, failed) = work(start, times.lead_in, times.measured / rounds).await?;
                rates.rates[contestant].push(rate);
                rates.failed[contestant] += failed;
            }
        }
        Ok(rates)
    }
}

async fn work(start: &Start, lead_in: Duration, measured: Duration) -> Result<(f64, u64), Fault> {
    let round = Round::default();
    let mut tasks = JoinSet::new();
    start(&round, &mut tasks);
    sleep(lead_in).await;
    let (before, began) = (round.done.load(Ordering::Relaxed), Instant::now());
    sleep(measured).await;
    let (after, took) = (round.done.load(Ordering::Relaxed), began.elapsed());
    round.end();
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok((float(after - before) / took.as_secs_f64(), round.failed.load(Ordering::Relaxed)))
}

impl Rates {
    /// Requests a second of a contestant.
    pub fn of(&self, contestant: usize) -> Spread {
        Spread::of(self.rates[contestant].clone())
    }

    /// How many times the requests of another one it did.
    pub fn ratio(&self, contestant: usize, other: usize) -> Spread {
        let rounds = self.rates[contestant].iter().zip(&self.rates[other]);
        Spread::of(rounds.map(|(of_one, of_other)| of_one / of_other).collect())
    }
}

impl Spread {
    /// Of these values; nothing is known of none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |nth: usize| values.get(nth).copied().unwrap_or(f64::NAN);
        let (last, half) = (values.len().saturating_sub(1), values.len() / 2);
        let median = if values.len() % 2 == 1 {
            at(half)
        } else {
            f64::midpoint(at(half.saturating_sub(1)), at(half))
        };
        Self { median, least: at(0), most: at(last) }
    }
}

/// Whatever is counted here is far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub fn float(count: u64) -> f64 {
    count as f64
}
