//! Where the server is and who we are there: from the environment, a URL or a builder. The password goes
//! into sqlx's options and nowhere else; `Debug` shows that there is one, never what it is.

use std::env;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use pool_core::{DatabaseName, PrefixNaming};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use crate::config_error::ConfigError;
use crate::password::{PasswordProvider, Passwords};
use crate::session::{Reset, SessionKind, SessionSettings, TargetRole};
use crate::tag::Tag;
use crate::tls;
use crate::url::Url;

/// The prefix of workspaces' databases unless another is given.
pub const PREFIX_DEFAULT: &str = "pool";
/// The tag of our sessions in `pg_stat_activity` unless another is given.
pub const APPLICATION_NAME_DEFAULT: &str = "pool-postgres";

/// What sqlx keeps by default.
const STATEMENTS_DEFAULT: usize = 100;
/// The pool's own sessions keep their few statements, whatever callers' sessions do.
const OWN_STATEMENTS: usize = 20;

/// How to reach a server.
///
/// ```
/// use pool_postgres::PostgresConfig;
///
/// let config = PostgresConfig::new("db.example").user("app").password("s3cret").prefix("shop");
/// assert_eq!(config.host(), "db.example");
/// assert!(!format!("{config:?}").contains("s3cret"));
/// ```
#[derive(Clone)]
pub struct PostgresConfig {
    options: PgConnectOptions,
    system_database: String,
    prefix: String,
    application_name: String,
    is_guarded: bool,
    keeps_statements: bool,
    provider: Option<PasswordProvider>,
    closes_after_rotation: bool,
    sessions: SessionSettings,
}

impl PostgresConfig {
    /// A server at `host`, port 5432, as user `postgres` without a password, with `postgres` as the system
    /// database. Nothing of that is taken from the environment; `PGOPTIONS` and the files that `PGSSL*`
    /// variables name are, if they are set.
    pub fn new(host: &str) -> Self {
        // sqlx begins with what the environment says; everything that can be overridden is.
        let options = PgConnectOptions::new_without_pgpass()
            .port(5432)
            .username("postgres")
            .password("")
            .database("postgres")
            .ssl_mode(PgSslMode::Prefer)
            .application_name(APPLICATION_NAME_DEFAULT);
        Self::from_options(if host.starts_with('/') { options.socket(host) } else { options.host(host) })
    }

    fn from_options(options: PgConnectOptions) -> Self {
        let application_name = options.get_application_name().unwrap_or(APPLICATION_NAME_DEFAULT).to_owned();
        Self {
            system_database: options.get_database().unwrap_or("postgres").to_owned(),
            options,
            prefix: PREFIX_DEFAULT.to_owned(),
            application_name,
            is_guarded: false,
            keeps_statements: true,
            provider: None,
            closes_after_rotation: true,
            sessions: SessionSettings::default(),
        }
    }

