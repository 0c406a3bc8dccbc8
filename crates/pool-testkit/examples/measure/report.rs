//! Figures as lines of JSON, each as soon as it is known.

use pool_postgres::PgPools;
use pool_testkit::run::{Goal, Measured};

use crate::contest::{Spread, float};
use crate::progress::Progress;
use crate::watch::Watch;

/// Says the figures of one world.
pub struct Report<'a> {
    world: &'static str,
    about: &'static str,
    /// What is going on.
    pub progress: &'a mut Progress,
}

impl<'a> Report<'a> {
    /// Of this world.
    pub fn new(world: &'static str, about: &'static str, progress: &'a mut Progress) -> Self {
        Self { world, about, progress }
    }

    /// A figure of many rounds.
    pub fn spread(&mut self, figure: &str, spread: Spread, goal: Option<Goal>) {
        self.write(figure, spread.median, Some((spread.least, spread.most)), goal);
    }

    /// A figure that was measured once.
    pub fn value(&mut self, figure: &str, value: f64, goal: Option<Goal>) {
        self.write(figure, value, None, goal);
    }

    /// What a pool has done since it was built.
    pub fn stats(&mut self, of: &str, pools: &PgPools, watch: &Watch) {
        let stats = pools.stats().workspaces;
        let acquired = float(stats.acquired).max(1.0);
        let (evicted, yielded) = watch.closed_for_others();
        self.value(&format!("{of}: connects per grant"), float(stats.opened) / acquired, None);
        self.value(&format!("{of}: evicted per grant"), evicted / acquired, None);
        self.value(&format!("{of}: yielded per grant"), yielded / acquired, None);
        self.value(&format!("{of}: grants at once"), float(stats.hits) / acquired, None);
        self.value(&format!("{of}: a connect, ms"), watch.opening_ms(), None);
        let wrong = float(stats.open_failures + stats.miscounts);
        self.value(&format!("{of}: failed connects, miscounts"), wrong, Some(Goal::AtMost(0.0)));
    }

    fn write(&mut self, figure: &str, value: f64, spread: Option<(f64, f64)>, goal: Option<Goal>) {
        self.progress.clear();
        let (world, about, figure) = (self.world.to_owned(), self.about.to_owned(), figure.to_owned());
        let measured = Measured { world, about, figure, value, spread, goal };
        match serde_json::to_string(&measured) {
            Ok(line) => println!("{line}"),
            Err(why) => eprintln!("  {}: {why}", measured.figure),
        }
    }
}
