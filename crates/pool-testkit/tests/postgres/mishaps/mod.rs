//! L4: a statement gets its own answer. Every way in which a holder can leave a connection is a field of a table (what
//! it does, what is wrong with it, how it ends, how it reaches the connection); after each, later holders check
//! the echo of a fresh nonce in every row.

mod access;
mod crowd;
mod kinds;
mod readers;
mod single;
mod sweep;
mod ways;
mod world;

use pool_testkit::run;
use rstest::rstest;

use access::{End, Route};
use sweep::{Choice, sweep};
use world::{Cell, World};

/// How many mishaps the short form has at least on each of the ten routes.
const MISHAPS: u64 = 60;

/// Has the chosen share of all mishaps happen over one route, and as many as there are to be.
async fn hold_over(route: Route, share: f64) {
    let seed = run::seed();
    let mut world = World::new(seed).await;
    let mut choice = Choice { share, dice: fastrand::Rng::with_seed(seed) };
    sweep(&mut world, route, &mut choice, MISHAPS).await;
    let tally = world.end().await;
    println!(
        "race: {} mishaps, {} answers checked over {route:?} ({} sessions found ended)",
        tally.mishaps, tally.answers, tally.lost
    );
    tally.assert_right(seed);
}

#[rstest]
#[case::lease(Route::Lease)]
#[case::handle(Route::Handle)]
#[case::transaction_committed(Route::Transaction(End::Commit))]
#[case::transaction_rolled_back(Route::Transaction(End::Rollback))]
#[case::transaction_dropped(Route::Transaction(End::Drop))]
#[case::raw(Route::Raw)]
#[case::raw_in_transaction(Route::RawInTransaction)]
#[case::sqlx_transaction_committed(Route::SqlxTransaction(End::Commit))]
#[case::sqlx_transaction_rolled_back(Route::SqlxTransaction(End::Rollback))]
#[case::sqlx_transaction_dropped(Route::SqlxTransaction(End::Drop))]
#[tokio::test]
async fn l4_no_mishap_answers_a_later_holders_question(#[case] route: Route) {
    hold_over(route, 0.05).await;
}

#[rstest]
#[case::lease(Route::Lease)]
#[case::handle(Route::Handle)]
#[case::transaction_committed(Route::Transaction(End::Commit))]
#[case::transaction_rolled_back(Route::Transaction(End::Rollback))]
#[case::transaction_dropped(Route::Transaction(End::Drop))]
#[case::raw(Route::Raw)]
#[case::raw_in_transaction(Route::RawInTransaction)]
#[case::sqlx_transaction_committed(Route::SqlxTransaction(End::Commit))]
#[case::sqlx_transaction_rolled_back(Route::SqlxTransaction(End::Rollback))]
#[case::sqlx_transaction_dropped(Route::SqlxTransaction(End::Drop))]
#[ignore = "minutes; `cargo xtask test-pools --race` runs it"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_no_mishap_at_any_await_point_answers_a_later_holders_question(#[case] route: Route) {
    hold_over(route, 1.0).await;
}

/// Has so many mishaps happen beside readers.
async fn hold_in_a_crowd(mishaps: u64, choose: fn(&mut fastrand::Rng) -> Cell) {
    let seed = run::seed();
    let tally = crowd::crowd(mishaps, choose, seed).await;
    println!("race: {} mishaps, {} answers checked in a crowd", tally.mishaps, tally.answers);
    tally.assert_right(seed);
    assert!(tally.mishaps == mishaps && tally.answers >= mishaps, "the readers saw it: {tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_copies_dropped_under_load_answer_nobody_elses_question() {
    hold_in_a_crowd(48, crowd::copies).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_cancels_under_load_reach_nobody_elses_statement() {
    hold_in_a_crowd(100, crowd::cancelled).await;
}

#[ignore = "minutes; `cargo xtask test-pools --race` runs it"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_ten_thousand_mishaps_in_a_crowd_answer_nobody_elses_question() {
    hold_in_a_crowd(10_000, crowd::any).await;
}
