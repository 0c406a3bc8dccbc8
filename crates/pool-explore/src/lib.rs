//! What can be known of the registry of `pool-core` without a database: [`enumerate`] runs every schedule of small
//! worlds and checks every law after each step; the simulator runs large worlds in virtual time, where opens, closes
//! and queries cost what they cost on a server, and says how much gets done.

pub mod enumerate;
pub mod simulate;
