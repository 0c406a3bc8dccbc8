//! Clauses of the driver alone: where sessions go, what is known of them, and when they are gone.

use std::time::Duration;

use pool_core::{Condition, Driver, DriverErrorKind, Phase, WorkspaceId};
use tokio::time::{Instant, timeout};

use super::world::{World, failed, id, own};
use super::{Adapter, ConnectionOf, Miss, Outcome, hold};

/// A recycle must not take as long as a statement that was dropped.
const RECYCLED_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn i2_a_session_is_in_the_database_that_it_was_opened_for<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one", "other"]).await?;
    let mut one = world.connect(&driver, &ids[0]).await?;
    let mut other = world.connect(&driver, &ids[1]).await?;
    world.write(&mut one, 1).await?;
    let read = world.read(&mut other).await?;
    hold(read.is_none(), || format!("{read:?} was written for another workspace"))?;
    world.write(&mut other, 2).await?;
    let mut again = world.connect(&driver, &ids[0]).await?;
    let read = world.read(&mut again).await?;
    hold(read == Some(1), || format!("1 was written, and another session reads {read:?}"))?;
    for conn in [one, other, again] {
        driver.close(conn).await;
    }
    Ok(())
}

pub(super) async fn o4_a_database_that_does_not_exist_is_told_as_missing<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    match driver.connect(&world.endpoint(&id("nobody")?)).await {
        Ok(_) => Err(Miss::Broken("a connect to a database that was never made succeeded".into())),
        Err(error) => {
            let is_told = error.kind == DriverErrorKind::DatabaseMissing && error.phase == Phase::Connect;
            hold(is_told, || format!("{:?} in {:?}: {error}", error.kind, error.phase))
        }
    }
}

pub(super) async fn l1_a_new_session_is_clean<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut conn = world.connect(&driver, &ids[0]).await?;
    let before = driver.inspect(&mut conn);
    driver.check(&mut conn).await.map_err(failed("check a session that lives"))?;
    let after = driver.inspect(&mut conn);
    driver.close(conn).await;
    let is_clean = [before, after] == [Condition::Clean, Condition::Clean];
    hold(is_clean, || format!("{before:?}, and {after:?} after a check: each grant would cost a recycle"))
}

pub(super) async fn l1_what_a_holder_left_reaches_nobody<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    for way in world.adapter.ways() {
        let mut seen = leave(world, &driver, &ids[0], way).await?;
        let is_left = world.adapter.is_left(&mut seen, way).await;
        driver.close(seen).await;
        hold(is_left == Ok(true), || {
            format!("{way} leaves nothing behind, so nothing is shown: {is_left:?}")
        })?;
        let mut conn = leave(world, &driver, &ids[0], way).await?;
        let condition = driver.inspect(&mut conn);
        if condition == Condition::Suspect && recycle::<A>(&driver, &mut conn).await?.is_ok() {
            let after = driver.inspect(&mut conn);
            hold(after == Condition::Clean, || format!("{way}: {after:?} after a recycle that succeeded"))?;
        } else if condition != Condition::Clean {
            driver.close(conn).await;
            continue;
        }
        let is_left = world.adapter.is_left(&mut conn, way).await;
        let is_left = is_left.map_err(|why| Miss::Broken(format!("{way}: {why}")))?;
        hold(!is_left, || format!("{way} is still there; the driver said {condition:?}"))?;
        world.answers_rightly(&mut conn, 17).await?;
        driver.close(conn).await;
    }
    Ok(())
}

/// A session that was left so.
async fn leave<A: Adapter>(
    world: &World<A>,
    driver: &A::Driver,
    workspace: &WorkspaceId,
    way: &'static str,
) -> Result<ConnectionOf<A>, Miss> {
    let mut conn = world.connect(driver, workspace).await?;
    let left = world.adapter.leave(&mut conn, way).await;
    left.map_err(|why| Miss::Broken(format!("{way} could not be left: {why}")))?;
    Ok(conn)
}

/// Recycles within the time that the engine allows by default; none if it took longer.
async fn recycle<A: Adapter>(
    driver: &A::Driver,
    conn: &mut <A::Driver as Driver>::Connection,
) -> Result<Result<(), pool_core::DriverError>, Miss> {
    let late = |_| Miss::Broken(format!("a recycle took longer than {RECYCLED_WITHIN:?}"));
    timeout(RECYCLED_WITHIN, driver.recycle(conn)).await.map_err(late)
}

