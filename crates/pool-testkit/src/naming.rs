//! What everything of a run is called on a server: sessions carry the run, the pool and the case in their
//! `application_name`, databases the run and the pool in their names, so that whatever is left behind
//! tells where it came from, and nothing of anybody else is ever counted or touched.

use std::fmt;

use pool_postgres::{APPLICATION_NAME_MAX, without_tag};

/// Names the run to the test processes: six characters of a-z and 0-9.
pub const RUN_ENV: &str = "POOL_TEST_RUN";

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const RUN_CHARS: usize = 6;
const POOL_CHARS: usize = 7;
/// What is left of that for the test, behind `pt:`, the run, the pool and their colons.
const TEST_BYTES_MAX: usize = APPLICATION_NAME_MAX - "pt:::".len() - RUN_CHARS - POOL_CHARS;

/// One run of the suites: six characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(String);

impl RunId {
    /// A new one, at random.
    pub fn fresh() -> Self {
        Self((0..RUN_CHARS).map(|_| char::from(DIGITS[fastrand::usize(..DIGITS.len())])).collect())
    }

    /// The run that this process is part of, as its environment says, or a new one.
    pub fn of_process() -> Self {
        Self::supervised().unwrap_or_else(Self::fresh)
    }

    /// The run of this name, if it can be one.
    pub fn parse(name: &str) -> Option<Self> {
        is_run(name).then(|| Self(name.to_owned()))
    }

    /// The run that this process was told to be part of, by somebody who looks after what it leaves.
    pub(crate) fn supervised() -> Option<Self> {
        Self::parse(&std::env::var(RUN_ENV).ok()?)
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
        format!("{}{}:{}", self.run.sessions(), self.pool(), self.test())
    }

    /// The tag of its janitor's session, which is not the pool's.
    pub(crate) fn janitor_tag(&self) -> String {
        format!("pk:{}:{}:{}", self.run, self.pool(), self.test())
    }

    fn test(&self) -> String {
        in_tag(&format!("{}::{}", self.suite, self.case))
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
    let rest = rest.get(1 + POOL_CHARS..)?;
    let marked = rest.starts_with("_ws_") || rest.starts_with("_template_");
    (is_run(run) && marked).then(|| serial(pool))?
}

fn serial(pool: &str) -> Option<i32> {
    if pool.len() != POOL_CHARS || !is_lower(pool) {
        return None;
    }
    u64::from_str_radix(pool, 36).ok().and_then(|serial| i32::try_from(serial).ok())
}

/// The run in the name of a test pool's database.
pub(crate) fn run_of_database(name: &str) -> Option<RunId> {
    serial_of_database(name)?;
    RunId::parse(name.get(1..=RUN_CHARS)?)
}

/// What a session's tag tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// A janitor's session and not its pool's.
    pub(crate) is_janitor: bool,
    pub(crate) run: RunId,
    pub(crate) serial: i32,
    pub(crate) suite: String,
    pub(crate) case: String,
}

impl Tag {
    pub(crate) fn parse(application_name: &str) -> Option<Self> {
        let mut parts = without_tag(application_name).splitn(4, ':');
        let is_janitor = match parts.next()? {
            "pt" => false,
            "pk" => true,
            _ => return None,
        };
        let run = RunId::parse(parts.next()?)?;
        let serial = serial(parts.next()?)?;
        let (suite, case) = split_test(parts.next()?);
        Some(Self { is_janitor, run, serial, suite, case })
    }
}

/// What stands in a tag for the test of this path: the path itself, or where that is too long its beginning
/// and a hash of the whole, so that no two tests are taken for each other.
pub fn in_tag(path: &str) -> String {
    // The server keeps printable ASCII only.
    let plain: String = path.chars().map(|c| if matches!(c, ' '..='~') { c } else { '_' }).collect();
    if plain == path && path.len() <= TEST_BYTES_MAX {
        return plain;
    }
    let hash =
        path.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mark = base36(i32::try_from(hash >> 1).unwrap_or_default());
    let end = plain.len().min(TEST_BYTES_MAX - POOL_CHARS - 1);
    format!("{}~{mark}", &plain[..end])
}

