//! Rule `test-size`: a function of the suites is seen whole, so it has 40 lines at most.
//!
//! It holds for every function below `tests/`, not for the tests alone: one that is too long is not to come back as a part of a
//! short one.

use std::path::Path;

use super::Violation;
use super::files::SourceFile;
use super::tokens::{self, Function};

/// Where the suites are.
const SUITES: &str = "tests";
/// From the line of the name to that of the closing brace.
const MOST_LINES: usize = 40;

/// Looks at the length of every function of the suites.
pub fn check(sources: &[SourceFile]) -> Vec<Violation> {
    let suites = sources.iter().filter(|source| source.path.starts_with(Path::new(SUITES)));
    // A file that is no Rust is a violation of its own, see `super::unreadable`.
    let parsed = suites.filter_map(|source| Some((source, tokens::parse(&source.text).ok()?)));
    parsed
        .flat_map(|(source, stream)| {
            let functions = tokens::functions(stream).into_iter();
            functions.filter_map(move |function| too_long(source, &function))
        })
        .collect()
}

fn too_long(source: &SourceFile, function: &Function) -> Option<Violation> {
    let lines = function.last - function.line + 1;
    let what = format!("`{}` has {lines} lines, {MOST_LINES} at most", function.name);
    let remedy = "give each part a function named for what it shows";
    (lines > MOST_LINES).then(|| source.violation(function.line, "test-size", what, remedy.into()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{SourceFile, check};

    /// A file with a function that has as many `lines` in all, after `head`.
    fn source(path: &str, head: &str, lines: usize) -> SourceFile {
        let body = "    step();\n".repeat(lines - 2);
        SourceFile { path: path.into(), text: format!("//! A suite.\n\n{head} {{\n{body}}}\n") }
    }

    #[rstest]
    #[case::a_test("tests/limits.rs", "#[test]\nfn shows()", 4)]
    #[case::a_test_on_a_runtime("tests/limits.rs", "#[tokio::test]\nasync fn shows() -> Outcome", 4)]
    #[case::a_table("tests/limits.rs", "#[rstest]\n#[case(1)]\nfn shows(#[case] n: u8)", 5)]
    #[case::a_case_of_adapters("tests/adapters/limits.rs", "pub async fn shows<A: Suite>() -> Outcome", 3)]
    #[case::a_part("tests/support.rs", "async fn shows()", 3)]
    fn the_forty_first_line_of_a_function_is_one_too_many(
        #[case] path: &str,
        #[case] head: &str,
        #[case] line: usize,
    ) {
        assert_eq!(check(&[source(path, head, 40)]), []);
        let found = check(&[source(path, head, 41)]);
        assert_eq!((found.len(), found[0].line), (1, line), "{found:?}");
        assert!(found[0].what.contains("`shows` has 41 lines"), "{}", found[0].what);
    }

    #[rstest]
    #[case::of_a_crate("crates/pool-core/src/lib.rs")]
    #[case::of_the_tests_of_a_crate("crates/pool-testkit/tests/shell/serving.rs")]
    fn functions_elsewhere_are_no_matter_of_this_rule(#[case] path: &str) {
        assert_eq!(check(&[source(path, "#[test]\nfn shows()", 100)]), []);
    }

    #[test]
    fn short_functions_of_a_long_suite_are_in_order() {
        let text = "#[test]\nfn shows() {\n    step();\n}\n\n".repeat(50);
        assert_eq!(check(&[SourceFile { path: "tests/limits.rs".into(), text }]), []);
    }
}
