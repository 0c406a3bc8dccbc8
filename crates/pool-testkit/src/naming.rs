//! What everything of a run is called on a server: sessions carry the run, the pool and the case in their
//! `application_name`, databases the run and the pool in their names, so that whatever is left behind
//! tells where it came from, and nothing of anybody else is ever counted or touched.

use std::fmt;

/// The longest `application_name` that the server keeps whole.
const APPLICATION_NAME_BYTES_MAX: usize = 63;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const RUN_CHARS: usize = 6;
const POOL_CHARS: usize = 7;

/// One run of the suites: six characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// A new one, at random.
    pub fn fresh() -> Self {
        Self((0..RUN_CHARS).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())])).collect())
    }

    /// The run that this process is part of, as its environment says, or a new one.
    pub fn of_process() -> Self {
        let named = std::env::var(crate::run::RUN_ENV).ok();
        named.filter(|run| is_run(run)).map_or_else(Self::fresh, Self)
    }

    /// What the `application_name` of all sessions of this run's pools begins with.
    pub fn sessions(&self) -> String {
        format!("pt:{self}:")
    }

    /// What the names of all databases of this run begin with.
    pub fn databases(&self) -> String {
        format!("t{self}_")
    }
}

fn is_run(run: &str) -> bool {
    run.len() == RUN_CHARS && run.bytes().all(|b| DIGITS.contains(&b))
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One test pool: a number that is also the key of its advisory lock, and its names.
#[derive(Clone, Debug)]
pub(crate) struct PoolName {
    pub(crate) run: RunId,
    pub(crate) serial: i32,
    pub(crate) suite: String,
    pub(crate) case: String,
}

impl PoolName {
    /// A name for a pool of the test that runs on this thread.
    pub(crate) fn fresh(run: RunId) -> Self {
        let (suite, case) = current_test();
        Self { run, serial: fastrand::i32(0..), suite, case }
    }

    fn pool(&self) -> String {
        base36(self.serial)
    }

    /// The tag of the pool's sessions.
    pub(crate) fn tag(&self) -> String {
        cut(format!("{}{}:{}::{}", self.run.sessions(), self.pool(), self.suite, self.case))
    }

    /// The tag of its keeper's session, which is not the pool's.
    pub(crate) fn keeper_tag(&self) -> String {
        cut(format!("pk:{}:{}:{}::{}", self.run, self.pool(), self.suite, self.case))
    }

    /// The prefix of its databases.
    pub(crate) fn prefix(&self) -> String {
        format!("{}{}", self.run.databases(), self.pool())
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the test pool of {}::{}", self.suite, self.case)
    }
}

/// The serial of the pool that a database belongs to, if it is a test pool's.
pub(crate) fn serial_of_database(name: &str) -> Option<i32> {
    let (run, rest) = name.strip_prefix('t')?.split_at_checked(RUN_CHARS)?;
    let pool = rest.strip_prefix('_')?.get(..POOL_CHARS)?;
    let marked = rest.get(1 + POOL_CHARS..)?.starts_with("_ws_");
    let serial = u64::from_str_radix(pool, 36).ok()?;
    (is_run(run) && marked && is_lower(pool)).then(|| i32::try_from(serial).ok())?
}

/// The suite and the case in a session's tag.
pub(crate) fn case_of_tag(tag: &str) -> (String, String) {
    let test = tag.splitn(4, ':').nth(3).unwrap_or_default();
    split_test(test)
}

/// libtest names the thread of a test after it; nextest, whose tests may run on the main thread, says so
/// in the environment.
fn current_test() -> (String, String) {
    let thread = std::thread::current();
    let named = thread.name().filter(|name| *name != "main").map(ToOwned::to_owned);
    split_test(&std::env::var("NEXTEST_TEST_NAME").ok().or(named).unwrap_or_default())
}

fn split_test(test: &str) -> (String, String) {
    match test.split_once("::") {
        Some((suite, case)) => (suite.to_owned(), case.to_owned()),
        None => ("none".to_owned(), test.to_owned()),
    }
}

fn is_lower(text: &str) -> bool {
    text.bytes().all(|b| DIGITS.contains(&b))
}

fn base36(serial: i32) -> String {
    let mut rest = serial.unsigned_abs() as usize;
    let mut digits = [b'0'; POOL_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[rest % DIGITS.len()];
        rest /= DIGITS.len();
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

fn cut(mut name: String) -> String {
    let end = (0..=APPLICATION_NAME_BYTES_MAX).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    name.truncate(end.min(name.len()));
    name
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::smallest(0)]
    #[case::largest(i32::MAX)]
    fn a_database_tells_its_pool(#[case] serial: i32) {
        let name = PoolName { run: RunId::fresh(), serial, suite: "s".into(), case: "c".into() };
        assert!(name.prefix().len() <= 20);
        assert_eq!(serial_of_database(&format!("{}_ws_x", name.prefix())), Some(serial));
    }

    #[rstest]
    #[case("postgres")]
    #[case("template1")]
    #[case("tenant_ws_acme")]
    #[case("tabcdef_0000000")]
    #[case("tabcdef_zzzzzzz_ws_x")]
    fn a_database_of_somebody_else_is_not_ours(#[case] name: &str) {
        assert_eq!(serial_of_database(name), None);
    }

    #[test]
    fn a_tag_tells_its_case() {
        let name = PoolName { run: RunId::fresh(), serial: 1, suite: "limits".into(), case: "edge".into() };
        assert_eq!(case_of_tag(&name.tag()), ("limits".to_owned(), "edge".to_owned()));
        let long = PoolName { case: "x".repeat(100), ..name };
        assert_eq!(long.tag().len(), 63);
    }
}
