//! Clauses of the names that a catalog gives to databases.

use std::collections::HashMap;

use pool_core::{DatabaseName, WorkspaceId};

use super::world::World;
use super::{Adapter, Outcome, hold};
use crate::hostile::nastiest_ids;

pub(super) async fn i1_ids_that_are_taken_for_each_other_have_names_of_their_own<A: Adapter>(
    world: &World<A>,
) -> Outcome {
    let catalog = world.adapter.catalog();
    let mut owners: HashMap<DatabaseName, WorkspaceId> = HashMap::new();
    for id in nastiest_ids() {
        let name = catalog.database(&id);
        if let Some(other) = owners.insert(name.clone(), id.clone()) {
            hold(false, || format!("{id} and {other} share {name}"))?;
        }
    }
    Ok(())
}

pub(super) async fn i1_a_name_is_the_same_each_time<A: Adapter>(world: &World<A>) -> Outcome {
    let (one, other) = (world.adapter.catalog(), world.adapter.catalog());
    for id in nastiest_ids() {
        let names = [one.database(&id), other.database(&id)];
        hold(names[0] == names[1], || format!("{id} is {} and {}", names[0], names[1]))?;
    }
    Ok(())
}
