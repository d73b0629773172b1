//! FedLC: Zhang et al., *Federated Learning with Label Distribution Skew via Logits Calibration*, ICML 2022: each client
//! trains by `CE(z − τ n_k^{−1/4}, y)`, n_k its own class counts; at test z as it is. FedAvg at the server, τ = 1.
//!
//! A class without images counts as 10⁻⁸ of one, so its logit is lowered by 100 τ and no gradient reaches it, as in
//! FL-bench's code. `prior = "global"` takes the counts of all clients together (FedLTLib): they are asked for once, and
//! C numbers come with every brief. Equal counts, or τ = 0, are cross-entropy, byte for byte; unlike with logit
//! adjustment, counts and shares are *not* alike.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::prior::{self, Prior};
use super::shift;
use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collected, Cost, Exchange, Here, Job, Named, Needs, Now, Objective, Outcome,
    Reply, Sizes,
};
use crate::nn::Params;

/// FedLC's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedLc {
    /// Strength τ ≥ 0 of the calibration; 0 is cross-entropy.
    pub tau: f64,
    /// Whose class counts they are.
    pub prior: Prior,
}

impl Default for FedLc {
    fn default() -> Self {
        FedLc { tau: 1.0, prior: Prior::Local }
    }
}

impl FedLc {
    fn global(&self) -> bool {
        self.prior == Prior::Global && self.tau != 0.0
    }

    /// `−τ n^{−1/4}`, `(classes,)`, less its largest entry.
    fn shift(&self, counts: &[f64]) -> Vec<f64> {
        shift::from_largest(counts.iter().map(|n| -self.tau * n.max(1e-8).powf(-0.25)).collect())
    }
}

impl Objective for FedLc {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let counts = if self.global() { prior::sent(at.slot(prior::SLOT)?) } else { prior::own(at.counts) };
        shift::cross_entropy(at, &self.shift(&counts))
    }
}

impl Algorithm for FedLc {
    fn about(&self) -> About {
        let leaves = if self.global() { prior::LEAVES } else { "" };
        About { paper: "Zhang et al., Federated Learning with Label Distribution Skew, ICML 2022", leaves }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        if self.tau >= 0.0 && self.tau.is_finite() {
            return Ok(());
        }
        Err(Error::input(format!("algorithm.tau = {}: choose 0 or more", self.tau)))
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        prior::cost(self.global(), sizes)
    }

    fn exchanges(&self, state: &Named, _: &Now<'_>) -> Vec<Exchange> {
        prior::exchanges(self.global(), state)
    }

    fn brief(&self, _: &Params, state: &Named, e: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        prior::brief(self.clone(), self.global(), state, e, now)
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        prior::reply(job, outcome)
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        e: &Exchange,
        got: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        prior::server(model, state, e, got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;
    use crate::nn::loss;

    fn made(counts: &[u32]) -> Made {
        Made { counts: counts.to_vec(), ..Made::new(&[0, 2, 0, 1, 0], 4, 2) }
    }

    #[test]
    fn gradients_are_central_differences() {
        let slot = |data: &[f32]| Params::tensor("counts", &[data.len()], data.to_vec()).unwrap();
        let made = Made { slots: vec![slot(&[]), slot(&[5.0, 9.0, 4.0, 2.0])], ..made(&[3, 1, 1, 0]) };
        for prior in [Prior::Local, Prior::Global] {
            made.differs_by(&FedLc { tau: 3.0, prior }, 5e-5, &[1, 2, 3]);
        }
    }

    #[test]
    fn equal_counts_or_no_tau_are_cross_entropy_to_the_bit() {
        for (counts, tau) in [([7, 7, 7, 7], 1.0), ([3, 1, 1, 0], 0.0)] {
            let made = made(&counts);
            let mut want = vec![0.0; made.logits.len()];
            let value = loss::cross_entropy(&made.logits, &made.y, 4, 1.0, &mut want).unwrap();
            let (got, gradients) = made.run(&FedLc { tau, ..FedLc::default() });
            assert!(got == value && gradients[0] == want, "{counts:?}");
        }
    }

    #[test]
    fn a_class_of_sixteen_images_is_lowered_by_half_and_an_absent_one_by_a_hundred() {
        let got = FedLc::default().shift(&[1e12, 16.0, 0.0]);
        for (got, want) in got.iter().zip([0.0, -0.499, -99.999]) {
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
    }

    /// The gradient of an absent class's logit is its probability under the lowered logits: e^−100.
    #[test]
    fn no_gradient_reaches_a_class_that_the_client_does_not_hold() {
        let (_, gradients) = made(&[3, 1, 1, 0]).run(&FedLc::default());
        assert!(gradients[0].chunks(4).all(|row| row[3].abs() < 1e-30 && row[0] != 0.0));
    }
}
