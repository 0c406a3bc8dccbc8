//! The registry's laws, one clause a test, without a runtime.
// A test may end with debts unpaid.
#![allow(unused_must_use)]
// The allowances of clippy.toml hold inside tests; these are their helpers.
#![allow(clippy::unwrap_used)]

mod budget;
mod closing;
mod counts;
mod gone;
mod limits;
mod look_ups;
mod lost;
mod opening;
mod outages;
mod pauses;
mod random;
mod schedule;
mod shares;
mod waiting;
mod world;
