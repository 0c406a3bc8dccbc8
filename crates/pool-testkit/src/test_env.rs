//! The variables that name the server for tests. They are read here alone: what an application reads of its environment
//! ([`PostgresConfig::from_env`]) does not follow what somebody has set for tests.

use std::env;

use pool_postgres::{ConfigError, PostgresConfig};

/// The variables of the application, and what each is called for tests.
const NAMES: [(&str, &str); 6] = [
    ("PGHOST", "TEST_DB_HOST"),
    ("PGPORT", "TEST_DB_PORT"),
    ("PGUSER", "TEST_DB_USER"),
    ("PGPASSWORD", "TEST_DB_PASSWORD"),
    ("PGDATABASE", "TEST_DB_NAME"),
    ("PGSSLMODE", "TEST_DB_SSLMODE"),
];

/// The server that the environment names for tests: by `TEST_DB_HOST`, `TEST_DB_PORT`, `TEST_DB_USER`, `TEST_DB_PASSWORD`,
/// `TEST_DB_NAME` and `TEST_DB_SSLMODE` if any of them is set, where the host is `localhost` unless it is given; else as
/// [`PostgresConfig::from_env`] reads it.
///
/// # Errors
/// [`ConfigError`] when a variable cannot be read, or when none is set, which [`named`] tells before.
pub(crate) fn from_env() -> Result<PostgresConfig, ConfigError> {
    from_variables(of_environment)
}

/// The same, from any source of variables.
///
/// # Errors
/// As [`from_env`].
pub(crate) fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<PostgresConfig, ConfigError> {
    if !NAMES.iter().any(|(_, for_tests)| get(for_tests).is_some()) {
        return PostgresConfig::from_variables(get);
    }
    let renamed = |name: &str| {
        let host = || (name == "PGHOST").then(|| "localhost".to_owned());
        get(for_tests(name)?).or_else(host)
    };
    PostgresConfig::from_variables(renamed).map_err(|error| match error {
        ConfigError::Variable { variable, value, expected } => {
            let variable = for_tests(&variable).map_or(variable.clone(), str::to_owned);
            ConfigError::Variable { variable, value, expected }
        }
        error => error,
    })
}

/// The variable that names a server in the environment, if one does.
pub(crate) fn named() -> Option<&'static str> {
    let names = NAMES.iter().map(|(_, for_tests)| *for_tests).chain(["DATABASE_URL", "PGHOST"]);
    names.into_iter().find(|name| of_environment(name).is_some())
}

fn for_tests(name: &str) -> Option<&'static str> {
    NAMES.iter().find(|(of_application, _)| *of_application == name).map(|(_, for_tests)| *for_tests)
}

fn of_environment(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use sqlx::postgres::PgSslMode;

    use super::*;
    use crate::hostile::password_of;

    fn read(variables: &[(&str, &str)]) -> Result<PostgresConfig, ConfigError> {
        from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[rstest]
    #[case::for_tests(&[("TEST_DB_HOST", "a"), ("TEST_DB_PORT", "1"), ("DATABASE_URL", "postgres://b:2/x")], "a:1/postgres")]
    #[case::one_is_enough(&[("TEST_DB_NAME", "z"), ("PGHOST", "c"), ("PGPORT", "3")], "localhost:5432/z")]
    #[case::url(&[("DATABASE_URL", "postgres://u:p@b:2/x"), ("PGHOST", "c")], "b:2/x")]
    #[case::pg(&[("PGHOST", "c"), ("PGPORT", "3"), ("PGDATABASE", "y")], "c:3/y")]
    fn the_environment_of_tests_is_read_in_order(#[case] variables: &[(&str, &str)], #[case] address: &str) {
        let config = read(variables).unwrap();
        assert_eq!(config.address(config.get_system_database().unwrap().as_str()), address);
    }

    #[test]
    fn every_variable_of_the_application_has_one_for_tests() {
        let given = NAMES.map(|(_, for_tests)| {
            let value = match for_tests {
                "TEST_DB_PORT" => "6",
                "TEST_DB_SSLMODE" => "verify-full",
                name => name,
            };
            (for_tests, value)
        });
        let config = read(&given).unwrap();
        let database = config.get_system_database().unwrap();
        assert_eq!(config.address(database.as_str()), "TEST_DB_HOST:6/TEST_DB_NAME");
        assert_eq!(config.get_user(), "TEST_DB_USER");
        assert_eq!(password_of(&config), "TEST_DB_PASSWORD");
        assert!(matches!(config.connect_options("d").get_ssl_mode(), PgSslMode::VerifyFull));
    }

    #[rstest]
    #[case::port(&[("TEST_DB_PORT", "seventy")], "TEST_DB_PORT cannot be \"seventy\"")]
    #[case::sslmode(&[("TEST_DB_SSLMODE", "maybe")], "TEST_DB_SSLMODE cannot be \"maybe\"")]
    #[case::of_the_application(&[("PGHOST", "h"), ("PGPORT", "x")], "PGPORT cannot be \"x\"")]
    fn an_error_names_the_variable_that_was_set(#[case] variables: &[(&str, &str)], #[case] says: &str) {
        let error = read(variables).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
