//! A decoder layer on a CPU in f32 where no graph is recorded: reading prompts and writing text.
//!
//! The same arithmetic as the composed layer (a test holds both together), on plain slices: no mask, no copies of heads
//! and a handful of parallel sections a layer, because a token's whole step takes only as long as reading the weights.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::Layer;
use super::attention::Positions;
use super::cache::LayerCache;
use crate::error::{Error, Result};
use crate::model::view::{View, plain};
use crate::nn::cpu::curves;
use crate::nn::cpu::matrix::{FEW, Matrix, mix, product_here, products};

/// Whether [`forward`] may stand for a layer on `x`.
pub(super) fn serves(layer: &Layer, x: &Tensor) -> bool {
    plain(&[x, layer.attention.q.weight(), layer.mlp.up.weight()])
}

/// `(rows, new, hidden)` → the same shape.
pub(super) fn forward(
    layer: &Layer,
    x: &Tensor,
    at: &Positions,
    cache: Option<(&mut LayerCache, usize, usize)>,
) -> Result<Tensor> {
    let (rows, new, hidden) = x.dims3()?;
    let x = x.contiguous()?;
    if layer.attention.q.weight().dim(1)? != hidden {
        return Err(Error::defect(format!("a layer of another width on {:?}", x.dims())));
    }
    let mut x = View::of(&x)?.to_vec();
    let mixed = attend(layer, &x, (rows, new), at, cache)?;
    let a = &layer.attention;
    add(&mut x, &products(&mixed, a.heads * a.head_dim, &[a.o.view()?.matrix()])[0]);
    let normed = layer.before_mlp.rows(&x)?;
    let (gate, up, down) = (layer.mlp.gate.view()?, layer.mlp.up.view()?, layer.mlp.down.view()?);
    let mut inner = products(&normed, hidden, &[gate.matrix(), up.matrix()]);
    if let [gate, up] = inner.as_mut_slice() {
        const PIECE: usize = 8192;
        match gate.len() > 2 * PIECE && rayon::current_num_threads() > 1 {
            true => gate.par_chunks_mut(PIECE).zip(up.par_chunks(PIECE)).for_each(|(g, u)| curves::gated(g, u)),
            false => curves::gated(gate, up),
        }
        add(&mut x, &products(gate, down.matrix().inputs, &[down.matrix()])[0]);
    }
    Ok(Tensor::from_vec(x, (rows, new, hidden), &Device::Cpu)?)
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// What attention gathers, token by token: `(rows, new, heads · head_dim)`.
fn attend(
    layer: &Layer,
    x: &[f32],
    (rows, new): (usize, usize),
    at: &Positions,
    cache: Option<(&mut LayerCache, usize, usize)>,
) -> Result<Vec<f32>> {
    let a = &layer.attention;
    let normed = layer.before_attention.rows(x)?;
    let (q, k, v) = (a.q.view()?, a.k.view()?, a.v.view()?);
    let made: [Vec<f32>; 3] = products(&normed, q.matrix().inputs, &[q.matrix(), k.matrix(), v.matrix()])
        .try_into()
        .map_err(|_| Error::defect("three products were asked for"))?;
    let [mut q, mut k, v] = made;
    at.turns.turn(&mut q, a.head_dim, a.heads)?;
    at.turns.turn(&mut k, a.head_dim, a.kv_heads)?;
    let heads = |x: Vec<f32>| {
        Tensor::from_vec(x, (rows, new, a.kv_heads, a.head_dim), &Device::Cpu)?.transpose(1, 2)?.contiguous()
    };
    let (k, v) = (heads(k)?, heads(v)?);
    let (k, v) = match cache {
        Some((cache, past, capacity)) => cache.append(past, capacity, &k, &v)?,
        None => (k, v),
    };
    let group = Group {
        q: &q,
        keys: Heads::of(&k)?,
        values: Heads::of(&v)?,
        heads: a.heads,
        size: a.heads / a.kv_heads,
        dim: a.head_dim,
        new,
        past: at.past,
        pads: &at.pads,
    };
    let count = rows * a.kv_heads;
    let one = |i: usize| group.mixed(i / a.kv_heads, i % a.kv_heads);
    let parts: Vec<Vec<f32>> = match rayon::current_num_threads() {
        1 => (0..count).map(one).collect(),
        _ => (0..count).into_par_iter().map(one).collect(),
    };
    Ok(group.joined(&parts, rows))
}

/// Keys or values, `(rows, kv heads, tokens, head_dim)`; the tokens of a head lie one after the other.
struct Heads<'a> {
    values: View<'a>,
    row: usize,
    head: usize,
    len: usize,
}

impl<'a> Heads<'a> {
    fn of(x: &'a Tensor) -> Result<Self> {
        let (_, _, tokens, dim) = x.dims4()?;
        let &[row, head, token, one] = x.stride() else {
            return Err(Error::defect("keys and values have four axes"));
        };
        if (token, one) != (dim, 1) {
            return Err(Error::defect(format!("keys and values with strides {:?}", x.stride())));
        }
        Ok(Heads { values: View::strided(x)?, row, head, len: tokens * dim })
    }

    fn at(&self, row: usize, head: usize) -> &[f32] {
        let from = row * self.row + head * self.head;
        &self.values[from..from + self.len]
    }
}

