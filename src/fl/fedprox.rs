//! FedProx: Li et al., *Federated Optimization in Heterogeneous Networks*, MLSys 2020, equation 2:
//! each client minimises `F_k(w) + μ/2 ‖w − w_t‖²`; the server averages as FedAvg.
//!
//! The term covers the weights, not batch-norm statistics. μ = 0 is FedAvg, byte for byte.

use serde::{Deserialize, Serialize};

use super::brief::{Brief, Job, Outcome, Reply, Term};
use super::{Algorithm, ClientId, Collected, Exchange, Local, Named};
use crate::error::Result;
use crate::nn::Params;

/// FedProx's knob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    fn brief(&self, _: &Params, _: &Named, _: &Exchange, local: &Local<'_>, _: ClientId) -> Result<Brief> {
        let mut terms = vec![Term::CrossEntropy];
        if self.mu != 0.0 {
            terms.push(Term::Proximal { mu: self.mu, to: 0 });
        }
        Ok(Brief::train(local, vec![], terms))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        Ok((Reply::model(job, &outcome, outcome.samples as f64), None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        got: &Collected,
        _: &Local<'_>,
    ) -> Result<(Params, Named)> {
        Ok((got.moved(model, "model", 1.0)?, state.clone()))
    }
}
