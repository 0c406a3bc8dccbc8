//! Workspace ids that are hard on whoever makes names or statements of them.

/// Too long for a database's name, and the same as far as a name goes.
pub const AGREE_IN_63_BYTES: [&str; 2] = [
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx1",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx2",
];

const STRANGE: [&str; 32] = [
    "a-b",
    "a_b",
    "a b",
    "A-B",
    "a",
    " a",
    "a ",
    "1",
    "-",
    ".",
    "../a",
    "%",
    "%s",
    "$1",
    "\\",
    "null",
    "postgres",
    "template1",
    "x'; drop database postgres; --",
    "x\"; drop database postgres; --",
    "\"",
    "'",
    "$$",
    "a;b",
    "new\nline",
    "tab\t",
    "\u{7f}",
    "caf\u{e9}",
    "cafe\u{301}",
    "\u{65e5}\u{672c}\u{8a9e}",
    "\u{1f642}",
    "\u{202e}evil",
];

/// All of them: alike but for a character, hostile, in other scripts, too long for a name, and as long as
/// an id may be.
pub fn strange_ids() -> Vec<String> {
    let long = ["x".repeat(63), "y".repeat(255)];
    STRANGE.into_iter().chain(AGREE_IN_63_BYTES).map(str::to_owned).chain(long).collect()
}
