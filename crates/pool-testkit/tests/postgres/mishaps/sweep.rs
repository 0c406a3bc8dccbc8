//! Every kind, every fault, every way, over one route.

use super::access::Route;
use super::kinds::{KINDS, Kind};
use super::ways::{DISTURBANCES, FAILING, Fault, Way};
use super::world::{Cell, World};

/// How many await points a mishap may have before it counts as endless.
const POINTS_MAX: usize = 1_000;

/// Which fields of the table are taken. What is left alone by everybody, is always.
pub struct Choice {
    /// Of all the others, at random.
    pub share: f64,
    pub dice: fastrand::Rng,
}

impl Choice {
    /// Whether the short form does no more with a kind: at random, and always if it is tedious.
    fn passes_over(&mut self, kind: Kind) -> bool {
        self.share < 1.0 && (kind.is_tedious() || self.dice.f64() < 0.75)
    }

    /// Whether the short form leaves a kind out over this route: it takes a second each time, and another route has it.
    fn leaves_out(&self, kind: Kind, route: Route) -> bool {
        let is_alike = matches!(route, Route::RawInTransaction | Route::SqlxTransaction(_));
        self.share < 1.0 && is_alike && kind.is_tedious()
    }

    fn takes_one(&mut self) -> bool {
        self.dice.f64() < self.share
    }
}

/// Has the chosen mishaps happen that go over the route, and then others, until there were enough.
pub async fn sweep(world: &mut World, route: Route, choice: &mut Choice, mishaps_min: u64) {
    let kinds: Vec<Kind> =
        KINDS.into_iter().filter(|&kind| kind.goes_over(route) && !choice.leaves_out(kind, route)).collect();
    for &kind in &kinds {
        sweep_kind(world, kind, route, choice).await;
    }
    while world.tally.mishaps < mishaps_min {
        let kind = kinds[choice.dice.usize(..kinds.len())];
        sweep_kind(world, kind, route, choice).await;
    }
}

async fn sweep_kind(world: &mut World, kind: Kind, route: Route, choice: &mut Choice) {
    let cell = Cell { kind, fault: Fault::Nothing, way: Way::Left, route };
    let steps = left(world, cell).await;
    if choice.passes_over(kind) {
        return;
    }
    for make in [Way::Dropped, Way::DroppedWhenWoken] {
        dropped(world, cell, make, choice).await;
    }
    disturbed(world, cell, steps, choice).await;
    if kind.takes_faults() {
        failing(world, cell, choice).await;
        at_work(world, Cell { fault: Fault::Slow, ..cell }, choice).await;
    }
}

/// The one that comes to its end. Returns how many steps it has.
async fn left(world: &mut World, cell: Cell) -> usize {
    let went_well = world.visit(cell).await;
    if !cell.kind.fails_by_itself(cell.route) {
        assert!(matches!(went_well.outcome, Some(Ok(()))), "{cell:?}: {went_well:?}");
    }
    went_well.steps
}

/// Those that fail by themselves.
async fn failing(world: &mut World, cell: Cell, choice: &mut Choice) {
    for fault in FAILING {
        if fault.goes_over(cell.route) && choice.takes_one() {
            let cell = Cell { fault, ..cell };
            let failed = world.visit(cell).await;
            if cell.kind.reads_to_the_end() {
                assert!(matches!(failed.outcome, Some(Err(_))), "{cell:?}: {failed:?}");
            }
        }
    }
}

/// Those that are dropped at one await point or another.
async fn dropped(world: &mut World, cell: Cell, make: impl Fn(usize) -> Way, choice: &mut Choice) {
    for point in 0..POINTS_MAX {
        let way = make(point);
        if choice.takes_one() && world.visit(Cell { way, ..cell }).await.outcome.is_some() {
            return;
        }
    }
    assert!(choice.share < 0.5, "{cell:?} does not come to its end");
}

/// Those to whose session something is done between two steps.
async fn disturbed(world: &mut World, cell: Cell, steps: usize, choice: &mut Choice) {
    for what in DISTURBANCES {
        for at in 0..steps {
            if choice.takes_one() {
                world.visit(Cell { way: Way::Disturbed(what, at), ..cell }).await;
            }
        }
    }
}

/// Those that are dropped or disturbed while the server works for them.
async fn at_work(world: &mut World, cell: Cell, choice: &mut Choice) {
    dropped(world, cell, Way::Dropped, choice).await;
    for what in DISTURBANCES {
        if choice.takes_one() {
            world.visit(Cell { way: Way::DisturbedAtWork(what), ..cell }).await;
        }
    }
}
