//! A database URL, read so that no part of a password is shown.

use sqlx::postgres::PgConnectOptions;

use crate::config_error::ConfigError;

/// What sqlx makes something of in a URL.
const URL_PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// What a URL says.
pub(crate) struct Url {
    pub(crate) options: PgConnectOptions,
    /// What sqlx's options do not tell.
    pub(crate) keeps_statements: bool,
}

impl Url {
    pub(crate) fn read(url: &str) -> Result<Self, ConfigError> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            let wrong = sqlx::Error::Configuration("it does not begin with postgres://".into());
            return Err(ConfigError::Url(wrong));
        }
        // Behind the host, a bare @ means that the host was taken from the midst of a password.
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        if rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@')) {
            let wrong = "special characters must be percent-encoded (in a password / as %2F, ? as %3F, # as %23; @ as %40)";
            return Err(ConfigError::Url(sqlx::Error::Configuration(wrong.into())));
        }
        let options = without_unknown_parameters(url).parse().map_err(ConfigError::Url)?;
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters).split('&');
        let mut capacities = parameters.filter_map(|pair| pair.strip_prefix("statement-cache-capacity="));
        let keeps_statements = capacities.next_back().is_none_or(|capacity| capacity.parse() != Ok(0_usize));
        Ok(Self { options, keeps_statements })
    }
}

/// sqlx writes a parameter that it does not know into the log, its value included, which may be the password
/// behind a slip of the pen. It gets to see those only that it knows.
fn without_unknown_parameters(url: &str) -> String {
    let Some((address, query)) = url.split_once('?') else { return url.to_owned() };
    let is_known = |pair: &&str| {
        let key = pair.split('=').next().unwrap_or_default();
        URL_PARAMETERS.contains(&key) || key.starts_with("options[") || key.starts_with("options%5B")
    };
    let (known, unknown): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_known);
    if unknown.iter().any(|pair| !pair.is_empty()) {
        tracing::warn!(count = unknown.len(), "parameters of the database URL are unknown, and ignored");
    }
    format!("{address}?{}", known.join("&"))
}
