//! Rule `modules`: which module of pool-core may use which.
//!
//! The table is the design: value types at the bottom, the registry above them, the ports beside it, and no way round. Every
//! path from `crate::` or `super::` counts, in a `use` or not, outside of `#[cfg(test)]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Violation;
use super::files::SourceFile;
use super::paths::{self, Named};
use super::tokens;

/// The sources that the table is about.
const CORE: &str = "crates/pool-core/src";

/// What each top-level module of pool-core may use, besides itself. The front page (`lib.rs`) may name all of them and be
/// used by none: a path through a re-export would hide what it uses. Arrows run one way only (a test looks for circles).
const MODULES: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("links", &[]),
    ("limits", &["ids"]),
    ("naming", &["ids"]),
    ("error", &["ids", "limits", "naming"]),
    ("events", &["error", "ids"]),
    ("health", &["error"]),
    ("stats", &["ids", "limits", "error"]),
    ("view", &["ids"]),
    ("policy", &["ids"]),
    ("lru", &["ids", "links", "policy"]),
    ("budget", &["limits", "stats"]),
    ("token", &["budget", "error", "events", "ids"]),
    (
        "registry",
        &["policy", "lru", "links", "budget", "token", "stats", "events", "health", "error", "limits", "ids"],
    ),
    ("queued", &["registry", "token", "error"]),
    ("ports", &["ids", "error", "events", "health", "stats", "naming", "policy", "limits"]),
    ("mock", &["ids", "error", "events", "health", "stats", "naming", "policy", "limits", "ports"]),
];

/// Checks the sources of pool-core against the table.
pub fn check(sources: &[SourceFile]) -> Vec<Violation> {
    let core: Vec<(Vec<String>, &SourceFile)> =
        sources.iter().filter_map(|source| Some((module_path(&source.path)?, source))).collect();
    let modules: BTreeSet<&str> =
        core.iter().filter_map(|(path, _)| path.first().map(String::as_str)).collect();
    let rows: BTreeMap<&str, &[&str]> = MODULES.iter().copied().collect();
    let mut found = Vec::new();
    for (path, source) in &core {
        let Some(module) = path.first().filter(|_| !is_test_module(path)) else { continue };
        let Some(row) = rows.get(module.as_str()) else {
            found.push(no_row(source, module));
            continue;
        };
        let Ok(stream) = tokens::parse(&source.text) else { continue }; // `super::unreadable` reports it
        let named = paths::named(stream, path).into_iter();
        // Each line tells of a module once.
        let uses: BTreeSet<(usize, String)> =
            named.filter_map(|Named { segments, line }| Some((line, segments.into_iter().next()?))).collect();
        for (line, to) in uses.iter().filter(|(_, to)| to != module && !row.contains(&to.as_str())) {
            found.push(not_allowed(source, (module, row), (to, *line), &modules));
        }
    }
    found
}

/// `crates/pool-core/src/registry/open.rs` gives `registry`, `open`; the front page gives nothing.
fn module_path(file: &Path) -> Option<Vec<String>> {
    let inside = file.strip_prefix(CORE).ok()?.with_extension("");
    let mut path: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib")) {
        path.pop();
    }
    Some(path)
}

/// A file of tests, which its parent declares under `#[cfg(test)]`.
fn is_test_module(path: &[String]) -> bool {
    path.iter().any(|part| part == "tests" || part.ends_with("_tests"))
}

fn no_row(source: &SourceFile, module: &str) -> Violation {
    let what = format!("module `{module}` has no row in the table of layers");
    let remedy = "say in `MODULES` of xtask/src/tidy/modules.rs what it may use";
    source.violation(1, "modules", what, remedy.into())
}

