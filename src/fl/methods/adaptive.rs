//! FedAdam, FedYogi, FedAdagrad: Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, Algorithm 2:
//! `m ← β₁ m + (1 − β₁) Δ`, a second moment `v` of Δ, `w ← w + η m / (√v + τ)`, where Δ is the clients' mean step.
//!
//! Adam `v ← β₂ v + (1 − β₂) Δ²` · Yogi `v ← v − (1 − β₂) Δ² sign(v − Δ²)` · Adagrad `v ← v + Δ²`; m is zero and v is τ²
//! at first, and nothing corrects their bias. The printed mean is uniform over the cohort; `weighting = "samples"`, the
//! default, weighs by images as FedAvg does, so that the methods of a table differ in the server's step alone. Code that
//! reuses an optimiser's buffers squares m in Δ's place, `second_moment = "momentum"`, and lets m be the first round's Δ
//! whole, `start = "step"` (FedMLLM's and OpenFedLLM's do both). β₁ = 0.9, β₂ = 0.99, τ = 10⁻³ are
//! the paper's, and β₁ = 0 for Adagrad, which usually has none; η was tuned by task there, 0.01 here is a choice. The
//! step covers the weights; batch-norm statistics are averaged with the same weighting. Nothing but the model leaves a
//! client.

use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{About, Algorithm, Collected, Exchange, Job, Named, Now, Outcome, Reply};
use crate::nn::{Params, Role};

const FIRST: &str = "m";
const SECOND: &str = "v";

/// What a client counts in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// Its images.
    #[default]
    Samples,
    /// One.
    Uniform,
}

/// What the second moment is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecondMoment {
    /// The clients' mean step, as the paper writes.
    #[default]
    Delta,
    /// The first moment, fresh step included.
    Momentum,
}

/// What the first moment is before the first round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FirstMoment {
    /// Zero, so that it is (1 − β₁) Δ after it.
    #[default]
    Zero,
    /// As if it had always been the first step, so that it is Δ after it.
    Step,
}

/// How the second moment moves: all that the three methods differ in.
pub trait Rule: Send + Sync + 'static {
    /// β₁ where the config gives none.
    const BETA1: f64;
    /// The next `v` for the square of a step.
    fn second(v: f64, square: f64, beta2: f64) -> f64;
}

/// Adam's rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam;

impl Rule for Adam {
    const BETA1: f64 = 0.9;

    fn second(v: f64, square: f64, beta2: f64) -> f64 {
        beta2 * v + (1.0 - beta2) * square
    }
}

/// Yogi's rule: `v` moves by at most the square itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Yogi;

impl Rule for Yogi {
    const BETA1: f64 = 0.9;

    fn second(v: f64, square: f64, beta2: f64) -> f64 {
        let sign = f64::from(i8::from(v > square) - i8::from(v < square));
        v - (1.0 - beta2) * square * sign
    }
}

/// Adagrad's rule: `v` only grows.
#[derive(Clone, Debug, PartialEq)]
pub struct Adagrad;

impl Rule for Adagrad {
    const BETA1: f64 = 0.0;

    fn second(v: f64, square: f64, _: f64) -> f64 {
        v + square
    }
}

/// FedAdam.
pub type FedAdam = Adaptive<Adam>;
/// FedYogi.
pub type FedYogi = Adaptive<Yogi>;
/// FedAdagrad; β₂ has no part in it.
pub type FedAdagrad = Adaptive<Adagrad>;

/// The knobs of all three.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, bound = "R: Rule")]
#[schemars(bound = "R: Rule", rename = "Adaptive")]
pub struct Adaptive<R> {
    /// The server's rate η > 0.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Degree of adaptivity τ > 0: added to √v, and its square is v at first.
    pub tau: f64,
    /// What a client counts in the mean.
    pub weighting: Weighting,
    /// What the second moment is of.
    pub second_moment: SecondMoment,
    /// What the first moment is before the first round.
    pub start: FirstMoment,
    #[serde(skip)]
    rule: PhantomData<R>,
}

impl<R: Rule> Default for Adaptive<R> {
    fn default() -> Self {
        let (weighting, second_moment, start) = Default::default();
        Adaptive {
            lr: 0.01,
            beta1: R::BETA1,
            beta2: 0.99,
            tau: 1e-3,
            weighting,
            second_moment,
            start,
            rule: PhantomData,
        }
    }
}

impl<R: Rule> Adaptive<R> {
    /// One number's step: the next `m`, `v` and how far the weight moves.
    fn step(&self, delta: f64, m: f64, v: f64) -> (f64, f64, f64) {
        let m = self.beta1 * m + (1.0 - self.beta1) * delta;
        let of = if self.second_moment == SecondMoment::Delta { delta } else { m };
        let v = R::second(v, of * of, self.beta2);
        (m, v, self.lr * m / (v.sqrt() + self.tau))
    }
}

impl<R: Rule> Algorithm for Adaptive<R> {
    fn about(&self) -> About {
        About { paper: "Reddi et al., Adaptive Federated Optimization, ICLR 2021", leaves: "" }
    }