pub(super) async fn l1_a_statement_that_was_dropped_is_ended_and_not_waited_for<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut conn = world.connect(&driver, &ids[0]).await?;
    let within = Duration::from_millis(300);
    if let Ok(Err(cannot)) = timeout(within, world.adapter.slow_statement(&mut conn)).await {
        driver.close(conn).await;
        return Err(cannot.into());
    }
    match driver.inspect(&mut conn) {
        Condition::Clean => {
            return Err(Miss::Broken("it is taken for clean while the statement runs".into()));
        }
        Condition::Suspect => {
            if recycle::<A>(&driver, &mut conn).await?.is_ok() {
                world.answers_rightly(&mut conn, 19).await?;
            }
        }
        Condition::Broken => {}
    }
    driver.close(conn).await;
    Ok(())
}

pub(super) async fn l3_a_check_tells_sessions_that_live_from_those_that_ended<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut lives = world.connect(&driver, &ids[0]).await?;
    driver.check(&mut lives).await.map_err(failed("check a session that lives"))?;
    world.adapter.end_session(&mut lives).await?;
    let checked = driver.check(&mut lives).await;
    hold(checked.is_err(), || "the check of a session that had ended succeeded".into())?;
    driver.close(lives).await;
    Ok(())
}

pub(super) async fn l3_a_session_that_ended_is_not_taken_for_clean<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut conn = world.connect(&driver, &ids[0]).await?;
    world.adapter.end_session(&mut conn).await?;
    let used = world.adapter.echo(&mut conn, 23).await;
    hold(used.is_err(), || format!("a session that had ended answered {used:?}"))?;
    let condition = driver.inspect(&mut conn);
    let is_safe = match condition {
        Condition::Broken => true,
        Condition::Clean => false,
        Condition::Suspect => recycle::<A>(&driver, &mut conn).await?.is_err(),
    };
    driver.close(conn).await;
    hold(is_safe, || format!("it was taken for {condition:?}, and could be made clean"))
}

pub(super) async fn b1_a_close_returns_when_the_session_is_gone<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let before = world.sessions().await?;
    for _ in 0..20 {
        let conn = world.connect(&driver, &ids[0]).await?;
        let open = world.sessions().await?;
        hold(open == before + 1, || format!("the witness counts {open} sessions, and not {}", before + 1))?;
        driver.close(conn).await;
        let after = world.sessions().await?;
        hold(after == before, || format!("{} sessions right after a close", after - before))?;
    }
    Ok(())
}

pub(super) async fn b1_a_close_ends_a_session_in_any_state<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let before = world.sessions().await?;
    for way in world.adapter.ways() {
        let mut conn = world.connect(&driver, &ids[0]).await?;
        world.adapter.leave(&mut conn, way).await?;
        close_in_time(world, &driver, conn, way, before).await?;
    }
    let mut conn = world.connect(&driver, &ids[0]).await?;
    let within = Duration::from_millis(300);
    let is_busy = timeout(within, world.adapter.slow_statement(&mut conn)).await.is_err();
    close_in_time(world, &driver, conn, if is_busy { "a statement under way" } else { "nothing" }, before)
        .await?;
    let mut conn = world.connect(&driver, &ids[0]).await?;
    let has_ended = world.adapter.end_session(&mut conn).await.is_ok();
    close_in_time(world, &driver, conn, if has_ended { "a session that ended" } else { "nothing" }, before)
        .await
}

async fn close_in_time<A: Adapter>(
    world: &World<A>,
    driver: &A::Driver,
    conn: <A::Driver as Driver>::Connection,
    left: &str,
    before: usize,
) -> Outcome {
    let began = Instant::now();
    driver.close(conn).await;
    let (took, after) = (began.elapsed(), world.sessions().await?);
    hold(after == before, || format!("{left}: {} sessions after the close", after.saturating_sub(before)))?;
    hold(took < Duration::from_secs(10), || format!("{left}: the close took {took:?}"))
}

pub(super) async fn b1_a_driver_has_no_more_connections_of_its_own_than_it_says<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let conn = world.connect(&driver, &ids[0]).await?;
    let outcome = world.sessions_become_at_most(1 + own(&driver)).await;
    driver.close(conn).await;
    outcome
}

