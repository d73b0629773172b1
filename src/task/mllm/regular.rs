//! FedMLLM's regularisation (its `CPMTrainerReg`): `L + (μ/2) λ Σ_{l=s}^{n−1−s} Σ_{θ in LoRA of layer l} ‖θ − θ_global‖²`.
//!
//! With λ = 1 and s = 0 it is FedProx on the adapters. The published code has n − 1 = 27 written out; here n is the model's
//! number of layers. What belongs to no layer of the language model (embedding, resampler) is never held. The paper calls λ
//! and s adaptive; in its code they are two constants of the command line, and only (0.1, 4) is published.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collected, Cost, Exchange, Job, Loss, Named, Needs, Now, Outcome, Reply, Sizes,
    Step,
};
use crate::model::lora::Plan;
use crate::nn::{Params, Pull, Ranges};

/// The `task.regularise` section.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegulariseConfig {
    /// μ: half of it multiplies the squared distance.
    pub mu: f32,
    /// λ: the strategy's own factor; 0 switches it off, 0.1 is the published one.
    pub lambda: f32,
    /// s: outer layers of the language model left free, on each side.
    pub skip: usize,
}

impl Default for RegulariseConfig {
    fn default() -> Self {
        RegulariseConfig { mu: 0.01, lambda: 0.0, skip: 4 }
    }
}

impl RegulariseConfig {
    /// Refuses values out of range.
    pub fn check(&self) -> Result<()> {
        let fine = |v: f32| v.is_finite() && v >= 0.0;
        match fine(self.mu) && fine(self.lambda) {
            true => Ok(()),
            false => Err(Error::input(format!(
                "task.regularise: mu = {}, lambda = {}: numbers of 0 and more",
                self.mu, self.lambda
            ))),
        }
    }

    /// What pulls at the adapters of `plan` towards slot 0, the server's; nothing where it is off. `layers` are the
    /// language model's.
    pub fn pull(&self, plan: &Plan, layers: usize) -> Result<Option<Pull<usize>>> {
        if self.lambda == 0.0 || self.mu == 0.0 {
            return Ok(None);
        }
        let held = |layer: usize| layer >= self.skip && layer + self.skip < layers;
        let of = |name: &str| plan.layer(name).is_some_and(held);
        let mut over: Ranges = Vec::new();
        for entry in plan.layout().entries().iter().filter(|e| of(&e.name)) {
            match over.last_mut() {
                Some(last) if last.end == entry.offset => last.end = entry.range().end,
                _ => over.push(entry.range()),
            }
        }
        if over.is_empty() {
            return Err(Error::input(format!(
                "task.regularise.skip = {}: of {layers} layers none is left between",
                self.skip
            ))
            .hint("lower task.regularise.skip"));
        }
        Ok(Some(Pull::Proximal { mu: self.mu * self.lambda, to: 0, over: Some(over) }))
    }
}

/// Any method, its clients' training held by the regularisation's pull.
pub struct Regularised<'a> {
    /// The method.
    pub of: &'a dyn Algorithm,
    /// What is added to each training by the task's own loss; none leaves the method as it is.
    pub pull: Option<Pull<usize>>,
}

impl Algorithm for Regularised<'_> {
    fn about(&self) -> About {
        self.of.about()
    }

    fn needs(&self) -> Needs {
        self.of.needs()
    }

    fn check(&self) -> Result<()> {
        self.of.check()
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        self.of.cost(sizes)
    }

    fn init(&self, model: &Params, now: &Now<'_>) -> Result<Named> {
        self.of.init(model, now)
    }

    fn exchanges(&self, state: &Named, now: &Now<'_>) -> Vec<Exchange> {
        self.of.exchanges(state, now)
    }

    fn brief(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        now: &Now<'_>,
        client: ClientId,
    ) -> Result<Brief> {
        let mut brief = self.of.brief(model, state, exchange, now, client)?;
        for step in &mut brief.steps {
            if let Step::Train(train) = step
                && let Loss::Task = train.loss
            {
                train.pulls.extend(self.pull.clone());
            }
        }
        Ok(brief)
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        self.of.reply(job, outcome)
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        self.of.server(model, state, exchange, got, now)
    }

    fn deploy<'m>(&self, model: &'m Params, state: &Named, now: &Now<'_>) -> Result<Cow<'m, Params>> {
        self.of.deploy(model, state, now)
    }

    fn personal(&self, model: &Params, deployed: &Params, kept: &Named, now: &Now<'_>) -> Result<Option<Params>> {
        self.of.personal(model, deployed, kept, now)
    }
}
