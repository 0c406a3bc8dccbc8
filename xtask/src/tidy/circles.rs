//! Rule `circles`: no modules of a crate import each other in a circle.
//!
//! Among the modules that lie beside each other, at each level, the imports lead one way; what a module holds counts as its own.
//! A parent and its child are no circle: the child is a part of it. A path through a name that a module hands on (`use`)
//! counts as one to where that comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::Violation;
use super::files::SourceFile;
use super::paths::{self, Named};
use super::tokens;

/// The path of a module from the root of its crate.
type Module = Vec<String>;

/// A file of a crate.
struct File<'a> {
    source: &'a SourceFile,
    module: Module,
    named: Vec<Named>,
}

/// Where one module imports another.
#[derive(Clone)]
struct Import {
    file: PathBuf,
    line: usize,
}

/// The imports among the modules that lie beside each other in one.
type Siblings = BTreeMap<String, BTreeMap<String, Import>>;

/// Checks every crate.
pub fn check(sources: &[SourceFile]) -> Vec<Violation> {
    let mut crates: BTreeMap<PathBuf, Vec<File>> = BTreeMap::new();
    for source in sources {
        let Some((root, module)) = place(&source.path) else { continue };
        let Ok(stream) = tokens::parse(&source.text) else { continue }; // `super::unreadable` reports it
        let named = paths::named(stream, &module);
        crates.entry(root).or_default().push(File { source, module, named });
    }
    crates.values().flat_map(|files| circles_of(files)).collect()
}

/// The `src` that a file lies in, and which module of it that is; none for one that holds tests.
fn place(path: &Path) -> Option<(PathBuf, Module)> {
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let src = parts.iter().position(|part| part == "src")?;
    let mut module = parts[src + 1..].to_vec();
    let file = module.pop()?;
    let name = file.strip_suffix(".rs")?;
    if !matches!(name, "mod" | "lib" | "main") {
        module.push(name.to_owned());
    }
    let is_test = module.iter().any(|part| part == "tests" || part.ends_with("_tests"));
    (!is_test).then(|| (parts[..=src].iter().collect(), module))
}

fn circles_of(files: &[File]) -> Vec<Violation> {
    let modules: BTreeSet<&Module> = files.iter().map(|file| &file.module).collect();
    let handed_on = handed_on(files, &modules);
    let mut by_parent: BTreeMap<Module, Siblings> = BTreeMap::new();
    for file in files {
        for named in &file.named {
            let target = resolve(&named.segments, &modules, &handed_on);
            let shared = file.module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            let (Some(from), Some(to)) = (file.module.get(shared), target.get(shared)) else { continue };
            let import = Import { file: file.source.path.clone(), line: named.line };
            let siblings = by_parent.entry(target[..shared].to_vec()).or_default();
            siblings.entry(from.clone()).or_default().entry(to.clone()).or_insert(import);
        }
    }
    by_parent.values().flat_map(circles).collect()
}

/// What modules hand on that lies in another one: where a name leads.
fn handed_on(files: &[File], modules: &BTreeSet<&Module>) -> BTreeMap<Module, Module> {
    let mut leads = BTreeMap::new();
    for file in files {
        // Children are named without a word before them.
        let children = modules
            .iter()
            .filter(|module| module.len() == file.module.len() + 1 && module.starts_with(&file.module));
        let text = &file.source.text;
        for child in children {
            let Some(name) = child.last() else { continue };
            for names in text.split(&format!("use {name}::")).skip(1) {
                let names = names.split(';').next().unwrap_or_default();
                for item in
                    names.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|item| !item.is_empty())
                {
                    let handed = file.module.iter().cloned().chain([item.to_owned()]).collect();
                    leads.insert(handed, (*child).clone());
                }
            }
        }
    }
    leads
}

/// The module that a path leads to.
fn resolve(path: &[String], modules: &BTreeSet<&Module>, handed_on: &BTreeMap<Module, Module>) -> Module {
    let known = |length: &usize| modules.contains(&path[..*length].to_vec());
    let length = (0..=path.len()).rev().find(known).unwrap_or(0);
    let name = path.get(..=length).map(<[String]>::to_vec);
    name.and_then(|name| handed_on.get(&name).cloned()).unwrap_or_else(|| path[..length].to_vec())
}

