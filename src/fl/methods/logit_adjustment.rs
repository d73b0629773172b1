//! Logit adjustment: Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021, equation 10: the training loss
//! is `CE(z + τ log π, y)`, π the class prior; at test z as it is. τ = 1 is the balanced softmax of Ren et al., NeurIPS
//! 2020. FedAvg at the server.
//!
//! `prior = "local"`, the default, takes the client's own counts, as federated code mostly does (FedETF's, and the limit
//! of FedYoYo's); `prior = "global"` is the paper's π, the shares of all training images: clients send their counts once
//! and C numbers come with every brief. `absent` says what a class without images is, where published codes differ:
//! `"one"` counts it as one image (FedETF's code), `"tiny"` as 10⁻⁸ of one (FedLTLib), `"floor"` takes
//! `log(π^τ + 10⁻⁹)` for all classes (FedYoYo's code).
//!
//! Counts or shares alike: the loss does not change by a common shift. An even prior, or τ = 0, is cross-entropy, byte
//! for byte.

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

/// What a class without images is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Absent {
    /// One of one image.
    #[default]
    One,
    /// One of 10⁻⁸ images.
    Tiny,
    /// Of no share, and 10⁻⁹ is added to every class's `π^τ`.
    Floor,
}

/// Logit adjustment's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogitAdjustment {
    /// Strength τ ≥ 0; 0 is cross-entropy.
    pub tau: f64,
    /// Whose class shares π are.
    pub prior: Prior,
    /// What a class without images is.
    pub absent: Absent,
}

impl Default for LogitAdjustment {
    fn default() -> Self {
        LogitAdjustment { tau: 1.0, prior: Prior::Local, absent: Absent::One }
    }
}

impl LogitAdjustment {
    fn global(&self) -> bool {
        self.prior == Prior::Global && self.tau != 0.0
    }

    /// `τ log π`, `(classes,)`, from counts, less its largest entry.
    fn shift(&self, counts: &[f64]) -> Vec<f64> {
        let all: f64 = counts.iter().sum();
        let own = |&n: &f64| match self.absent {
            _ if self.tau == 0.0 => 0.0,
            Absent::One => self.tau * n.max(1.0).ln(),
            Absent::Tiny => self.tau * n.max(1e-8).ln(),
            Absent::Floor => ((n / all.max(1.0)).powf(self.tau) + 1e-9).ln(),
        };
        shift::from_largest(counts.iter().map(own).collect())
    }
}

impl Objective for LogitAdjustment {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let counts = if self.global() { prior::sent(at.slot(prior::SLOT)?) } else { prior::own(at.counts) };
        shift::cross_entropy(at, &self.shift(&counts))
    }
}

impl Algorithm for LogitAdjustment {
    fn about(&self) -> About {
        let leaves = if self.global() { prior::LEAVES } else { "" };
        About { paper: "Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021", leaves }
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

    const ABSENT: [Absent; 3] = [Absent::One, Absent::Tiny, Absent::Floor];

    fn made(counts: &[u32]) -> Made {
        Made { counts: counts.to_vec(), ..Made::new(&[0, 2, 0, 1, 0], 4, 2) }
    }

    #[test]
    fn gradients_are_central_differences() {
        let slot = |data: &[f32]| Params::tensor("counts", &[data.len()], data.to_vec()).unwrap();
        let made = Made { slots: vec![slot(&[]), slot(&[5.0, 9.0, 4.0, 2.0])], ..made(&[3, 1, 1, 0]) };
        for (absent, tau) in ABSENT.into_iter().flat_map(|a| [(a, 1.0), (a, 1.5)]) {
            for prior in [Prior::Local, Prior::Global] {
                made.differs_by(&LogitAdjustment { tau, prior, absent }, 5e-5, &[1, 2, 3]);
            }
        }
    }

    #[test]
    fn an_even_prior_or_no_tau_is_cross_entropy_to_the_bit() {
        for (counts, tau) in [([7, 7, 7, 7], 1.0), ([3, 1, 1, 0], 0.0)] {
            let made = made(&counts);
            let mut want = vec![0.0; made.logits.len()];
            let value = loss::cross_entropy(&made.logits, &made.y, 4, 1.0, &mut want).unwrap();
            for absent in ABSENT {
                let (got, gradients) = made.run(&LogitAdjustment { tau, absent, ..Default::default() });
                assert!(got == value && gradients[0] == want, "{absent:?}, {counts:?}");
            }
        }
    }

    /// `−log(n_y^τ e^{z_y} / Σ n_c^τ e^{z_c})`, the balanced softmax, by hand.
    #[test]
    fn the_loss_is_the_balanced_softmax_of_counts_or_shares() {
        let (made, n) = (made(&[6, 2, 4, 0]), [6.0f64, 2.0, 4.0, 1e-8]);
        let mut want = 0.0;
        for (z, &y) in made.logits.chunks(4).zip(&made.y) {
            let e = |c: usize| n[c].powf(0.5) * f64::from(z[c]).exp();
            want -= (e(y as usize) / (0..4).map(e).sum::<f64>()).ln() / 5.0;
        }
        let config = LogitAdjustment { tau: 0.5, absent: Absent::Tiny, ..Default::default() };
        assert!((made.run(&config).0 - want).abs() < 1e-6);
        let shares: Vec<f64> = [6.0, 2.0, 4.0].iter().map(|n| n / 12.0 * 1e9).collect();
        let (a, b) = (config.shift(&shares), config.shift(&[6.0, 2.0, 4.0]));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn an_absent_class_is_what_the_codes_make_of_it() {
        let shift = |absent| LogitAdjustment { absent, ..Default::default() }.shift(&[4.0, 0.0])[1];
        assert!((shift(Absent::One) + 4f64.ln()).abs() < 1e-12);
        assert!((shift(Absent::Tiny) + (4e8f64).ln()).abs() < 1e-12);
        assert!((shift(Absent::Floor) - 1e-9f64.ln()).abs() < 1e-8);
    }
}
