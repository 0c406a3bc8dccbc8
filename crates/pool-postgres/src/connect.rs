//! Opening a session, with the patience that a server needs which is full for a moment only: it frees a
//! slot when the backend has exited, a little after it stopped showing it.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use pool_core::{DriverErrorKind, Phase};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Error};
use tokio::time::sleep;

use crate::catch_panics::catch_panics;
use crate::classify::kind_of;
use crate::config::PostgresConfig;
use crate::password::{Answer, Generation, Passwords};
use crate::relay::{Opening, Relay};
use crate::session::SessionKind;
use crate::tag::Tag;

/// The pauses after which a full server is asked again, about a quarter of a second in all. Each is
/// stretched at random by up to its own length, so that those who wait do not come back together.
const PAUSES_MILLIS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// How often a connect is polled for each time that it is woken.
const POLLS: u32 = 20;

/// A session of which it is not known yet who serves it.
pub(crate) struct NewSession {
    conn: PgConnection,
    generation: Generation,
    /// Until then, a server that is not trusted may not say much.
    opening: Option<Opening>,
}

impl NewSession {
    /// Asks it something that belongs to its opening.
    pub(crate) async fn ask<T>(
        &mut self,
        what: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Self { conn, opening, .. } = self;
        catch_panics(what(conn)).await.map_err(|error| match opening {
            Some(opening) => opening.failed(error),
            None => error,
        })
    }

    /// It is open; with which password it began.
    pub(crate) fn open(self) -> (PgConnection, Generation) {
        if let Some(opening) = self.opening {
            opening.succeeded();
        }
        (self.conn, self.generation)
    }
}

/// Opens sessions with one server, under guard if it is not trusted.
#[derive(Debug)]
pub(crate) struct Connector {
    config: PostgresConfig,
    guard: Option<Relay>,
    /// None where the configuration has the password.
    passwords: Option<Passwords>,
    is_given_up: AtomicBool,
}

impl Connector {
    /// `connect_timeout` bounds what is asked before a session is begun.
    pub(crate) fn new(config: PostgresConfig, connect_timeout: Duration) -> Self {
        let guard = config.is_guarded().then(Relay::default);
        let passwords = config.passwords(connect_timeout);
        Self { config, guard, passwords, is_given_up: AtomicBool::new(false) }
    }

    pub(crate) fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// No session begins any more.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    fn may_begin(&self) -> Result<(), Error> {
        if self.is_given_up.load(Ordering::Relaxed) { Err(Error::PoolClosed) } else { Ok(()) }
    }

    /// Whether a session of `generation` is to be replaced, because it began with a password that has been changed since.
    pub(crate) fn is_outdated(&self, generation: Generation) -> bool {
        self.passwords.as_ref().is_some_and(|passwords| passwords.is_outdated(generation))
    }

    /// Connects to `database`, with the password that the provider gives if there is one. The session is known by `tag`.
    pub(crate) async fn connect(
        &self,
        database: &str,
        kind: SessionKind,
        tag: &Tag,
    ) -> Result<NewSession, Error> {
        let (options, answer) = self.options(database, kind, tag).await?;
        let (conn, opening) = self.connect_with(&options).await?;
        self.may_begin()?;
        let opened = self.passwords.as_ref().zip(answer).map(|(passwords, answer)| passwords.opened(&answer));
        Ok(NewSession { conn, generation: opened.unwrap_or_default(), opening })
    }

    /// What a session is opened with, and the provider's answer in it if there is a provider.
    pub(crate) async fn options(
        &self,
        database: &str,
        kind: SessionKind,
        tag: &Tag,
    ) -> Result<(PgConnectOptions, Option<Answer>), Error> {
        self.may_begin()?;
        let options = self.config.session_options(database, kind, tag);
        let Some(passwords) = &self.passwords else { return Ok((options, None)) };
        let answer = passwords.ask().await?;
        Ok((options.password(&answer.password), Some(answer)))
    }

    /// Asks a full server again a few times.
    async fn connect_with(
        &self,
        options: &PgConnectOptions,
    ) -> Result<(PgConnection, Option<Opening>), Error> {
        for pause in PAUSES_MILLIS {
            match self.try_once(options).await {
                Err(error) if kind_of(&error, Phase::Connect) == DriverErrorKind::ServerFull => {
                    sleep(Duration::from_millis(pause).mul_f64(1.0 + fastrand::f64())).await;
                }
                outcome => return outcome,
            }
        }
        self.try_once(options).await
    }

    async fn try_once(&self, options: &PgConnectOptions) -> Result<(PgConnection, Option<Opening>), Error> {
        let server = (self.config.host(), self.config.get_port());
        let outcome = match &self.guard {
            None => {
                let outcome = catch_panics(eagerly(PgConnection::connect_with(options))).await;
                outcome.map(|conn| (conn, None))
            }
            Some(guard) => {
                let outcome = catch_panics(eagerly(guard.connect(server, options.clone()))).await;
                outcome.map(|(conn, opening)| (conn, Some(opening)))
            }
        };
        outcome.map_err(without_a_character)
    }
}

/// sqlx names the character of a password that `SASLprep` forbids; no part of a password is to be told.
fn without_a_character(error: Error) -> Error {
    match error {
        Error::Configuration(why) if why.to_string().contains("saslprep password") => {
            Error::Configuration("the password holds a character that SASLprep forbids".into())
        }
        error => error,
    }
}

/// Polls `work` some times for each time that it is woken. sqlx gives way to other tasks after every five of the 4,096
/// rounds of a password's hash, about every 0.5 us, which costs the client a quarter of its part in a connect. The work is put
/// on the heap: a connect takes 16 KiB, which whoever awaits it would carry otherwise.
async fn eagerly<T>(work: impl Future<Output = T>) -> T {
    let mut work = Box::pin(work);
    poll_fn(|context| {
        (1..POLLS)
            .find_map(|_| match work.as_mut().poll(context) {
                Poll::Ready(done) => Some(Poll::Ready(done)),
                Poll::Pending => None,
            })
            .unwrap_or_else(|| work.as_mut().poll(context))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// How often the task was woken until work that gives way so often is done.
    async fn wakes(gives_way: u32) -> u32 {
        let mut wakes = 0;
        let mut work = pin!(eagerly(async {
            for _ in 0..gives_way {
                tokio::task::yield_now().await;
            }
        }));
        poll_fn(|context| {
            wakes += 1;
            work.as_mut().poll(context)
        })
        .await;
        wakes
    }

    #[tokio::test]
    async fn work_that_gives_way_often_is_gone_on_with() {
        assert_eq!(wakes(2 * POLLS).await, 3);
    }
}
