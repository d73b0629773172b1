//! Keys and values of the tokens already read, so that a new token costs one step.

use candle_core::Tensor;

use super::LlamaConfig;
use crate::error::{Error, Result};

/// Keys and values of all layers for the rows of one batch.
///
/// Rows of different length are aligned at their ends: row r begins with `pads[r]` tokens that nobody attends to.
#[derive(Debug)]
pub struct Cache {
    pub(super) layers: Vec<LayerCache>,
    tokens: usize,
    capacity: usize,
    pads: Vec<usize>,
    shifts: Vec<i64>,
}

/// Keys and values of one layer, `(rows, kv heads, capacity, head_dim)`.
#[derive(Debug, Default)]
pub(super) struct LayerCache {
    pair: Option<(Tensor, Tensor)>,
}

impl Cache {
    /// For `pads.len()` rows of at most `capacity` tokens, padding included. Memory is taken layer by layer on the
    /// first step. A capacity beyond the model's context is refused.
    pub fn new(config: &LlamaConfig, pads: Vec<usize>, capacity: usize) -> Result<Self> {
        if capacity > config.max_position_embeddings {
            return Err(Error::input(format!(
                "a sequence of {capacity} tokens exceeds the model's context of {}",
                config.max_position_embeddings
            ))
            .hint("shorten the text, or ask for fewer new tokens"));
        }
        let layers = (0..config.num_hidden_layers).map(|_| LayerCache::default()).collect();
        let shifts = vec![0; pads.len()];
        Ok(Cache { layers, tokens: 0, capacity, pads, shifts })
    }

    /// From here on the positions of row r run `shifts[r]` ahead of its tokens.
    pub(super) fn shift(&mut self, shifts: Vec<i64>) -> Result<()> {
        if shifts.len() != self.pads.len() {
            return Err(Error::defect(format!("cache of {} rows, {} shifts", self.pads.len(), shifts.len())));
        }
        self.shifts = shifts;
        Ok(())
    }

    /// How far the positions of each row run ahead of its tokens.
    pub(super) fn shifts(&self) -> &[i64] {
        &self.shifts
    }

    /// Tokens in it, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Most tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens of padding at the start of each row.
    pub fn pads(&self) -> &[usize] {
        &self.pads
    }

    /// Refuses `more` tokens that do not fit.
    pub(super) fn room(&self, rows: usize, more: usize) -> Result<()> {
        if rows != self.pads.len() {
            return Err(Error::defect(format!("cache of {} rows given {rows}", self.pads.len())));
        }
        if self.tokens + more > self.capacity {
            return Err(Error::defect(format!(
                "cache of {} tokens holds {} and is given {more} more",
                self.capacity, self.tokens
            )));
        }
        Ok(())
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Keeps only these rows, in this order: finished ones need no more work.
    pub fn keep(&mut self, rows: &[usize]) -> Result<()> {
        let of = |&r: &usize| Some((*self.pads.get(r)?, *self.shifts.get(r)?));
        let kept: Option<(Vec<usize>, Vec<i64>)> = rows.iter().map(of).collect();
        (self.pads, self.shifts) = kept.ok_or_else(|| Error::defect(format!("cache: no such rows: {rows:?}")))?;
        for layer in &mut self.layers {
            let Some((k, v)) = layer.pair.take() else { continue };
            let ids: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
            let ids = Tensor::new(ids, k.device())?;
            layer.pair = Some((k.index_select(&ids, 0)?, v.index_select(&ids, 0)?));
        }
        Ok(())
    }
}

impl LayerCache {
    /// Appends `(rows, kv heads, new, head_dim)` after `past` tokens; returns all keys and values so far as views.
    pub(super) fn append(&mut self, past: usize, capacity: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, heads, new, dim) = k.dims4()?;
        if self.pair.is_none() {
            let empty = || Tensor::zeros((rows, heads, capacity, dim), k.dtype(), k.device());
            self.pair = Some((empty()?, empty()?));
        }
        let Some((keys, values)) = &self.pair else { return Err(Error::defect("cache: not there")) };
        keys.slice_set(&k.contiguous()?, 2, past)?;
        values.slice_set(&v.contiguous()?, 2, past)?;
        Ok((keys.narrow(2, 0, past + new)?, values.narrow(2, 0, past + new)?))
    }
}
