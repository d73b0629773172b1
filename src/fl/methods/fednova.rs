//! FedNova: Wang et al., *Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization*, NeurIPS
//! 2020: `d_k = (w_t − w_k) / ‖a_k‖₁`, `w_{t+1} = w_t − (Σ p_k ‖a_k‖₁) Σ p_k d_k`, `p_k = n_k / Σ n`.
//!
//! `a_k` is how much of each local gradient is in the client's step. Plain SGD: `‖a_k‖₁` is the number of steps; with
//! momentum ρ it is `(τ − ρ(1 − ρ^τ)/(1 − ρ)) / (1 − ρ)`, as in the paper; Nesterov's form likewise. Weight decay is part
//! of the gradient. AdamW has no such sum and is refused. The published code's server momentum is left out (`fedavgm`
//! is that alone), and so is its proximal term. Batch-norm statistics are averaged by p_k.
//!
//! For clients of equal steps it is FedAvg up to rounding, whatever their sizes. A client sends the norm of `a_k` beside
//! its model: one number.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{
    About, Algorithm, Collected, Cost, Exchange, Job, Named, Now, Outcome, Part, PartKind, Reply, Sizes, Step,
};
use crate::nn::{OptimiserConfig, Params, Role};

const NORM: &str = "norm";

/// FedNova has no knobs of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FedNova {}

/// `‖a‖₁` after so many steps: how far SGD of rate 1 goes along a gradient that is 1 all the time.
fn norm(optimiser: &OptimiserConfig, steps: usize) -> Result<f64> {
    let OptimiserConfig::Sgd(sgd) = optimiser else {
        return Err(Error::input("federated.optimiser: fednova counts the gradients in an SGD step")
            .hint("use kind = \"sgd\", with or without momentum"));
    };
    let momentum = f64::from(sgd.momentum);
    let (mut velocity, mut far) = (0.0, 0.0);
    for _ in 0..steps {
        velocity = momentum * velocity + 1.0;
        far += if sgd.nesterov { 1.0 + momentum * velocity } else { velocity };
    }
    Ok(far)
}

impl Algorithm for FedNova {
    fn about(&self) -> About {
        let leaves = "how many gradients are in the client's step, one number";
        About { paper: "Wang et al., Tackling the Objective Inconsistency Problem, NeurIPS 2020", leaves }
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        Cost { down: sizes.model, up: sizes.model + 1, extra: 0 }
    }

    /// Refuses optimisers whose steps are no sums of gradients.
    fn init(&self, _: &Params, now: &Now<'_>) -> Result<Named> {
        norm(&now.config.optimiser, 1).map(|_| Named::new())
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let Some(Step::Train(train)) = job.brief.steps.first() else {
            return Err(Error::defect("fednova: a brief without training"));
        };
        let (norm, weight) = (norm(&train.optimiser, outcome.steps)?, outcome.samples as f64);
        let mut reply = Reply::model(job, outcome, weight);
        if norm > 0.0 {
            for part in reply.parts.iter_mut().filter(|p| p.name == MODEL) {
                let weights = part.data.layout().ranges(Role::Weight);
                let data = part.data.data_mut();
                for range in weights {
                    data[range].iter_mut().for_each(|d| *d = (f64::from(*d) / norm) as f32);
                }
            }
        }
        let data = Params::tensor(NORM, &[1], vec![norm as f32])?;
        reply.parts.push(Part { name: NORM.into(), kind: PartKind::Value, data, weight });
        Ok((reply, None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        got: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        let steps = got.sum(NORM)?.mean()?.into_iter().sum();
        Ok((got.moved(model, MODEL, steps)?, state.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::optim::{AdamwConfig, Optimiser, SgdConfig};

    fn sgd(momentum: f32, nesterov: bool) -> OptimiserConfig {
        OptimiserConfig::Sgd(SgdConfig { lr: 1.0, momentum, nesterov, ..SgdConfig::default() })
    }

    #[test]
    fn the_norm_is_the_papers_closed_form() {
        for steps in [0, 1, 2, 7, 30] {
            let tau = steps as f64;
            assert_eq!(norm(&sgd(0.0, false), steps).unwrap(), tau);
            let rho = 0.75f64;
            let want = (tau - rho * (1.0 - rho.powi(steps as i32)) / (1.0 - rho)) / (1.0 - rho);
            assert!((norm(&sgd(0.75, false), steps).unwrap() - want).abs() < 1e-9, "{steps}");
        }
    }

    /// The optimiser itself, on a gradient of 1.
    #[test]
    fn the_norm_is_how_far_the_optimiser_goes() {
        for (momentum, nesterov) in [(0.0, false), (0.5, false), (0.5, true)] {
            let mut optimiser = Optimiser::for_ranges(&sgd(momentum, nesterov), std::iter::once(0..1).collect(), 1);
            let mut at = vec![0.0];
            (0..6).for_each(|_| optimiser.step(&mut at, &[1.0], 1.0));
            let want = norm(&sgd(momentum, nesterov), 6).unwrap();
            assert!((f64::from(-at[0]) - want).abs() < 1e-5, "{momentum} {nesterov}: {} {want}", at[0]);
        }
    }

    #[test]
    fn adamw_is_refused() {
        let error = norm(&OptimiserConfig::Adamw(AdamwConfig::default()), 1).unwrap_err();
        assert!(error.to_string().contains("sgd"), "{error}");
    }
}
