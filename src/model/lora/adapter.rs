//! What is added to one linear layer.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::exec::lock;
use crate::key::{Key, Purpose};

/// `(alpha / rank) · B (A x)`; A is `(rank, in)`, B `(out, rank)`, both f32.
#[derive(Clone, Debug)]
pub struct Adapter {
    a: Tensor,
    b: Tensor,
    scale: f64,
    /// Which adapter of the model this is, for draws.
    number: u64,
    dropout: Option<Arc<Dropout>>,
}

/// Dropout that all adapters of one learner share: a layer that is computed again on the way back draws the same.
#[derive(Debug)]
pub struct Dropout {
    rate: f32,
    key: Mutex<Option<Key>>,
}

impl Dropout {
    /// Drops this share of an adapter's inputs while a key is set.
    pub fn new(rate: f32) -> Self {
        Dropout { rate, key: Mutex::new(None) }
    }

    /// From here on every adapter draws from `key`; nothing is dropped without one.
    pub fn set(&self, key: Option<Key>) {
        *lock(&self.key) = key;
    }

    /// 0 where an element is dropped, else 1 / (1 − rate), in the shape of `x`.
    fn mask(&self, x: &Tensor, number: u64) -> Result<Option<Tensor>> {
        let Some(key) = lock(&self.key).filter(|_| self.rate > 0.0) else { return Ok(None) };
        let mut rng = key.fold(Purpose::Dropout, number).rng();
        let kept = 1.0 / (1.0 - self.rate);
        let mask: Vec<f32> = (0..x.elem_count()).map(|_| if rng.f32() < self.rate { 0.0 } else { kept }).collect();
        Ok(Some(Tensor::from_vec(mask, x.dims(), x.device())?))
    }
}

impl Adapter {
    /// Adapter `number` of a model, from its matrices.
    pub fn new(a: Tensor, b: Tensor, scale: f64, number: u64, dropout: Option<Arc<Dropout>>) -> Self {
        Adapter { a, b, scale, number, dropout }
    }

    /// What is added to the layer's output: `(rows, in)` → `(rows, out)`, computed in f32 and given in `dtype`.
    pub fn forward(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let mut x = x.to_dtype(DType::F32)?;
        if let Some(dropout) = &self.dropout
            && let Some(mask) = dropout.mask(&x, self.number)?
        {
            x = (x * mask)?;
        }
        let y = x.matmul(&self.a.t()?)?.matmul(&self.b.t()?)?;
        Ok((y * self.scale)?.to_dtype(dtype)?)
    }

    /// `W + (alpha / rank) · B A` in the type of `W` `(out, in)`.
    pub fn folded(&self, weight: &Tensor) -> Result<Tensor> {
        let sum = (weight.to_dtype(DType::F32)? + (self.b.matmul(&self.a)? * self.scale)?)?;
        Ok(sum.to_dtype(weight.dtype())?)
    }

    /// Its matrices where they are trained.
    pub fn trained(&self) -> Vec<Tensor> {
        [&self.a, &self.b].into_iter().filter(|t| t.track_op()).cloned().collect()
    }

    /// The same without a tie to the graph and without dropout; storage is shared.
    pub fn frozen(&self) -> Self {
        Adapter { a: self.a.detach(), b: self.b.detach(), dropout: None, ..*self }
    }
}
