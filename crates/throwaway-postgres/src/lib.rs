//! A throwaway `PostgreSQL` for tests: found or started, shared by all test processes, gone with the last of them.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//!
//! use throwaway_postgres::Ephemeral;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Ephemeral::join_or_start()?;     // this user's running server, or a new one
//! let url = server.url();                       // postgres://…, for whatever driver you use
//! assert!(url.starts_with("postgres://"));
//!
//! // It takes connections: this asks for TLS, which it declines with an N.
//! let address = server.address();
//! let mut stream = TcpStream::connect((address.host(), address.port()))?;
//! stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
//! let mut answer = [0];
//! stream.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"N");
//! # Ok(())
//! # }
//! ```
//!
//! A test binary joins once, and keeps the hold until it ends:
//!
//! ```
//! use std::sync::LazyLock;
//!
//! use throwaway_postgres::Ephemeral;
//!
//! static SERVER: LazyLock<Ephemeral> =
//!     LazyLock::new(|| Ephemeral::join_or_start().unwrap_or_else(|why| panic!("{why}")));
//!
//! let url = SERVER.url();
//! ```
//!
//! - [`Ephemeral`] is a hold on the server that all test processes of one user share. The server ends three seconds after
//!   its last holder, so that the next process finds it. Tests that want to be apart make databases of their own.
//! - [`DedicatedServer`] is one test's own, to be stopped, frozen, killed and brought back. It needs tokio.
//! - [`ServerAddress`] has host, port, user, password and database, and [`ServerAddress::url`] all of them.
//!
//! # What it needs
//! `initdb` and `postgres`, version 10 or later, from whatever package; [`Search`] says where they are looked for, and
//! `PG_BIN` where they are if not there. As root the server runs as `postgres` or `nobody`. Nothing is downloaded, and
//! nothing but the loopback interface is listened on. Nothing is synced either: the data are not meant to last.
//!
//! # Where servers are
//! In `TMPDIR` if that is set, else in memory where 12 GB or more fit into `/dev/shm`, which makes and drops databases up to
//! five times as fast, else in `/tmp`. There, all servers of a user lie in one directory:
//!
//! ```text
//! throwaway-postgres-<uid>/         the base directory                                  base.rs
//!     lock                          taken to join, start or reap: one at a time
//!     current                       names the server to join; mode 0600                 record.rs
//!     srv-<random>/                 one server                                          watched.rs
//!         fifo, holders             who holds it                                        hold.rs
//!         process                   what runs here: initdb, cp or postgres
//!         kept                      locked by the process that keeps it, if one does    kept.rs
//!         data/, log                PostgreSQL's own
//!         watchdog.sh, watchdog.log sees the last holder go, and ends it
//! ```
//!
//! # How a server ends
//! Nobody has to be the last to clean up. Each server has a watchdog, a small shell script that counts the holders by a
//! FIFO which each of them keeps open for writing. The kernel closes a dead process's descriptors, so the count is right
//! after SIGKILL, too. Then the watchdog ends what runs in the server's directory, frozen or not, and removes the
//! directory and, if the server was killed, its System V segment.
//!
//! The process that makes a server runs initdb and `postgres` itself. Each says in `process` which one it is before it
//! begins, so the watchdog ends it also when whoever started it was killed at that moment. A server whose watchdog was
//! killed is an orphan: the next process that joins, or [`reap_orphans`], gives it another one, which ends it.

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod address;
mod base;
mod binaries;
mod dedicated;
mod ephemeral;
mod error;
mod file_lock;
mod hold;
mod initdb;
mod kept;
mod owner;
mod postmaster;
mod processes;
mod reap;
mod record;
mod settings;
mod start;
mod watched;

pub use address::ServerAddress;
pub use binaries::{Binaries, Search};
pub use dedicated::{DedicatedServer, Stop};
pub use ephemeral::Ephemeral;
pub use error::ServerError;
pub use kept::{KeptMark, KeptServer, kept_server};
pub use reap::{Reaped, reap_orphans};
