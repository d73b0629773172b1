//! What travels between server and clients, as data: briefs, jobs, outcomes, replies.

use std::sync::Arc;

use super::{ClientId, FederatedConfig, Local, Named};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::{OptimiserConfig, Params};

/// An input of a brief: its index in [`Brief::slots`].
pub type SlotId = usize;

/// Where an input of the local work comes from.
#[derive(Clone, Debug)]
pub enum Slot {
    /// The model that the server sends to everybody.
    Start,
    /// Something else that the server sends: counted in the bytes down.
    Sent(&'static str, Params),
    /// What this client kept; zeros where it kept nothing yet.
    Kept(&'static str),
}

/// A term of the local objective.
#[derive(Clone, Debug)]
pub enum Term {
    /// `mean CE(z, y)`.
    CrossEntropy,
    /// `μ/2 ‖w − slot‖²` over the weights.
    Proximal {
        /// μ ≥ 0.
        mu: f32,
        /// The anchor.
        to: SlotId,
    },
    /// `coefficient · ⟨w, slot⟩`: adds a constant to the gradient of the weights.
    Linear {
        /// Factor.
        coefficient: f32,
        /// The added vector.
        of: SlotId,
    },
}

/// A piece of local work.
#[derive(Clone, Debug)]
pub enum Step {
    /// Train from a slot's parameters.
    Train(Train),
}

/// Local training.
#[derive(Clone, Debug)]
pub struct Train {
    /// Where it starts.
    pub from: SlotId,
    /// The objective is the sum of these.
    pub terms: Vec<Term>,
    /// Passes over the client's data.
    pub epochs: usize,
    /// Samples in a step; 0 for all.
    pub batch_size: usize,
    /// Fresh for this step.
    pub optimiser: OptimiserConfig,
    /// Learning-rate factor of the round.
    pub rate: f32,
}

/// What the server sends: inputs and steps.
#[derive(Clone, Debug)]
pub struct Brief {
    /// The inputs.
    pub slots: Vec<Slot>,
    /// The work, in order.
    pub steps: Vec<Step>,
}

impl Brief {
    /// The usual brief: train from the server's model (slot 0) for the configured epochs.
    pub fn train(local: &Local<'_>, others: Vec<Slot>, terms: Vec<Term>) -> Self {
        let FederatedConfig { local_epochs, batch_size, optimiser, .. } = local.config;
        let mut slots = vec![Slot::Start];
        slots.extend(others);
        let step = Train {
            from: 0,
            terms,
            epochs: *local_epochs,
            batch_size: *batch_size,
            optimiser: optimiser.clone(),
            rate: local.config.rate(local.round),
        };
        Brief { slots, steps: vec![Step::Train(step)] }
    }

    /// Bytes that the server sends to one client: the model and every `Sent` slot.
    pub fn bytes_down(&self, model: &Params) -> u64 {
        let of = |slot: &Slot| match slot {
            Slot::Start => 4 * model.data().len() as u64,
            Slot::Sent(_, params) => 4 * params.data().len() as u64,
            Slot::Kept(_) => 0,
        };
        self.slots.iter().map(of).sum()
    }
}

/// One client's work in a round.
#[derive(Clone)]
pub struct Job {
    /// Who.
    pub client: ClientId,
    /// Which round, from 1.
    pub round: usize,
    /// What to do.
    pub brief: Brief,
    /// The server's model.
    pub model: Params,
    /// What the client kept.
    pub kept: Option<Arc<Named>>,
    /// Randomness of this client in this round.
    pub key: Key,
}

impl Job {
    /// The parameters behind a slot.
    pub fn slot(&self, id: SlotId) -> Result<Params> {
        match self.brief.slots.get(id) {
            Some(Slot::Start) => Ok(self.model.clone()),
            Some(Slot::Sent(_, params)) => Ok(params.clone()),
            Some(Slot::Kept(name)) => {
                let kept = self.kept.as_ref().and_then(|k| k.get(*name));
                Ok(kept.cloned().unwrap_or_else(|| Params::zeros(self.model.layout().clone())))
            }
            None => Err(Error::defect(format!("brief: slot {id} of {}", self.brief.slots.len()))),
        }
    }
}

/// What local work produced.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The trained parameters, buffers included.
    pub params: Params,
    /// Samples the client holds.
    pub samples: usize,
    /// Optimiser steps taken.
    pub steps: usize,
    /// Mean cross-entropy over the samples seen in training.
    pub loss: f64,
}

/// What a part of a reply is, so that clipping, noise and compression know what they touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// A step: weights as differences from what was sent, buffers as values.
    Delta,
    /// A value.
    Value,
}

/// A named part of a reply.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name: `model`, `control`.
    pub name: &'static str,
    /// Step or value.
    pub kind: PartKind,
    /// The numbers.
    pub data: Params,
    /// Its weight in the mean.
    pub weight: f64,
}

/// What a client sends back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The parts.
    pub parts: Vec<Part>,
    /// Samples and mean training loss, for the record.
    pub samples: usize,
    /// Mean training loss.
    pub loss: f64,
}

impl Reply {
    /// The usual reply: the model as a step, with this weight in the mean.
    pub fn model(job: &Job, outcome: &Outcome, weight: f64) -> Self {
        let data = difference(&outcome.params, &job.model);
        let part = Part { name: "model", kind: PartKind::Delta, data, weight };
        Reply { parts: vec![part], samples: outcome.samples, loss: outcome.loss }
    }

    /// Bytes that the client sends.
    pub fn bytes_up(&self) -> u64 {
        self.parts.iter().map(|p| 4 * p.data.data().len() as u64).sum()
    }
}

/// `a − b` in the weights, `a` in the buffers.
pub fn difference(a: &Params, b: &Params) -> Params {
    let mut out = a.clone();
    let ranges = a.layout().ranges(crate::nn::Role::Weight);
    let data = out.data_mut();
    for range in ranges {
        data[range.clone()].iter_mut().zip(&b.data()[range]).for_each(|(x, y)| *x -= y);
    }
    out
}
