//! Rule `features`: `cargo xtask` and `cargo test --workspace` build each crate once for both.
//!
//! Cargo builds a crate anew when its features differ, and with it all that uses it. The features depend on which packages a
//! command names, and cargo says nothing of it: it only takes minutes longer. `cargo xtask test-pools` chooses its target from
//! the whole workspace, so its features are those of `cargo test --workspace`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use super::Violation;
use super::trees::tree;
use crate::failure::Failure;

/// The programs that `cargo xtask` builds, each with the manifest that asks for the features that it lacks.
const PROGRAMS: [(&str, &str); 2] = [("xtask", "xtask/Cargo.toml"), ("suite-runner", "tests/Cargo.toml")];
/// What says how crates are built for the host.
const PROFILES: &str = "Cargo.toml";
/// As many crates may have other features for the host (for macros and build scripts) than for the target.
const TWINS_MAX: usize = 10;

/// The packages of a selection, each with the sets of features that it is built with.
type Built<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Asks cargo for the features of both, and compares them.
///
/// # Errors
/// [`Failure::Infrastructure`] with cargo's own words, or when the manifest cannot be read.
pub fn check(cargo: impl Fn() -> Command, root: &Path) -> Result<Vec<Violation>, Failure> {
    const FORMAT: [&str; 2] = ["--format", "{p}|{f}"];
    let whole = ["--workspace", "--edges", "normal,build,dev"];
    let tests = tree(&cargo, root, &[whole.as_slice(), &FORMAT].concat())?;
    let profiles = fs::read_to_string(root.join(PROFILES))
        .map_err(|why| Failure::while_doing("read the manifest of the workspace", why))?;
    let tests = built(&tests);
    let mut found = Vec::from_iter(twins(&tests));
    for (program, asks) in PROGRAMS {
        let program = ["-p", program, "--edges", "normal,build"];
        let program = tree(&cargo, root, &[program.as_slice(), &FORMAT].concat())?;
        found.extend(differing(&built(&program), &tests, asks));
    }
    found.extend(undecided(&profiles));
    Ok(found)
}

/// Reads lines of `package v1.0.0|feature,feature`; cargo marks what it has shown before.
fn built(printed: &str) -> Built<'_> {
    let mut built = Built::new();
    for line in printed.lines() {
        let line = line.strip_suffix(" (*)").unwrap_or(line);
        if let Some((package, features)) = line.split_once('|') {
            built.entry(package).or_default().insert(features);
        }
    }
    built
}

/// What a program is built with, and the tests are not.
fn differing(program: &Built<'_>, tests: &Built<'_>, asks: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (package, sets) in program {
        let known = tests.get(package).cloned().unwrap_or_default();
        for set in sets.difference(&known) {
            // A crate that is built for the host, too, has two sets; the nearer one is meant.
            let nearest = known.iter().min_by_key(|known| distance(known, set)).copied().unwrap_or_default();
            found.push(differs(package, set, nearest, asks));
        }
    }
    found
}

fn names(set: &str) -> BTreeSet<&str> {
    set.split(',').filter(|name| !name.is_empty()).collect()
}

fn distance(one: &str, other: &str) -> usize {
    names(one).symmetric_difference(&names(other)).count()
}

fn differs(package: &str, xtask: &str, tests: &str, asks: &str) -> Violation {
    let (xtask, tests) = (names(xtask), names(tests));
    let adds = |command: &str, names: Vec<&str>| {
        (!names.is_empty()).then(|| format!("`{command}` adds `{}`", names.join("`, `")))
    };
    let more = adds("cargo test --workspace", tests.difference(&xtask).copied().collect());
    let besides = adds("cargo xtask", xtask.difference(&tests).copied().collect());
    let differences: Vec<String> = more.into_iter().chain(besides).collect();
    Violation {
        file: asks.into(),
        line: 1,
        rule: "features",
        what: format!("`{}` is built twice: {}", name(package), differences.join(", ")),
        remedy: format!("ask for what it lacks under [dependencies] of {asks}"),
    }
}

