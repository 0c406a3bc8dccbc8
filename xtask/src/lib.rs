//! What `cargo xtask` is made of: the command line, the rules of the workspace, and how it runs other programs.
//!
//! Nothing here knows the pools, so that help, wrong usage and `tidy` cost a newcomer a few seconds of compiling, and no driver.
//! What needs the pools is a program of its own, `suite-runner`, which reads the same command line and uses the same modules.

pub mod artifact;
pub mod choices;
pub mod cli;
pub mod display;
pub mod failure;
pub mod process;
pub mod tidy;