    /// What the environment names: `DATABASE_URL`, else `PGHOST` with `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE` and
    /// `PGSSLMODE`. A variable that is empty counts as one that is not set.
    ///
    /// # Errors
    /// [`ConfigError`] when neither is set, or when a variable cannot be read.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The same, from any source of variables.
    ///
    /// # Errors
    /// As [`PostgresConfig::from_env`].
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        if let Some(url) = get("DATABASE_URL") {
            return Self::from_url(&url);
        }
        let mut config = Self::new(&get("PGHOST").ok_or(ConfigError::NothingSet)?);
        if let Some(value) = get("PGPORT") {
            config = config.port(parse("PGPORT", value, "a port number from 1 to 65535")?);
        }
        if let Some(value) = get("PGUSER") {
            config = config.user(&value);
        }
        if let Some(value) = get("PGPASSWORD") {
            config = config.password(&value);
        }
        if let Some(value) = get("PGDATABASE") {
            config = config.system_database(&value);
        }
        if let Some(value) = get("PGSSLMODE") {
            let expected = "one of disable, allow, prefer, require, verify-ca, verify-full";
            config = config.ssl_mode(parse("PGSSLMODE", value, expected)?);
        }
        Ok(config)
    }

    /// A `postgres://user:password@host:port/database?sslmode=…` URL; special characters are percent-encoded.
    /// Parameters that are not known are ignored. What it leaves open is taken from the `PG*` variables and
    /// the password file, as libpq does.
    ///
    /// # Errors
    /// [`ConfigError::Url`], which does not show the URL.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let Url { options, keeps_statements } = Url::read(url)?;
        Ok(Self { keeps_statements, ..Self::from_options(options) })
    }

    /// The port, default 5432.
    pub fn port(mut self, port: u16) -> Self {
        self.options = self.options.port(port);
        self
    }

    /// The user, default `postgres`.
    pub fn user(mut self, user: &str) -> Self {
        self.options = self.options.username(user);
        self
    }

    /// The password.
    pub fn password(mut self, password: &str) -> Self {
        self.options = self.options.password(password);
        self
    }

    /// Asks for the password before each new session, in the place of [`password`](Self::password): for one that is changed while the
    /// pool runs, and for tokens that expire. The pool's own connection and its successors ask as well.
    ///
    /// It counts against the connect timeout, of which the provider may take nine tenths. Where it fails, panics or takes longer, the open
    /// has failed, with [`NoCredentials`](pool_core::DriverErrorKind::NoCredentials) and the provider's error as its source, and the next
    /// attempt asks again. That error is shown to callers, so it must hold no secret. As many questions come at a time as opens are made,
    /// so an answer that costs a request is best kept for a while.
    ///
    /// Once the server has let in with another password, the sessions that began with an earlier one are replaced
    /// ([`close_after_rotation`](Self::close_after_rotation)). While nothing is opened nothing is asked, so a rotation is noticed after the maximum
    /// lifetime of a connection at the latest. A password that the server refuses is asked about again as any refusal is, at most ten seconds
    /// after the provider gives the right one.
    ///
    /// ```
    /// use pool_postgres::PostgresConfig;
    ///
    /// # async fn read_secret(_: &str) -> std::io::Result<String> { Ok(String::new()) }
    /// let config = PostgresConfig::new("db.example").user("app").password_provider(|| async {
    ///     Ok(read_secret("db-password").await?)
    /// });
    /// # drop(config);
    /// ```
    pub fn password_provider<F, R>(mut self, provider: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        self.provider = Some(PasswordProvider::new(provider));
        self
    }

    /// Whether sessions that began with an earlier password are closed, default yes: the idle ones within a second, those in use when they
    /// come back, and the pool's own connection once it has a successor. Say no where a provider gives tokens that end the right to log in
    /// and not the session, such as those of AWS RDS: each token would cost every session.
    pub fn close_after_rotation(mut self, closes: bool) -> Self {
        self.closes_after_rotation = closes;
        self
    }

    pub(crate) fn passwords(&self, connect_timeout: Duration) -> Option<Passwords> {
        let provider = self.provider.clone()?;
        Some(Passwords::new(provider, connect_timeout, self.closes_after_rotation))
    }

    /// The system database, default `postgres`: where databases are created from, and the one that the
    /// system pool connects to.
    pub fn system_database(mut self, database: &str) -> Self {
        database.clone_into(&mut self.system_database);
        self
    }

    /// Whether and how to use TLS, default `prefer`. What there is of it is a feature of this crate.
    pub fn ssl_mode(mut self, mode: PgSslMode) -> Self {
        self.options = self.options.ssl_mode(mode);
        self
    }

    /// What workspaces' databases start with, default `pool`; see [`PrefixNaming`].
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// What our sessions are called in `pg_stat_activity`, default `pool-postgres`. Each adds a tag of its own, such as
    /// `#4f0ka91z` ([`without_tag`](crate::without_tag)), by which the pool asks the server who it is; it stays for the
    /// session's life. A name longer than [`APPLICATION_NAME_MAX`](crate::APPLICATION_NAME_MAX) is cut.
    pub fn application_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.application_name);
        self
    }

    /// Prepared statements kept per connection, default 100. With none, statements are sent without a name, as
    /// poolers between here and the server need it; what raw access prepares by name is closed when the connection comes
    /// back.
    pub fn statement_cache_capacity(mut self, statements: usize) -> Self {
        self.keeps_statements = statements > 0;
        self.options = self.options.statement_cache_capacity(statements);
        self
    }

    /// What every lent session begins with, and is reset to: `search_path`, `role`, a timeout. It goes into the start-up
    /// packet, so it costs no round trip. Whether name and value can be one is checked when the pool is built.
    pub fn session_default(mut self, name: &str, value: &str) -> Self {
        self.sessions.defaults.push((name.to_owned(), value.to_owned()));
        self
    }

    /// When a connection that comes back is reset, default [`Reset::WhenDirty`].
    pub fn reset(mut self, reset: Reset) -> Self {
        self.sessions.reset = reset;
        self
    }

    /// Which servers will do, default [`TargetRole::Any`]. Where a name stands for several servers, or a server may become
    /// a standby, [`TargetRole::ReadWrite`] keeps callers from one that refuses their writes.
    pub fn target_role(mut self, role: TargetRole) -> Self {
        self.sessions.target_role = role;
        self
    }

    /// What to do with each new session before it is lent, and again after each reset; for what
    /// [`PostgresConfig::session_default`] cannot say. When it fails, or leaves a transaction open, the open has
    /// failed, in [`Phase::Prepare`](pool_core::Phase::Prepare). It counts against the connect timeout, and after a reset
    /// against the recycle timeout.
    ///
    /// ```
    /// use pool_postgres::PostgresConfig;
    ///
    /// let config = PostgresConfig::new("db.example").after_connect(|conn| {
    ///     Box::pin(async move { sqlx::raw_sql("set time zone 'Europe/Berlin'").execute(conn).await.map(drop) })
    /// });
    /// # drop(config);
    /// ```
    pub fn after_connect<F>(mut self, hook: F) -> Self
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<(), sqlx::Error>> + Send + Sync + 'static,
    {
        self.sessions.after_connect = Some(Arc::new(hook));
        self
    }

    /// Whether sessions can begin like this.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        tls::check(self.options.get_ssl_mode(), sqlx_core::net::tls::available())?;
        self.sessions.check()
    }

    pub(crate) fn sessions(&self) -> &SessionSettings {
        &self.sessions
    }

    /// Whether to stand guard over the sessions with a server that is not trusted, default no.
    ///
    /// sqlx does not yield while a server sends faster than it reads: such a server takes a thread of the runtime and all
    /// memory, and no time limit holds against it. Under guard a task relays all that is said, through a Unix socket in a
    /// directory that only this user may enter. A server that sends more than 1 MB before a session is open is given up,
    /// and in answers of more than 4 MB the relay pauses for an eighth of the time, so that time limits hold. It costs
    /// a copy of all bytes, and 128 KB of memory a connection.
    pub fn guarded(mut self, guarded: bool) -> Self {
        self.is_guarded = guarded;
        self
    }

    pub(crate) fn keeps_statements(&self) -> bool {
        self.keeps_statements
    }

    pub(crate) fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    /// The host or the socket directory.
    pub fn host(&self) -> &str {
        match self.options.get_socket().and_then(|path| path.to_str()) {
            Some(socket) => socket,
            None => self.options.get_host(),
        }
    }

    /// The port.
    pub fn get_port(&self) -> u16 {
        self.options.get_port()
    }

    /// The user.
    pub fn get_user(&self) -> &str {
        self.options.get_username()
    }

    /// The tag of our sessions.
    pub fn get_application_name(&self) -> &str {
        &self.application_name
    }

    /// The system database.
    ///
    /// # Errors
    /// [`ConfigError::Naming`] when the name cannot be one.
    pub fn get_system_database(&self) -> Result<DatabaseName, ConfigError> {
        Ok(DatabaseName::new(&self.system_database)?)
    }

    /// The default naming scheme, with this configuration's prefix.
    ///
    /// # Errors
    /// [`ConfigError::Naming`] when the prefix cannot be one.
    pub fn naming(&self) -> Result<PrefixNaming, ConfigError> {
        Ok(PrefixNaming::new(&self.prefix)?)
    }

    /// sqlx's options for a session with `database`, without the session defaults. They hold the password, unless a provider is to
    /// be asked for it, and their `Debug` shows it.
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        self.options.clone().database(database).application_name(&self.application_name)
    }

    /// The same for a session of this kind with this tag.
    pub(crate) fn session_options(&self, database: &str, kind: SessionKind, tag: &Tag) -> PgConnectOptions {
        let name = tag.behind(&self.application_name);
        let options = self.connect_options(database).application_name(&name);
        match kind {
            SessionKind::Own => options.statement_cache_capacity(OWN_STATEMENTS),
            SessionKind::Lent => {
                options.options(self.sessions.defaults.iter().map(|(name, value)| (name, value)))
            }
        }
    }

    /// What the names of templates begin with; the fingerprint of their migrations follows.
    pub(crate) fn template_stem(&self) -> String {
        format!("{}_template_", self.prefix)
    }

    /// `host:port/database`, for errors.
    pub fn address(&self, database: &str) -> String {
        format!("{}:{}/{database}", self.host(), self.get_port())
    }
}

