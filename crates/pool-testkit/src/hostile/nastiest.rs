//! The nastiest workspace ids: what each of them is made of, and a list of them.

use pool_core::{DatabaseNaming as _, PrefixNaming, WorkspaceId};

/// What means something in SQL, in a shell, in a URL, in a path or in a format string.
pub(super) const SPECIAL: &[char] = &[
    '\'', '"', '`', ';', '\\', '\0', '\n', '\r', '\t', ' ', '-', '_', '.', '/', '%', '$', '&', '|', '<', '>',
    '(', ')', '[', ']', '{', '}', '*', '?', '!', '#', '@', ':', ',', '=', '~', '^', '+', '\u{7f}', '\u{1b}',
    '\u{8}',
];

/// Marks of direction, joiners and spaces that nobody sees, emoji, and letters that only look like Latin ones.
pub(super) const STRANGE: &[&str] = &[
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
pub(super) const MEANT_FOR_OTHERS: &[&str] = &[
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
pub(super) const TAKEN_FOR_EACH_OTHER: &[(&str, &str)] = &[
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
pub(super) fn imitation_of(id: &str, prefix: &str) -> String {
    let named = PrefixNaming::new(prefix).ok().zip(WorkspaceId::new(id).ok()).map(|(naming, id)| {
        let name = naming.database(&id);
        name.as_str().strip_prefix(&naming.stem()).unwrap_or_default().to_owned()
    });
    named.unwrap_or_default()
}
