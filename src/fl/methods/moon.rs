//! MOON: Li, He and Song, *Model-Contrastive Federated Learning*, CVPR 2021, equations 2 and 3.
//!
//! Client: `L = CE + μ mean_i −log( e^{s_g/τ} / (e^{s_g/τ} + e^{s_p/τ}) )` with `s_g = cos(h_i, h_i of the received
//! model)` and `s_p = cos(h_i, h_i of the client's previous model)`; both models are frozen, in evaluation mode, and
//! see the same batch. Server: FedAvg. The client keeps its model as it left training, running statistics too. One that
//! kept none takes the received model for it, so that the term has no gradient until it takes part again.
//!
//! h is what the classifier sees. The paper and the published code put a projection head of two layers between them and
//! compare its output; here a network is judged with the layers that every other method's has, and one that ends in
//! such a head can be chosen as the model. The published code takes a client's random first network as its previous
//! model, and drops the term in the first round.
//!
//! Defaults: μ 1 (the code's; the paper tunes 0.1, 1, 5 and 10 by data set), τ 0.5. μ = 0 is FedAvg, byte for byte.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Brief, ClientId, Cost, Exchange, Here, Job, Loss, Named, Needs, Now, Objective, Outcome, Reply,
    Sizes, Slot, Tap,
};
use crate::nn::{Params, loss};

/// What clients keep: their model of their last participation.
pub const PREVIOUS: &str = "previous";

/// Lengths below this count as this, as in PyTorch's cosine.
const SHORT: f64 = 1e-8;

/// MOON's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Moon {
    /// Weight of the contrastive term, ≥ 0.
    pub mu: f32,
    /// Its temperature, > 0.
    pub temperature: f32,
}

impl Default for Moon {
    fn default() -> Self {
        Moon { mu: 1.0, temperature: 0.5 }
    }
}

impl Algorithm for Moon {
    fn about(&self) -> About {
        About { paper: "Li, He and Song, Model-Contrastive Federated Learning, CVPR 2021", leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { kept: true, classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        if !(self.mu.is_finite() && self.mu >= 0.0 && self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::input(format!("algorithm: mu {} ≥ 0, temperature {} > 0", self.mu, self.temperature)));
        }
        Ok(())
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        let witnesses = if self.mu == 0.0 { 0 } else { 2 };
        let extra = witnesses * sizes.samples * sizes.epochs * sizes.forward;
        Cost { down: sizes.model, up: sizes.model, extra }
    }

    fn brief(&self, _: &Params, _: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        let mut train = Brief::training(now);
        if self.mu == 0.0 {
            return Ok(Brief::train(train, vec![]));
        }
        train.witnesses = vec![0, 1];
        train.loss = Loss::Open(vec![Arc::new(Contrast { mu: self.mu, temperature: self.temperature })]);
        Ok(Brief::train(train, vec![Slot::KeptModel(PREVIOUS.into())]))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let kept = (self.mu != 0.0).then(|| Named::from([(PREVIOUS.to_string(), outcome.params.clone())]));
        let weight = outcome.samples as f64;
        Ok((Reply::model(job, outcome, weight), kept))
    }
}

/// Cross-entropy and the contrast between the first witness (near) and the second (far).
struct Contrast {
    mu: f32,
    temperature: f32,
}

impl Objective for Contrast {
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits, Tap::Feature]
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let value = loss::cross_entropy(at.logits, at.y, at.classes, 1.0, at.d_logits)?;
        let (near, far) = (&at.witness(0)?.feature, &at.witness(1)?.feature);
        let (d, rows, t) = (at.features, at.rows(), f64::from(self.temperature));
        let mut total = 0.0;
        for i in 0..rows {
            let row = i * d..(i + 1) * d;
            let h = &at.feature[row.clone()];
            let (near, far) = (Cosine::of(h, &near[row.clone()]), Cosine::of(h, &far[row.clone()]));
            // −log softmax([s_g, s_p]/τ)_0 = log(1 + e^{(s_p − s_g)/τ}); its slope is the share of the far one.
            let gap = (far.value - near.value) / t;
            total += gap.max(0.0) + (-gap.abs()).exp().ln_1p();
            let share = 1.0 / (1.0 + (-gap).exp());
            let slope = f64::from(self.mu) * share / (t * rows as f64);
            near.gradient(-slope, &mut at.d_feature[row.clone()]);
            far.gradient(slope, &mut at.d_feature[row]);
        }
        Ok(value + f64::from(self.mu) * total / rows.max(1) as f64)
    }
}

/// The cosine of two vectors.
struct Cosine<'v> {
    a: &'v [f32],
    b: &'v [f32],
    lengths: [f64; 2],
    value: f64,
}

impl<'v> Cosine<'v> {
    fn of(a: &'v [f32], b: &'v [f32]) -> Self {
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let lengths = [product(a, a).sqrt().max(SHORT), product(b, b).sqrt().max(SHORT)];
        Cosine { a, b, lengths, value: product(a, b) / (lengths[0] * lengths[1]) }
    }

    /// Adds `slope · ∂cos/∂a`.
    fn gradient(&self, slope: f64, to: &mut [f32]) {
        let [a, b] = self.lengths;
        for ((g, x), y) in to.iter_mut().zip(self.a).zip(self.b) {
            *g += (slope / a * (f64::from(*y) / b - self.value * f64::from(*x) / a)) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::Seen;
    use crate::fl::objective::check::Made;

    fn made() -> Made {
        let mut made = Made::new(&[2, 0, 1], 3, 4);
        let feature = |step: f32| (0..12).map(|i| (i as f32 * step).cos()).collect::<Vec<f32>>();
        made.witnesses = [0.4, 1.1].map(|step| Seen { logits: Vec::new(), feature: feature(step) }).to_vec();
        made
    }

    #[test]
    fn the_gradient_is_that_of_the_value() {
        made().differs_by(&Contrast { mu: 1.5, temperature: 0.5 }, 1e-3, &[2, 3]);
    }

    #[test]
    fn equal_witnesses_give_log_two_and_no_gradient_into_the_feature() {
        let mut made = made();
        made.witnesses[1] = made.witnesses[0].clone();
        let (value, gradients) = made.run(&Contrast { mu: 2.0, temperature: 0.5 });
        let mut seeds = vec![0.0; 9];
        let plain = loss::cross_entropy(&made.logits, &made.y, 3, 1.0, &mut seeds).unwrap();
        assert!((value - plain - 2.0 * 2f64.ln()).abs() < 1e-12);
        assert!(gradients[1].iter().all(|g| g.abs() < 1e-9));
        assert_eq!(gradients[0], seeds);
    }

    /// cos = 1 to the near one and −1 to the far one: log(1 + e^{−2/τ}).
    #[test]
    fn a_feature_at_the_near_one_and_opposite_to_the_far_one_has_the_least_loss() {
        let mut made = made();
        made.witnesses[0].feature.clone_from(&made.feature);
        made.witnesses[1].feature = made.feature.iter().map(|v| -v).collect();
        let with = made.run(&Contrast { mu: 1.0, temperature: 0.5 }).0;
        let without = made.run(&Contrast { mu: 0.0, temperature: 0.5 }).0;
        assert!((with - without - (-4f64).exp().ln_1p()).abs() < 1e-6);
    }
}