/// Options of one's own, such as certificates, a `.pgpass` file or server settings, for every database of the server: the database that they
/// name is that of the system pool. The statement cache is that of this crate, 100 unless
/// [`statement_cache_capacity`](PostgresConfig::statement_cache_capacity) says otherwise, since what sqlx's options say of it cannot be read.
///
/// ```
/// use pool_postgres::PostgresConfig;
/// use sqlx::postgres::{PgConnectOptions, PgSslMode};
///
/// let options = PgConnectOptions::new_without_pgpass().host("db").username("app").ssl_mode(PgSslMode::VerifyFull);
/// let config = PostgresConfig::from(options).prefix("shop");
/// assert_eq!((config.host(), config.get_user()), ("db", "app"));
/// ```
impl From<PgConnectOptions> for PostgresConfig {
    fn from(options: PgConnectOptions) -> Self {
        Self::from_options(options).statement_cache_capacity(STATEMENTS_DEFAULT)
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.host())
            .field("port", &self.get_port())
            .field("user", &self.get_user())
            .field("password", &"***")
            .field("system_database", &self.system_database)
            .field("prefix", &self.prefix)
            .field("application_name", &self.application_name)
            .field("guarded", &self.is_guarded)
            .field("sessions", &self.sessions)
            .finish_non_exhaustive()
    }
}

