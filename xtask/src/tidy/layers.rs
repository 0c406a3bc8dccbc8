//! Rule `layers`: arrows between the packages point inward only.
//!
//! Read from `cargo metadata` with all features on, so no feature is a way round. Normal and build dependencies count, at any
//! distance; development dependencies do not, since tests may look at the layers above them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand, NodeDep};

use super::Violation;
use crate::failure::Failure;

/// What a package of the workspace may use.
struct Layer {
    package: &'static str,
    /// Packages of the workspace that it may name. Those have layers of their own, so this need not look further.
    workspace: &'static [&'static str],
    /// Packages that it must not reach, however far away; `*` at the end stands for any rest.
    never: &'static [&'static str],
}

/// The layers of the design. A package that is not in here has none, and is a violation.
const LAYERS: &[Layer] = &[
    Layer { package: "pool-core", workspace: &[], never: &["tokio*", "sqlx*", "moka", "dashmap"] },
    Layer {
        package: "pool-explore",
        workspace: &["pool-core"],
        never: &["tokio*", "sqlx*", "moka", "dashmap"],
    },
    Layer { package: "planted-core", workspace: &[], never: &["tokio*", "sqlx*", "moka", "dashmap"] },
    Layer { package: "planted-explore", workspace: &["planted-core"], never: &["tokio*", "sqlx*"] },
    Layer { package: "pool-manager", workspace: &["pool-core"], never: &["sqlx*"] },
    Layer { package: "pool-postgres", workspace: &["pool-core", "pool-manager"], never: &[] },
    Layer { package: "pool-sqlite", workspace: &["pool-core", "pool-manager"], never: &[] },
    Layer { package: "throwaway-postgres", workspace: &[], never: &["sqlx*"] },
    Layer {
        package: "pool-testkit",
        workspace: &["pool-core", "pool-manager", "pool-postgres", "throwaway-postgres"],
        never: &[],
    },
    Layer {
        package: "pool-suites",
        workspace: &["pool-core", "pool-manager", "pool-postgres", "pool-sqlite", "pool-testkit"],
        never: &[],
    },
    // Help, wrong usage and these rules are to cost no driver.
    Layer { package: "xtask", workspace: &[], never: &["tokio*", "sqlx*"] },
    Layer {
        package: "suite-runner",
        workspace: &["pool-explore", "pool-suites", "pool-testkit", "xtask"],
        never: &[],
    },
];

/// A package, and what it uses by normal and build dependencies.
#[derive(Debug)]
pub struct Package {
    name: String,
    /// Its manifest relative to the root, and the text of it; only for packages of the workspace.
    manifest: Option<(PathBuf, String)>,
    uses: Vec<usize>,
}

