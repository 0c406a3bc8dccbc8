//! Which backends are to exit, when they are looked for, and what is believed of them while nobody can be asked: pure, with
//! the time as an argument. The task around it (worker.rs) carries the questions.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::connection::Session;

/// The pause between two looks at backends that are to exit, doubled each time that none was found gone.
const PAUSE_FIRST: Duration = Duration::from_micros(300);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// A look is followed by a pause as long as it took, so that a busy server is not kept busy with looks; but a slow link is
/// not a busy server.
const REST_MAX: Duration = Duration::from_millis(5);
/// A backend that has not exited by then is told to.
const END_AFTER: Duration = Duration::from_secs(1);
/// When looks have had no answer for this long, backends that have been leaving for as long are believed gone.
const ASSUME_EXITED_AFTER: Duration = Duration::from_secs(30);
/// What has not exited by then is warned of, and again each time that its age has doubled.
const WARN_AFTER: Duration = Duration::from_secs(10);

/// A backend that is to exit; `T` is who wants to be told.
struct Leaving<T> {
    session: Session,
    since: Instant,
    /// When it is to be ended from outside.
    end_at: Instant,
    /// The age at which it is warned of.
    warn_at: Duration,
    told: T,
}

/// The backends that are to exit, and the rhythm of the looks at them.
pub(super) struct Exits<T> {
    leaving: Vec<Leaving<T>>,
    pause: Duration,
    /// When those who leave are to be looked for.
    next: Instant,
    /// Until when nobody is to be looked for.
    rest_until: Instant,
    /// Since when looks have had no answer.
    unanswered_since: Option<Instant>,
}

