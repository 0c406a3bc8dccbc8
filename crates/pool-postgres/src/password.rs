//! The password of a pool that may get another one while it runs: asked for before each new session. Sessions carry the
//! generation of the password that they began with, so that those of an earlier one can be told.

use std::error::Error as StdError;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::Error;
use thiserror::Error as ThisError;
use tokio::time::timeout;

/// What a provider gives.
pub(crate) type Provided = Result<String, Box<dyn StdError + Send + Sync>>;

/// Who is asked for the password.
#[derive(Clone)]
pub(crate) struct PasswordProvider(Arc<dyn Fn() -> BoxFuture<'static, Provided> + Send + Sync>);

/// Why there is no password.
#[derive(Debug, ThisError)]
pub(crate) enum NoPassword {
    #[error("the password provider failed: {0}")]
    Failed(#[source] Box<dyn StdError + Send + Sync>),
    /// What it panicked with may hold a secret.
    #[error("the password provider panicked")]
    Panicked,
    #[error("the password provider gave no answer within {0:?}")]
    Late(Duration),
}

/// Which password a session began with: a later one has a higher number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

/// The passwords of one pool.
pub(crate) struct Passwords {
    provider: PasswordProvider,
    /// How long it may take.
    limit: Duration,
    /// Whether sessions that began with an earlier password are outdated.
    closes_after_rotation: bool,
    /// Passwords are compared by their hashes, so that no further copy of one is kept.
    hashes: RandomState,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// How often the provider has been asked.
    questions: u64,
    newest: Option<Newest>,
    generation: Generation,
}

/// The password that was asked for last, of those that the server has let in with.
struct Newest {
    hash: u64,
    /// The last question that it was the answer to.
    question: u64,
}

/// A password, and which question it is the answer to.
pub(crate) struct Answer {
    pub(crate) password: String,
    question: u64,
}

impl PasswordProvider {
    pub(crate) fn new<F, R>(provider: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Provided> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provider())))
    }
}

impl Passwords {
    /// The provider may take nine tenths of `connect_timeout`: so it is named as what took too long, and the open ends in time.
    pub(crate) fn new(
        provider: PasswordProvider,
        connect_timeout: Duration,
        closes_after_rotation: bool,
    ) -> Self {
        let (limit, hashes, known) = (connect_timeout / 10 * 9, RandomState::new(), Mutex::default());
        Self { provider, limit, closes_after_rotation, hashes, known }
    }

    /// Asks for the password of a new session.
    pub(crate) async fn ask(&self) -> Result<Answer, Error> {
        let question = {
            let mut known = self.known();
            known.questions += 1;
            known.questions
        };
        let PasswordProvider(provider) = &self.provider;
        // The call itself is within, since it may panic as well.
        let asked = AssertUnwindSafe(async { provider().await }).catch_unwind();
        let why = match timeout(self.limit, asked).await {
            Ok(Ok(Ok(password))) => return Ok(Answer { password, question }),
            Ok(Ok(Err(why))) => NoPassword::Failed(why),
            Ok(Err(_)) => NoPassword::Panicked,
            Err(_) => NoPassword::Late(self.limit),
        };
        Err(Error::Configuration(why.into()))
    }

    /// The generation of a session that the server has let in with `answer`. Another password than before begins a new generation,
    /// unless it was asked for earlier than that one: then its session took long to open, and is outdated already.
    pub(crate) fn opened(&self, answer: &Answer) -> Generation {
        let (hash, question) = (self.hashes.hash_one(&answer.password), answer.question);
        let mut known = self.known();
        let Generation(number) = known.generation;
        match &mut known.newest {
            Some(newest) if newest.hash == hash => {
                newest.question = newest.question.max(question);
                return Generation(number);
            }
            Some(newest) if newest.question > question => return Generation(number.saturating_sub(1)),
            _ => {}
        }
        let is_rotation = known.newest.replace(Newest { hash, question }).is_some();
        known.generation = Generation(number + 1);
        drop(known);
        if is_rotation && self.closes_after_rotation {
            tracing::info!("the password has changed; sessions that began with an earlier one are replaced");
        }
        Generation(number + 1)
    }

