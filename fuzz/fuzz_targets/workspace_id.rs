//! Any bytes as a workspace id: refused with a clear error, or kept, shown without harm, and named.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(broken) = pool_testkit::hostile::check_workspace_id(bytes) {
        panic!("{broken}");
    }
});
