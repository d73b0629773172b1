//! A decoder layer that is trained through its adapters, on a CPU in f32: the same arithmetic as the composed layer (a
//! test holds both together) on plain slices, with a way back of its own. Composed, candle's graph walks memory a dozen
//! times for each matrix.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use super::Layer;
use super::attention::{Attention, Positions};
use super::direct::token_major;
use super::rope::Turns;
use crate::error::{Error, Result};
use crate::exec::lock;
use crate::model::graph::{Sink, with_backward};
use crate::model::lora::{Inner, Learnt, Side, backward, forward};
use crate::model::view::{View, plain};
use crate::nn::kernels::attend::{Head, Tokens, attend};
use crate::nn::kernels::attend_back::{HeadGradients, attend_back};
use crate::nn::kernels::curves::{gated, gated_back};
use crate::nn::kernels::matrix::After;
use crate::nn::kernels::spare::Spare;

/// Whether [`trained`] may take a layer, on `x` without a cache.
pub(super) fn serves(layer: &Layer, x: &Tensor, at: &Positions) -> bool {
    let mut own = Vec::new();
    layer.tensors("", &mut own);
    let whole = at.pads.is_empty() && at.past == 0;
    whole && x.device().is_cpu() && x.dtype() == DType::F32 && own.iter().all(|(_, t)| plain(&[t]))
}

/// The states before a layer, and what it computed if that is kept.
struct Step {
    x: Vec<f32>,
    kept: Option<Kept>,
}

/// Layers that follow each other as one node of the graph, `(rows, new, hidden)` → the same shape. The gradients of
/// adapters come to `sink`, which says whether what layers compute is kept or computed again on the way back (that of the
/// last, which the way back needs first, is kept); the gradient of `x`, where it is tracked, comes to candle's store.
pub(super) fn trained(layers: &[Arc<Layer>], x: &Tensor, at: &Positions, sink: &Arc<Sink>) -> Result<Tensor> {
    let (shape, input) = (x.dims3()?, x.detach().contiguous()?);
    let (mut x_now, mut steps) = (View::of(&input)?.to_vec(), Vec::with_capacity(layers.len()));
    for (i, layer) in layers.iter().enumerate() {
        let (y, kept) = Pass::of(layer, shape, at)?.there(&x_now)?;
        let keeps = sink.keeps() || i + 1 == layers.len();
        steps.push(Step { x: std::mem::replace(&mut x_now, y), kept: keeps.then_some(kept) });
    }
    let value = Tensor::from_vec(x_now, shape, x.device())?;
    // Something that is tracked must lead here, or backward never comes.
    let needed = x.track_op();
    let tracked = if needed { x.clone() } else { Var::from_tensor(x)?.as_tensor().clone() };
    let (layers, at, sink, steps) = (layers.to_vec(), at.clone(), sink.clone(), Mutex::new(steps));
    let back = move |grad: &Tensor| -> Result<Tensor> {
        let mut steps = std::mem::take(&mut *lock(&steps));
        if steps.len() != layers.len() {
            return Err(Error::defect("a pass through layers with adapters goes back once"));
        }
        let mut grad = View::of(&grad.contiguous()?)?.to_vec();
        for (i, layer) in layers.iter().enumerate().rev() {
            let (pass, Some(Step { x, kept })) = (Pass::of(layer, shape, &at)?, steps.pop()) else { break };
            let kept = kept.map_or_else(|| pass.there(&x).map(|(_, kept)| kept), Ok)?;
            let learnt;
            (grad, learnt) = pass.back(&x, kept, grad, needed || i > 0)?;
            for (leaf, values) in learnt {
                sink.add(&leaf, Tensor::from_vec(values, leaf.shape(), leaf.device())?)?;
            }
        }
        Ok(Tensor::from_vec(grad, shape, &Device::Cpu)?)
    };
    with_backward(&tracked, &value, move |grad| back(grad).map_err(|e| candle_core::Error::Msg(e.to_string())))
}

/// What the way back needs of the way there, a row for each token.
struct Kept {
    /// Turned queries and keys, and values.
    heads: [Spare; 3],
    /// What attention gathered.
    mixed: Spare,
    /// The state after attention.
    middle: Spare,
    /// The gated MLP's two products.
    gate: Spare,
    up: Spare,
    /// Of queries, keys and values; of the output; of gate and up; of down.
    inner: [Vec<Inner>; 4],
}

