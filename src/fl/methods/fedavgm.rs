//! FedAvgM: Hsu, Qi and Brown, *Measuring the Effects of Non-Identical Data Distribution for Federated Visual
//! Classification*, 2019: `v ← β v + (w_t − w̄)`, `w_{t+1} ← w_t − v`, where `w̄` is FedAvg's mean and `v` is zero at
//! first.
//!
//! `form = "ema"` weighs the fresh step by 1 − β, as optimisers with an exponential mean do; it is the heavy ball with a
//! server rate of 1 − β; with `start = "step"` it begins with the first step whole, as FedMLLM's does (β 0.9). β is 0.97 as in CReFF's options: the heavy ball then moves 33 times as far as FedAvg along a
//! steady direction, so it wants a smaller client rate. The momentum covers the weights; batch-norm statistics are
//! FedAvg's. β = 0 is FedAvg, byte for byte. Nothing but the model leaves a client.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::adaptive::FirstMoment;
use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{About, Algorithm, Collected, Exchange, Named, Now};
use crate::nn::{Params, Role};

const VELOCITY: &str = "v";

/// How a fresh step enters the velocity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Whole: `v ← β v + (w − w̄)`.
    #[default]
    HeavyBall,
    /// `v ← β v + (1 − β)(w − w̄)`.
    Ema,
}

/// FedAvgM's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedAvgM {
    /// Momentum β, in [0, 1).
    pub beta: f64,
    /// How a fresh step enters the velocity.
    pub form: Form,
    /// What the velocity is before the first round; `step` has no part in the heavy ball.
    pub start: FirstMoment,
}

impl Default for FedAvgM {
    fn default() -> Self {
        FedAvgM { beta: 0.97, form: Form::HeavyBall, start: FirstMoment::Zero }
    }
}

impl FedAvgM {
    /// The next velocity, against the direction of the mean step.
    fn velocity(&self, v: f64, mean: f64) -> f64 {
        let fresh = if self.form == Form::Ema { 1.0 - self.beta } else { 1.0 };
        self.beta * v - fresh * mean
    }
}

impl Algorithm for FedAvgM {
    fn about(&self) -> About {
        About { paper: "Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019", leaves: "" }
    }

    fn check(&self) -> Result<()> {
        if self.form == Form::HeavyBall && self.start == FirstMoment::Step {
            return Err(Error::input("algorithm.start = \"step\": the heavy ball takes its first step whole anyway")
                .hint("it belongs to algorithm.form = \"ema\""));
        }
        if (0.0..1.0).contains(&self.beta) {
            return Ok(());
        }
        Err(Error::input(format!("algorithm.beta = {}: choose 0 ≤ beta < 1", self.beta)))
    }

    fn init(&self, model: &Params, _: &Now<'_>) -> Result<Named> {
        Ok(Named::from([(VELOCITY.to_string(), Params::zeros(model.layout().clone()))]))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        let velocity = state.get(VELOCITY).cloned();
        let mut velocity = velocity.ok_or_else(|| Error::data("fedavgm: the state has no velocity"))?;
        let begins = now.round == 1 && self.start == FirstMoment::Step;
        let (mean, mut next) = (got.sum(MODEL)?.mean()?, got.moved(model, MODEL, 0.0)?);
        let (v, w) = (velocity.data_mut(), next.data_mut());
        for i in model.layout().ranges(Role::Weight).into_iter().flatten() {
            // In f64 up to the weight itself, so that β = 0 rounds as FedAvg does.
            let moved = self.velocity(if begins { -mean[i] } else { f64::from(v[i]) }, mean[i]);
            w[i] = (f64::from(w[i]) - moved) as f32;
            v[i] = moved as f32;
        }
        Ok((next, Named::from([(VELOCITY.to_string(), velocity)])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What FedMLLM's rule gives, computed with its formula, for a weight of 0.5 and three mean steps.
    #[test]
    fn the_references_rule_gives_the_published_weights() {
        let config = FedAvgM { beta: 0.9, form: Form::Ema, start: FirstMoment::Step };
        let (mut v, mut w) = (-0.01, 0.5);
        let got = [0.01, -0.004, 0.002].map(|mean| {
            v = config.velocity(v, mean);
            w -= v;
            w
        });
        let want = [0.51, 0.5186, 0.52654];
        assert!(got.iter().zip(want).all(|(a, b): (&f64, f64)| (a - b).abs() < 1e-12), "{got:?}");
    }

    #[test]
    fn a_first_step_whole_is_refused_where_it_is_whole_anyway() {
        let config = FedAvgM { start: FirstMoment::Step, ..FedAvgM::default() };
        assert!(config.check().unwrap_err().to_string().contains("form = \"ema\""));
        assert!(FedAvgM { form: Form::Ema, ..config }.check().is_ok());
    }
}
