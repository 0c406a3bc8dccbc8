//! Those who close a workspace, or everything, in a small world.

use pool_core::{Broken, Effects, Target};

use super::parts::{Closer, Conn};
use super::world::World;

impl World {
    pub(super) fn begin_closer(
        &mut self,
        target: Option<Target>,
        effects: Effects<Conn>,
    ) -> Result<(), Broken> {
        self.perform(effects)?;
        // A closer looks once before it waits.
        self.closers.push(Closer { target, told: true, listed: None, has_cut: false, is_confirmed: false });
        Ok(())
    }

    pub(super) fn closer_looks(&mut self, k: usize) -> Result<(), Broken> {
        let closer = &mut self.closers[k];
        closer.told = false;
        let counts = match &closer.target {
            Some(target) => self.registry.target_counts(target),
            None => self.registry.stats().connections,
        };
        let leases = if closer.has_cut { counts.in_use } else { 0 };
        if counts.total() == leases { self.closer_ends(k) } else { Ok(()) }
    }

    pub(super) fn closer_ends(&mut self, k: usize) -> Result<(), Broken> {
        match self.closers.remove(k).target {
            Some(target) => {
                let effects = self.registry.end_close(&target, self.now);
                self.perform(effects)
            }
            None => Ok(()),
        }
    }

    pub(super) fn deadline(&mut self, k: usize) -> Result<(), Broken> {
        let target = self.closers[k].target.clone();
        let listed = self.registry.in_use(target.as_ref());
        self.check_listed(target.as_ref(), &listed)?;
        self.closers[k].listed = Some(listed);
        Ok(())
    }

    pub(super) fn cut_is_confirmed(&mut self, k: usize) -> Result<(), Broken> {
        self.closers[k].is_confirmed = true;
        for id in self.closers[k].listed.clone().unwrap_or_default() {
            let Some((_, effects)) = self.registry.cut(id, self.now) else { continue };
            let checked = self.check_cut(id);
            let live = self.live.extract_if(.., |live| live.id == id);
            self.dead.extend(live.map(|live| live.conn));
            self.perform(effects)?;
            checked?;
        }
        Ok(())
    }
}
