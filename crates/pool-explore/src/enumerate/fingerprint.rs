//! What two worlds have in common that will behave alike: the registry's view with times reduced to their order, and
//! what the world owns, without names that do not matter.

use pool_core::{ConnectionId, Target, View};

use super::parts::{Caller, History, Open};
use super::world::World;

/// See the file's front page. Callers of one workspace are interchangeable, so they are sorted.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    view: View,
    /// By workspace: callers that have not asked, those that hold, those that wait in their order.
    callers: Vec<(usize, Vec<Holder>, Vec<bool>)>,
    /// For whom, slow, outlived, outdated, lost.
    opens: Vec<(Target, [bool; 4])>,
    /// For whom, slow, vanished.
    closes: Vec<(Target, bool, bool)>,
    /// Whether a session has vanished; how many idle connections came back before it, if it is idle still.
    vanished: (bool, Option<usize>),
    closers: Vec<Closing>,
    retries: Vec<Target>,
    look_ups: Vec<Target>,
    history: History,
    limits: [u32; 2],
    left: [u32; 2],
    is_stranded: bool,
}

/// A close under way: for whom; how many leases were listed; told, cut, confirmed.
type Closing = (Option<Target>, Option<usize>, [bool; 3]);

/// A caller that holds a connection: fresh, listed by a closer, cut by one, vanished, dead.
type Holder = [bool; 5];

impl World {
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let sorted = |mut all: Vec<Target>| {
            all.sort();
            all
        };
        let open_kind =
            |open: &Open| [open.is_slow(), open.is_outlived(), open.is_outdated(), open.is_lost()];
        let mut opens: Vec<_> =
            self.opens.iter().map(|open| (open.target().clone(), open_kind(open))).collect();
        opens.sort();
        let mut closes: Vec<_> = self
            .closes
            .iter()
            .map(|close| {
                let id = close.debt.connection();
                (close.debt.target().clone(), close.slow, self.vanished == Some(id))
            })
            .collect();
        closes.sort();
        let closing = self.closers.iter().map(|closer| {
            let steps = [closer.told, closer.has_cut, closer.is_confirmed];
            (closer.target.clone(), closer.listed.as_ref().map(Vec::len), steps)
        });
        Fingerprint {
            view: self.ranked_view(),
            callers: (0..self.scenario.workspaces).map(|w| self.callers_of(w)).collect(),
            opens,
            closes,
            closers: closing.collect(),
            vanished: (self.vanished.is_some(), self.vanished.and_then(|id| self.age_rank(id))),
            retries: sorted(self.retries.iter().map(|(target, _)| target.clone()).collect()),
            look_ups: sorted(self.look_ups.clone()),
            history: self.history,
            limits: [self.budget, self.allowed],
            left: [self.mishaps_left, self.quanta_left],
            is_stranded: self.is_stranded,
        }
    }

    /// Times matter by their order (which was idle longest) or by a threshold (a quantum); so they are kept as such.
    fn ranked_view(&self) -> View {
        let mut view = self.registry.view(self.now);
        let mut ages: Vec<u128> = view.workspaces.iter().flat_map(|ws| ws.idle_nanos.clone()).collect();
        ages.sort_unstable();
        for age in view.workspaces.iter_mut().flat_map(|ws| &mut ws.idle_nanos) {
            *age = ages.iter().position(|other| other == age).unwrap_or_default() as u128;
        }
        view
    }

    /// How many of the idle connections came back before `id`; none if that is not idle.
    fn age_rank(&self, id: ConnectionId) -> Option<usize> {
        let idle = self.registry.idle();
        let returned =
            |id: ConnectionId| self.live.iter().find(|live| live.id == id).map(|live| live.returned);
        let its = idle.contains(&id).then(|| returned(id))?;
        Some(idle.iter().filter(|other| returned(**other) < its).count())
    }

    fn callers_of(&self, workspace: usize) -> (usize, Vec<Holder>, Vec<bool>) {
        let mut new = 0;
        let mut holders = Vec::new();
        let mut waiting = Vec::new();
        for (c, caller) in self.callers.iter().enumerate().filter(|(c, _)| self.wants(*c) == workspace) {
            match caller {
                Caller::New => new += 1,
                Caller::Holding { conn, fresh, .. } => {
                    let id = self.live.iter().find(|live| live.conn == *conn).map(|live| live.id);
                    let listed = |id| {
                        self.closers.iter().any(|closer| closer.listed.iter().flatten().any(|l| *l == id))
                    };
                    holders.push([
                        *fresh && self.mishaps_left > 0,
                        id.is_some_and(listed),
                        id.is_some_and(|id| self.cut.contains(&id)),
                        id.is_some() && id == self.vanished,
                        self.dead.contains(conn),
                    ]);
                }
                Caller::Waiting { woken, asked, .. } => waiting.push((*asked, c, woken.is_up())),
                Caller::Done => {}
            }
        }
        holders.sort_unstable();
        waiting.sort_unstable();
        (new, holders, waiting.into_iter().map(|(_, _, is_woken)| is_woken).collect())
    }
}