/// Asks cargo for the packages and their dependencies.
///
/// # Errors
/// [`Failure::Infrastructure`] with cargo's own words.
pub fn read(cargo: &Command, root: &Path) -> Result<Vec<Package>, Failure> {
    let metadata = MetadataCommand::new()
        .cargo_path(cargo.get_program())
        .manifest_path(root.join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .exec()
        .map_err(|why| Failure::while_doing("read the dependencies with `cargo metadata`", why))?;
    let place: BTreeMap<_, usize> = metadata.packages.iter().map(|package| &package.id).zip(0..).collect();
    let members = &metadata.workspace_members;
    let mut packages: Vec<Package> = metadata
        .packages
        .iter()
        .map(|package| {
            let manifest = package.manifest_path.as_std_path();
            let own = members.contains(&package.id).then(|| {
                let inside = manifest.strip_prefix(metadata.workspace_root.as_std_path()).unwrap_or(manifest);
                (inside.to_owned(), fs::read_to_string(manifest).unwrap_or_default())
            });
            Package { name: package.name.to_string(), manifest: own, uses: Vec::new() }
        })
        .collect();
    for node in metadata.resolve.iter().flat_map(|resolve| &resolve.nodes) {
        let uses = node
            .deps
            .iter()
            .filter(|dep| reaches_a_build(dep))
            .filter_map(|dep| place.get(&dep.pkg).copied());
        if let Some(package) = place.get(&node.id).and_then(|at| packages.get_mut(*at)) {
            package.uses = uses.collect();
        }
    }
    Ok(packages)
}

fn reaches_a_build(dep: &NodeDep) -> bool {
    dep.dep_kinds.iter().any(|kind| matches!(kind.kind, DependencyKind::Normal | DependencyKind::Build))
}

/// Checks every package of the workspace against its layer.
pub fn check(packages: &[Package]) -> Vec<Violation> {
    let members = (0..).zip(packages).filter(|(_, package)| package.manifest.is_some());
    members.flat_map(|(at, package)| check_member(packages, at, package)).collect()
}

fn check_member(packages: &[Package], at: usize, package: &Package) -> Vec<Violation> {
    let Some(layer) = LAYERS.iter().find(|layer| layer.package == package.name) else {
        let what = format!("package `{}` has no layer", package.name);
        let remedy = "say in `LAYERS` of xtask/src/tidy/layers.rs what it may use";
        return vec![package.violation("name", what, remedy)];
    };
    let mut found = Vec::new();
    let used = package.uses.iter().filter_map(|at| packages.get(*at));
    for used in used.filter(|used| used.manifest.is_some() && !layer.workspace.contains(&used.name.as_str()))
    {
        let what = format!("`{}` uses `{}`, against the arrows of the design", package.name, used.name);
        let remedy = "move the code to the package that may use both, or put a port in pool-core";
        found.push(package.violation(&used.name, what, remedy));
    }
    // What lies behind a forbidden package comes and goes with it.
    let reaches =
        |chain: &[&str]| chain.iter().position(|name| layer.forbids(name)) == chain.len().checked_sub(1);
    for chain in chains(packages, at).filter(|chain| reaches(chain)) {
        let what =
            format!("`{}` must not reach `{}`: {}", package.name, chain[chain.len() - 1], chain.join(" -> "));
        let remedy = "leave out that dependency, or turn off its feature; the layer above may have it";
        found.push(package.violation(chain[1], what, remedy));
    }
    found
}

/// The shortest way from a package to each one that it reaches, itself excluded.
fn chains(packages: &[Package], start: usize) -> impl Iterator<Item = Vec<&str>> {
    let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    let mut reached = Vec::new();
    while let Some(at) = next.pop_front() {
        for &used in packages.get(at).iter().flat_map(|package| &package.uses) {
            if used != start && !came_from.contains_key(&used) {
                came_from.insert(used, at);
                next.push_back(used);
                reached.push(used);
            }
        }
    }
    reached.into_iter().map(move |end| {
        let way = std::iter::successors(Some(end), |at| came_from.get(at).copied());
        let mut names: Vec<&str> =
            way.filter_map(|at| packages.get(at)).map(|package| package.name.as_str()).collect();
        names.reverse();
        names
    })
}

impl Layer {
    fn forbids(&self, name: &str) -> bool {
        self.never.iter().any(|never| match never.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *never,
        })
    }
}

