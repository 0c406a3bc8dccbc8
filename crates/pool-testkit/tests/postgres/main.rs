//! The adapter's promises on a real server, one law a test.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

mod answers;
mod budget;
mod cancelled;
mod clean;
mod conformance;
mod cut;
mod drop_in;
mod dropping;
mod handles;
mod hung;
mod idle;
mod listen;
mod load;
mod migrations;
mod mishaps;
mod names_and_errors;
mod plans;
mod raw_plans;
mod resets;
mod runtimes;
mod stall;
mod support;
mod tap;
mod templates;
mod tracked;