    /// Whether a session of `generation` is to be replaced: the server has let in with a later password.
    pub(crate) fn is_outdated(&self, generation: Generation) -> bool {
        self.closes_after_rotation && generation < self.known().generation
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn passwords(provider: PasswordProvider) -> Passwords {
        Passwords::new(provider, LIMIT, true)
    }

    fn silent() -> Passwords {
        passwords(PasswordProvider::new(|| async { Err("is not asked".into()) }))
    }

    fn answer(password: &str, question: u64) -> Answer {
        Answer { password: password.to_owned(), question }
    }

    async fn told(provider: PasswordProvider) -> String {
        match passwords(provider).ask().await {
            Err(Error::Configuration(why)) => why.downcast::<NoPassword>().unwrap().to_string(),
            other => panic!("{:?}", other.map(|answer| answer.password)),
        }
    }

    #[test]
    fn o8_another_password_outdates_the_sessions_that_began_before() {
        let passwords = silent();
        let [first, again, later] =
            [("a", 1), ("a", 2), ("b", 3)].map(|(password, at)| passwords.opened(&answer(password, at)));
        assert_eq!(first, again);
        assert!(passwords.is_outdated(first) && !passwords.is_outdated(later));
        let back = passwords.opened(&answer("a", 4));
        assert!(
            passwords.is_outdated(later) && !passwords.is_outdated(back),
            "a password that is used again is another one"
        );
    }

    #[test]
    fn o8_a_session_that_was_slow_to_open_outdates_no_other() {
        let passwords = silent();
        passwords.opened(&answer("a", 1));
        let newer = passwords.opened(&answer("b", 3));
        let slow = passwords.opened(&answer("a", 2));
        assert!(passwords.is_outdated(slow) && !passwords.is_outdated(newer));
        assert_eq!(
            passwords.opened(&answer("b", 2)),
            newer,
            "it began with the newest, whenever that was asked for"
        );
        assert_eq!(passwords.opened(&answer("b", 4)), newer);
        let slow = passwords.opened(&answer("c", 3));
        assert!(passwords.is_outdated(slow) && !passwords.is_outdated(newer));
        passwords.opened(&answer("c", 5));
        assert!(passwords.is_outdated(newer));
    }

    #[test]
    fn o8_tokens_that_differ_outdate_nothing_if_so_wished() {
        let provider = PasswordProvider::new(|| async { Err("is not asked".into()) });
        let passwords = Passwords::new(provider, LIMIT, false);
        let first = passwords.opened(&answer("a", 1));
        passwords.opened(&answer("b", 2));
        assert!(!passwords.is_outdated(first));
    }

    #[tokio::test]
    async fn o8_each_question_is_put_to_the_provider_and_an_answer_alone_outdates_nothing() {
        let asked = Arc::new(Mutex::new(0));
        let passwords = passwords(PasswordProvider::new(move || {
            let count = {
                let mut asked = asked.lock().unwrap();
                *asked += 1;
                *asked
            };
            async move { Ok(format!("password {count}")) }
        }));
        let first = passwords.opened(&answer("before", 0));
        for expected in 1..=2 {
            let Answer { password, question } = passwords.ask().await.unwrap();
            assert_eq!((password, question), (format!("password {expected}"), expected));
            assert!(!passwords.is_outdated(first), "the server has not let in with it");
        }
    }

    #[rstest]
    #[case::fails(PasswordProvider::new(|| async { Err("the vault is sealed".into()) }), "failed: the vault is sealed")]
    #[case::panics(PasswordProvider::new(|| async { panic!("s3cr3t") }), "the password provider panicked")]
    #[case::panics_at_once(PasswordProvider::new(|| -> BoxFuture<'static, Provided> { panic!("s3cr3t") }), "the password provider panicked")]
    #[case::hangs(PasswordProvider::new(std::future::pending), "gave no answer within 9s")]
    #[tokio::test(start_paused = true)]
    async fn o8_a_provider_without_a_password_says_why(
        #[case] provider: PasswordProvider,
        #[case] says: &str,
    ) {
        let told = told(provider).await;
        assert!(told.contains(says) && !told.contains("s3cr3t"), "{told}");
    }
}
