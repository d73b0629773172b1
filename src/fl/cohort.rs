//! Which clients take part in a round.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ClientId;
use crate::data::python_rng::PythonRandom;
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
    /// FedMLLM's: Python's `random.seed(round)`, from 0, and `sorted(random.sample(range(clients), cohort))`.
    Fedmllm,
}

/// The cohort of a round (from 1) by key path: different clients, in draw order.
pub fn by_key(key: Key, round: usize, clients: usize, cohort: usize) -> Vec<ClientId> {
    let mut rng = key.fold(Purpose::Cohort, round as u64).rng();
    rng.choose(clients, cohort).into_iter().map(|c| c as ClientId).collect()
}

/// The cohort of a round (from 1) as FedMLLM draws it: different clients, sorted.
pub fn fedmllm(round: usize, clients: usize, cohort: usize) -> Vec<ClientId> {
    let mut drawn = PythonRandom::new(round.saturating_sub(1) as u64).sample(clients, cohort);
    drawn.sort_unstable();
    drawn.into_iter().map(|c| c as ClientId).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fedmllms_first_cohorts_are_the_published_ones() {
        let want = [
            [6, 9],
            [1, 2],
            [0, 1],
            [3, 8],
            [3, 4],
            [4, 9],
            [1, 9],
            [2, 5],
            [3, 5],
            [5, 7],
            [0, 9],
            [7, 8],
            [4, 7],
            [4, 9],
            [1, 8],
            [0, 3],
            [5, 7],
            [6, 8],
            [1, 2],
            [0, 8],
            [2, 4],
            [2, 6],
            [2, 3],
            [1, 4],
            [2, 6],
        ];
        for (t, want) in want.into_iter().enumerate() {
            assert_eq!(fedmllm(t + 1, 10, 2), want, "round {}", t + 1);
        }
    }

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
