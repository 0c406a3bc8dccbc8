//! One server for all processes, however many come and go.

use std::fs;
use std::process::Child;
use std::time::Instant;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use crate::support::{Ground, Holder, another_process_that, holder_with_a_slow_mv, runs, wait_for};

#[test]
fn a_second_hold_joins_the_same_server() {
    let ground = Ground::new();
    let begun = Instant::now();
    let first = ground.join();
    let started = begun.elapsed();
    let begun = Instant::now();
    let second = ground.join();
    println!("start {started:?}, join {:?}", begun.elapsed());
    assert_eq!(first.address(), second.address());
    assert_eq!(first.data_dir(), second.data_dir());
    assert!(runs(first.postmaster_pid()));
    assert_eq!((first.address().host(), first.address().database()), ("127.0.0.1", "postgres"));
    assert!(!format!("{first:?}").contains(first.address().password()));
    first.release_now().unwrap();
    assert!(runs(second.postmaster_pid()), "the second still holds it");
    second.release_now().unwrap();
    assert!(ground.is_clean());
}

#[tokio::test]
async fn the_password_is_asked_for_and_settings_are_as_promised() {
    let ground = Ground::new();
    let server = ground.join();
    let login: PgConnectOptions = server.url().parse().unwrap();
    let refused = PgConnection::connect_with(&login.clone().password("wrong")).await.unwrap_err();
    let code = refused.as_database_error().and_then(DatabaseError::code);
    assert_eq!(code.as_deref(), Some("28P01"), "{refused}");

    let mut connection = PgConnection::connect_with(&login).await.unwrap();
    let mut setting = async |name: &str| -> String {
        sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(setting("max_connections").await, "100");
    assert_eq!(setting("fsync").await, "off");
    assert_eq!(setting("server_encoding").await, "UTF8");
    // In the data directory, so that a killed server leaves nothing in /dev/shm.
    assert_eq!(setting("dynamic_shared_memory_type").await, "mmap");
    assert_eq!(setting("listen_addresses").await, "127.0.0.1");
    assert!(setting("server_version").await.starts_with(server.version()));
    assert_eq!(setting("data_directory").await, server.data_dir().display().to_string());
    connection.close().await.unwrap();
    server.release_now().unwrap();
}

#[test]
fn processes_that_start_at_once_share_one_server() {
    let ground = Ground::new();
    let spawned: Vec<Child> = (0..8).map(|_| Holder::spawn(&ground)).collect();
    let holders: Vec<Holder> = spawned.into_iter().map(Holder::ready).collect();
    for holder in &holders {
        assert_eq!(holder.port, holders[0].port);
        assert_eq!(holder.postmaster, holders[0].postmaster);
    }
    assert_eq!(ground.servers().len(), 1);
    for holder in holders {
        holder.killed();
    }
    wait_for("the server to follow its killed holders", || ground.is_clean());
}

#[test]
fn the_server_outlives_the_process_that_started_it() {
    let ground = Ground::new();
    let starter = Holder::new(&ground);
    let server = ground.join();
    let pid = starter.postmaster;
    starter.killed();
    // Longer than any grace period would matter: a new process still finds the same server.
    assert_eq!(Holder::new(&ground).postmaster, pid);
    assert!(runs(pid));
    server.release_now().unwrap();
}

#[test]
fn the_grace_period_lets_the_next_process_have_the_same_server() {
    let ground = Ground::new();
    let first = ground.join();
    let pid = first.postmaster_pid();
    drop(first);
    // Another process, so that the watchdog has had time to see the first go.
    assert_eq!(Holder::new(&ground).postmaster, pid);
}

#[test]
fn a_join_while_the_note_is_being_taken_down_keeps_the_server() {
    let ground = Ground::new();
    let (starter, slow) = holder_with_a_slow_mv(&ground);
    let pid = starter.postmaster;
    starter.killed();
    wait_for("the watchdog to take the note down", || slow.path().join("begun").exists());
    let server = ground.join();
    assert_eq!(server.postmaster_pid(), pid);
    fs::write(slow.path().join("go"), "").unwrap();
    wait_for("the note to be back", || slow.path().join("done").exists() && is_published(&ground));
    assert_eq!(ground.join().postmaster_pid(), pid);
    assert!(runs(pid));
    server.release_now().unwrap();
}

fn is_published(ground: &Ground) -> bool {
    ground.path().join("current").exists()
}

#[test]
fn joins_that_race_with_shutdowns_never_get_a_dead_server() {
    let ground = Ground::new();
    let racers: Vec<Child> =
        (0..2).map(|_| another_process_that("race", ground.path()).spawn().unwrap()).collect();
    for mut racer in racers {
        assert!(racer.wait().unwrap().success());
    }
    wait_for("the last server to go", || ground.is_clean());
}