/// The suite and the case of the test that runs on this thread. libtest names the thread of a test after it; nextest, whose
/// tests may run on the main thread, says so in the environment. A suite that runs on several adapters has the adapter in its
/// name.
pub fn current_test() -> (String, String) {
    let thread = std::thread::current();
    let named = thread.name().filter(|name| *name != "main").map(ToOwned::to_owned);
    split_test(&std::env::var("NEXTEST_TEST_NAME").ok().or(named).unwrap_or_default())
}

fn split_test(test: &str) -> (String, String) {
    let of_adapter = |test: &str| {
        let (adapter, rest) = test.strip_prefix("adapters::")?.split_once("::")?;
        let (suite, case) = rest.split_once("::")?;
        Some((format!("{adapter}::{suite}"), case.to_owned()))
    };
    if let Some(named) = of_adapter(test) {
        return named;
    }
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
        for kind in ["ws", "template"] {
            assert_eq!(serial_of_database(&format!("{}_{kind}_x", name.prefix())), Some(serial));
        }
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

    #[rstest]
    #[case("limits::edge::case_1", "limits", "edge::case_1")]
    #[case("adapters::sqlite::limits::edge", "sqlite::limits", "edge")]
    #[case("lonely", "none", "lonely")]
    fn a_test_has_a_suite_and_a_case(#[case] path: &str, #[case] suite: &str, #[case] case: &str) {
        assert_eq!(split_test(path), (suite.to_owned(), case.to_owned()));
    }

    #[test]
    fn a_tag_tells_its_case() {
        let name = PoolName { run: RunId::fresh(), serial: 7, suite: "limits".into(), case: "edge".into() };
        let tag = Tag::parse(&name.tag()).unwrap();
        assert_eq!((tag.is_janitor, &tag.run, tag.serial), (false, &name.run, 7));
        assert_eq!((tag.suite.as_str(), tag.case.as_str()), ("limits", "edge"));
        assert!(Tag::parse(&name.janitor_tag()).unwrap().is_janitor);
    }

    #[test]
    fn the_mark_of_a_single_session_is_no_part_of_its_case() {
        let name = PoolName { run: RunId::fresh(), serial: 7, suite: "limits".into(), case: "edge".into() };
        assert_eq!(Tag::parse(&format!("{}#0a1b2c3d", name.tag())), Tag::parse(&name.tag()));
    }

    #[test]
    fn a_test_whose_name_is_not_ascii_has_a_tag_that_the_server_keeps() {
        let (one, two) = (in_tag("s::caf\u{e9}"), in_tag("s::caf\u{ea}"));
        assert!(one.is_ascii() && one.starts_with("s::caf_~"), "{one}");
        assert_ne!(one, two);
    }

    #[test]
    fn tests_whose_names_begin_alike_have_tags_of_their_own() {
        let name = PoolName { run: RunId::fresh(), serial: 1, suite: "limits".into(), case: "x".repeat(100) };
        let other = PoolName { case: format!("{}y", "x".repeat(99)), ..name.clone() };
        assert_eq!(
            (name.tag().len(), name.janitor_tag().len()),
            (APPLICATION_NAME_MAX, APPLICATION_NAME_MAX)
        );
        assert_ne!(name.tag(), other.tag());
        let tag = Tag::parse(&name.tag()).unwrap();
        assert_eq!(in_tag(&format!("limits::{}", name.case)), format!("{}::{}", tag.suite, tag.case));
        assert!(in_tag(&"ö".repeat(60)).len() <= TEST_BYTES_MAX, "cut between characters");
    }

    #[rstest]
    #[case("psql")]
    #[case("pt:")]
    #[case("pt:abcdef:0000001")]
    #[case("pt:ABCDEF:0000001:s::c")]
    #[case("pt:abcdef:1:s::c")]
    #[case("pk:abcdef:sampler")]
    fn a_session_of_somebody_else_has_no_tag(#[case] application_name: &str) {
        assert_eq!(Tag::parse(application_name), None);
    }

    #[test]
    fn a_database_tells_its_run() {
        let name = PoolName { run: RunId::fresh(), serial: 1, suite: "s".into(), case: "c".into() };
        assert_eq!(run_of_database(&format!("{}_ws_x", name.prefix())), Some(name.run));
        assert_eq!(run_of_database("tabcdef_note"), None);
    }
}