pub(super) async fn b1_terminate_returns_when_the_sessions_are_gone<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let before = world.sessions().await?;
    let (mut held, spared) = (world.connect(&driver, &ids[0]).await?, world.connect(&driver, &ids[0]).await?);
    let Some(handle) = driver.handle(&held) else {
        driver.close(held).await;
        driver.close(spared).await;
        return Err(super::Cannot("its sessions have no handles, so none is ended from outside").into());
    };
    driver.terminate(vec![handle]).await.map_err(failed("end a session from outside"))?;
    let after = world.sessions().await?;
    hold(after == before + 1, || format!("{after} sessions after one of {} was ended", before + 2))?;
    let used = world.adapter.echo(&mut held, 29).await;
    hold(used.is_err(), || format!("a session that was ended answered {used:?}"))?;
    let condition = driver.inspect(&mut held);
    hold(condition != Condition::Clean, || "a session that was ended is taken for clean".into())?;
    driver.close(held).await;
    driver.close(spared).await;
    Ok(())
}

pub(super) async fn b1_terminate_says_so_when_sessions_were_not_ended<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let held = world.connect(&driver, &ids[0]).await?;
    let Some(handle) = driver.handle(&held) else {
        driver.close(held).await;
        return Err(super::Cannot("its sessions have no handles, so none is ended from outside").into());
    };
    if let Err(cannot) = world.adapter.refuse_to_terminate().await {
        driver.close(held).await;
        return Err(cannot.into());
    }
    let before = world.sessions().await?;
    let said = driver.terminate(vec![handle]).await;
    let after = world.sessions().await?;
    driver.close(held).await;
    hold(said.is_err() || after < before, || "terminate returned Ok, and the session lives on".into())
}

pub(super) async fn s1_departed_tells_of_ended_sessions_and_of_no_other<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    world.adapter.tells_departed()?;
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut conns = Vec::new();
    for _ in 0..3 {
        conns.push(world.connect(&driver, &ids[0]).await?);
    }
    let handles: Vec<_> = conns.iter().filter_map(|conn| driver.handle(conn)).collect();
    hold(handles.len() == 3, || format!("3 sessions have {} handles", handles.len()))?;
    let none = driver.departed(handles.clone()).await.map_err(failed("ask which have ended"))?;
    hold(none.is_empty(), || format!("all live, and {none:?} are said to have ended"))?;
    world.adapter.end_session(&mut conns[1]).await?;
    let gone = driver.departed(handles).await.map_err(failed("ask which have ended"))?;
    hold(gone == [1], || format!("number 1 of 0 to 2 has ended, and {gone:?} are said to have"))?;
    for conn in conns {
        driver.close(conn).await;
    }
    Ok(())
}

pub(super) async fn i3_an_error_names_phase_and_place_and_no_password<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    const PASSWORD: &str = "pw-0b5e55ed-t0-n0b0dy";
    let driver = world.driver().await?;
    let endpoint = world.endpoint(&id("nobody")?);
    let place = driver.address(&endpoint);
    let error = match driver.connect(&endpoint).await {
        Ok(conn) => {
            driver.close(conn).await;
            return Err(
                super::Cannot("it connects to a database that was never made, so there is no error").into()
            );
        }
        Err(error) => error,
    };
    hold(!place.is_empty() && error.to_string().contains(&place), || format!("no {place} in: {error}"))?;
    let refused = world.adapter.refused_driver(PASSWORD).await?;
    match refused.connect(&endpoint).await {
        Ok(conn) => {
            refused.close(conn).await;
            Err(Miss::Broken("a driver with a wrong password was let in".into()))
        }
        Err(error) => {
            let all = format!("{error} {error:?} {}", refused.address(&endpoint));
            hold(!all.contains(PASSWORD), || "the password is in the error".into())?;
            let is_told = error.kind == DriverErrorKind::Refused && error.phase == Phase::Connect;
            hold(is_told, || format!("{:?} in {:?}: {error}", error.kind, error.phase))
        }
    }
}

pub(super) async fn c2_shutdown_ends_what_is_the_drivers_own<A: Adapter>(world: &World<A>) -> Outcome {
    world.sessions().await?;
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let conn = world.connect(&driver, &ids[0]).await?;
    driver.close(conn).await;
    driver.shutdown().await;
    let left = world.sessions().await?;
    hold(left == 0, || format!("{left} sessions after the shutdown"))
}
