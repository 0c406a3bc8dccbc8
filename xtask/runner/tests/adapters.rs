//! The suites on what needs no server: asked for, and where there is no PostgreSQL at all.

use std::path::Path;
use std::process::Command;

const RUNNER: &str = env!("CARGO_BIN_EXE_suite-runner");
/// Hides every PostgreSQL of this machine from what runs behind it.
const HIDE: &str = r#"
for place in /usr/lib/postgresql /usr/local/pgsql /opt/homebrew; do
    [ ! -d "$place" ] || mount -t tmpfs none "$place" || exit 77
done
exec "$@"
"#;
/// What `HIDE` and `unshare` end with where they may not.
const MAY_NOT: [Option<i32>; 2] = [Some(77), Some(1)];

struct Told {
    code: Option<i32>,
    out: String,
    context: String,
}

fn told(command: &mut Command) -> Told {
    for name in ["TEST_DB_HOST", "TEST_DB_PORT", "DATABASE_URL", "PGHOST", "PG_BIN"] {
        command.env_remove(name);
    }
    let run = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    let context = format!("{out}\n{}", String::from_utf8_lossy(&run.stderr));
    Told { code: run.status.code(), out, context }
}

#[test]
fn a_suite_runs_in_memory_without_a_server_under_the_same_names() {
    let told = told(Command::new(RUNNER).args(["test-pools", "--adapter", "memory", "--suite", "lifecycle"]));
    assert_eq!(told.code, Some(0), "{}", told.context);
    assert_eq!(told.out.lines().last(), Some("9 passed, 0 failed, 0 skipped"), "{}", told.context);
    assert!(!told.out.contains("server  "), "{}", told.context);
}

#[test]
fn what_an_adapter_has_nothing_of_is_replaced_and_counted() {
    let case = "limits::connection_limit_protects_system";
    let told = told(Command::new(RUNNER).args(["test-pools", "--adapter", "sqlite", "--case", case]));
    assert_eq!(told.code, Some(0), "{}", told.context);
    for expected in ["replaced: 1 of 1 cases", &format!("  sqlite::{case}: there is no system database")] {
        assert!(told.out.contains(expected), "{expected:?} is not in\n{}", told.context);
    }
}

#[test]
fn a_server_is_not_kept_where_there_is_none() {
    let told = told(Command::new(RUNNER).args(["test-pools", "--adapter", "sqlite", "--keep-server"]));
    assert_eq!(told.code, Some(2), "{}", told.context);
}

#[test]
fn without_postgresql_the_suites_run_on_the_others_and_say_so_first_and_last() {
    // Where no server is shared that others have started.
    let own = tempfile::tempdir().unwrap();
    let hidden = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", HIDE, "sh", RUNNER]).args(arguments);
        // The directories that hold no server's binaries.
        let path = std::env::var("PATH").unwrap_or_default();
        let path = path.split(':').filter(|dir| !Path::new(dir).join("initdb").exists());
        told(command.env("PATH", path.collect::<Vec<_>>().join(":")).env("TMPDIR", own.path()))
    };
    let case = "workspace_pool_reuse";
    let postgres = hidden(&["test-pools", "--adapter", "postgres", "--case", case]);
    if MAY_NOT.contains(&postgres.code) && !postgres.context.contains("no test server") {
        println!("skipped: this user may not hide PostgreSQL in a mount namespace: {}", postgres.context);
        return;
    }
    assert_eq!(postgres.code, Some(3), "asked for, it is an error: {}", postgres.context);

    let fallen = hidden(&["test-pools", "--case", case]);
    assert_eq!(fallen.code, Some(0), "{}", fallen.context);
    let lines: Vec<&str> = fallen.out.lines().collect();
    let notices: Vec<usize> =
        (0..lines.len()).filter(|at| lines[*at].starts_with("NOT ON POSTGRESQL: ")).collect();
    let running = lines.iter().position(|line| line.starts_with("running  2 cases on memory and sqlite"));
    assert!(
        matches!(notices[..], [first, last] if running > Some(first) && last == lines.len() - 2),
        "{}",
        fallen.context
    );
    assert!(
        lines[notices[0]].contains("install") && fallen.out.contains("TEST_DB_HOST"),
        "{}",
        fallen.context
    );
    assert_eq!(lines.last(), Some(&"2 passed, 0 failed, 0 skipped"));
}
