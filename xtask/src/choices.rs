//! What may be chosen on the command line, by name.

/// What the suites run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, clap::ValueEnum)]
pub enum Adapter {
    /// A real PostgreSQL: the suites themselves, which show what only a server has, too.
    #[default]
    Postgres,
    /// Files, one for each workspace: the cases that hold for every adapter.
    Sqlite,
    /// A server in memory and virtual time: the same cases.
    Memory,
}

impl Adapter {
    /// Those that need no server.
    pub const EMBEDDED: [Self; 2] = [Self::Sqlite, Self::Memory];

    /// Its name for people, which is that of its module.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
            Self::Memory => "memory",
        }
    }
}

/// Who runs the cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runner {
    /// cargo-nextest: a process for each case.
    Nextest,
    /// cargo test: a thread for each case.
    Cargo,
}

impl Runner {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nextest => "cargo nextest",
            Self::Cargo => "cargo test",
        }
    }
}

/// A fault that is built into the tests on purpose, to prove that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Planted {
    /// A case that leaves a session and a database behind: `--leak-check` names it.
    Leak,
    /// An answered waiter is not woken: `--race` tells how.
    LostWakeUp,
    /// A cancelled caller takes the connection granted to it along: `--race` tells how.
    LostGrant,
}

impl Planted {
    /// The suite that holds what was planted.
    pub const SUITE: &str = "planted";

    /// What the schedule enumerator calls it, if it is planted there.
    pub fn in_the_registry(self) -> Option<&'static str> {
        match self {
            Self::Leak => None,
            Self::LostWakeUp => Some("lost-wake-up"),
            Self::LostGrant => Some("lost-grant"),
        }
    }
}
