//! SCAFFOLD: Karimireddy et al., *Stochastic Controlled Averaging for Federated Learning*, ICML 2020, Algorithm 1
//! with option II.
//!
//! Client: `y ← y − η (g(y) − c_k + c)`; `c_k⁺ = c_k − c + (x − y) / (K η)` after K steps.
//! Server: `x ← x + η_g · mean(y − x)`; `c ← c + |S|/N · mean(c_k⁺ − c_k)`. Means are uniform over the cohort, as
//! in the paper, so with zero variates it is FedAvg only for clients of equal size. Control variates cover the
//! weights; batch-norm statistics are averaged uniformly.

use serde::{Deserialize, Serialize};

use super::brief::{Brief, Job, Outcome, Part, PartKind, Reply, Slot, Step, Term, difference};
use super::{Algorithm, ClientId, Collected, Exchange, Local, Named, Needs};
use crate::error::{Error, Result};
use crate::nn::{Params, Role};

const CONTROL: &str = "control";

/// SCAFFOLD's knob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    fn needs(&self) -> Needs {
        Needs { kept: true, plain_sgd: true }
    }

    fn init(&self, model: &Params) -> Result<Named> {
        Ok(Named::from([(CONTROL.to_string(), Params::zeros(model.layout().clone()))]))
    }

    fn brief(&self, _: &Params, state: &Named, _: &Exchange, local: &Local<'_>, _: ClientId) -> Result<Brief> {
        let control = state.get(CONTROL).cloned().ok_or_else(|| Error::data("scaffold: the state has no control"))?;
        let slots = vec![Slot::Sent(CONTROL, control), Slot::Kept(CONTROL)];
        let terms = vec![
            Term::CrossEntropy,
            Term::Linear { coefficient: 1.0, of: 1 },
            Term::Linear { coefficient: -1.0, of: 2 },
        ];
        Ok(Brief::train(local, slots, terms))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let Some(Step::Train(train)) = job.brief.steps.first() else {
            return Err(Error::defect("scaffold: a brief without training"));
        };
        let (control, own) = (job.slot(1)?, job.slot(2)?);
        let scale = outcome.steps as f32 * train.optimiser.lr() * train.rate;
        let step = difference(&outcome.params, &job.model);
        let mut next = own.clone();
        if scale > 0.0 {
            for range in next.layout().clone().ranges(Role::Weight) {
                for i in range {
                    next.data_mut()[i] += -control.data()[i] - step.data()[i] / scale;
                }
            }
        }
        let moved = difference(&next, &own);
        let mut reply = Reply::model(job, &outcome, 1.0);
        reply.parts.push(Part { name: CONTROL, kind: PartKind::Delta, data: moved, weight: 1.0 });
        Ok((reply, Some(Named::from([(CONTROL.to_string(), next)]))))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        _: &Exchange,
        got: &Collected,
        local: &Local<'_>,
    ) -> Result<(Params, Named)> {
        let control = state.get(CONTROL).ok_or_else(|| Error::data("scaffold: the state has no control"))?;
        let share = got.replies as f64 / local.clients as f64;
        let next = got.moved(model, "model", f64::from(self.server_lr))?;
        Ok((next, Named::from([(CONTROL.to_string(), got.moved(control, CONTROL, share)?)])))
    }
}