/// One layer on one batch.
struct Pass<'a> {
    layer: &'a Layer,
    turns: &'a Turns,
    rows: usize,
    new: usize,
    hidden: usize,
    q: Side<'a>,
    k: Side<'a>,
    v: Side<'a>,
    o: Side<'a>,
    gate: Side<'a>,
    up: Side<'a>,
    down: Side<'a>,
}

impl<'a> Pass<'a> {
    fn of(layer: &'a Layer, (rows, new, hidden): (usize, usize, usize), at: &'a Positions) -> Result<Self> {
        let (a, m) = (&layer.attention, &layer.mlp);
        let [q, k, v, o] = [Side::of(&a.q)?, Side::of(&a.k)?, Side::of(&a.v)?, Side::of(&a.o)?];
        let [gate, up, down] = [Side::of(&m.gate)?, Side::of(&m.up)?, Side::of(&m.down)?];
        if q.inputs() != hidden {
            return Err(Error::defect(format!("a layer of width {} on states of {hidden}", q.inputs())));
        }
        Ok(Pass { layer, turns: &at.turns, rows, new, hidden, q, k, v, o, gate, up, down })
    }

    fn tokens(&self) -> usize {
        self.rows * self.new
    }

    fn room(&self, side: &Side<'_>) -> Spare {
        Spare::take(self.tokens() * side.outputs())
    }

    /// States before the layer to those behind it.
    fn there(&self, x: &[f32]) -> Result<(Vec<f32>, Kept)> {
        let (a, hidden) = (&self.layer.attention, self.hidden);
        let mut normed = Spare::take(x.len());
        by_rows(hidden, (x, &mut normed), |x, y| self.layer.before_attention.rows(x, y))?;
        let mut heads = [self.room(&self.q), self.room(&self.k), self.room(&self.v)];
        let [q, k, v] = &mut heads;
        let first = forward(&normed, &[&self.q, &self.k, &self.v], &mut [&mut *q, k, v], After::Write);
        self.turns.turn(q, a.head_dim, a.heads)?;
        self.turns.turn(k, a.head_dim, a.kv_heads)?;
        let mixed = self.gathered(&heads);
        let mut middle = Spare::take(x.len());
        by_rows(hidden, (x, &mut middle), copied)?;
        let second = forward(&mixed, &[&self.o], &mut [&mut *middle], After::Add);
        by_rows(hidden, (&middle, &mut normed), |x, y| self.layer.before_mlp.rows(x, y))?;
        let (mut gate, mut up) = (self.room(&self.gate), self.room(&self.up));
        let third = forward(&normed, &[&self.gate, &self.up], &mut [&mut *gate, &mut *up], After::Write);
        let product = product(&gate, &up);
        let mut y = vec![0.0; x.len()];
        by_rows(hidden, (&middle, &mut y), copied)?;
        let fourth = forward(&product, &[&self.down], &mut [&mut y], After::Add);
        Ok((y, Kept { heads, mixed, middle, gate, up, inner: [first, second, third, fourth] }))
    }

