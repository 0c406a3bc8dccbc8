//! How a server ends: with its last holder, with its watchdog, by a crash; and that nothing of it is left.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use rstest::rstest;
use throwaway_postgres::reap_orphans;

use crate::support::{
    Ground, Holder, Signal, another_process_that, freeze_all, holder_with_a_slow_mv, runs, segment_exists,
    segment_of, signal, wait_for,
};

#[test]
fn the_server_goes_with_its_only_holder_that_was_killed() {
    let ground = Ground::new();
    let holder = Holder::new(&ground);
    let (postmaster, watchdog) = (holder.postmaster, holder.watchdog);
    assert!(runs(postmaster) && runs(watchdog));
    holder.killed();
    wait_for("the server to go", || ground.is_clean());
    wait_for("the watchdog to go", || !runs(postmaster) && !runs(watchdog));
}

#[rstest]
#[case::before_initdb("process")]
#[case::in_initdb("data/PG_VERSION")]
#[case::while_the_server_starts("data/postmaster.pid")]
#[case::when_it_was_published("../current")]
fn a_starter_killed_in_the_middle_leaves_nothing(#[case] begun: &str) {
    let ground = Ground::new();
    let mut starter = Holder::spawn(&ground);
    wait_for("the start to be under way", || ground.servers().iter().any(|dir| dir.join(begun).exists()));
    starter.kill().unwrap();
    starter.wait().unwrap();
    wait_for("the half-started server to go", || ground.is_clean());
    wait_for("its processes to go", || !ground.has_processes());
}

#[test]
fn a_descriptor_that_the_starter_has_inherited_ends_with_it() {
    let ground = Ground::new();
    let holds = another_process_that("hold", ground.path());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec 7>&1; exec \"$@\"", "sh"]).arg(holds.get_program()).args(holds.get_args());
    shell.envs(holds.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut starter = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(starter.stdout.take().unwrap());
    while !ground.path().join("current").exists() {
        assert_ne!(output.read_line(&mut String::new()).unwrap(), 0, "it ends before it holds");
    }
    let server = ground.join();
    starter.kill().unwrap();
    starter.wait().unwrap();
    let end = thread::spawn(move || output.read_to_end(&mut Vec::new()).unwrap());
    wait_for("the end of its output", || end.is_finished());
    server.release_now().unwrap();
}

#[test]
fn a_frozen_server_goes_with_its_last_holder() {
    let ground = Ground::new();
    let holder = Holder::new(&ground);
    let frozen = freeze_all(holder.postmaster);
    assert!(frozen.len() > 3, "{frozen:?}");
    holder.killed();
    wait_for("the server to go", || ground.is_clean());
    wait_for("its processes to go", || !frozen.iter().any(|pid| runs(*pid)));
}

#[test]
fn a_frozen_orphan_is_ended_with_all_its_processes() {
    let ground = Ground::new();
    let orphan = Holder::new(&ground);
    signal(orphan.watchdog, Signal::SIGKILL);
    wait_for("the watchdog to die", || !runs(orphan.watchdog));
    let frozen = freeze_all(orphan.postmaster);
    assert_eq!(reap_orphans(ground.path()).len(), 1);
    wait_for("its processes to go", || !frozen.iter().any(|pid| runs(*pid)));
    orphan.killed();
}

#[test]
fn the_segment_of_a_crashed_server_goes_with_its_last_holder() {
    let ground = Ground::new();
    let server = ground.join();
    let segment = segment_of(&server.directory());
    signal(server.postmaster_pid(), Signal::SIGKILL);
    wait_for("the server to die", || !runs(server.postmaster_pid()));
    assert!(segment_exists(&segment));
    server.release_now().unwrap();
    assert!(!segment_exists(&segment));
}

#[test]
fn the_segment_of_a_crashed_orphan_goes_when_it_is_reaped() {
    let ground = Ground::new();
    let orphan = Holder::new(&ground);
    let segment = segment_of(&orphan.dir);
    for pid in [orphan.watchdog, orphan.postmaster] {
        signal(pid, Signal::SIGKILL);
        wait_for("it to die", || !runs(pid));
    }
    assert!(segment_exists(&segment));
    assert_eq!(reap_orphans(ground.path()).len(), 1);
    assert!(!segment_exists(&segment));
    orphan.killed();
}

