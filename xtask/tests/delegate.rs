//! What `cargo xtask` does by itself, and what it hands over.

use std::process::Command;

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments);
    command
}

/// Where nothing can be built.
fn without_cargo(arguments: &[&str]) -> Command {
    let mut command = xtask(arguments);
    command.env("CARGO", "/no/cargo/here");
    command
}

#[test]
fn help_and_wrong_usage_build_nothing() {
    for (arguments, code) in
        [(["test-pools", "--help"], 0), (["help", "measure"], 0), (["test-pools", "--nonsense"], 2)]
    {
        let told = without_cargo(&arguments).output().unwrap();
        assert_eq!(told.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_built_is_named_with_the_code_for_it() {
    let told = without_cargo(&["connections"]).output().unwrap();
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(3), "{words}");
    assert!(words.contains("/no/cargo/here"), "{words}");
}

#[test]
fn the_runner_gets_the_arguments_and_gives_the_exit_code() {
    let told = xtask(&["connections", "--run", "not-a-run"]).output().unwrap();
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(2), "{words}");
    assert!(words.contains("`not-a-run` names no run"), "{words}");
}