/// A violation for each module from which a way leads back to it, each circle told once.
fn circles(siblings: &Siblings) -> Vec<Violation> {
    let mut told: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for start in siblings.keys() {
        if told.contains(start.as_str()) {
            continue;
        }
        if let Some(way) = way_back(siblings, start) {
            told.extend(&way);
            found.push(violation(siblings, &way));
        }
    }
    found
}

/// The shortest way from `start` back to it, both ends included.
fn way_back<'a>(siblings: &'a Siblings, start: &'a str) -> Option<Vec<&'a str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = vec![start];
    let mut at = 0;
    while let Some(module) = next.get(at).copied() {
        at += 1;
        for to in siblings.get(module).into_iter().flat_map(BTreeMap::keys) {
            if to == start {
                let mut way = vec![start];
                let mut step = module;
                while step != start {
                    way.push(step);
                    step = came_from.get(step).copied()?;
                }
                way.push(start);
                way.reverse();
                return Some(way);
            }
            if !came_from.contains_key(to.as_str()) {
                came_from.insert(to, module);
                next.push(to);
            }
        }
    }
    None
}

fn violation(siblings: &Siblings, way: &[&str]) -> Violation {
    let import = |pair: &[&str]| siblings.get(pair[0]).and_then(|to| to.get(pair[1])).cloned();
    let imports: Vec<Import> = way.windows(2).filter_map(import).collect();
    let places: Vec<String> =
        imports.iter().map(|import| format!("{}:{}", import.file.display(), import.line)).collect();
    let (file, line) =
        imports.first().map_or_else(Default::default, |first| (first.file.clone(), first.line));
    Violation {
        file,
        line,
        rule: "circles",
        what: format!("modules import each other: {} ({})", way.join(" -> "), places.join(", ")),
        remedy: "move what both need to a module that imports neither, or pass it in".into(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn check_all(files: &[(&str, &str)]) -> Vec<Violation> {
        let source = |(name, text): &(&str, &str)| SourceFile {
            path: format!("crates/some/src/{name}").into(),
            text: (*text).to_owned(),
        };
        check(&files.iter().map(source).collect::<Vec<_>>())
    }

    #[rstest]
    #[case::two(&[("a.rs", "use crate::b::B;"), ("b.rs", "\nuse crate::a::A;")], "a -> b -> a")]
    #[case::three(&[("a.rs", "use crate::b;"), ("b.rs", "use super::c;"), ("c.rs", "use crate::a;")], "a -> b -> c -> a")]
    #[case::from_within(&[("a/mod.rs", ""), ("a/x.rs", "use crate::b::B;"), ("b.rs", "use crate::a::A;")], "a -> b -> a")]
    #[case::further_down(&[("a/mod.rs", ""), ("a/x.rs", "use super::y::Y;"), ("a/y.rs", "use super::x::X;")], "x -> y -> x")]
    #[case::through_the_front_page(&[("lib.rs", "mod a; mod b; pub use a::{A, C};"), ("a.rs", "use crate::b;"), ("b.rs", "use crate::A;")], "a -> b -> a")]
    fn a_circle_is_found(#[case] files: &[(&str, &str)], #[case] way: &str) {
        let found = check_all(files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains(way), "{}", found[0].what);
    }

    #[rstest]
    #[case::one_way(&[("a.rs", "use crate::b::B;"), ("b.rs", "")])]
    #[case::a_parent_and_its_child(&[("a/mod.rs", "use x::X; struct P;"), ("a/x.rs", "use super::P;")])]
    #[case::the_front_page(&[("lib.rs", "mod a; const N: u8 = 1;"), ("a.rs", "use crate::N;")])]
    #[case::tests(&[("a.rs", "use crate::b::B;"), ("b.rs", "#[cfg(test)] mod tests { use crate::a::A; }")])]
    fn what_leads_one_way_is_let_pass(#[case] files: &[(&str, &str)]) {
        assert_eq!(check_all(files), []);
    }
}
