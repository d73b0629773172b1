//! SCAFFOLD: Karimireddy et al., *Stochastic Controlled Averaging for Federated Learning*, ICML 2020, Algorithm 1
//! with option II.
//!
//! Client: `y ← y − η (g(y) − c_k + c)`; `c_k⁺ = c_k − c + (x − y) / (K η)` after K steps.
//! Server: `x ← x + η_g · mean(y − x)`; `c ← c + |S|/N · mean(c_k⁺ − c_k)`. Means are uniform over the cohort, as
//! in the paper, so with zero variates it is FedAvg only for clients of equal size. Control variates cover the
//! weights; batch-norm statistics are averaged uniformly.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::reply::difference;
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collected, Cost, Exchange, Job, Named, Needs, Now, Outcome, Part, PartKind, Reply,
    Sizes, Slot, Step,
};
use crate::nn::{Params, Pull, Role};

const CONTROL: &str = "control";

/// SCAFFOLD's knob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scaffold {
    /// The server's learning rate η_g.
    pub server_lr: f32,
}

impl Default for Scaffold {
    fn default() -> Self {
        Scaffold { server_lr: 1.0 }
    }
}

impl Algorithm for Scaffold {
    fn about(&self) -> About {
        let leaves = "the change of the client's control variate";
        About { paper: "Karimireddy et al., Stochastic Controlled Averaging, ICML 2020", leaves }
    }

    fn needs(&self) -> Needs {
        Needs { kept: true, plain_sgd: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        match self.server_lr.is_finite() && self.server_lr > 0.0 {
            true => Ok(()),
            false => Err(Error::input(format!("algorithm.server_lr = {}: choose a rate above 0", self.server_lr))),
        }
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        Cost { down: 2 * sizes.model, up: 2 * sizes.model, extra: 0 }
    }

    fn init(&self, model: &Params, _: &Now<'_>) -> Result<Named> {
        Ok(Named::from([(CONTROL.to_string(), Params::zeros(model.layout().clone()))]))
    }

    fn brief(&self, _: &Params, state: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        let control = state.get(CONTROL).cloned().ok_or_else(|| Error::data("scaffold: the state has no control"))?;
        let zeros = Params::zeros(control.layout().clone());
        let mut train = Brief::training(now);
        train.pulls = vec![Pull::Linear { coefficient: 1.0, of: 1 }, Pull::Linear { coefficient: -1.0, of: 2 }];
        Ok(Brief::train(train, vec![Slot::Sent(CONTROL.into(), control), Slot::Kept(CONTROL.into(), zeros)]))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let Some(Step::Train(train)) = job.brief.steps.first() else {
            return Err(Error::defect("scaffold: a brief without training"));
        };
        let (control, own) = (job.slot(1, &outcome.found)?, job.slot(2, &outcome.found)?);
        let scale = outcome.steps as f32 * train.optimiser.lr() * train.rate.at(0.0);
        let mut reply = Reply::model(job, outcome, 1.0);
        let step = &reply.part(MODEL)?.data;
        let mut next = own.clone();
        if scale > 0.0 {
            for range in next.layout().clone().ranges(Role::Weight) {
                let data = &mut next.data_mut()[range.clone()];
                let moved = control.data()[range.clone()].iter().zip(&step.data()[range]);
                data.iter_mut().zip(moved).for_each(|(n, (c, s))| *n += -c - s / scale);
            }
        }
        let moved = difference(next.clone(), &own);
        reply.parts.push(Part { name: CONTROL.into(), kind: PartKind::Delta, data: moved, weight: 1.0 });
        Ok((reply, Some(Named::from([(CONTROL.to_string(), next)]))))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        let control = state.get(CONTROL).ok_or_else(|| Error::data("scaffold: the state has no control"))?;
        let share = got.replies as f64 / now.clients as f64;
        let next = got.moved(model, MODEL, f64::from(self.server_lr))?;
        Ok((next, Named::from([(CONTROL.to_string(), got.moved(control, CONTROL, share)?)])))
    }
}
