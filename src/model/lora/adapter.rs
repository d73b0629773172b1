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

    /// 0 where one of `len` elements is dropped, else 1 / (1 − rate).
    fn mask(&self, len: usize, number: u64) -> Option<Vec<f32>> {
        let key = lock(&self.key).filter(|_| self.rate > 0.0)?;
        let mut rng = key.fold(Purpose::Dropout, number).rng();
        let kept = 1.0 / (1.0 - self.rate);
        Some((0..len).map(|_| if rng.f32() < self.rate { 0.0 } else { kept }).collect())
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
        if let Some(mask) = self.mask(x.elem_count()) {
            x = (&x * Tensor::from_vec(mask, x.dims(), x.device())?)?;
        }
        let y = x.matmul(&self.a.t()?)?.matmul(&self.b.t()?)?;
        Ok((y * self.scale)?.to_dtype(dtype)?)
    }

    /// What an input of `len` elements is multiplied by, if anything is dropped now.
    pub(super) fn mask(&self, len: usize) -> Option<Vec<f32>> {
        self.dropout.as_ref()?.mask(len, self.number)
    }

    /// A and B.
    pub(super) fn matrices(&self) -> (&Tensor, &Tensor) {
        (&self.a, &self.b)
    }

    /// alpha / rank.
    pub(super) fn scale(&self) -> f32 {
        self.scale as f32
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
