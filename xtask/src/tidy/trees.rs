//! Rule `trees`: what a crate must not make its users compile.
//!
//! `cargo metadata` shows the features of the whole workspace at once; what one crate alone asks for is what `cargo tree -p` shows.
//! With the resolver of this workspace that is a little too much: features that the crate's own tests ask for are in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Violation;
use crate::failure::Failure;

/// A crate, how it is asked for, and packages that must not come with it; `*` at the end stands for any rest.
struct Tree {
    package: &'static str,
    arguments: &'static [&'static str],
    never: &'static [&'static str],
}

const TREES: &[Tree] = &[
    Tree {
        package: "pool-sqlite",
        arguments: &[],
        never: &["sqlx-postgres", "sqlx-mysql", "rustls*", "native-tls*", "openssl*", "ring"],
    },
    Tree {
        package: "pool-postgres",
        arguments: &["--no-default-features"],
        never: &["rustls*", "webpki*", "aws-lc*", "native-tls*", "openssl*", "ring"],
    },
    Tree {
        package: "pool-testkit",
        arguments: &["--no-default-features"],
        never: &["sqlx*", "proptest", "mockall", "throwaway-postgres"],
    },
    Tree { package: "throwaway-postgres", arguments: &[], never: &["pool-*", "sqlx*"] },
];

/// Asks cargo for the trees, and checks them.
///
/// # Errors
/// [`Failure::Infrastructure`] with cargo's own words.
pub fn check(cargo: impl Fn() -> Command, root: &Path) -> Result<Vec<Violation>, Failure> {
    let mut found = Vec::new();
    for package in TREES {
        let arguments = ["--edges", "normal,build", "-p", package.package];
        let printed = tree(&cargo, root, &[arguments.as_slice(), package.arguments].concat())?;
        found.extend(unwanted(package, &printed));
    }
    Ok(found)
}

/// What `cargo tree` prints, a package a line.
///
/// # Errors
/// [`Failure::Infrastructure`] with cargo's own words.
pub fn tree(cargo: &impl Fn() -> Command, root: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = cargo();
    command.current_dir(root).args(["tree", "--locked", "--prefix", "none"]).args(arguments);
    let output = command.output().map_err(|why| Failure::while_doing("run `cargo tree`", why))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::while_doing("run `cargo tree`", told.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The packages in what cargo printed that must not be there.
fn unwanted(tree: &Tree, printed: &str) -> Vec<Violation> {
    let mut names: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    names.dedup();
    let is_unwanted = |name: &str| {
        tree.never.iter().any(|never| match never.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *never,
        })
    };
    let found = names.into_iter().filter(|name| is_unwanted(name));
    found.map(|name| violation(tree, name)).collect()
}

fn violation(tree: &Tree, name: &str) -> Violation {
    let asked = [&["-p", tree.package], tree.arguments].concat().join(" ");
    Violation {
        file: PathBuf::from(format!("crates/{}/Cargo.toml", tree.package)),
        line: 1,
        rule: "trees",
        what: format!("`{}` makes its users compile `{name}`", tree.package),
        remedy: format!("find who asks for it with `cargo tree {asked} -i {name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_come_with_a_crate_is_found_once_by_its_name() {
        let tree = Tree { package: "small", arguments: &[], never: &["sqlx*", "ring"] };
        let printed = "small v0.1.0 (/x)\nsqlx v0.9.0\nsqlx v0.9.0 (*)\nringbuf v1.0.0\nserde v1.0.0\n";
        let found = unwanted(&tree, printed);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "`small` makes its users compile `sqlx`");
    }
}