/// The name without the version, or where it lies.
fn name(package: &str) -> &str {
    package.split(' ').next().unwrap_or(package)
}

/// Crates that are built for the host, too, with other features, if there are too many of them.
fn twins(tests: &Built<'_>) -> Option<Violation> {
    let twins: Vec<&str> =
        tests.iter().filter(|(_, sets)| sets.len() > 1).map(|(package, _)| name(package)).collect();
    (twins.len() > TWINS_MAX).then(|| Violation {
        file: PROFILES.into(),
        line: 1,
        rule: "features",
        what: format!(
            "{} crates are built for the host, too, with other features: {}",
            twins.len(),
            twins.join(", ")
        ),
        remedy: "leave `resolver = \"1\"`, which gives both the same features".into(),
    })
}

/// Left to cargo, what macros are built with depends on what else is built, and with them all that uses them.
fn undecided(profiles: &str) -> Option<Violation> {
    let target = debug(profiles, "[profile.dev]");
    (debug(profiles, "[profile.dev.build-override]") != target).then(|| Violation {
        file: PROFILES.into(),
        line: 1,
        rule: "features",
        what: "macros and build scripts get other debug information than the rest, or cargo decides".into(),
        remedy: "repeat the `debug` of [profile.dev] under [profile.dev.build-override]".into(),
    })
}

/// What a section of the manifest says of debug information.
fn debug<'a>(profiles: &'a str, section: &str) -> Option<&'a str> {
    let lines = profiles.lines().skip_while(|line| *line != section).skip(1);
    lines.take_while(|line| !line.starts_with('[')).find_map(|line| line.strip_prefix("debug = "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: &str =
        "tokio v1.0.0|rt,test-util\nlog v0.4.0|\nmacros v1.0.0 (proc-macro)|\nlog v0.4.0|alloc,std (*)\n";

    #[test]
    fn a_feature_that_only_the_tests_ask_for_is_named_with_its_crate() {
        let found =
            differing(&built("tokio v1.0.0|rt\nmacros v1.0.0 (proc-macro)|\n"), &built(TESTS), "Cargo.toml");
        let [violation] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(violation.what, "`tokio` is built twice: `cargo test --workspace` adds `test-util`");
    }

    #[test]
    fn a_crate_that_the_host_has_too_is_compared_with_the_nearer_one() {
        assert_eq!(differing(&built("log v0.4.0|\nlog v0.4.0|alloc,std\n"), &built(TESTS), "Cargo.toml"), []);
        let found = differing(
            &built("log v0.4.0|alloc,rc,serde\n"),
            &built("log v0.4.0|\nlog v0.4.0|alloc,rc,std\n"),
            "Cargo.toml",
        );
        let [violation] = found.as_slice() else { panic!("{found:?}") };
        let expected =
            "`log` is built twice: `cargo test --workspace` adds `std`, `cargo xtask` adds `serde`";
        assert_eq!(violation.what, expected);
    }

    #[test]
    fn too_many_crates_that_the_host_has_too_are_named() {
        let twins_of = |count: usize| {
            let lines: Vec<String> =
                (0..count).map(|at| format!("c{at} v1.0.0|\nc{at} v1.0.0|std\n")).collect();
            twins(&built(&lines.concat()))
        };
        assert_eq!(twins_of(TWINS_MAX), None);
        assert!(twins_of(TWINS_MAX + 1).unwrap().what.contains("c0, c1, "));
    }

    #[test]
    fn a_profile_of_the_host_that_is_left_to_cargo_is_found() {
        let decided = "[profile.dev]\ndebug = 1\n\n# Why.\n[profile.dev.build-override]\ndebug = 1\n";
        assert_eq!(undecided(decided), None);
        for left in [
            decided.replace(".build-override", ".package.sha2"),
            decided.replacen("debug = 1", "debug = 2", 1),
        ] {
            assert!(undecided(&left).is_some(), "{left}");
        }
    }
}
