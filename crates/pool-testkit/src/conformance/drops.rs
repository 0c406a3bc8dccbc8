//! Clauses about futures that are dropped: each is polled once, twice and so on before, until it comes to its end.

use pool_core::{Condition, Driver};
use tokio::time::{Duration, timeout};

use super::world::{World, own};
use super::{Adapter, ConnectionOf, Miss, Outcome, hold};
use crate::polls::{Dropped, output_within};

/// The numbers of polls after which a future is dropped: each up to 24, and then steps of a fifth, as far as a session that
/// authenticates goes.
fn sweep() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(0_usize), |polls| {
        Some(if *polls < 24 { polls + 1 } else { polls + polls / 5 })
    })
    .take_while(|polls| *polls < 5_000)
}

pub(super) async fn o2_a_connect_dropped_at_any_await_leaves_no_session<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let endpoint = world.endpoint(&ids[0]);
    for dropped in [Dropped::Woken, Dropped::AtOnce] {
        for polls in sweep() {
            if let Some(connected) = output_within(polls, dropped, driver.connect(&endpoint)).await {
                let conn =
                    connected.map_err(|error| Miss::Broken(format!("after {polls} polls: {error}")))?;
                driver.close(conn).await;
                break;
            }
        }
    }
    world.sessions_become_at_most(own(&driver)).await
}

pub(super) async fn l4_a_statement_dropped_at_any_await_answers_nobody_else<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    sweep_over(world, Cut::Statement).await
}

pub(super) async fn l4_a_check_dropped_at_any_await_answers_nobody_else<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    sweep_over(world, Cut::Check).await
}

pub(super) async fn l4_a_recycle_dropped_at_any_await_answers_nobody_else<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    sweep_over(world, Cut::Recycle).await
}

/// What is cut short.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Statement,
    Check,
    Recycle,
}

impl Cut {
    /// Drops it after so many polls. Returns whether it had come to its end.
    async fn short<A: Adapter>(
        self,
        world: &World<A>,
        driver: &A::Driver,
        conn: &mut ConnectionOf<A>,
        (polls, dropped): (usize, Dropped),
    ) -> bool {
        match self {
            Self::Statement => {
                output_within(polls, dropped, world.adapter.echo(conn, 1_000 + number(polls))).await.is_some()
            }
            Self::Check => output_within(polls, dropped, driver.check(conn)).await.is_some(),
            Self::Recycle => {
                if let Some(way) = world.adapter.ways().first() {
                    // What cannot be left is told by another clause.
                    let _ = world.adapter.leave(conn, way).await;
                }
                output_within(polls, dropped, driver.recycle(conn)).await.is_some()
            }
        }
    }
}

/// Cuts something short after every number of polls, and then does what the engine does: a connection that is said to be clean,
/// or was made clean, must answer the next question rightly.
async fn sweep_over<A: Adapter>(world: &World<A>, cut: Cut) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    for dropped in [Dropped::Woken, Dropped::AtOnce] {
        for polls in sweep() {
            let mut conn = world.connect(&driver, &ids[0]).await?;
            let has_ended = cut.short(world, &driver, &mut conn, (polls, dropped)).await;
            let condition = driver.inspect(&mut conn);
            if is_lent_again(&driver, &mut conn, condition).await? {
                for number in [number(polls), -number(polls) - 1] {
                    let answer = world.adapter.echo(&mut conn, number).await;
                    hold(answer == Ok(number), || {
                        format!(
                            "{cut:?} dropped after {polls} polls ({dropped:?}), then {condition:?}: asked for {number}, answered {answer:?}"
                        )
                    })?;
                }
            }
            driver.close(conn).await;
            if has_ended {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the engine would lend the connection again: as it is, or after a recycle.
async fn is_lent_again<D: Driver>(
    driver: &D,
    conn: &mut D::Connection,
    condition: Condition,
) -> Result<bool, Miss> {
    if condition != Condition::Suspect {
        return Ok(condition == Condition::Clean);
    }
    let late = |_| Miss::Broken("a recycle took longer than 5 s".into());
    Ok(timeout(Duration::from_secs(5), driver.recycle(conn)).await.map_err(late)?.is_ok())
}

fn number(polls: usize) -> i64 {
    i64::try_from(polls).unwrap_or(i64::MAX / 2)
}
