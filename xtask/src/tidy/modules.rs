//! Rule `modules`: which module of pool-core may use which.
//!
//! The table is the design: value types at the bottom, the registry above them, the ports beside it, and no way round. Every
//! path from `crate::` or `super::` counts, in a `use` or not, outside of `#[cfg(test)]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Violation;
use super::files::SourceFile;
use super::tokens;

/// The sources that the table is about.
const CORE: &str = "crates/pool-core/src";

/// What each top-level module of pool-core may use, besides itself. The front page (`lib.rs`) may name all of them and be
/// used by none: a path through a re-export would hide what it uses. Arrows run one way only (a test looks for circles), but
/// for `ids` and `error`: an id that is refused needs an error, and an error says which workspace it is about.
const MODULES: &[(&str, &[&str])] = &[
    ("ids", &["error"]),
    ("links", &[]),
    ("error", &["ids"]),
    ("limits", &["error"]),
    ("stats", &["ids", "limits", "error"]),
    ("naming", &["ids", "error"]),
    ("policy", &["ids"]),
    ("lru", &["ids", "links", "policy"]),
    ("budget", &["limits", "stats"]),
    ("token", &["budget", "error", "ids", "stats"]),
    ("registry", &["policy", "lru", "links", "budget", "token", "stats", "error", "limits", "ids"]),
    ("ports", &["ids", "error", "stats", "naming", "policy", "limits"]),
    ("mock", &["ids", "error", "stats", "naming", "policy", "limits", "ports"]),
];

/// A path into another module.
#[derive(Debug, PartialEq, Eq)]
struct Reference {
    /// The first segment after the crate's root.
    to: String,
    line: usize,
}

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
        let references = references(stream, path).into_iter().filter(|reference| reference.to != *module);
        let broken = references.filter(|reference| !row.contains(&reference.to.as_str()));
        found.extend(broken.map(|reference| not_allowed(source, module, row, &reference, &modules)));
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
    module: &str,
    row: &[&str],
    to: &Reference,
    modules: &BTreeSet<&str>,
) -> Violation {
    let target = &to.to;
    if !modules.contains(target.as_str()) {
        let what = format!(
            "`{module}` uses `crate::{target}`, which is no module: the way through the front page hides the layer"
        );
        let remedy = "name the module it comes from, as in `crate::ids::WorkspaceId`";
        return source.violation(to.line, "modules", what, remedy.into());
    }
    let may = if row.is_empty() { "nothing".to_owned() } else { row.join(", ") };
    let what = format!("`{module}` uses `{target}`, and may use {may}");
    let remedy = "move the code to the side that may know both, or pass in what is needed; \
        a new arrow is a decision, and goes into `MODULES` of xtask/src/tidy/modules.rs";
    source.violation(to.line, "modules", what, remedy.into())
}

/// All paths from the crate's root in a file of the module `path`.
fn references(stream: TokenStream, path: &[String]) -> Vec<Reference> {
    let mut found = Vec::new();
    collect(stream, path.len(), &mut found);
    found
}

/// `depth` is how many `super` lead from here to the root of the crate.
fn collect(stream: TokenStream, depth: usize, found: &mut Vec<Reference>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => at = after_attribute(&tokens, at),
            TokenTree::Ident(word) if word == "mod" => {
                let inline = matches!(tokens.get(at + 2), Some(TokenTree::Group(_)));
                if let (true, Some(TokenTree::Group(body))) = (inline, tokens.get(at + 2)) {
                    collect(body.stream(), depth + 1, found);
                }
                at += if inline { 3 } else { 1 };
            }
            TokenTree::Ident(word) if word == "crate" || word == "super" => {
                let (after, left) = climb(&tokens, at, depth);
                if left == 0 && after > at + 1 {
                    found.extend(targets(tokens.get(after)));
                }
                at = after;
            }
            TokenTree::Group(group) => {
                collect(group.stream(), depth, found);
                at += 1;
            }
            _ => at += 1,
        }
    }
}

/// Passes over an attribute, and over the whole item behind it when that is only there for tests.
fn after_attribute(tokens: &[TokenTree], at: usize) -> usize {
    let Some(TokenTree::Group(attribute)) = tokens.get(at + 1) else { return at + 1 };
    if !tokens::is_cfg_test(attribute) {
        return at + 2;
    }
    let ends_item = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    };
    tokens.iter().skip(at + 2).position(ends_item).map_or(tokens.len(), |end| at + 2 + end + 1)
}

/// Follows `crate::` or `super::super::`; gives the place behind it, and how far from the root that leads.
fn climb(tokens: &[TokenTree], mut at: usize, mut depth: usize) -> (usize, usize) {
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        match word.to_string().as_str() {
            "crate" => depth = 0,
            "super" => depth = depth.saturating_sub(1),
            _ => break,
        }
        at += 1;
        if !is_separator(tokens, at) {
            break;
        }
        at += 2;
    }
    (at, depth)
}

fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let colon =
        |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    colon(tokens.get(at)) && colon(tokens.get(at + 1))
}

/// The first segments that a path goes on with: one, or those of each branch of `{…}`.
fn targets(next: Option<&TokenTree>) -> Vec<Reference> {
    match next {
        Some(TokenTree::Group(branches)) => {
            let branches: Vec<TokenTree> = branches.stream().into_iter().collect();
            let firsts = branches.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ','));
            firsts.flat_map(|branch| targets(branch.first())).collect()
        }
        Some(token @ (TokenTree::Ident(_) | TokenTree::Punct(_))) => {
            vec![Reference { to: token.to_string(), line: token.span().start().line }]
        }
        _ => Vec::new(),
    }
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
    fn the_table_itself_has_no_circle_but_the_one_it_explains() {
        let explained = ["ids", "error"];
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
            let in_circle = reached.contains(start) && !explained.contains(start);
            assert!(!in_circle, "`{start}` may use itself by way of {reached:?}");
        }
    }
}
