//! A server of one test's own is gone with the test, whatever the test has done to it.

use std::path::Path;

use throwaway_postgres::{DedicatedServer, Stop};

use crate::support::{
    Holder, Signal, another_process_that, children_of, runs, segment_exists, segment_of, signal, wait_for,
};

#[tokio::test]
async fn a_frozen_server_is_gone_when_it_is_dropped() {
    let server = DedicatedServer::start().await.unwrap();
    let (dir, pid) = (server.directory().to_owned(), server.postmaster_pid().unwrap());
    let children = children_of(pid);
    assert!(runs(pid) && !children.is_empty());
    server.freeze().unwrap();
    drop(server);
    assert!(!dir.exists() && !runs(pid));
    assert!(!children.iter().any(|child| runs(*child)), "{children:?}");
}

#[test]
fn a_frozen_server_is_gone_when_its_process_was_killed() {
    let process = another_process_that("freeze", Path::new("")).spawn().unwrap();
    let holder = Holder::ready(process);
    let (dir, pid) = (holder.dir.clone(), holder.postmaster);
    assert!(runs(pid) && dir.exists());
    holder.killed();
    wait_for("the directory to go", || !dir.exists());
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_server_that_was_brought_back_is_gone_when_it_is_dropped() {
    let mut server = DedicatedServer::start().await.unwrap();
    let address = server.address().clone();
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
    server.stop(Stop::Fast).await.unwrap();
    assert_eq!(server.postmaster_pid(), None);
    server.start_again().await.unwrap();
    assert_eq!(server.address(), &address);
    let (dir, pid) = (server.directory().to_owned(), server.postmaster_pid().unwrap());
    drop(server);
    assert!(!dir.exists() && !runs(pid));
}

#[tokio::test]
async fn a_server_that_runs_is_not_started_again() {
    let mut server = DedicatedServer::start().await.unwrap();
    let pid = server.postmaster_pid();
    assert_eq!(server.start_again().await.unwrap_err().to_string(), "the server runs already");
    assert_eq!(server.postmaster_pid(), pid);
}

#[tokio::test]
async fn the_segment_of_a_killed_server_goes_with_it() {
    let mut server = DedicatedServer::start().await.unwrap();
    let segment = segment_of(server.directory());
    server.kill().await.unwrap();
    assert!(segment_exists(&segment));
    drop(server);
    assert!(!segment_exists(&segment));
}

#[tokio::test]
async fn a_server_whose_watchdog_was_killed_is_gone_when_it_is_dropped() {
    let server = DedicatedServer::start().await.unwrap();
    let (dir, pid) = (server.directory().to_owned(), server.postmaster_pid().unwrap());
    let watchdog = children_of(std::process::id()).into_iter().find(|child| watches(*child, &dir)).unwrap();
    signal(watchdog, Signal::SIGKILL);
    drop(server);
    assert!(!dir.exists() && !runs(pid));
}

fn watches(pid: u32, dir: &Path) -> bool {
    let ps = std::process::Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).output();
    let line = String::from_utf8(ps.unwrap().stdout).unwrap();
    line.trim_end() == format!("/bin/sh {0}/watchdog.sh {0}", dir.display())
}
