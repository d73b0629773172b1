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
use crate::nn::kernels::attend::{self, Head, Tokens};
use crate::nn::kernels::curves;
use crate::nn::kernels::matrix::{After, FEW, Matrix, MatrixProduct, Spread, groups, mix, products, run};
use crate::nn::kernels::spare::Spare;

/// Whether [`forward`] may stand for a layer on `x`.
pub(super) fn serves(layer: &Layer, x: &Tensor) -> bool {
    let linear = layer.linear();
    plain(&[x])
        && linear.iter().all(|(_, l)| plain(&[l.weight()]) && l.adapter().is_none())
        && layer.trained().is_empty()
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
    let inner = layer.attention.heads * layer.attention.head_dim;
    match groups(rows * new, TOKENS, rayon::current_num_threads()) {
        Some(groups) if rows * new > FEW => {
            let (mut parts, mut rest) = (Vec::new(), x.as_mut_slice());
            for group in groups {
                let (part, tail) = rest.split_at_mut(group.len() * hidden);
                parts.push((part, &mixed[group.start * inner..group.end * inner]));
                rest = tail;
            }
            parts.into_par_iter().try_for_each(|(x, mixed)| after_attention(layer, x, mixed, Spread::Here))?;
        }
        _ => after_attention(layer, &mut x, &mixed, Spread::Pool)?,
    }
    Ok(Tensor::from_vec(x, (rows, new, hidden), &Device::Cpu)?)
}

/// Tokens, about, that go from attention to the layer's end together.
const TOKENS: usize = 208;

/// The rest of the layer on some tokens, in place.
fn after_attention(layer: &Layer, x: &mut [f32], mixed: &[f32], spread: Spread) -> Result<()> {
    const PIECE: usize = 8192;
    let (out, gate, up) = (layer.attention.o.view()?, layer.mlp.gate.view()?, layer.mlp.up.view()?);
    let (down, hidden) = (layer.mlp.down.view()?, out.matrix().outputs());
    run(mixed, out.matrix().inputs, &mut [MatrixProduct { matrix: out.matrix(), to: x, after: After::Add }], spread);
    let mut normed = Spare::take(x.len());
    layer.before_mlp.rows(x, &mut normed)?;
    let matrix = down.matrix();
    let [mut left, mut right] = [(); 2].map(|()| Spare::take(x.len() / hidden * matrix.inputs));
    let mut wanted = [
        MatrixProduct { matrix: gate.matrix(), to: &mut left, after: After::Write },
        MatrixProduct { matrix: up.matrix(), to: &mut right, after: After::Write },
    ];
    run(&normed, hidden, &mut wanted, spread);
    match spread == Spread::Pool && left.len() > 2 * PIECE && rayon::current_num_threads() > 1 {
        true => left.par_chunks_mut(PIECE).zip(right.par_chunks(PIECE)).for_each(|(g, u)| curves::gated(g, u)),
        false => curves::gated(&mut left, &right),
    }
    run(&left, matrix.inputs, &mut [MatrixProduct { matrix, to: x, after: After::Add }], spread);
    Ok(())
}

/// What attention gathers, token by token: `(rows, new, heads · head_dim)`.
fn attend(
    layer: &Layer,
    x: &[f32],
    (rows, new): (usize, usize),
    at: &Positions,
    cache: Option<(&mut LayerCache, usize, usize)>,
) -> Result<Spare> {
    let a = &layer.attention;
    let mut normed = Spare::take(x.len());
    layer.before_attention.rows(x, &mut normed)?;
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
    // Query heads of a row; few queries that share keys are taken together.
    let size = if group.few() { group.size } else { 1 };
    let mut parts = Spare::take(q.len());
    let one = |(i, out): (usize, &mut [f32])| {
        let (row, head) = (i * size / a.heads, i * size % a.heads);
        match group.few() {
            true => group.mixed(row, head / size, out),
            false => group.attended(row, head, out),
        }
    };
    let piece = (size * new * a.head_dim).max(1);
    match rayon::current_num_threads() {
        1 => parts.chunks_exact_mut(piece).enumerate().for_each(one),
        _ => parts.par_chunks_exact_mut(piece).enumerate().for_each(one),
    }
    Ok(token_major(&parts, a.heads, new, a.head_dim))
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
    /// Whether the queries that share keys are so few that reading the keys is the bound.
    fn few(&self) -> bool {
        self.size * self.new <= FEW
    }

    /// Tokens of padding at the start of a row.
    fn pad(&self, row: usize) -> usize {
        self.pads.get(row).copied().unwrap_or(0)
    }

    /// What one query head gathers in one row, `(new, dim)`. Padding sees nothing, and nobody looks at it.
    fn attended(&self, row: usize, head: usize, out: &mut [f32]) {
        let (dim, kv) = (self.dim, head / self.size);
        let q = &self.q[(row * self.new * self.heads + head) * dim..];
        let all = |values| Tokens { values, stride: dim, count: self.past + self.new };
        let q = Tokens { values: q, stride: self.heads * dim, count: self.new };
        let (k, v) = (all(self.keys.at(row, kv)), all(self.values.at(row, kv)));
        attend::attend(&Head { q, k, v, dim, causal: true, hidden: self.pad(row) }, out);
    }

    /// What the query heads of one group, few queries together, gather in one row, `(size, new, dim)`.
    fn mixed(&self, row: usize, kv: usize, out: &mut [f32]) {
        let (dim, new, all) = (self.dim, self.new, self.past + self.new);
        let scale = 1.0 / (dim as f32).sqrt();
        let mut q = Vec::with_capacity(self.size * new * dim);
        for head in kv * self.size..(kv + 1) * self.size {
            for token in row * new..(row + 1) * new {
                let at = (token * self.heads + head) * dim;
                q.extend_from_slice(&self.q[at..at + dim]);
            }
        }
        let mut scores = Spare::take(self.size * new * all);
        let matrix = Matrix { weight: self.keys.at(row, kv), inputs: dim, bias: None };
        run(&q, dim, &mut [MatrixProduct { matrix, to: &mut scores, after: After::Write }], Spread::Here);
        let values = self.values.at(row, kv);
        for (i, (scores, out)) in scores.chunks_exact_mut(all).zip(out.chunks_exact_mut(dim)).enumerate() {
            let last = self.past + i % new + 1;
            let seen = self.pad(row).min(last)..last;
            curves::softmax(&mut scores[seen.clone()], scale);
            mix(&scores[seen.clone()], &values[seen.start * dim..last * dim], out, 1);
        }
    }
}

/// Heads, `(rows, heads, new, dim)`, token by token.
pub(super) fn token_major(parts: &[f32], heads: usize, new: usize, dim: usize) -> Spare {
    let mut all = Spare::take(parts.len());
    let row = |(all, parts): (&mut [f32], &[f32])| {
        for (head, part) in parts.chunks_exact((new * dim).max(1)).enumerate() {
            for (token, values) in part.chunks_exact(dim).enumerate() {
                let at = (token * heads + head) * dim;
                all[at..at + dim].copy_from_slice(values);
            }
        }
    };
    let size = (heads * new * dim).max(1);
    match rayon::current_num_threads() > 1 && parts.len() > 2 * size {
        true => all.par_chunks_exact_mut(size).zip(parts.par_chunks_exact(size)).for_each(row),
        false => all.chunks_exact_mut(size).zip(parts.chunks_exact(size)).for_each(row),
    }
    all
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
                let at = m.placed((caches[0].tokens(), new), &pads, &[], None).unwrap();
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
