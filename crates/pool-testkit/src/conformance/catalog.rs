//! Clauses of the catalog: databases that are made once, found, listed and dropped.

use std::collections::BTreeSet;

use pool_core::{Driver, DriverErrorKind, WorkspaceId};

use super::world::{DropIt, Ensure, Exists, List, WhichExist, World, id};
use super::{Adapter, Miss, Outcome, hold};
use crate::hostile::nastiest_ids;

/// Of the hostile ids, every so many-th gets a database: each costs a server tens of milliseconds.
const HOSTILE_STEP: usize = 9;

pub(super) async fn o4_a_database_is_created_once_and_found<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let one = id("one")?;
    let before = world.ask(&driver, Exists(&one)).await?;
    let created = [world.ask(&driver, Ensure(&one)).await?, world.ask(&driver, Ensure(&one)).await?];
    let after = world.ask(&driver, Exists(&one)).await?;
    hold(created == [true, false], || format!("ensure, twice, says created: {created:?}"))?;
    hold((before, after) == (false, true), || format!("exists: {before} before, {after} after"))
}

pub(super) async fn o4_which_exist_answers_in_order<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    world.workspaces(&driver, &["one", "three"]).await?;
    let asked = [id("three")?, id("two")?, id("one")?, id("four")?, id("three")?];
    let told = world.ask(&driver, WhichExist(&asked)).await?;
    hold(told == [true, false, true, false, true], || format!("of three, two, one, four, three: {told:?}"))?;
    let none = world.ask(&driver, WhichExist(&[])).await?;
    hold(none.is_empty(), || format!("of none: {none:?}"))
}

pub(super) async fn o4_a_database_that_is_ensured_by_many_at_once_is_made_once<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let one = id("one")?;
    let all = (0..4).map(|_| world.ask(&driver, Ensure(&one)));
    let told: Result<Vec<bool>, Miss> = futures_util::future::join_all(all).await.into_iter().collect();
    let makers = told?.into_iter().filter(|created| *created).count();
    hold(makers == 1, || format!("{makers} of 4 say that they created it"))?;
    let mut conn = world.connect(&driver, &one).await?;
    world.write(&mut conn, 1).await?;
    driver.close(conn).await;
    Ok(())
}

pub(super) async fn o4_a_dropped_database_is_gone_with_what_was_in_it<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut conn = world.connect(&driver, &ids[0]).await?;
    world.write(&mut conn, 1).await?;
    driver.close(conn).await;
    let dropped = [world.ask(&driver, DropIt(&ids[0])).await?, world.ask(&driver, DropIt(&ids[0])).await?];
    hold(dropped == [true, false], || format!("drop, twice, says that there was one: {dropped:?}"))?;
    hold(!world.ask(&driver, Exists(&ids[0])).await?, || "it exists after it was dropped".into())?;
    match driver.connect(&world.endpoint(&ids[0])).await {
        Ok(_) => return Err(Miss::Broken("a connect to a dropped database succeeded".into())),
        Err(error) => {
            let kind = error.kind;
            hold(kind == DriverErrorKind::DatabaseMissing, || format!("{kind:?} of a dropped database"))?;
        }
    }
    world.ask(&driver, Ensure(&ids[0])).await?;
    let mut conn = world.connect(&driver, &ids[0]).await?;
    let read = world.read(&mut conn).await?;
    driver.close(conn).await;
    hold(read.is_none(), || format!("{read:?} is left of the dropped database"))
}

pub(super) async fn l3_a_session_of_a_database_that_was_made_again_is_found_out<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut old = world.connect(&driver, &ids[0]).await?;
    world.write(&mut old, 1).await?;
    world.ask(&driver, DropIt(&ids[0])).await?;
    world.ask(&driver, Ensure(&ids[0])).await?;
    let mut new = world.connect(&driver, &ids[0]).await?;
    world.write(&mut new, 2).await?;
    driver.close(new).await;
    let checked = driver.check(&mut old).await;
    let read = if checked.is_ok() { world.adapter.read(&mut old).await } else { Ok(Some(2)) };
    driver.close(old).await;
    hold(read == Ok(Some(2)), || {
        format!("its check succeeds, and it reads {read:?}, where 2 was written since")
    })
}

pub(super) async fn o4_a_database_is_dropped_under_the_sessions_of_others<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let driver = world.driver().await?;
    let ids = world.workspaces(&driver, &["one"]).await?;
    let mut held = world.connect(&driver, &ids[0]).await?;
    world.write(&mut held, 1).await?;
    let dropped = world.ask(&driver, DropIt(&ids[0])).await?;
    driver.close(held).await;
    hold(dropped, || "drop says that there was no database".into())?;
    hold(!world.ask(&driver, Exists(&ids[0])).await?, || "it exists after it was dropped".into())
}

pub(super) async fn i3_every_workspace_is_listed_by_its_own_id<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = hostile();
    for id in &ids {
        world.ask(&driver, Ensure(id)).await?;
    }
    let listed: BTreeSet<WorkspaceId> = world.ask(&driver, List).await?.into_iter().collect();
    let expected: BTreeSet<WorkspaceId> = ids.into_iter().collect();
    let missing: Vec<_> = expected.difference(&listed).collect();
    let invented: Vec<_> = listed.difference(&expected).collect();
    hold(missing.is_empty() && invented.is_empty(), || {
        format!("not listed: {missing:?}; invented: {invented:?}")
    })
}

pub(super) async fn i3_hostile_ids_have_databases_of_their_own<A: Adapter>(world: &World<A>) -> Outcome {
    let driver = world.driver().await?;
    let ids = hostile();
    for (number, id) in (0..).zip(&ids) {
        let created = world.ask(&driver, Ensure(id)).await?;
        hold(created, || format!("{id} has the database of another id"))?;
        let mut conn = world.connect(&driver, id).await?;
        let read = world.read(&mut conn).await?;
        hold(read.is_none(), || format!("{id} sees {read:?}, which another id wrote"))?;
        world.write(&mut conn, number).await?;
        driver.close(conn).await;
    }
    for (number, id) in (0..).zip(&ids) {
        let mut conn = world.connect(&driver, id).await?;
        let read = world.read(&mut conn).await?;
        driver.close(conn).await;
        hold(read == Some(number), || format!("{id} wrote {number} and reads {read:?}"))?;
    }
    Ok(())
}

fn hostile() -> Vec<WorkspaceId> {
    nastiest_ids().into_iter().step_by(HOSTILE_STEP).collect()
}
