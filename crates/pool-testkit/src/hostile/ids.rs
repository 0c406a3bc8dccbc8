//! Strategies for workspace ids that are hard on whoever makes names, statements or log lines of them.

use proptest::prelude::*;
use proptest::sample::select;

use super::nastiest::{MEANT_FOR_OTHERS, SPECIAL, STRANGE, TAKEN_FOR_EACH_OTHER, imitation_of};

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
