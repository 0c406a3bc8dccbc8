//! Rule `reliability`: the table of faults has a row for every test of the fault matrix, and no other.
//!
//! The table is generated from a run; this finds the test that was added, renamed or removed since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Violation;
use super::files::SourceFile;
use super::tokens;

/// The generated table.
pub const TABLE: &str = "docs/reliability.md";
/// The tests that are its rows.
const TESTS: &str = "crates/pool-testkit/tests/faults";
const REMEDY: &str = "run `cargo xtask reliability`, which writes the table from a run";

/// The tests of the fault matrix with the places of their functions, in the order of the sources.
pub fn tests(sources: &[SourceFile]) -> Vec<(&SourceFile, tokens::Function)> {
    let matrix = sources.iter().filter(|source| source.path.starts_with(Path::new(TESTS)));
    // A file that is no Rust is a violation of its own, see `super::unreadable`.
    let parsed = matrix.filter_map(|source| Some((source, tokens::parse(&source.text).ok()?)));
    parsed
        .flat_map(|(source, stream)| {
            let tests = tokens::functions(stream).into_iter().filter(|function| function.is_test);
            tests.map(move |function| (source, function))
        })
        .collect()
}

/// Compares the table with the tests.
pub fn check(table: Option<&str>, sources: &[SourceFile]) -> Vec<Violation> {
    let rows: BTreeMap<&str, usize> = (1..)
        .zip(table.unwrap_or_default().lines())
        .filter_map(|(line, text)| Some((row(text)?, line)))
        .collect();
    let tests = tests(sources);
    let names: BTreeSet<&str> = tests.iter().map(|(_, function)| function.name.as_str()).collect();
    let missing = tests.iter().filter(|(_, function)| !rows.contains_key(function.name.as_str()));
    let missing = missing.map(|(source, function)| {
        let what = format!("`{}` has no row in {TABLE}", function.name);
        source.violation(function.line, "reliability", what, REMEDY.into())
    });
    let stale = rows.iter().filter(|(name, _)| !names.contains(*name));
    let stale = stale.map(|(name, line)| Violation {
        file: TABLE.into(),
        line: *line,
        rule: "reliability",
        what: format!("the row names the test `{name}`, and {TESTS} has none of that name"),
        remedy: REMEDY.into(),
    });
    missing.chain(stale).collect()
}

/// ``| … | `test` |`` gives `test`.
fn row(line: &str) -> Option<&str> {
    let (_, last) = line.strip_prefix("| ")?.strip_suffix("` |")?.rsplit_once("| `")?;
    Some(last)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{SourceFile, check};

    const CODE: &str = "#[tokio::test]\nasync fn l3_reset() {}\nfn helper() {}\n#[test]\nfn o1_dark() {}\n";
    const ROWS: &str = "| fault | test |\n|---|---|\n| TCP reset | `l3_reset` |\n| `SIGKILL` | `o1_dark` |\n";

    fn sources() -> [SourceFile; 2] {
        let source = |path: &str, text: &str| SourceFile { path: path.into(), text: text.into() };
        [
            source("crates/pool-testkit/tests/faults/network.rs", CODE),
            source("crates/pool-testkit/tests/shell/serving.rs", "#[test]\nfn b1_is_no_row() {}\n"),
        ]
    }

    #[test]
    fn a_table_with_a_row_for_every_test_is_in_order() {
        assert_eq!(check(Some(ROWS), &sources()), []);
        assert_eq!(check(None, &[]), [], "no tests, no table");
    }

    #[rstest]
    #[case::no_table(None, &["crates/pool-testkit/tests/faults/network.rs:2", "crates/pool-testkit/tests/faults/network.rs:5"])]
    #[case::no_row(Some("| TCP reset | `l3_reset` |\n"), &["crates/pool-testkit/tests/faults/network.rs:5"])]
    #[case::no_test(Some("| x | `l3_reset` |\n| y | `o1_dark` |\n| z | `l9_gone` |\n"), &["docs/reliability.md:3"])]
    fn it_bites(#[case] table: Option<&str>, #[case] places: &[&str]) {
        let found = check(table, &sources());
        let found: Vec<String> = found.iter().map(|v| format!("{}:{}", v.file.display(), v.line)).collect();
        assert_eq!(found, places);
    }
}