/// Query heads beside the keys and values that they share.
struct Group<'a> {
    /// Token by token.
    q: &'a [f32],
    keys: Heads<'a>,
    values: Heads<'a>,
    heads: usize,
    size: usize,
    dim: usize,
    new: usize,
    past: usize,
    pads: &'a [usize],
}

impl Group<'_> {
    /// What the query heads of one group gather in one row, `(size, new, dim)`.
    fn mixed(&self, row: usize, kv: usize) -> Vec<f32> {
        let (dim, new, all) = (self.dim, self.new, self.past + self.new);
        let scale = 1.0 / (dim as f32).sqrt();
        let mut q = Vec::with_capacity(self.size * new * dim);
        for head in kv * self.size..(kv + 1) * self.size {
            for token in row * new..(row + 1) * new {
                let at = (token * self.heads + head) * dim;
                q.extend_from_slice(&self.q[at..at + dim]);
            }
        }
        let mut scores = vec![0.0f32; self.size * new * all];
        product_here(&q, Matrix { weight: self.keys.at(row, kv), inputs: dim, bias: None }, &mut scores);
        let (values, mut out) = (self.values.at(row, kv), vec![0.0f32; self.size * new * dim]);
        let first = self.pads.get(row).copied().unwrap_or(0);
        let few = self.size * new <= FEW;
        for (i, (scores, out)) in scores.chunks_exact_mut(all).zip(out.chunks_exact_mut(dim)).enumerate() {
            let last = self.past + i % new + 1;
            // Padding sees nothing, and nobody looks at it.
            let seen = first.min(last)..last;
            curves::softmax(&mut scores[seen.clone()], scale);
            if few {
                mix(&scores[seen.clone()], &values[seen.start * dim..last * dim], out);
            }
            scores[..seen.start].fill(0.0);
            scores[last..].fill(0.0);
        }
        if !few {
            let mut turned = vec![0.0f32; all * dim];
            for (t, value) in values.chunks_exact(dim).enumerate() {
                value.iter().enumerate().for_each(|(i, v)| turned[i * all + t] = *v);
            }
            product_here(&scores, Matrix { weight: &turned, inputs: all, bias: None }, &mut out);
        }
        out
    }

    /// Groups put together token by token.
    fn joined(&self, parts: &[Vec<f32>], rows: usize) -> Vec<f32> {
        let (dim, new, groups) = (self.dim, self.new, self.heads / self.size);
        let mut all = vec![0.0f32; rows * new * self.heads * dim];
        for (i, part) in parts.iter().enumerate() {
            let (row, first) = (i / groups, i % groups * self.size);
            for (j, values) in part.chunks_exact(dim).enumerate() {
                let at = ((row * new + j % new) * self.heads + first + j / new) * dim;
                all[at..at + dim].copy_from_slice(values);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::llama::{Cache, Llama, LlamaConfig, Names};
    use crate::model::weights::{Scope, Trainable};
    use candle_core::DType;

    fn model(kv: usize, bias: bool) -> Llama {
        let config = LlamaConfig {
            vocab_size: 11,
            hidden_size: 36,
            intermediate_size: 50,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            num_key_value_heads: kv,
            head_dim: 6,
            attention_bias: bias,
            initializer_range: 0.3,
            ..LlamaConfig::default()
        };
        let source = Trainable::fresh(crate::key::Key::from_seed(4), &Device::Cpu);
        Llama::load(&Scope::root(&source), &config, &Names::default()).unwrap().frozen()
    }

    /// Reads eleven tokens of two rows, then three times one more; both ways, beside each other.
    #[test]
    fn it_equals_the_composed_layer_with_and_without_cache_groups_and_padding() {
        for (kv, bias, pads) in [(6, true, [0, 0]), (2, false, [0, 0]), (3, true, [4, 0])] {
            let m = model(kv, bias);
            let mut caches = [(); 2].map(|()| Cache::new(m.config(), pads.to_vec(), 20).unwrap());
            for new in [11, 1, 1, 1] {
                let wave = (0..2 * new * 36).map(|i| (i as f32 * 0.83 + new as f32).sin()).collect();
                let x = Tensor::from_vec(wave, (2, new, 36), &Device::Cpu).unwrap();
                let at = m.positions(caches[0].tokens(), new, &pads).unwrap();
                let layer = &m.layers[1];
                assert!(serves(layer, &x));
                let [one, two] = &mut caches;
                let past = one.tokens();
                let a = forward(layer, &x, &at, Some((&mut one.layers[1], past, 20))).unwrap();
                let b = layer.composed(&x, &at, Some((&mut two.layers[1], past, 20))).unwrap();
                let mut pairs = vec![(a, b)];
                if past == 0 {
                    pairs.push((forward(layer, &x, &at, None).unwrap(), layer.composed(&x, &at, None).unwrap()));
                }
                for (a, b) in pairs {
                    for (row, &pad) in pads.iter().enumerate() {
                        let pad = pad.saturating_sub(past);
                        let seen = |t: &Tensor| t.get(row).unwrap().narrow(0, pad, new - pad).unwrap();
                        let apart = (seen(&a) - seen(&b)).unwrap().abs().unwrap().max_all().unwrap();
                        let apart = apart.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap();
                        assert!(apart < 2e-5, "{kv} key heads, padding {pads:?}, {new} after {past}: {apart}");
                    }
                }
                caches.iter_mut().for_each(|c| c.advance(new));
            }
        }
    }
}