    fn check(&self) -> Result<()> {
        let positive = |v: f64| v > 0.0 && v.is_finite();
        let keys = [
            ("lr", self.lr, positive(self.lr), "a positive number"),
            ("tau", self.tau, positive(self.tau), "a positive number"),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "0 ≤ beta1 < 1"),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "0 ≤ beta2 < 1"),
        ];
        match keys.iter().find(|(_, _, fine, _)| !fine) {
            Some((key, value, _, want)) => Err(Error::input(format!("algorithm.{key} = {value}: choose {want}"))),
            None => Ok(()),
        }
    }

    fn init(&self, model: &Params, _: &Now<'_>) -> Result<Named> {
        let first = Params::zeros(model.layout().clone());
        let mut second = first.clone();
        let data = second.data_mut();
        model.layout().ranges(Role::Weight).into_iter().for_each(|r| data[r].fill((self.tau * self.tau) as f32));
        Ok(Named::from([(FIRST.to_string(), first), (SECOND.to_string(), second)]))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let weight = if self.weighting == Weighting::Samples { outcome.samples as f64 } else { 1.0 };
        Ok((Reply::model(job, outcome, weight), None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        let moment = |name: &str| {
            let none = || Error::data(format!("adaptive server: the state has no {name}"));
            state.get(name).cloned().ok_or_else(none)
        };
        let (mut first, mut second) = (moment(FIRST)?, moment(SECOND)?);
        let (mean, mut next) = (got.sum(MODEL)?.mean()?, got.moved(model, MODEL, 0.0)?);
        let (m, v, w) = (first.data_mut(), second.data_mut(), next.data_mut());
        let begins = now.round == 1 && self.start == FirstMoment::Step;
        for i in model.layout().ranges(Role::Weight).into_iter().flatten() {
            let before = if begins { mean[i] } else { f64::from(m[i]) };
            let (new_m, new_v, step) = self.step(mean[i], before, f64::from(v[i]));
            (m[i], v[i]) = (new_m as f32, new_v as f32);
            w[i] = (f64::from(w[i]) + step) as f32;
        }
        Ok((next, Named::from([(FIRST.to_string(), first), (SECOND.to_string(), second)])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same step again and again: Adam's and Yogi's `v` go to its square, so the weight moves by η a round; Adagrad's
    /// `v` is n times the square, so it moves by η / √n.
    #[test]
    fn a_steady_step_moves_by_the_rate_and_adagrads_by_its_share() {
        fn far<R: Rule>(config: &Adaptive<R>) -> f64 {
            let (mut m, mut v, mut step) = (0.0, config.tau * config.tau, 0.0);
            for _ in 0..10_000 {
                (m, v, step) = config.step(-0.5, m, v);
            }
            step
        }
        assert!((far(&FedAdam { tau: 1e-9, ..Default::default() }) + 0.01).abs() < 1e-6);
        assert!((far(&FedYogi { tau: 1e-9, ..Default::default() }) + 0.01).abs() < 1e-4);
        assert!((far(&FedAdagrad { tau: 1e-9, ..Default::default() }) + 0.01 / 100.0).abs() < 1e-6);
    }

    #[test]
    fn the_second_moment_is_of_the_step_or_of_the_first_moment() {
        let delta = FedAdam::default();
        let momentum = FedAdam { second_moment: SecondMoment::Momentum, ..Default::default() };
        assert!((delta.step(2.0, 1.0, 0.0).1 - 0.01 * 4.0).abs() < 1e-12);
        assert!((momentum.step(2.0, 1.0, 0.0).1 - 0.01 * 1.1 * 1.1).abs() < 1e-12);
    }

    /// What FedMLLM's rules give, computed with its formulas, for a weight of 0.5 and three mean steps.
    #[test]
    fn the_references_rules_give_the_published_weights() {
        fn weights<R: Rule>() -> Vec<f64> {
            let config = Adaptive::<R> {
                lr: 1e-3,
                second_moment: SecondMoment::Momentum,
                start: FirstMoment::Step,
                ..Adaptive::default()
            };
            let (mut m, mut v, mut w) = (0.01, config.tau * config.tau, 0.5);
            let one = |delta: f64| {
                let step;
                (m, v, step) = config.step(delta, m, v);
                w += step;
                w
            };
            [0.01, -0.004, 0.002].map(one).to_vec()
        }
        let same = |got: Vec<f64>, want: [f64; 3]| {
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 6e-10), "{got:?}, published {want:?}");
        };
        same(weights::<Adagrad>(), [0.500_904_988, 0.500_566_482, 0.500_733_149]);
        same(weights::<Yogi>(), [0.504_142_136, 0.507_381_095, 0.510_181_044]);
        same(weights::<Adam>(), [0.504_148_218, 0.507_398_264, 0.510_213_691]);
    }

    #[test]
    fn yogi_moves_towards_the_square_from_either_side_and_rests_there() {
        assert!((Yogi::second(5.0, 1.0, 0.9) - 4.9).abs() < 1e-12);
        assert!((Yogi::second(0.5, 1.0, 0.9) - 0.6).abs() < 1e-12);
        assert_eq!(Yogi::second(1.0, 1.0, 0.9), 1.0);
    }
}