impl Package {
    /// A violation at the line of the manifest that begins with `key`.
    fn violation(&self, key: &str, what: String, remedy: &str) -> Violation {
        let (file, text) = self.manifest.clone().unwrap_or_default();
        let names = |line: &str| {
            let line = line.strip_prefix("[dependencies.").unwrap_or(line).trim_start();
            line.strip_prefix(key).is_some_and(|rest| rest.starts_with([' ', '.', '=', ']']))
        };
        let line = text.lines().position(names).map_or(1, |at| at + 1);
        Violation { file, line, rule: "layers", what, remedy: remedy.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use rstest::rstest;

    use super::{Package, check, read};

    /// Packages written as `name: what it uses; …`. One without a colon uses nothing; one of ours belongs to the workspace.
    fn packages(table: &str) -> Vec<Package> {
        let rows: Vec<(&str, Vec<&str>)> = table
            .split("; ")
            .map(|row| row.split_once(": ").unwrap_or((row, "")))
            .map(|(name, uses)| (name, uses.split_whitespace().collect()))
            .collect();
        let at = |name: &str| rows.iter().position(|(n, _)| *n == name).unwrap();
        let manifest = |name: &str, uses: &[&str]| {
            let ours = name.starts_with("pool-")
                || matches!(name, "throwaway-postgres" | "suite-runner" | "xtask" | "stranger");
            let lines = uses.join(".workspace = true\n") + ".workspace = true\n";
            ours.then(|| (format!("crates/{name}/Cargo.toml").into(), format!("name = \"{name}\"\n{lines}")))
        };
        let package = |(name, uses): &(&str, Vec<&str>)| Package {
            name: (*name).to_owned(),
            manifest: manifest(name, uses),
            uses: uses.iter().map(|used| at(used)).collect(),
        };
        rows.iter().map(package).collect()
    }

    #[rstest]
    #[case::a_runtime(
        "pool-core: slab tokio; slab; tokio: tokio-macros; tokio-macros",
        3,
        "pool-core -> tokio"
    )]
    #[case::far_away("pool-core: a; a: b; b: sqlx-core; sqlx-core", 2, "pool-core -> a -> b -> sqlx-core")]
    #[case::a_cache("pool-core: moka; moka", 2, "pool-core -> moka")]
    #[case::a_map("pool-core: dashmap; dashmap", 2, "pool-core -> dashmap")]
    #[case::outward("pool-core: pool-manager; pool-manager", 2, "`pool-core` uses `pool-manager`")]
    #[case::a_driver("pool-manager: sqlx; sqlx", 2, "pool-manager -> sqlx")]
    #[case::adapters("pool-postgres: pool-sqlite; pool-sqlite", 2, "`pool-postgres` uses `pool-sqlite`")]
    #[case::adapters_too(
        "pool-sqlite: pool-postgres; pool-postgres",
        2,
        "`pool-sqlite` uses `pool-postgres`"
    )]
    #[case::tools("pool-postgres: pool-testkit; pool-testkit", 2, "`pool-postgres` uses `pool-testkit`")]
    #[case::a_server_for_anybody(
        "throwaway-postgres: pool-core; pool-core",
        2,
        "`throwaway-postgres` uses `pool-core`"
    )]
    #[case::past_the_testkit("suite-runner: pool-core; pool-core", 2, "`suite-runner` uses `pool-core`")]
    #[case::help_for_a_driver("xtask: a; a: sqlx-core; sqlx-core", 2, "xtask -> a -> sqlx-core")]
    #[case::a_newcomer("stranger", 1, "no layer")]
    fn it_bites(#[case] table: &str, #[case] line: usize, #[case] what: &str) {
        let found = check(&packages(table));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].line, line, "{}", found[0]);
        assert!(found[0].what.contains(what), "{}", found[0].what);
    }

    #[test]
    fn the_design_is_in_order() {
        let design = "pool-core: slab; pool-manager: pool-core tokio moka dashmap; \
            pool-postgres: pool-core pool-manager sqlx; pool-sqlite: pool-core pool-manager sqlx; \
            throwaway-postgres: tokio; pool-testkit: pool-core pool-manager pool-postgres throwaway-postgres; \
            pool-suites: pool-testkit pool-postgres; xtask: slab; suite-runner: xtask pool-testkit pool-suites; \
            slab; tokio: slab; moka; dashmap; sqlx: tokio";
        assert_eq!(check(&packages(design)), []);
    }

    fn write_package(directory: &Path, name: &str, rest: &str) {
        fs::create_dir_all(directory.join("src")).unwrap();
        fs::write(directory.join("src/lib.rs"), "").unwrap();
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{rest}");
        fs::write(directory.join("Cargo.toml"), manifest).unwrap();
    }

    /// Through the real cargo: behind a feature, renamed and far away is found; a development dependency is let be.
    #[test]
    fn cargo_tells_of_a_planted_dependency() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("workspace");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("Cargo.toml"), "[workspace]\nresolver = \"3\"\nmembers = [\"pool-core\"]\n")
            .unwrap();
        let dependencies = "[features]\nfast = [\"dep:helper\"]\n\
            [dependencies]\nhelper = { path = \"../../helper\", optional = true }\n\
            [dev-dependencies]\nmoka = { path = \"../../moka\" }\n";
        write_package(&root.join("pool-core"), "pool-core", dependencies);
        let runtime = "[dependencies]\nrt = { package = \"tokio\", path = \"../tokio\" }\n";
        write_package(&directory.path().join("helper"), "helper", runtime);
        write_package(&directory.path().join("tokio"), "tokio", "");
        write_package(&directory.path().join("moka"), "moka", "");

        let found = check(&read(&Command::new(env!("CARGO")), &root).unwrap());

        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains("pool-core -> helper -> tokio"), "{}", found[0].what);
        assert_eq!((found[0].file.to_str(), found[0].line), (Some("pool-core/Cargo.toml"), 8));
    }
}
