//! Grouped-query attention (Ainslie et al., 2023) with rotary positions and a key-value cache.

use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Tensor};

use super::LlamaConfig;
use super::cache::LayerCache;
use super::rope::Turns;
use crate::error::Result;
use crate::model::layers::{Linear, softmax};
use crate::model::weights::Scope;

/// Low enough to vanish in a softmax, finite so that a row that may attend to nothing stays finite.
const HIDDEN: f32 = -1e30;

/// What all layers of one pass share.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    /// Rotations of the new tokens.
    pub turns: Turns,
    /// Tokens before the new ones.
    pub past: usize,
    /// Tokens of padding at the start of each row; empty where there is none.
    pub pads: Vec<usize>,
    mask: Arc<OnceLock<Option<Tensor>>>,
}

impl Positions {
    /// `new` tokens after `past`, in rows that begin with `pads[r]` tokens of padding and whose positions run
    /// `shifts[r]` ahead of their tokens; without shifts none does.
    pub fn new(
        frequencies: &[f32],
        (past, new): (usize, usize),
        pads: &[usize],
        shifts: &[i64],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let one = pads.iter().all(|&p| p == 0) && shifts.iter().all(|&s| s == 0);
        let row = |i: usize| {
            let ahead = shifts.get(i).copied().unwrap_or(0) - pads.get(i).copied().unwrap_or(0) as i64;
            (past..past + new).map(|p| (p as i64 + ahead).max(0) as u32).collect()
        };
        let positions: Vec<Vec<u32>> = (0..if one { 1 } else { pads.len().max(shifts.len()) }).map(row).collect();
        Ok(Self::turned(Turns::new(frequencies, &positions, dtype, device)?, past, pads))
    }

    /// With turns of their own.
    pub fn turned(turns: Turns, past: usize, pads: &[usize]) -> Self {
        let pads = if pads.iter().any(|&p| p > 0) { pads.to_vec() } else { Vec::new() };
        Positions { turns, past, pads, mask: Arc::default() }
    }

    /// 0 or [`HIDDEN`], f32 `(rows or 1, 1, 1, new, all)`; none when a single token may see everything. Made once.
    fn mask(&self, new: usize, device: &Device) -> Result<Option<&Tensor>> {
        if self.mask.get().is_none() {
            let made = self.made_mask(new, device)?;
            let _ = self.mask.set(made);
        }
        Ok(self.mask.get().and_then(Option::as_ref))
    }

    fn made_mask(&self, new: usize, device: &Device) -> Result<Option<Tensor>> {
        if new == 1 && self.pads.is_empty() {
            return Ok(None);
        }
        let pads = if self.pads.is_empty() { &[0][..] } else { &self.pads };
        let all = self.past + new;
        let mut mask = vec![HIDDEN; pads.len() * new * all];
        for (row, &pad) in mask.chunks_mut((new * all).max(1)).zip(pads) {
            for (i, line) in row.chunks_mut(all.max(1)).enumerate() {
                line[..=self.past + i].fill(0.0);
                line[..pad.min(all)].fill(HIDDEN);
            }
        }
        Ok(Some(Tensor::from_vec(mask, (pads.len(), 1, 1, new, all), device)?))
    }
}

/// One layer's attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Attention {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj`.
    pub fn load(at: &Scope, c: &LlamaConfig) -> Result<Self> {
        let (d, q, kv) = (c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let part =
            |name: &str, input, output, bias| Linear::load(&at.pp(name), input, output, c.initializer_range, bias);
        Ok(Attention {
            q: part("q_proj", d, q, c.attention_bias)?,
            k: part("k_proj", d, kv, c.attention_bias)?,
            v: part("v_proj", d, kv, c.attention_bias)?,
            o: part("o_proj", q, d, c.output_bias)?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
        })
    }

    /// `(rows, new, hidden)` → the same shape.
    pub fn forward(
        &self,
        x: &Tensor,
        at: &Positions,
        cache: Option<(&mut LayerCache, usize, usize)>,
    ) -> Result<Tensor> {
        let (rows, new, _) = x.dims3()?;
        let split = |x: Tensor, heads| x.reshape((rows, new, heads, self.head_dim))?.transpose(1, 2);
        let q = at.turns.apply(&split(self.q.forward(x)?, self.heads)?)?;
        let k = at.turns.apply(&split(self.k.forward(x)?, self.kv_heads)?)?;
        let v = split(self.v.forward(x)?, self.kv_heads)?;
        let (k, v) = match cache {
            Some((cache, past, capacity)) => cache.append(past, capacity, &k, &v)?,
            None => (k, v.contiguous()?),
        };
        let mixed = self.mix(&q, &k, &v, at.mask(new, x.device())?)?;
        let joined = mixed.transpose(1, 2)?.reshape((rows, new, self.heads * self.head_dim))?;
        self.o.forward(&joined)
    }

    /// Every query head of a group meets its one key head: groups are stacked along the tokens.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (rows, _, new, dim) = q.dims4()?;
        let (kv, group, all) = (self.kv_heads, self.heads / self.kv_heads, k.dim(2)?);
        let q = (q * (1.0 / (self.head_dim as f64).sqrt()))?.reshape((rows, kv, group * new, dim))?;
        let scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?;
        let scores = match mask {
            Some(mask) => {
                let apart = scores.reshape((rows, kv, group, new, all))?.to_dtype(DType::F32)?;
                apart.broadcast_add(mask)?.reshape((rows, kv, group * new, all))?
            }
            None => scores,
        };
        let p = softmax(&scores)?.to_dtype(v.dtype())?;
        Ok(p.matmul(v)?.reshape((rows, self.heads, new, dim))?)
    }

    /// Its tensors with their names under `name`.
    pub fn tensors(&self, name: &str, out: &mut Vec<(String, Tensor)>) {
        for (part, layer) in [("q", &self.q), ("k", &self.k), ("v", &self.v), ("o", &self.o)] {
            layer.tensors(&format!("{name}.{part}_proj"), out);
        }
    }

    /// The same layer without a tie to the graph.
    pub fn frozen(&self) -> Self {
        Attention { q: self.q.frozen(), k: self.k.frozen(), v: self.v.frozen(), o: self.o.frozen(), ..*self }
    }
}
