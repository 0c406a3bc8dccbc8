//! Workspace ids that are hard on whoever makes names, statements or log lines of them.

use pool_core::{DatabaseNaming as _, PrefixNaming, WorkspaceId};
use proptest::prelude::*;
use proptest::sample::select;

/// What means something in SQL, in a shell, in a URL, in a path or in a format string.
const SPECIAL: &[char] = &[
    '\'', '"', '`', ';', '\\', '\0', '\n', '\r', '\t', ' ', '-', '_', '.', '/', '%', '$', '&', '|', '<', '>',
    '(', ')', '[', ']', '{', '}', '*', '?', '!', '#', '@', ':', ',', '=', '~', '^', '+', '\u{7f}', '\u{1b}',
    '\u{8}',
];

/// Marks of direction, joiners and spaces that nobody sees, emoji, and letters that only look like Latin ones.
const STRANGE: &[&str] = &[
    "\u{202e}",
    "\u{202d}",
    "\u{2066}",
    "\u{2069}",
    "\u{200f}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "\u{a0}",
    "\u{2028}",
    "\u{85}",
    "\u{ad}",
    "\u{1f642}",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{1f1e9}\u{1f1ea}",
    "\u{430}",
    "\u{435}",
    "\u{43e}",
    "\u{3bf}",
    "\u{5d0}",
    "\u{627}\u{644}",
    "\u{65e5}\u{672c}",
    "e\u{301}",
    "\u{e9}",
    "\u{130}",
    "\u{131}",
    "\u{df}",
    "\u{fb01}",
    "\u{ff41}",
    "\u{212a}",
    "\u{10ffff}",
    "\u{e000}",
];

/// Statements, names that mean something to the server, and paths.
const MEANT_FOR_OTHERS: &[&str] = &[
    "x'; drop database postgres; --",
    "x\"; drop database postgres; --",
    "\"; alter role current_user nologin; --",
    "$$; drop schema public cascade; $$",
    "' or '1'='1",
    "\\'; select pg_sleep(60); --",
    "/* */ select 1",
    "E'\\x27'",
    "U&\"\\0022\"",
    "%I %L %s %n",
    "$1",
    "{0}",
    "null",
    "postgres",
    "template0",
    "template1",
    "pg_catalog",
    "current_user",
    "../../etc/passwd",
    "host=evil dbname=x",
    "postgres://evil/x",
    "a\nERROR:  forged",
    "-",
    "_",
    "0",
];

/// Pairs that some step on the way takes for the same: a comparison that ignores case, a normal form of
/// Unicode, an eye, a trim, an escape.
const TAKEN_FOR_EACH_OTHER: &[(&str, &str)] = &[
    ("a", "A"),
    ("-", "_"),
    ("-", "."),
    ("\u{e9}", "e\u{301}"),
    ("\u{e9}", "E\u{301}"),
    ("\u{212b}", "\u{c5}"),
    ("\u{2126}", "\u{3a9}"),
    ("\u{1e9b}\u{323}", "\u{1e69}"),
    ("\u{fb01}", "fi"),
    ("\u{ff41}", "a"),
    ("\u{212a}", "k"),
    ("\u{130}", "i"),
    ("\u{131}", "i"),
    ("\u{df}", "ss"),
    ("\u{3c3}", "\u{3c2}"),
    ("a", "\u{430}"),
    ("e", "\u{435}"),
    ("o", "\u{3bf}"),
    ("l", "1"),
    ("0", "O"),
    ("", " "),
    ("", "\t"),
    ("", "\n"),
    ("", "\u{a0}"),
    ("", "\u{200b}"),
    ("", "\u{feff}"),
    ("", "\u{202e}"),
    ("\"", "\"\""),
    ("'", "''"),
    ("\\", "\\\\"),
    (" ", "%20"),
    (" ", "+"),
    ("/", "//"),
    ("\r\n", "\n"),
    ("1", "01"),
];

