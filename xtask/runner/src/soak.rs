//! `cargo xtask soak`: the soak test for as long as one likes, with what it says shown as it goes.

use xtask::display::say;
use xtask::failure::Failure;
use xtask::process::{Interrupts, cargo};

/// Runs the soak for so many minutes of load.
///
/// # Errors
/// [`Failure::FOUND`] when the soak failed, or the build.
pub fn soak(minutes: u64, interrupts: &Interrupts) -> Result<(), Failure> {
    say(&format!("{minutes} minutes of load, after a thousand databases have been made"));
    let mut command = cargo();
    command.args(["test", "--locked", "--workspace", "--test", "soak", "--", "--nocapture"]);
    command.env("POOL_SOAK_SECONDS", (minutes * 60).to_string());
    if interrupts.run(&mut command)?.success() { Ok(()) } else { Err(Failure::FOUND) }
}
