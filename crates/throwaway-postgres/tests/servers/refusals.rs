//! What does not start says why.

use std::fs;

use tempfile::TempDir;

use crate::support::{Ground, another_process_that};

#[test]
fn a_pg_bin_without_binaries_is_an_error_and_not_passed_over() {
    let ground = Ground::new();
    let empty = tempfile::tempdir().unwrap();
    let output = another_process_that("hold", ground.path()).env("PG_BIN", empty.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("PG_BIN is set to"), "{text}");
    assert!(text.contains("there is no initdb"), "{text}");
    assert!(ground.is_clean());
}

#[test]
fn a_server_that_cannot_start_shows_its_log_and_leaves_nothing() {
    let ground = Ground::new();
    let bin = ground_with_broken_binaries();
    let output = another_process_that("hold", ground.path()).env("PG_BIN", bin.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("the disk is made of cheese"), "{text}");
    assert!(ground.is_clean());
}

fn ground_with_broken_binaries() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let bin = tempfile::tempdir().unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bin.path(), open.clone()).unwrap();
    let script = "#!/bin/sh\n\
        case $1 in --version) echo 'x (PostgreSQL) 15.0'; exit 0 ;; esac\n\
        echo 'the disk is made of cheese' >&2; exit 1\n";
    for name in ["initdb", "postgres"] {
        fs::write(bin.path().join(name), script).unwrap();
        fs::set_permissions(bin.path().join(name), open.clone()).unwrap();
    }
    bin
}
