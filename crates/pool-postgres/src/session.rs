//! What every session that is lent begins with, and what of a holder's changes is taken back.

use std::fmt;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use pool_core::Target;
use sqlx::Error;
use sqlx::postgres::PgConnection;

use crate::config_error::ConfigError;

/// When a connection that comes back is reset: session authorization, role, settings, LISTEN, advisory locks,
/// cursors, temporary tables and sequences as they were when it was opened. Prepared statements are kept. It is
/// done in the background, in the round trip that verifies the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reset {
    /// After raw access, and after a statement that is not plain: one that begins with another word than `SELECT`,
    /// `INSERT`, `UPDATE`, `DELETE`, `VALUES` or `WITH`, or that names `set_config`, an advisory lock of the session or
    /// `INTO`. What a function of yours changes behind a plain statement is not seen; see [`Reset::Always`].
    #[default]
    WhenDirty,
    /// After every lease on which anything was sent: one round trip in the background for each.
    Always,
    /// Never: the next holder gets the session as the last one left it, but in no transaction.
    Never,
}

/// Which servers will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TargetRole {
    /// Any that lets us in.
    #[default]
    Any,
    /// One that takes writes. A new session of a standby is a failed open, and a connection whose server has become one
    /// is closed: it is asked in the round trip of each check, and when a statement has failed. It costs one round trip for each
    /// new session.
    ReadWrite,
}

/// What is done with each new session, and again after each reset.
pub(crate) type AfterConnect =
    Arc<dyn for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<(), Error>> + Send + Sync>;

/// Whose a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionKind {
    /// The pool's own: only its own statements run there, with the server's defaults.
    Own,
    /// Lent to callers.
    Lent,
}

impl From<&Target> for SessionKind {
    fn from(target: &Target) -> Self {
        match target {
            Target::Catalog => Self::Own,
            Target::System | Target::Workspace(_) => Self::Lent,
        }
    }
}

/// How sessions that are lent begin, and how they are taken back.
#[derive(Clone, Default)]
pub(crate) struct SessionSettings {
    pub(crate) reset: Reset,
    pub(crate) target_role: TargetRole,
    pub(crate) defaults: Vec<(String, String)>,
    pub(crate) after_connect: Option<AfterConnect>,
}

/// sqlx sends these in every start-up packet, where they win over defaults, and reads answers by them.
const SET_BY_SQLX: [&str; 5] =
    ["application_name", "client_encoding", "datestyle", "extra_float_digits", "timezone"];

impl SessionSettings {
    /// Whether the start-up packet can carry the defaults.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (name, value) in &self.defaults {
            let refused = |why| Err(ConfigError::SessionDefault { name: name.clone(), why });
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
            if name.is_empty() || !name.chars().all(is_name) {
                return refused("a setting's name has only letters, digits, _ and .");
            }
            if SET_BY_SQLX.iter().any(|set| name.eq_ignore_ascii_case(set)) {
                return refused("every session sets it itself; set it in after_connect");
            }
            if value.chars().any(char::is_control) {
                return refused(
                    "a value that holds a control character cannot be sent; set it in after_connect",
                );
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SessionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.defaults.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("SessionSettings")
            .field("reset", &self.reset)
            .field("target_role", &self.target_role)
            .field("defaults", &names)
            .field("after_connect", &self.after_connect.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("statement_timeout", "5s", true)]
    #[case::spaces("search_path", "app, public", true)]
    #[case::extension("app.tenant", "a\\b", true)]
    #[case::no_name("", "x", false)]
    #[case::injected("x -c role", "postgres", false)]
    #[case::of_sqlx("TimeZone", "Europe/Berlin", false)]
    #[case::second_line("app.x", "a\nb", false)]
    fn a_default_that_the_start_cannot_carry_is_refused(
        #[case] name: &str,
        #[case] value: &str,
        #[case] is_taken: bool,
    ) {
        let defaults = vec![(name.to_owned(), value.to_owned())];
        let settings = SessionSettings { defaults, ..SessionSettings::default() };
        assert_eq!(settings.check().is_ok(), is_taken);
    }
}
