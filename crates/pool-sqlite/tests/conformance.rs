//! The conformance suite over files.

mod files;

pool_testkit::conformance!(files::Files);