fn parse<T: std::str::FromStr>(
    variable: &str,
    value: String,
    expected: &'static str,
) -> Result<T, ConfigError> {
    value.parse().map_err(|_| ConfigError::Variable { variable: variable.to_owned(), value, expected })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<PostgresConfig, ConfigError> {
        PostgresConfig::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[rstest]
    #[case::test_db(&[("TEST_DB_HOST", "a"), ("TEST_DB_PORT", "1"), ("PGHOST", "c")], "c:5432/postgres")]
    #[case::url(&[("DATABASE_URL", "postgres://u:p@b:2/x"), ("PGHOST", "c")], "b:2/x")]
    #[case::pg(&[("PGHOST", "c"), ("PGPORT", "3"), ("PGDATABASE", "y")], "c:3/y")]
    #[case::socket(&[("PGHOST", "/run/postgresql")], "/run/postgresql:5432/postgres")]
    fn the_environment_is_read_in_order(#[case] variables: &[(&str, &str)], #[case] address: &str) {
        let config = config(variables).unwrap();
        assert_eq!(config.address(&config.system_database), address);
    }

    #[rstest]
    #[case::nothing(&[], "DATABASE_URL")]
    #[case::no_host(&[("PGPORT", "5433"), ("TEST_DB_HOST", "h")], "PGHOST")]
    #[case::port(&[("PGHOST", "h"), ("PGPORT", "seventy")], "PGPORT cannot be \"seventy\"")]
    #[case::sslmode(&[("PGHOST", "h"), ("PGSSLMODE", "maybe")], "verify-full")]
    #[case::url(&[("DATABASE_URL", "mysql://u:hunter2@h/d")], "postgres://")]
    #[case::password_not_encoded(&[("DATABASE_URL", "postgres://u:12/hunter2@h/d")], "percent-encoded")]
    #[case::question_mark(&[("DATABASE_URL", "postgres://u:12?hunter2@h/d")], "percent-encoded")]
    #[case::hash(&[("DATABASE_URL", "postgres://u:12#hunter2@h/d")], "percent-encoded")]
    #[case::url_port(&[("DATABASE_URL", "postgres://u:hunter2@h:nan/d")], "cannot be read")]
    fn a_bad_variable_is_named_and_no_password_is_shown(
        #[case] variables: &[(&str, &str)],
        #[case] says: &str,
    ) {
        let error = config(variables).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn options_of_ones_own_are_kept_for_every_database() {
        let options =
            PgConnectOptions::new_without_pgpass().host("db").port(6).username("app").database("admin");
        let options = options.options([("search_path", "x")]).statement_cache_capacity(0);
        let config = PostgresConfig::from(options);
        assert_eq!(config.address(&config.system_database), "db:6/admin");
        let of_another = config.connect_options("acme");
        assert_eq!(
            (of_another.get_database(), of_another.get_options()),
            (Some("acme"), Some("-c search_path=x"))
        );
        assert!(config.keeps_statements);
    }

    #[rstest]
    #[case::options(PostgresConfig::from(PgConnectOptions::new_without_pgpass().password("hunter2")))]
    #[case::builder(PostgresConfig::new("h").password("hunter2"))]
    #[case::url(PostgresConfig::from_url("postgres://u:hunter2@h/d").unwrap())]
    #[case::encoded(PostgresConfig::from_url("postgres://u:%40hunter2%2F@h/d").unwrap())]
    #[case::provider(PostgresConfig::new("h").password_provider(|| async { Ok("hunter2".to_owned()) }))]
    fn i3_a_password_is_not_shown(#[case] config: PostgresConfig) {
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    }
}
