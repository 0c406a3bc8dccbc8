//! Any bytes as a URL, a password and a variable: no panic, the same password, and none of it shown.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(broken) = pool_testkit::hostile::check_postgres_config(bytes) {
        panic!("{broken}");
    }
});
