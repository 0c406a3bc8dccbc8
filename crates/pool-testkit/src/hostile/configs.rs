//! The properties of configurations.

use pool_postgres::PostgresConfig;
use sqlx::ConnectOptions as _;

use super::check::holds;
use super::percent_encoded;
use crate::test_env;

/// A password that is also a port number: what a URL is cut at in the wrong place shows it.
const SECRET: &str = "47110";
/// The same for a password whose text is told from everything else.
const MARK: &str = "s3cr3t-";

/// What must be true of every configuration, however it is given: no panic, a password that is what was given,
/// and neither an error nor `Debug` that shows it. The bytes become a password in a URL, a URL of their own, and
/// the values of variables.
///
/// # Errors
/// What is not true.
pub fn check_postgres_config(bytes: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(()) };
    check_any_url(text)?;
    check_encoded_url(text)?;
    check_variables(text)
}

/// The password that sqlx is given.
pub fn password_of(config: &PostgresConfig) -> String {
    let url = config.clone().user("u").connect_options("d").to_url_lossy();
    let encoded = url.password().unwrap_or_default().as_bytes();
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((first, behind)) = rest.split_first() {
        let escaped =
            behind.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        if let (b'%', Some(byte)) = (first, escaped) {
            bytes.push(byte);
            rest = &behind[2..];
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A URL that somebody has put together without encoding anything.
fn check_any_url(text: &str) -> Result<(), String> {
    shows_nothing(SECRET, &PostgresConfig::from_url(text), !text.contains(SECRET))?;
    let careless = format!("postgres://u:{SECRET}{text}@h/d");
    shows_nothing(SECRET, &PostgresConfig::from_url(&careless), !text.contains(SECRET))
}

fn check_encoded_url(text: &str) -> Result<(), String> {
    let password = format!("{MARK}{text}");
    let url = format!("postgres://u:{}@h:5433/d?sslmode=disable", percent_encoded(&password));
    let config = PostgresConfig::from_url(&url);
    shows_nothing(MARK, &config, true)?;
    let config = config.map_err(|error| format!("an encoded URL was refused: {error}"))?;
    holds(password_of(&config) == password, || "the password of a URL is another one".to_owned())
}

fn check_variables(text: &str) -> Result<(), String> {
    let password = format!("{MARK}{text}");
    for [host, secret, odd] in
        [["TEST_DB_HOST", "TEST_DB_PASSWORD", "TEST_DB_PORT"], ["PGHOST", "PGPASSWORD", "PGSSLMODE"]]
    {
        let given = |odd_value: Option<&str>| {
            test_env::from_variables(|name| match name {
                _ if name == host => Some("h".to_owned()),
                _ if name == secret => Some(password.clone()),
                _ if name == odd => odd_value.map(str::to_owned),
                _ => None,
            })
        };
        shows_nothing(MARK, &given(Some(text)), !text.contains(MARK))?;
        let config = given(None).map_err(|error| format!("{secret} was refused: {error}"))?;
        holds(password_of(&config) == password, || format!("{secret} became another password"))?;
        shows_nothing(MARK, &Ok(config), true)?;
    }
    Ok(())
}

/// Fails if the secret is seen where a configuration or its error is shown; `only_there` says that the input has
/// it nowhere else.
fn shows_nothing(
    secret: &str,
    config: &Result<PostgresConfig, pool_postgres::ConfigError>,
    only_there: bool,
) -> Result<(), String> {
    let shown = match config {
        Ok(config) => format!("{config:?} {}", config.address("d")),
        Err(error) => format!("{error} {error:?}"),
    };
    holds(!only_there || !shown.contains(secret), || format!("a password is shown: {shown}"))
}
