//! FedAvg: McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS 2017,
//! Algorithm 1: `w ← Σ_k n_k w_k / Σ_k n_k` over the cohort.
//!
//! As the reference code of CReFF does it: every entry of the state is averaged, batch-norm statistics included.

use serde::{Deserialize, Serialize};

use super::brief::{Brief, Job, Outcome, Reply, Term};
use super::{Algorithm, ClientId, Collected, Exchange, Local, Named};
use crate::error::Result;
use crate::nn::Params;

/// FedAvg has no knobs of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAvg {}

impl Algorithm for FedAvg {
    fn brief(&self, _: &Params, _: &Named, _: &Exchange, local: &Local<'_>, _: ClientId) -> Result<Brief> {
        Ok(Brief::train(local, vec![], vec![Term::CrossEntropy]))
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