/// Ids of every kind, 1 to 10,000 bytes long, most of them valid; those that are not are to be refused.
pub fn ids() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => "[a-z0-9_]{1,80}",
        2 => "[A-Za-z0-9_\\-]{1,40}",
        4 => text(select(SPECIAL).prop_map(String::from), 1..40),
        4 => text(prop_oneof![select(STRANGE).prop_map(str::to_owned), "[a-zA-Z]"], 1..30),
        2 => (select(MEANT_FOR_OTHERS), "[a-z]{0,6}").prop_map(|(meant, more)| format!("{meant}{more}")),
        3 => text(any::<char>().prop_map(String::from), 1..90),
        2 => of_any_length(),
        3 => lookalikes().prop_map(|(one, _)| one),
        3 => lookalikes().prop_map(|(_, other)| other),
    ]
}

/// Two different ids that something takes for the same: they differ in case, in one sign of punctuation,
/// behind byte 63, in the normal form of Unicode, in a letter that looks alike, in a space at an end; or one
/// imitates the name that the other has.
pub fn lookalikes() -> impl Strategy<Value = (String, String)> {
    prop_oneof![
        4 => ("[a-zA-Z_\\-]{0,8}", select(TAKEN_FOR_EACH_OTHER), "[a-z]{0,8}")
            .prop_map(|(before, (one, other), after)| (format!("{before}{one}{after}"), format!("{before}{other}{after}"))),
        2 => "[a-zA-Z_\\-]{1,12}".prop_map(|id| (id.to_lowercase(), id)),
        2 => (30..240_usize, "[a-z_]{1}", "[A-Z0-9]{1}", "[0-9]{1}").prop_map(|(length, unit, one, other)| {
            (unit.repeat(length) + &one, unit.repeat(length) + &other)
        }),
        2 => ("[A-Z\u{e9}\"]{1,9}", "[a-z]{1,9}").prop_map(|(id, stem)| {
            let imitation = imitation_of(&id, &stem);
            (id, imitation)
        }),
        1 => "[a-z]{1,9}".prop_map(|id| (format!("p_ws_{id}"), id)),
    ]
    .prop_filter("the same id twice", |(one, other)| one != other && !one.is_empty() && !other.is_empty())
}

/// Several hundred ids, each of them valid and different from the others, for tests that make a database for
/// each: one of each kind, and both of every pair that is taken for the same.
pub fn nastiest_ids() -> Vec<WorkspaceId> {
    let special = SPECIAL.iter().map(|c| format!("n{c}x"));
    let special_alone = SPECIAL.iter().map(ToString::to_string);
    let strange = STRANGE.iter().map(|s| (*s).to_owned());
    let meant = MEANT_FOR_OTHERS.iter().map(|s| (*s).to_owned());
    let pairs = TAKEN_FOR_EACH_OTHER.iter().flat_map(|(one, other)| [format!("n{one}"), format!("n{other}")]);
    let long = [63, 64, 200, 254]
        .into_iter()
        .flat_map(|n| [format!("{}1", "x".repeat(n)), format!("{}2", "x".repeat(n))]);
    let imitated = [String::from("NASTY"), imitation_of("NASTY", "p")];
    let all =
        special.chain(special_alone).chain(strange).chain(meant).chain(pairs).chain(long).chain(imitated);
    let mut ids: Vec<WorkspaceId> = all.filter_map(|id| WorkspaceId::new(id).ok()).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The last part of the name that `id` has by the default scheme, as an id.
fn imitation_of(id: &str, prefix: &str) -> String {
    let named = PrefixNaming::new(prefix).ok().zip(WorkspaceId::new(id).ok()).map(|(naming, id)| {
        let name = naming.database(&id);
        name.as_str().strip_prefix(&naming.stem()).unwrap_or_default().to_owned()
    });
    named.unwrap_or_default()
}

fn text(unit: impl Strategy<Value = String>, units: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    prop::collection::vec(unit, units).prop_map(|units| units.concat())
}

/// 1 to 10,000 bytes, the limits of an id and of a name more often than others.
fn of_any_length() -> impl Strategy<Value = String> {
    let length = prop_oneof![
        3 => select(&[1_usize, 40, 62, 63, 64, 127, 128, 254, 255, 256, 257, 1000, 9_999, 10_000][..]),
        2 => 1..300_usize,
        1 => 1..=10_000_usize,
    ];
    (length, select(&["x", "X", "\u{e9}", "\u{1f642}", "'", "\""][..])).prop_map(|(bytes, unit)| {
        let filled = unit.repeat(bytes / unit.len());
        let rest = bytes - filled.len();
        filled + &"x".repeat(rest)
    })
}