#[test]
fn a_server_whose_directory_was_deleted_goes_with_its_last_holder() {
    let ground = Ground::new();
    let server = ground.join();
    let (postmaster, watchdog) = (server.postmaster_pid(), server.watchdog_pid());
    fs::remove_dir_all(server.directory()).unwrap();
    fs::remove_file(ground.path().join("current")).unwrap();
    drop(server);
    wait_for("the watchdog to have done its work", || !runs(watchdog));
    assert!(!runs(postmaster));
}

#[test]
fn a_server_whose_watchdog_was_killed_is_reaped_by_the_next_join() {
    let ground = Ground::new();
    let orphan = Holder::new(&ground);
    signal(orphan.watchdog, Signal::SIGKILL);
    wait_for("the watchdog to die", || !runs(orphan.watchdog));
    let server = ground.join();
    assert_ne!(server.postmaster_pid(), orphan.postmaster);
    assert!(!runs(orphan.postmaster), "the orphan was ended");
    assert!(!orphan.dir.exists());
    assert_eq!(ground.servers(), [server.directory()]);
    server.release_now().unwrap();
    orphan.killed();
}

#[test]
fn reaping_spares_a_server_that_is_watched() {
    let ground = Ground::new();
    let server = ground.join();
    assert_eq!(reap_orphans(ground.path()), []);
    assert!(runs(server.postmaster_pid()));
    server.release_now().unwrap();
}

#[test]
fn reaping_says_what_it_removed() {
    let ground = Ground::new();
    let orphan = Holder::new(&ground);
    signal(orphan.watchdog, Signal::SIGKILL);
    wait_for("the watchdog to die", || !runs(orphan.watchdog));
    let reaped = reap_orphans(ground.path());
    assert_eq!(reaped.len(), 1);
    assert_eq!(reaped[0].directory, orphan.dir);
    assert_eq!(reaped[0].postmaster_pid, Some(orphan.postmaster));
    assert!(ground.is_clean());
    orphan.killed();
}

#[test]
fn a_crashed_server_is_cleared_away_and_replaced() {
    let ground = Ground::new();
    let first = ground.join();
    signal(first.postmaster_pid(), Signal::SIGKILL);
    wait_for("the server to die", || !runs(first.postmaster_pid()));
    let second = ground.join();
    assert_ne!(first.postmaster_pid(), second.postmaster_pid());
    assert!(runs(second.postmaster_pid()));
    wait_for("the crashed server's directory to go", || !first.directory().exists());
    second.release_now().unwrap();
}

#[test]
fn a_crash_that_did_not_happen_ends_nothing() {
    let ground = Ground::new();
    let (starter, slow) = holder_with_a_slow_mv(&ground);
    let (dir, postmaster) = (starter.dir.clone(), starter.postmaster);
    let mut fifo = File::options().write(true).open(dir.join("fifo")).unwrap();
    fifo.write_all(b"x\n").unwrap();
    drop(fifo);
    starter.killed();
    wait_for("the last word to be read", || slow.path().join("begun").exists());
    assert_eq!(fs::read_to_string(dir.join("watchdog.log")).unwrap(), "", "it says what it ends, and why");
    assert!(runs(postmaster));
    fs::write(slow.path().join("go"), "").unwrap();
    wait_for("the watchdog to go on", || slow.path().join("done").exists());
}

#[test]
fn sigterm_to_the_watchdog_stops_the_server_in_spite_of_holders() {
    let ground = Ground::new();
    let server = ground.join();
    signal(server.watchdog_pid(), Signal::SIGTERM);
    wait_for("the server to stop", || ground.is_clean());
    assert!(!runs(server.postmaster_pid()));
}

#[test]
fn the_watchdog_ignores_what_the_terminal_sends() {
    let ground = Ground::new();
    let server = ground.join();
    for ignored in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signal(server.watchdog_pid(), ignored);
    }
    assert_eq!(ground.join().postmaster_pid(), server.postmaster_pid());
    assert!(runs(server.watchdog_pid()));
    server.release_now().unwrap();
}

#[test]
fn release_now_leaves_nothing_when_it_returns() {
    let ground = Ground::new();
    let server = ground.join();
    let (postmaster, watchdog) = (server.postmaster_pid(), server.watchdog_pid());
    let begun = Instant::now();
    server.release_now().unwrap();
    println!("release_now {:?}", begun.elapsed());
    assert!(ground.is_clean());
    assert!(!runs(postmaster) && !runs(watchdog));
    let left: Vec<_> = fs::read_dir(ground.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only the lock file: {left:?}");
}