fn not_allowed(
    source: &SourceFile,
    (module, row): (&str, &[&str]),
    (target, line): (&str, usize),
    modules: &BTreeSet<&str>,
) -> Violation {
    if !modules.contains(target) {
        let what = format!(
            "`{module}` uses `crate::{target}`, which is no module: the way through the front page hides the layer"
        );
        let remedy = "name the module it comes from, as in `crate::ids::WorkspaceId`";
        return source.violation(line, "modules", what, remedy.into());
    }
    let may = if row.is_empty() { "nothing".to_owned() } else { row.join(", ") };
    let what = format!("`{module}` uses `{target}`, and may use {may}");
    let remedy = "move the code to the side that may know both, or pass in what is needed; \
        a new arrow is a decision, and goes into `MODULES` of xtask/src/tidy/modules.rs";
    source.violation(line, "modules", what, remedy.into())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{MODULES, SourceFile, check};

    /// A small pool-core in which `file` holds `text`.
    fn core_with(file: &str, text: &str) -> Vec<SourceFile> {
        let mut files =
            vec![("lib.rs", "pub use crate::ids::Id;"), ("ids.rs", ""), ("budget.rs", ""), ("ports.rs", "")];
        files.extend([("registry/mod.rs", "use crate::ids::Id; use self::open::open;"), (file, text)]);
        let source = |(name, text): (&str, &str)| SourceFile {
            path: format!("{}/{name}", super::CORE).into(),
            text: text.into(),
        };
        files.into_iter().map(source).collect()
    }

    #[rstest]
    #[case::plain("policy.rs", "\nuse crate::budget::Budget;", 2, "`policy` uses `budget`")]
    #[case::grouped(
        "policy.rs",
        "use crate::{ids::Id, budget::{Budget, Slot}};",
        1,
        "`policy` uses `budget`"
    )]
    #[case::over_lines(
        "policy.rs",
        "use crate::{\n    ids::Id,\n    budget,\n};",
        3,
        "`policy` uses `budget`"
    )]
    #[case::without_use(
        "policy.rs",
        "fn f() -> usize { crate::budget::count() }",
        1,
        "`policy` uses `budget`"
    )]
    #[case::upwards("policy.rs", "use super::budget::Budget;", 1, "`policy` uses `budget`")]
    #[case::upwards_twice(
        "registry/open.rs",
        "use super::super::ports::Driver;",
        1,
        "`registry` uses `ports`"
    )]
    #[case::from_a_submodule("registry/open.rs", "use crate::ports::Driver;", 1, "`registry` uses `ports`")]
    #[case::in_an_inline_module(
        "policy.rs",
        "mod inner { use super::super::budget::Budget; }",
        1,
        "`policy` uses `budget`"
    )]
    #[case::in_a_macro(
        "policy.rs",
        "macro_rules! m { () => { $crate::budget::count() } }",
        1,
        "`policy` uses `budget`"
    )]
    #[case::through_the_front_page("policy.rs", "use crate::Id;", 1, "no module")]
    #[case::everything("policy.rs", "use crate::*;", 1, "no module")]
    #[case::unknown_module("novelty.rs", "", 1, "no row")]
    #[case::nothing_is_allowed("links.rs", "use crate::ids::Id;", 1, "may use nothing")]
    fn it_bites(#[case] file: &str, #[case] text: &str, #[case] line: usize, #[case] what: &str) {
        let found = check(&core_with(file, text));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].file.ends_with(file) && found[0].line == line, "{}", found[0]);
        assert!(found[0].what.contains(what), "{}", found[0].what);
    }

    #[rstest]
    #[case::allowed("policy.rs", "use crate::ids::Id;")]
    #[case::itself(
        "registry/open.rs",
        "use crate::registry::Registry; use super::Conn; use super::{Conn, State};"
    )]
    #[case::for_tests("policy.rs", "#[cfg(test)]\nmod tests { use crate::budget::Budget; use super::*; }")]
    #[case::used_for_tests(
        "policy.rs",
        "#[cfg(test)] use crate::{budget::Budget, ports};\nuse crate::ids::Id;"
    )]
    #[case::test_file("registry/open_tests.rs", "use crate::ports::Driver;")]
    #[case::in_words("policy.rs", "//! See [`crate::budget`].\nconst S: &str = \"crate::budget::Budget\";")]
    #[case::visibility("policy.rs", "pub(crate) fn f() {} pub(super) fn g() {}")]
    fn it_lets_pass(#[case] file: &str, #[case] text: &str) {
        assert_eq!(check(&core_with(file, text)), []);
    }

    #[test]
    fn the_table_itself_has_no_circle() {
        let row =
            |module: &str| MODULES.iter().find(|(name, _)| *name == module).map(|(_, may)| *may).unwrap();
        for (start, _) in MODULES {
            let mut reached: Vec<&str> = row(start).to_vec();
            let mut next = 0;
            while let Some(module) = reached.get(next) {
                let more: Vec<&str> = row(module).iter().filter(|m| !reached.contains(m)).copied().collect();
                reached.extend(more);
                next += 1;
            }
            assert!(!reached.contains(start), "`{start}` may use itself by way of {reached:?}");
        }
    }
}