    /// From the gradient behind the layer to the one before it, and those of the adapters; `needed` says whether
    /// anybody wants the former.
    fn back(&self, x: &[f32], kept: Kept, mut by_x: Vec<f32>, needed: bool) -> Result<(Vec<f32>, Vec<Learnt>)> {
        let (layer, hidden) = (self.layer, self.hidden);
        let Kept { heads, mixed, middle, mut gate, mut up, inner: [first, second, third, fourth] } = kept;
        let mut learnt = Vec::new();
        // The gated MLP.
        let mut by_product = Spare::take(gate.len());
        let product = product(&gate, &up);
        learnt.extend(backward(&product, &[&self.down], &fourth, &[&by_x], Some(&mut by_product)));
        drop(product);
        by_pieces((&mut gate, &mut up), &by_product, gated_back);
        let mut normed = Spare::take(x.len());
        by_rows(hidden, (&middle, &mut normed), |x, y| layer.before_mlp.rows(x, y))?;
        let mut by_normed = Spare::take(x.len());
        learnt.extend(backward(&normed, &[&self.gate, &self.up], &third, &[&gate, &up], Some(&mut by_normed)));
        layer.before_mlp.back(&middle, &by_normed, &mut by_x)?;
        // Attention.
        let mut by_mixed = Spare::take(mixed.len());
        learnt.extend(backward(&mixed, &[&self.o], &second, &[&by_x], Some(&mut by_mixed)));
        if !needed && ![&self.q, &self.k, &self.v].iter().any(|side| side.learns()) {
            return Ok((by_x, learnt));
        }
        let by_heads = self.scattered(&heads, &by_mixed)?;
        by_rows(hidden, (x, &mut normed), |x, y| layer.before_attention.rows(x, y))?;
        let [q, k, v] = &by_heads;
        learnt.extend(backward(
            &normed,
            &[&self.q, &self.k, &self.v],
            &first,
            &[q, k, v],
            needed.then_some(&mut *by_normed),
        ));
        if needed {
            layer.before_attention.back(x, &by_normed, &mut by_x)?;
        }
        Ok((by_x, learnt))
    }

    /// The head of one row that shares key head `kv`, the `i`th of its group.
    fn head<'h>(&self, [q, k, v]: &'h [Spare; 3], row: usize, kv: usize, i: usize) -> Head<'h> {
        let Attention { heads, kv_heads, head_dim: dim, .. } = self.layer.attention;
        let part = |values: &'h [f32], heads: usize, head: usize| Tokens {
            values: &values[(row * self.new * heads + head) * dim..],
            stride: heads * dim,
            count: self.new,
        };
        let q = part(q, heads, kv * (heads / kv_heads) + i);
        Head { q, k: part(k, kv_heads, kv), v: part(v, kv_heads, kv), dim, causal: true, hidden: 0 }
    }

    /// What attention gathers, token by token.
    fn gathered(&self, heads: &[Spare; 3]) -> Spare {
        let a = &self.layer.attention;
        let (piece, group) = ((self.new * a.head_dim).max(1), a.heads / a.kv_heads);
        let mut parts = Spare::take(heads[0].len());
        let one = |(i, out): (usize, &mut [f32])| {
            let (row, head) = (i / a.heads, i % a.heads);
            attend(&self.head(heads, row, head / group, head % group), out);
        };
        match rayon::current_num_threads() {
            1 => parts.chunks_exact_mut(piece).enumerate().for_each(one),
            _ => parts.par_chunks_exact_mut(piece).enumerate().for_each(one),
        }
        token_major(&parts, a.heads, self.new, a.head_dim)
    }

    /// From the gradient of what attention gathered to those of queries, keys (both turned back) and values.
    fn scattered(&self, heads: &[Spare; 3], grad: &[f32]) -> Result<[Spare; 3]> {
        let a = &self.layer.attention;
        let (dim, group) = (a.head_dim, a.heads / a.kv_heads);
        let piece = (self.new * dim).max(1);
        let [mut q, mut k, mut v] = [(); 3].map(|()| Spare::take(0));
        for (to, from) in [&mut q, &mut k, &mut v].into_iter().zip(heads) {
            *to = Spare::take(from.len());
        }
        k.fill(0.0);
        v.fill(0.0);
        let parts = q.chunks_exact_mut(group * piece).zip(k.chunks_exact_mut(piece)).zip(v.chunks_exact_mut(piece));
        let parts: Vec<_> = parts.enumerate().map(|(i, ((q, k), v))| (i, q, k, v)).collect();
        let one = |(i, q, k, v): (usize, &mut [f32], &mut [f32], &mut [f32])| {
            let (row, kv) = (i / a.kv_heads, i % a.kv_heads);
            for (g, q) in q.chunks_exact_mut(piece).enumerate() {
                let at = (row * self.new * a.heads + kv * group + g) * dim;
                let grad = Tokens { values: &grad[at..], stride: a.heads * dim, count: self.new };
                attend_back(&self.head(heads, row, kv, g), grad, &mut HeadGradients { q, k, v });
            }
        };
        match rayon::current_num_threads() {
            1 => parts.into_iter().for_each(one),
            _ => parts.into_par_iter().for_each(one),
        }
        let back = self.turns.back()?;
        let mut made = [(q, a.heads), (k, a.kv_heads), (v, a.kv_heads)]
            .map(|(parts, heads)| token_major(&parts, heads, self.new, dim));
        back.turn(&mut made[0], dim, a.heads)?;
        back.turn(&mut made[1], dim, a.kv_heads)?;
        Ok(made)
    }
}

