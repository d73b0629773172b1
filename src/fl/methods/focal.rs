//! Fed-Focal Loss: Sarkar, Narang and Rai, *Fed-Focal Loss for imbalanced data classification in Federated Learning*,
//! 2020, with the loss of Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, equation 5:
//! `L = mean_i −α (1 − p_y)^γ log p_y`, p the softmax of the logits; FedAvg at the server. γ = 2, α = 1.
//!
//! The factor is differentiated too: `dL/dz_c = α ((1 − p_y)^γ − γ p_y (1 − p_y)^{γ−1} log p_y) (p_c − 1[c = y])`.
//! γ = 0 with α = 1 is cross-entropy, byte for byte. The original also draws the cohort by the clients' losses: left out,
//! because every row of a table trains the same cohorts. Nothing but the model leaves a client.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::{About, Algorithm, Brief, ClientId, Exchange, Here, Loss, Named, Needs, Now, Objective};
use crate::nn::{Params, loss};

/// The focal loss's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Focal {
    /// How much less a well-classified image counts, γ ≥ 0.
    pub gamma: f64,
    /// A factor α > 0 on the whole loss.
    pub alpha: f64,
}

impl Default for Focal {
    fn default() -> Self {
        Focal { gamma: 2.0, alpha: 1.0 }
    }
}

impl Focal {
    /// A row's loss, and what its cross-entropy's gradient is multiplied by, where `log p_y` is this.
    fn row(&self, log_p: f64) -> (f64, f64) {
        let (p, rest) = (log_p.exp(), -log_p.exp_m1());
        let factor = rest.powf(self.gamma);
        // At p = 1 the slope is 0 for every γ > 0, though its power may be infinite there.
        let slope = if self.gamma == 0.0 || rest == 0.0 { 0.0 } else { self.gamma * p * factor / rest * log_p };
        (-self.alpha * factor * log_p, self.alpha * (factor - slope))
    }
}

impl Objective for Focal {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let log_p = loss::log_likelihoods(at.logits, at.y, at.classes)?;
        let rows: Vec<(f64, f64)> = log_p.into_iter().map(|l| self.row(l)).collect();
        let weights: Vec<f64> = rows.iter().map(|r| r.1).collect();
        loss::weighted_cross_entropy(at.logits, at.y, &weights, at.classes, 1.0, at.d_logits)?;
        Ok(rows.iter().map(|r| r.0).sum::<f64>() / rows.len().max(1) as f64)
    }
}

impl Algorithm for Focal {
    fn about(&self) -> About {
        let paper = "Sarkar et al., Fed-Focal Loss, 2020; Lin et al., Focal Loss for Dense Object Detection, ICCV 2017";
        About { paper, leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let keys = [("gamma", self.gamma, self.gamma >= 0.0), ("alpha", self.alpha, self.alpha > 0.0)];
        match keys.iter().find(|(_, value, fine)| !(*fine && value.is_finite())) {
            Some((key, value, _)) => {
                Err(Error::input(format!("algorithm.{key} = {value}: gamma is at least 0, alpha more than 0")))
            }
            None => Ok(()),
        }
    }

    fn brief(&self, _: &Params, _: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        let mut train = Brief::training(now);
        train.loss = Loss::Open(vec![Arc::new(self.clone())]);
        Ok(Brief::train(train, vec![]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;

    #[test]
    fn gradients_are_central_differences() {
        for (gamma, alpha) in [(2.0, 1.0), (0.5, 1.0), (1.0, 0.25), (0.0, 2.0)] {
            Made::new(&[0, 2, 1, 1, 3], 4, 2).differs_by(&Focal { gamma, alpha }, 2e-5, &[1, 2, 3]);
        }
    }

    #[test]
    fn without_gamma_it_is_cross_entropy_to_the_bit() {
        let made = Made::new(&[0, 2, 1, 1, 3], 4, 2);
        let mut want = vec![0.0; made.logits.len()];
        let value = loss::cross_entropy(&made.logits, &made.y, 4, 1.0, &mut want).unwrap();
        let (got, gradients) = made.run(&Focal { gamma: 0.0, alpha: 1.0 });
        assert!((got - value).abs() < 1e-15 && gradients[0] == want);
    }

    #[test]
    fn two_equal_logits_give_a_quarter_of_log_two() {
        let mut made = Made::new(&[0], 2, 1);
        made.logits = vec![0.0, 0.0];
        assert!((made.run(&Focal::default()).0 - 0.25 * 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn a_certain_row_gives_neither_loss_nor_a_number_that_is_none() {
        let mut made = Made::new(&[0], 2, 1);
        for gamma in [0.5, 2.0] {
            made.logits = vec![500.0, -500.0];
            let (value, gradients) = made.run(&Focal { gamma, alpha: 1.0 });
            assert!(value == 0.0 && gradients[0] == [0.0, 0.0], "{value} {gradients:?}");
        }
    }
}
