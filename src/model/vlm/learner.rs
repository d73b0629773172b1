//! Adapters as variables beside a shared frozen base: losses and flat gradients.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::{Sample, Vlm};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::model::graph::Sink;
use crate::model::lora::{Dropout, Plan};
use crate::nn::params::Params;

/// One worker's model: the folder's frozen tensors and adapters of its own.
pub struct Learner {
    vlm: Arc<dyn Vlm>,
    plan: Plan,
    /// In the layout's order.
    vars: Vec<Var>,
    dropout: Arc<Dropout>,
    recompute: bool,
}

/// A batch's loss and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// Mean over all target tokens of the batch, in nats.
    pub loss: f64,
    /// Target tokens: what the mean weighs where batches are added.
    pub tokens: usize,
    /// By what is trained, in the plan's layout.
    pub gradient: Vec<f32>,
}

impl Learner {
    pub(super) fn new(vlm: Arc<dyn Vlm>, plan: Plan, vars: Vec<Var>, dropout: Arc<Dropout>) -> Self {
        Learner { vlm, plan, vars, dropout, recompute: true }
    }

    /// The model with the adapters as they are now. Slower at answering than
    /// [`Opened::merged`](super::Opened::merged).
    pub fn vlm(&self) -> &dyn Vlm {
        &*self.vlm
    }

    /// What is trained.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether layers are computed again on the way back, so that memory holds the activations of one layer (the
    /// default), or all are kept.
    pub fn recompute(&mut self, yes: bool) {
        self.recompute = yes;
    }

    /// Puts values in place.
    pub fn set(&self, params: &Params) -> Result<()> {
        if params.layout() != self.plan.layout() {
            return Err(Error::defect("adapter values of another layout"));
        }
        for (var, entry) in self.vars.iter().zip(params.layout().entries()) {
            let values = &params.data()[entry.range()];
            var.set(&Tensor::from_slice(values, entry.shape.as_slice(), var.device())?)?;
        }
        Ok(())
    }

    /// The values as they are.
    pub fn params(&self) -> Result<Params> {
        let mut data = Vec::with_capacity(self.plan.layout().len());
        for var in &self.vars {
            data.extend(var.as_tensor().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Params::new(self.plan.layout().clone(), data)
    }

    /// The mean loss of a batch's target tokens, in nats, without dropout.
    pub fn loss(&self, samples: &[&Sample]) -> Result<f64> {
        // A sink that keeps nothing: what layers compute is not wanted again.
        let loss = self.vlm.loss(samples, Some(&Arc::new(Sink::new(false))))?;
        Ok(f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?))
    }

    /// The mean loss of a batch's target tokens and its gradient. Dropout, if there is any, draws from `key`.
    pub fn gradients(&self, samples: &[&Sample], key: Key) -> Result<Gradient> {
        let outside = self.plan.layout().entries().iter().find(|e| !self.plan.always(&e.name));
        if let Some(entry) = outside.filter(|_| samples.iter().any(|s| s.prompt.features.is_some())) {
            return Err(Error::input(format!(
                "training: {} is trained, and a sample's picture was looked at before",
                entry.name
            ))
            .hint("samples keep their pixels where anything before the language model is trained"));
        }
        let sink = Arc::new(Sink::new(!self.recompute));
        self.dropout.set(Some(key));
        let done = self.vlm.loss(samples, Some(&sink)).and_then(|loss| self.back(&loss, &sink));
        self.dropout.set(None);
        let (loss, gradient) = done?;
        Ok(Gradient { loss, tokens: samples.iter().map(|s| s.targets.len()).sum(), gradient })
    }

    fn back(&self, loss: &Tensor, sink: &Sink) -> Result<(f64, Vec<f32>)> {
        let mut store = loss.backward()?;
        let mut flat = Vec::with_capacity(self.plan.layout().len());
        for (var, entry) in self.vars.iter().zip(self.plan.layout().entries()) {
            let leaf = var.as_tensor();
            let grad = match (store.remove(leaf), sink.take(leaf)) {
                (Some(a), Some(b)) => Some((a + b)?),
                (one, other) => one.or(other),
            };
            match grad {
                Some(grad) => {
                    flat.extend(grad.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
                }
                // A batch without a picture does not reach what only pictures go through.
                None if !self.plan.always(&entry.name) => flat.resize(flat.len() + entry.len(), 0.0),
                None => return Err(Error::defect(format!("training: {} got no gradient", entry.name))),
            }
        }
        Ok((f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?), flat))
    }
}
