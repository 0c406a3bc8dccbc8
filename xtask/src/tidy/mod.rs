//! `cargo xtask tidy`: the rules of the workspace that the compiler does not know.
//!
//! Each rule lives in a file of its own as a table and a pure function from what it reads to [`Violation`]s, and has a test
//! that plants a violation: a rule that cannot fail protects nothing.

mod circles;
mod clauses;
mod features;
mod files;
mod layers;
mod modules;
mod paths;
mod reliability;
mod size;
mod suites;
mod tokens;
mod trees;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anstyle::{AnsiColor, Style};

use crate::display::{complain, say};
use crate::failure::Failure;
use crate::process::{Interrupts, cargo, has_subcommand, workspace_root};

use files::SourceFile;
pub use reliability::TABLE as RELIABILITY_TABLE;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const ODD: Style = AnsiColor::Yellow.on_default();

/// What cargo-deny checks without a network; advisories need one, and are the job of a scheduled run.
const DENY_CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

/// One place that breaks one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The file, relative to the root of the workspace.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The name of the rule.
    pub rule: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, rule, what, remedy } = self;
        write!(f, "{}:{line}: {BAD}{rule}{BAD:#}: {what}\n    do: {remedy}", file.display())
    }
}

/// Runs every rule on the workspace.
///
/// # Errors
/// [`Failure::Told`] when a rule is broken, [`Failure::Infrastructure`] when the workspace cannot be read.
pub fn tidy(interrupts: &Interrupts) -> Result<(), Failure> {
    let root = workspace_root();
    let mut violations = layers::check(&layers::read(&cargo(), &root)?);
    violations.extend(trees::check(cargo, &root)?);
    violations.extend(features::check(cargo, &root)?);
    violations.extend(check_sources(&root)?);
    violations.sort();
    for violation in &violations {
        say(&violation.to_string());
    }
    let denied = !deny(interrupts)?;
    if violations.is_empty() && !denied {
        say(&format!(
            "{GOOD}tidy{GOOD:#}: layers, trees, features, modules, circles, clauses, the table of faults, file sizes and test sizes are in order"
        ));
        return Ok(());
    }
    complain(&format!(
        "tidy: {} violations{}",
        violations.len(),
        if denied { ", and cargo-deny's above" } else { "" }
    ));
    Err(Failure::FOUND)
}

/// The rules that read files, on the workspace at `root`.
fn check_sources(root: &Path) -> Result<Vec<Violation>, Failure> {
    let sources = sources(root)?;
    let mut violations = size::check(&sources);
    violations.extend(suites::check(&sources));
    violations.extend(modules::check(&sources));
    violations.extend(circles::check(&sources));
    let contract = std::fs::read_to_string(root.join(clauses::CONTRACT)).ok();
    violations.extend(clauses::check(contract.as_deref(), &sources));
    let table = std::fs::read_to_string(root.join(RELIABILITY_TABLE)).ok();
    violations.extend(reliability::check(table.as_deref(), &sources));
    violations.extend(sources.iter().filter_map(unreadable));
    Ok(violations)
}

fn sources(root: &Path) -> Result<Vec<SourceFile>, Failure> {
    files::rust_sources(root).map_err(|why| Failure::while_doing("read the source files", why))
}

/// The names of the tests of the fault matrix, in the order of the sources.
///
/// # Errors
/// [`Failure::Infrastructure`] when the workspace cannot be read.
pub fn fault_tests(root: &Path) -> Result<Vec<String>, Failure> {
    let sources = sources(root)?;
    Ok(reliability::tests(&sources).into_iter().map(|(_, function)| function.name).collect())
}

/// A file that is no Rust would slip through every rule that reads tokens.
fn unreadable(source: &SourceFile) -> Option<Violation> {
    let why = tokens::parse(&source.text).err()?;
    let (line, what) = (why.span().start().line, format!("not readable as Rust: {why}"));
    Some(source.violation(line, "readable", what, "make it compile, so that the rules can be checked".into()))
}

/// Whether cargo-deny is content; it is where it is not installed, and says so.
fn deny(interrupts: &Interrupts) -> Result<bool, Failure> {
    if !has_subcommand("deny") {
        say(&format!(
            "{ODD}skipped{ODD:#}: cargo-deny is not installed, so licences, bans and sources are not checked here; \
             `cargo install --locked cargo-deny` adds it"
        ));
        return Ok(true);
    }
    let mut command: Command = cargo();
    command.args(["deny", "--log-level", "error", "check"]).args(DENY_CHECKS); // warnings are for a person who asks
    Ok(interrupts.run(&mut command)?.success())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::check_sources;

    /// Every rule about sources reads the same small workspace, so one planted violation of each must come back.
    #[test]
    fn planted_violations_come_back_from_the_disk() {
        let root = ground();
        let core = root.path().join("crates/pool-core/src");
        fs::create_dir_all(&core).unwrap();
        fs::create_dir_all(root.path().join("docs")).unwrap();
        fs::create_dir_all(root.path().join("target/debug")).unwrap();
        fs::write(root.path().join("target/CACHEDIR.TAG"), "").unwrap();
        fs::write(root.path().join("target/debug/generated.rs"), "\n".repeat(600)).unwrap();
        fs::write(core.join("ids.rs"), "use crate::registry::Registry;\n").unwrap();
        fs::write(core.join("registry.rs"), "//! Long.\n".repeat(501)).unwrap();
        fs::write(core.join("error.rs"), "fn (\n").unwrap();
        fs::create_dir_all(root.path().join("tests")).unwrap();
        let long = format!("#[test]\nfn shows() {{\n{}}}\n", "step();\n".repeat(39));
        fs::write(root.path().join("tests/limits.rs"), long).unwrap();
        fs::write(root.path().join("docs/contract.md"), "### B1 budget\n\n- test: `b1_absent`\n").unwrap();

        let found = check_sources(root.path()).unwrap();

        let mut rules: Vec<(&str, String)> =
            found.iter().map(|v| (v.rule, format!("{}:{}", v.file.display(), v.line))).collect();
        rules.sort();
        let expected = [
            ("clauses", "docs/contract.md:3"),
            ("file-size", "crates/pool-core/src/registry.rs:501"),
            ("modules", "crates/pool-core/src/ids.rs:1"),
            ("readable", "crates/pool-core/src/error.rs:1"),
            ("test-size", "tests/limits.rs:2"),
        ];
        assert_eq!(rules, expected.map(|(rule, place)| (rule, place.to_owned())));
    }

    /// A tree in which only the files stand that may be long, and are.
    fn ground() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, _) in super::size::LONGER {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "//! Long.\n".repeat(501)).unwrap();
        }
        root
    }

    #[test]
    fn a_violation_says_where_what_and_what_to_do() {
        let root = ground();
        let found = check_sources(root.path()).unwrap();
        let text = anstream::adapter::strip_str(&found[0].to_string()).to_string();
        assert!(text.starts_with("docs/contract.md:1: clauses: "), "{text}");
        assert!(text.contains("\n    do: "), "{text}");
    }
}
