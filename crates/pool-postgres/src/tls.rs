//! Whether the TLS that a configuration asks for is there: it is a feature of this crate.

use sqlx::postgres::PgSslMode;

use crate::config_error::ConfigError;

/// Refuses what cannot be done, before a server is asked. `is_compiled` says whether there is TLS in this program.
pub(crate) fn check(mode: PgSslMode, is_compiled: bool) -> Result<(), ConfigError> {
    let mode = match mode {
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => return Ok(()),
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    };
    if is_compiled { Ok(()) } else { Err(ConfigError::NoTls { mode }) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::disable("disable", true)]
    #[case::allow("allow", true)]
    #[case::prefer("prefer", true)]
    #[case::require("require", false)]
    #[case::verify_ca("verify-ca", false)]
    #[case::verify_full("verify-full", false)]
    fn without_tls_a_mode_that_asks_for_it_is_refused(#[case] mode: &str, #[case] is_taken: bool) {
        let checked = check(mode.parse().unwrap(), false);
        assert_eq!(checked.is_ok(), is_taken);
        if let Err(error) = checked {
            let told = error.to_string();
            assert!(told.contains(mode) && told.contains("`tls-rustls-ring-webpki`"), "{told}");
        }
        check(mode.parse().unwrap(), true).unwrap();
    }
}
