//! FedProx: Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020, equation 2:
//! each client minimises `F_k(w) + μ/2 ‖w − w_t‖²`; the server averages as FedAvg.
//!
//! The term covers the weights, not batch-norm statistics. μ = 0 is FedAvg, byte for byte.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::{About, Algorithm, Brief, ClientId, Exchange, Named, Now};
use crate::nn::{Params, Pull};

/// FedProx's knob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedProx {
    /// Strength of the proximal term, ≥ 0 (0.01 in CReFF's options).
    pub mu: f32,
}

impl Default for FedProx {
    fn default() -> Self {
        FedProx { mu: 0.01 }
    }
}

impl Algorithm for FedProx {
    fn about(&self) -> About {
        About { paper: "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020", leaves: "" }
    }

    fn check(&self) -> Result<()> {
        if self.mu.is_finite() && self.mu >= 0.0 {
            return Ok(());
        }
        Err(Error::input(format!("algorithm.mu = {}: choose 0 or more", self.mu)))
    }

    fn brief(&self, _: &Params, _: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        let mut train = Brief::training(now);
        if self.mu != 0.0 {
            train.pulls.push(Pull::Proximal { mu: self.mu, to: 0, over: None });
        }
        Ok(Brief::train(train, vec![]))
    }
}