impl<T> Exits<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self { leaving: Vec::new(), pause: PAUSE_FIRST, next: now, rest_until: now, unanswered_since: None }
    }

    /// `told` waits for the exit of `session`, which is ended from outside first if so wished.
    pub(super) fn expect(&mut self, session: Session, by_force: bool, told: T, now: Instant) {
        let end_at = if by_force { now } else { now + END_AFTER };
        let look_at = if by_force { now } else { now + PAUSE_FIRST };
        self.next = if self.leaving.is_empty() { look_at } else { self.next.min(look_at) };
        self.pause = PAUSE_FIRST;
        self.leaving.push(Leaving { session, since: now, end_at, warn_at: WARN_AFTER, told });
    }

    /// Forgets those of whom nobody wants to be told any more.
    pub(super) fn forget(&mut self, has_gone: impl Fn(&T) -> bool) {
        self.leaving.retain(|leaving| !has_gone(&leaving.told));
    }

    /// When the next look at those who leave is due, if anybody does.
    pub(super) fn look_at(&self) -> Option<Instant> {
        (!self.leaving.is_empty()).then_some(self.next.max(self.rest_until))
    }

    /// The earliest moment for a look that somebody else wants.
    pub(super) fn rest_until(&self) -> Instant {
        self.rest_until
    }

    /// Those who are waited for.
    pub(super) fn sessions(&self) -> impl Iterator<Item = Session> {
        self.leaving.iter().map(|leaving| leaving.session)
    }

    /// Those who are to be ended from outside now; they are given time to exit before they are told again.
    pub(super) fn end_due(&mut self, now: Instant) -> Vec<Session> {
        let due = self.leaving.iter_mut().filter(|leaving| leaving.end_at <= now);
        due.map(|leaving| {
            leaving.end_at = now + END_AFTER;
            leaving.session
        })
        .collect()
    }

    /// The server has answered a look that took so long: these are there. Returns who waits for the others.
    pub(super) fn looked(&mut self, there: &HashSet<Session>, took: Duration, now: Instant) -> Vec<T> {
        self.unanswered_since = None;
        let gone = self.take(|leaving| !there.contains(&leaving.session));
        self.rest(took, !gone.is_empty(), now);
        gone
    }

    /// The server has not answered a look. Returns who waits for those that are believed to be gone all the same.
    pub(super) fn unanswered(&mut self, now: Instant) -> Vec<T> {
        let since = *self.unanswered_since.get_or_insert(now);
        let is_old = |since: Instant| now.saturating_duration_since(since) >= ASSUME_EXITED_AFTER;
        let gone = self.take(|leaving| is_old(since) && is_old(leaving.since));
        self.rest(Duration::ZERO, false, now);
        gone
    }

    /// Those who have been leaving for long, and for how long; each is named again when its age has doubled.
    pub(super) fn late(&mut self, now: Instant) -> Vec<(Session, Duration)> {
        let mut late = Vec::new();
        for leaving in &mut self.leaving {
            let age = now.saturating_duration_since(leaving.since);
            if age >= leaving.warn_at {
                leaving.warn_at = age * 2;
                late.push((leaving.session, age));
            }
        }
        late
    }

    fn take(&mut self, is_gone: impl Fn(&Leaving<T>) -> bool) -> Vec<T> {
        self.leaving.extract_if(.., |leaving| is_gone(leaving)).map(|leaving| leaving.told).collect()
    }

    fn rest(&mut self, took: Duration, was_worth_it: bool, now: Instant) {
        self.pause = if was_worth_it { PAUSE_FIRST } else { (self.pause * 2).min(PAUSE_MAX) };
        self.next = now + self.pause;
        self.rest_until = now + took.min(REST_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn session(pid: i32) -> Session {
        Session { pid, started: 1 }
    }

    fn there(pids: &[i32]) -> HashSet<Session> {
        pids.iter().copied().map(session).collect()
    }

    #[test]
    fn who_is_not_there_any_more_is_told_of_and_the_others_are_kept() {
        let now = Instant::now();
        let mut exits = Exits::new(now);
        exits.expect(session(1), false, "first", now);
        exits.expect(session(2), false, "second", now);
        assert_eq!(exits.looked(&there(&[2]), MS, now), ["first"]);
        assert_eq!(exits.sessions().collect::<Vec<_>>(), [session(2)]);
    }

    #[test]
    fn a_successor_with_the_same_pid_is_another_session() {
        let now = Instant::now();
        let mut exits = Exits::new(now);
        exits.expect(session(1), false, "first", now);
        let successor = HashSet::from([Session { pid: 1, started: 2 }]);
        assert_eq!(exits.looked(&successor, MS, now), ["first"]);
    }

    #[test]
    fn nobody_is_looked_for_when_nobody_leaves() {
        let now = Instant::now();
        assert_eq!(Exits::<()>::new(now).look_at(), None);
    }

    #[test]
    fn looks_in_vain_are_further_and_further_apart_until_somebody_else_leaves() {
        let mut now = Instant::now();
        let mut exits = Exits::new(now);
        exits.expect(session(1), false, (), now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let at = exits.look_at().unwrap();
            pauses.push(at - now);
            now = at;
            exits.looked(&there(&[1]), Duration::ZERO, now);
        }
        assert!(pauses.is_sorted() && pauses[9] == PAUSE_MAX, "{pauses:?}");
        exits.expect(session(2), false, (), now);
        assert_eq!(exits.look_at(), Some(now + PAUSE_FIRST));
    }

    #[test]
    fn a_server_that_takes_long_to_answer_is_left_alone_for_longer() {
        let now = Instant::now();
        let mut exits = Exits::new(now);
        exits.expect(session(1), false, (), now);
        exits.looked(&there(&[1]), 3 * MS, now);
        exits.expect(session(2), true, (), now);
        assert_eq!(exits.look_at(), Some(now + 3 * MS));
        exits.looked(&there(&[1, 2]), Duration::from_secs(1), now);
        assert_eq!(exits.rest_until(), now + REST_MAX);
    }

    #[test]
    fn who_is_to_be_ended_is_ended_at_once_and_who_lingers_after_a_second() {
        let now = Instant::now();
        let mut exits = Exits::new(now);
        exits.expect(session(1), true, (), now);
        exits.expect(session(2), false, (), now);
        assert_eq!(exits.end_due(now), [session(1)]);
        assert_eq!(exits.end_due(now + END_AFTER / 2), []);
        assert_eq!(exits.end_due(now + END_AFTER), [session(1), session(2)]);
    }

    #[test]
    fn without_an_answer_they_are_believed_to_be_gone_in_the_end() {
        let start = Instant::now();
        let mut exits = Exits::new(start);
        exits.expect(session(1), false, "old", start);
        assert_eq!(exits.unanswered(start + MS), Vec::<&str>::new());
        exits.expect(session(2), false, "young", start + 2 * MS);
        assert_eq!(exits.unanswered(start + MS + ASSUME_EXITED_AFTER), ["old"]);
    }

    #[test]
    fn an_answer_ends_the_time_without_one() {
        let start = Instant::now();
        let mut exits = Exits::new(start);
        exits.expect(session(1), false, (), start);
        exits.unanswered(start);
        exits.looked(&there(&[1]), MS, start + MS);
        assert_eq!(exits.unanswered(start + ASSUME_EXITED_AFTER), []);
    }

    #[test]
    fn who_stays_for_long_is_named_with_its_age_and_again_at_twice_the_age() {
        let start = Instant::now();
        let mut exits = Exits::new(start);
        exits.expect(session(1), false, (), start);
        let named: Vec<u64> =
            (0..60).filter(|second| !exits.late(start + Duration::from_secs(*second)).is_empty()).collect();
        assert_eq!(named, [10, 20, 40]);
    }

    #[test]
    fn who_nobody_asks_about_any_more_is_forgotten() {
        let now = Instant::now();
        let mut exits = Exits::new(now);
        exits.expect(session(1), false, "gone", now);
        exits.forget(|told| *told == "gone");
        assert_eq!(exits.look_at(), None);
    }
}
