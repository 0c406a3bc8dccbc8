//! Runs a world: takes event after event, tells the registry, and measures.

use std::time::Duration;

use fastrand::Rng;
use pool_core::Broken;

use super::drive::{Answer, Job, Shell};
use super::figures::Figures;
use super::meter::Meter;
use super::queue::{Event, EventQueue};
use super::tasks::{PAUSE_AFTER_REFUSAL, Tasks};
use super::world::{CYCLES_OF_THE_LAW, World};

/// How many events lie between two checks of the registry by itself, which cost a pass over its entries.
const EVENTS_PER_CHECK: u32 = 997;

/// How long the catalog takes to say whether a workspace has a database: a round trip or two.
const LOOK_UP: Duration = Duration::from_millis(1);

/// Runs a world from beginning to end. Cost: about a microsecond for each lease.
///
/// # Errors
/// The first law that was broken: one that the registry itself checks, or one that can be seen from outside.
pub fn run(world: &World) -> Result<Figures, Broken> {
    let mut simulation = Simulation::new(world);
    let end = world.warm_up() + world.duration();
    while let Some((at, event)) = simulation.queue.pop(end) {
        simulation.now = at;
        simulation.step(event)?;
    }
    simulation.now = end;
    Ok(simulation.figures())
}

struct Simulation<'a> {
    world: &'a World,
    shell: Shell,
    tasks: Tasks,
    meter: Meter,
    queue: EventQueue,
    now: Duration,
    rng: Rng,
    /// When the server has time for the next connect, where that is bounded.
    server_is_free: Duration,
    events: u32,
}

impl<'a> Simulation<'a> {
    fn new(world: &'a World) -> Self {
        let tasks = Tasks::new(world);
        let mut queue = EventQueue::default();
        queue.push(world.warm_up(), Event::Mark);
        let part = world.cycle() * CYCLES_OF_THE_LAW;
        let parts = (1..).map(|nth| part * nth).take_while(|at| *at + part <= world.duration());
        parts.for_each(|at| queue.push(world.warm_up() + at, Event::Mark));
        for task in 0..tasks.count() {
            queue.push(tasks.begins(task, world), Event::Ask { task });
        }
        Self {
            world,
            shell: Shell::new(world, tasks.count()),
            meter: Meter::new(world, tasks.count()),
            tasks,
            queue,
            now: Duration::ZERO,
            rng: Rng::with_seed(world.seed),
            server_is_free: Duration::ZERO,
            events: 0,
        }
    }

    fn step(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Ask { task } => self.ask(task)?,
            Event::Release { task } => self.release(task)?,
            Event::OpenEnds { open } => {
                if let Some((workspace, succeeded)) = self.shell.open_ends(open, self.now) {
                    self.meter.open_ends(workspace, succeeded, self.now);
                }
            }
            Event::CloseEnds { close } => {
                if let Some(workspace) = self.shell.close_ends(close, self.now) {
                    self.meter.is_gone(workspace, self.now);
                }
            }
            Event::Retry { workspace } => self.shell.retry(workspace, self.now),
            Event::Due => self.shell.due(self.now),
            Event::LookedUp { workspace } => self.shell.looked_up(workspace, self.now),
            Event::Mark => self.meter.mark(self.now),
        }
        self.perform()?;
        self.events += 1;
        if self.events.is_multiple_of(EVENTS_PER_CHECK) {
            self.shell.check(self.now)?;
        }
        Ok(())
    }

    fn ask(&mut self, task: u32) -> Result<(), Broken> {
        let workspace = self.tasks.choose(task, &mut self.rng);
        self.meter.asks(task, self.now);
        let answer = self.shell.ask(task, workspace, self.now)?;
        if answer == Answer::Waiting {
            self.meter.waits(task, workspace, self.now);
        }
        self.is_answered(task, answer);
        Ok(())
    }

    fn release(&mut self, task: u32) -> Result<(), Broken> {
        self.meter.releases(task, self.tasks.group(task), self.tasks.workspace(task), self.now);
        self.shell.release(task, self.now);
        match self.tasks.served(task, &mut self.rng) {
            None => Ok(()),
            // In the same step: a caller that asks at once does so before those that it has woken look.
            Some(Duration::ZERO) => self.ask(task),
            Some(pause) => {
                self.queue.push(self.now + pause, Event::Ask { task });
                Ok(())
            }
        }
    }

    fn is_answered(&mut self, task: u32, answer: Answer) {
        let workspace = self.tasks.workspace(task);
        match answer {
            Answer::Waiting => {}
            Answer::Leased => {
                self.meter.is_served(task, self.tasks.group(task), workspace, self.now);
                let query = self.jittered(self.world.query);
                self.queue.push(self.now + query, Event::Release { task });
            }
            Answer::Failed => {
                self.meter.is_refused(task, workspace, self.now);
                self.queue.push(self.now + PAUSE_AFTER_REFUSAL, Event::Ask { task });
            }
        }
    }

    /// Begins what the registry asked for, and lets those that were woken look.
    fn perform(&mut self) -> Result<(), Broken> {
        while let Some(job) = self.shell.next_job() {
            match job {
                Job::Open { open, workspace } => {
                    self.meter.open_begins(workspace, self.now)?;
                    let at = self.connected_at();
                    self.queue.push(at, Event::OpenEnds { open });
                }
                Job::Close { close } => {
                    let close_takes = self.jittered(self.world.close);
                    self.queue.push(self.now + close_takes, Event::CloseEnds { close });
                }
                Job::Retry { workspace, at } => self.queue.push(at, Event::Retry { workspace }),
                Job::Due { at } => self.queue.push(at, Event::Due),
                Job::LookUp { workspace } => {
                    self.queue.push(self.now + LOOK_UP, Event::LookedUp { workspace });
                }
            }
        }
        while let Some(task) = self.shell.next_woken() {
            let answer = self.shell.fetch(task, self.tasks.workspace(task), self.now)?;
            self.is_answered(task, answer);
        }
        Ok(())
    }

    /// When a connect that begins now is over: not before the server has had time for all that began before it.
    fn connected_at(&mut self) -> Duration {
        let alone = self.now + self.jittered(self.world.connect);
        let Some(rate) = self.world.connects_per_second else { return alone };
        self.server_is_free = self.server_is_free.max(self.now) + Duration::from_secs(1) / rate;
        self.server_is_free.max(alone)
    }

    fn jittered(&mut self, mean: Duration) -> Duration {
        if self.world.jitter == 0.0 {
            return mean;
        }
        mean.mul_f64(1.0 + self.world.jitter * (2.0 * self.rng.f64() - 1.0))
    }

    fn figures(self) -> Figures {
        let Self { mut meter, tasks, now, world, .. } = self;
        meter.end(|task| (tasks.group(task), tasks.workspace(task)), now);
        Figures::of(meter, world)
    }
}
