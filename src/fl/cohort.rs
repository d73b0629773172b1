//! Which clients take part in a round.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ClientId;
use crate::key::{Key, Purpose};

/// Where cohorts come from (`federated.cohort_draw`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CohortDraw {
    /// From the key path: a uniform draw without replacement.
    #[default]
    Key,
    /// The reference generator: numpy's `RandomState(seed)`, `choice(clients, cohort, replace=False)` a round.
    Creff,
}

/// The cohort of a round (from 1) by key path: different clients, in draw order.
pub fn by_key(key: Key, round: usize, clients: usize, cohort: usize) -> Vec<ClientId> {
    let mut rng = key.fold(Purpose::Cohort, round as u64).rng();
    rng.choose(clients, cohort).into_iter().map(|c| c as ClientId).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_is_drawn_about_equally_often() {
        let mut hits = [0usize; 20];
        for round in 1..=2000 {
            for client in by_key(Key::from_seed(1), round, 20, 8) {
                hits[client as usize] += 1;
            }
        }
        assert!(hits.iter().all(|&h| (700..900).contains(&h)), "{hits:?}");
    }
}
