//! The async shell's laws on a server in memory. Time is paused: it moves only when nothing else can.
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

mod closing;
mod events;
mod idle;
mod limits;
mod outages;
mod random;
mod scheduling;
mod serving;
mod support;