fn copied(x: &[f32], y: &mut [f32]) -> Result<()> {
    y.copy_from_slice(x);
    Ok(())
}

/// `silu(gate) · up`.
fn product(gate: &[f32], up: &[f32]) -> Spare {
    let mut y = Spare::take(gate.len());
    y.copy_from_slice(gate);
    match rayon::current_num_threads() {
        1 => gated(&mut y, up),
        _ => y.par_chunks_mut(PIECE).zip(up.par_chunks(PIECE)).for_each(|(y, up)| gated(y, up)),
    }
    y
}

/// Values that a thread takes at once.
const PIECE: usize = 1 << 14;

/// `f` of pieces of two changed slices and a third.
fn by_pieces((a, b): (&mut [f32], &mut [f32]), c: &[f32], f: fn(&mut [f32], &mut [f32], &[f32])) {
    match rayon::current_num_threads() {
        1 => f(a, b, c),
        _ => {
            let parts = a.par_chunks_mut(PIECE).zip(b.par_chunks_mut(PIECE)).zip(c.par_chunks(PIECE));
            parts.for_each(|((a, b), c)| f(a, b, c));
        }
    }
}

/// `f` of some rows of `width` values and their places.
fn by_rows(
    width: usize,
    (x, y): (&[f32], &mut [f32]),
    f: impl Fn(&[f32], &mut [f32]) -> Result<()> + Sync,
) -> Result<()> {
    let some = PIECE.next_multiple_of(width.max(1));
    match rayon::current_num_threads() {
        1 => f(x, y),
        _ => x.par_chunks(some).zip(y.par_chunks_mut(some)).try_for_each(|(x, y)| f(x, y)),
    }
}
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::key::Key;
    use crate::model::llama::{Llama, LlamaConfig, Names, Places};
    use crate::model::lora::{Adapted, Dropout, Modules};
    use crate::model::weights::{Init, Scope, Source, Trainable};

    fn wave(shape: &[usize], step: f32) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_vec((0..n).map(|i| (i as f32 * step + 0.3).sin()).collect(), shape, &Device::Cpu).unwrap()
    }

    struct Frozen(Trainable<'static>);

    impl Source for Frozen {
        fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
            Ok(self.0.tensor(name, shape, init)?.detach())
        }
    }

    fn model(kv: usize) -> (Llama, Vec<Var>) {
        let ((model, _), vars) = model_with(kv, 0.0);
        (model, vars)
    }

    /// A model of `kv` key heads with adapters on all linear layers, their dropout, and their variables.
    fn model_with(kv: usize, dropout: f32) -> ((Llama, Arc<Dropout>), Vec<Var>) {
        let config = LlamaConfig {
            vocab_size: 11,
            hidden_size: 36,
            intermediate_size: 50,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            num_key_value_heads: kv,
            head_dim: 6,
            attention_bias: true,
            initializer_range: 0.3,
            rope_sections: vec![1, 1, 1],
            ..LlamaConfig::default()
        };
        let (mut tensors, mut vars) = (BTreeMap::new(), Vec::new());
        let shapes = [("self_attn.q_proj", 36, 36), ("self_attn.k_proj", 36, 6 * kv), ("self_attn.v_proj", 36, 6 * kv)];
        let more = [
            ("self_attn.o_proj", 36, 36),
            ("mlp.gate_proj", 36, 50),
            ("mlp.up_proj", 36, 50),
            ("mlp.down_proj", 50, 36),
        ];
        let all = || shapes.into_iter().chain(more);
        for (i, (layer, (name, input, output))) in (0..2).flat_map(|l| all().map(move |s| (l, s))).enumerate() {
            for (part, shape) in [("A", [2, input]), ("B", [output, 2])] {
                let var = Var::from_tensor(&(wave(&shape, 0.37 + i as f32 * 0.11) * 0.3).unwrap()).unwrap();
                let name = format!("base_model.model.model.layers.{layer}.{name}.lora_{part}.weight");
                tensors.insert(name, var.as_tensor().clone());
                vars.push(var);
            }
        }
        let base = Frozen(Trainable::fresh(Key::from_seed(4), &Device::Cpu));
        let modules = Modules { renamed: vec![], body: "model".into() };
        let dropout = Arc::new(Dropout::new(dropout));
        let beside = Some(dropout.clone());
        let source = Adapted { base: &base, modules: &modules, tensors: &tensors, scale: 0.7, beside };
        ((Llama::load(&Scope::root(&source), &config, &Names::default()).unwrap(), dropout), vars)
    }

    #[test]
    fn it_equals_the_composed_layer_in_value_and_in_every_gradient() {
        for kv in [6, 2, 1] {
            let (model, vars) = model(kv);
            let x = Var::from_tensor(&wave(&[2, 7, 36], 0.83)).unwrap();
            let row = |by: u32| Places { axes: (0..7).map(|i| [i, i + by, 2 * i]).collect(), shift: 0 };
            for places in [None, Some([row(0), row(3)])] {
                let at = model.placed((0, 7), &[], &[], places.as_ref().map(|p| &p[..])).unwrap();
                let seed = wave(&[2, 7, 36], 1.3);
                assert!(model.layers.iter().all(|layer| serves(layer, x.as_tensor(), &at)));
                let grads = |y: &Tensor| (y * &seed).unwrap().sum_all().unwrap().backward().unwrap();
                let mut composed = x.as_tensor().clone();
                for layer in &model.layers {
                    composed = layer.composed(&composed, &at, None).unwrap();
                }
                let want = grads(&composed);
                for (keeps, needed) in [(false, true), (true, true), (true, false)] {
                    let sink = Arc::new(Sink::new(keeps));
                    let x = if needed { x.as_tensor().clone() } else { x.as_tensor().detach() };
                    let y = trained(&model.layers, &x, &at, &sink).unwrap();
                    let got = grads(&y);
                    let mut pairs = vec![(y, composed.clone())];
                    let leaf = |var: &Var| (sink.take(var).unwrap(), want.get(var).unwrap().clone());
                    pairs.extend(vars.iter().map(leaf));
                    if needed {
                        pairs.push((got.get(&x).unwrap().clone(), want.get(&x).unwrap().clone()));
                    }
                    all_near(&pairs, kv);
                }
            }
        }
    }

    fn all_near(pairs: &[(Tensor, Tensor)], kv: usize) {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in pairs {
            let (a, b) = (flat(a), flat(b));
            let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest > 0.0);
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2e-5 * largest), "{kv} key heads");
        }
    }

    /// Dropout of the way back is that of the way there: with the same key the gradient is the slope of the value.
    #[test]
    fn with_dropout_the_gradient_is_the_slope_and_threads_change_no_byte() {
        let (model, vars) = model_with(2, 0.4);
        let (layers, x) = (&model.0.layers, wave(&[2, 7, 36], 0.83));
        let at = model.0.placed((0, 7), &[], &[], None).unwrap();
        let seed = wave(&[2, 7, 36], 1.3);
        model.1.set(Some(Key::from_seed(9)));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let sink = Arc::new(Sink::new(true));
                let y = (trained(layers, &x, &at, &sink).unwrap() * &seed).unwrap().sum_all().unwrap();
                y.backward().unwrap();
                let grads: Vec<Vec<f32>> =
                    vars.iter().map(|v| sink.take(v).unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect();
                (y.to_scalar::<f32>().unwrap(), grads)
            })
        };
        let (_, grads) = run(1);
        assert_eq!(run(3).1, grads);
        for (var, grad) in vars.iter().zip(&grads) {
            let i = grad.iter().enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap().0;
            let moved = |by: f32| {
                let mut values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let before = values[i];
                values[i] += by;
                var.set(&Tensor::from_slice(&values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                let value = f64::from(run(1).0);
                values[i] = before;
                var.set(&Tensor::from_slice(&values, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value
            };
            let slope = (moved(0.02) - moved(-0.02)) / 0.04;
            let got = f64::from(grad[i]);
            assert!((slope - got).abs() < 0.03 * got.abs(), "{got}, by differences {slope}");
        }
    }
}
