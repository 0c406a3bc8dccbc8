//! Passwords that are hard on whoever puts them into a URL, a statement or a shell.

use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::sample::select;

/// Passwords of 1 to 60 characters: every printable character of ASCII, spaces, escapes that are none, letters of
/// other scripts, and control characters. None of them holds a NUL, which `PostgreSQL` cannot carry.
pub fn passwords() -> impl Strategy<Value = String> {
    const ODD: &[&str] = &[
        "%",
        "%41",
        "%zz",
        "%00",
        "&",
        "?x=",
        "#",
        "@",
        "@h:1/d",
        "/",
        "\\",
        "\\'",
        "''",
        "$$",
        " ",
        "\u{e9}",
        "\u{1f642}",
        "\t",
        "\u{7}",
    ];
    prop_oneof![
        3 => "[ -~]{1,40}",
        3 => prop::collection::vec(prop_oneof![select(ODD).prop_map(str::to_owned), "[ -~]"], 1..20)
            .prop_map(|parts| parts.concat()),
        1 => "[^\0]{1,30}",
    ]
}

/// `text` as it goes into a part of a URL: everything but letters and digits of ASCII is encoded.
pub fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
