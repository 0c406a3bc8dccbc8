//! What cargo builds for us, and where it has put it.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cargo_metadata::Artifact;

use crate::failure::Failure;
use crate::process::Interrupts;

/// Why there is no program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Cargo has failed, and has said why.
    NotBuilt,
    /// Cargo has built nothing of that name.
    NotThere,
}

/// Has cargo build a program, and says where it is. Cargo's progress and errors are shown as they come.
///
/// # Errors
/// [`Failure::Infrastructure`] when cargo cannot be run or read, [`Failure::Interrupted`].
pub fn build(
    cargo: &mut Command,
    target: &str,
    interrupts: &Interrupts,
) -> Result<Result<PathBuf, Missing>, Failure> {
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let mut running = interrupts.spawn(cargo.stdout(Stdio::piped()))?;
    let mut messages = String::new();
    if let Some(stdout) = &mut running.child.stdout {
        stdout
            .read_to_string(&mut messages)
            .map_err(|why| Failure::while_doing("read what cargo built", why))?;
    }
    let status = running.wait()?;
    interrupts.check()?;
    if !status.success() {
        return Ok(Err(Missing::NotBuilt));
    }
    Ok(executable(&messages, target).ok_or(Missing::NotThere))
}

/// The path of a program among cargo's messages.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    artifacts
        .filter(|artifact| artifact.target.name == target)
        .find_map(|artifact| artifact.executable)
        .map(Into::into)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::executable;

    #[test]
    fn a_program_is_found_among_cargos_messages() {
        let artifact = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/tests#pool-suites@0.1.0","manifest_path":"/w/tests/Cargo.toml","target":{"kind":["test"],"crate_types":["bin"],"name":"suites","src_path":"/w/tests/main.rs","edition":"2024","doc":false,"doctest":false,"test":true},"profile":{"opt_level":"0","debuginfo":2,"debug_assertions":true,"overflow_checks":true,"test":true},"features":[],"filenames":["/w/target/debug/deps/suites-4d11"],"executable":"/w/target/debug/deps/suites-4d11","fresh":false}"#;
        let messages = format!("{artifact}\n{{\"reason\":\"build-finished\",\"success\":true}}\n");
        assert_eq!(
            executable(&messages, "suites").as_deref(),
            Some(Path::new("/w/target/debug/deps/suites-4d11"))
        );
        assert_eq!(executable(&messages, "others"), None);
    }
}
