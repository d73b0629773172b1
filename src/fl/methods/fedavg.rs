//! FedAvg: McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS 2017,
//! Algorithm 1: `w ← Σ_k n_k w_k / Σ_k n_k` over the cohort.
//!
//! As the reference code of CReFF does it: every entry of the state is averaged, batch-norm statistics included. The
//! body of this method is the default of every other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fl::{About, Algorithm};

/// FedAvg has no knobs of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FedAvg {}

impl Algorithm for FedAvg {
    fn about(&self) -> About {
        About { paper: "McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017", leaves: "" }
    }
}
