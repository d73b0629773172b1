//! A transformer's operations with their own forward and backward, for training on a CPU.
//!
//! candle's composed forms walk memory a dozen times for each layer normalisation or attention. These compute the same
//! in one node each. Off the CPU, or in another type than f32, the composed forms run; a test holds both together.
//! Sums have a fixed order, so results do not depend on the number of threads; the loops are written so that the
//! compiler can use vector registers, without contracting products and sums.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, DType, Layout, Result, Shape, Storage, Tensor, bail};
use candle_nn::ops;
use rayon::prelude::*;

use super::view::plain;
use crate::nn::kernels::curves::{self, sigmoid};
use crate::nn::kernels::matrix::{self, Matrix};
use crate::nn::kernels::norms;

fn on_cpu(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// The elements of a contiguous storage.
fn flat<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a fused operation needs contiguous input, got {layout:?}"),
    }
}

/// Hands the elements of a contiguous CPU tensor to `f`.
fn with<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(flat(cpu, layout)?)),
        _ => bail!("a fused operation of the CPU on another device"),
    }
}

/// `x Wᵀ + b`: `x` is `(rows, in)`, `weight` `(out, in)`, `bias` `(out)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if on_cpu(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, bias, Linear);
    }
    linear_composed(x, weight, bias)
}

fn linear_composed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)?.broadcast_add(bias)
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, input), (output, width)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        let bias = flat(b, lb)?;
        if input != width || bias.len() != output {
            bail!("linear: x {:?}, weight {:?}, bias {:?}", lx.shape(), lw.shape(), lb.shape());
        }
        if matrix::serves(usize::MAX, input, output) {
            let matrix = Matrix { weight: flat(w, lw)?, inputs: input, bias: Some(bias) };
            let y = matrix::products(flat(x, lx)?, input, &[matrix]).swap_remove(0);
            return Ok((CpuStorage::F32(y), (rows, output).into()));
        }
        let mut y = floats(x.matmul(w, (1, rows, output, input), lx, &lw.transpose(0, 1)?)?)?;
        for row in y.chunks_exact_mut(output.max(1)) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        Ok((CpuStorage::F32(y), (rows, output).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Grads3 {
        let (x, w, grad) = (x.detach(), w.detach(), grad.contiguous()?);
        let output = grad.dim(1)?;
        let by_bias = with(&grad, |g| {
            let mut sums = vec![0f32; output];
            g.chunks_exact(output).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, g)| *s += g));
            sums
        })?;
        let by_bias = Tensor::from_vec(by_bias, output, grad.device())?;
        Ok((Some(grad.matmul(&w)?), Some(grad.t()?.matmul(&x)?), Some(by_bias)))
    }
}

type Grads3 = Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)>;

fn floats(storage: CpuStorage) -> Result<Vec<f32>> {
    match storage {
        CpuStorage::F32(values) => Ok(values),
        other => bail!("a fused operation got {:?}", other.dtype()),
    }
}

/// Layer normalisation over the last dimension; `weight` and `bias` have its length. Composed, it is in f32 inside.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if on_cpu(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps: eps as f32 });
    }
    layer_norm_composed(x, weight, bias, eps)
}

fn layer_norm_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?.to_dtype(x.dtype())?;
    normal.broadcast_mul(weight)?.broadcast_add(bias)
}

struct LayerNorm {
    eps: f32,
}

/// Sixteen sums side by side.
fn sum(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut lanes = [0f32; 16];
    values.enumerate().for_each(|(i, v)| lanes[i % 16] += v);
    lanes.iter().sum()
}

impl LayerNorm {
    /// Mean and reciprocal standard deviation of a row.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = sum(row.iter().copied()) / n;
        let variance = sum(row.iter().map(|v| (v - mean) * (v - mean))) / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    /// Gradients by input, weight and bias, `width` numbers a row.
    fn back(&self, x: &[f32], weight: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let width = weight.len();
        let (mut by_weight, mut by_bias) = (vec![0f32; width], vec![0f32; width]);
        let mut by_x = vec![0f32; x.len()];
        let (mut normal, mut scaled) = (vec![0f32; width], vec![0f32; width]);
        for ((row, g), out) in x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(by_x.chunks_exact_mut(width)) {
            let (mean, inverse) = self.moments(row);
            for i in 0..width {
                normal[i] = (row[i] - mean) * inverse;
                scaled[i] = g[i] * weight[i];
                by_weight[i] += g[i] * normal[i];
                by_bias[i] += g[i];
            }
            let mean_scaled = sum(scaled.iter().copied()) / width as f32;
            let along = sum(scaled.iter().zip(&normal).map(|(s, n)| s * n)) / width as f32;
            for i in 0..width {
                out[i] = inverse * (scaled[i] - mean_scaled - normal[i] * along);
            }
        }
        (by_x, by_weight, by_bias)
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight, bias) = (flat(x, lx)?, flat(w, lw)?, flat(b, lb)?);
        let width = weight.len();
        if width == 0 || lx.dims().last() != Some(&width) || bias.len() != width {
            bail!("layer norm: x {:?}, weight {:?}, bias {:?}", lx.shape(), lw.shape(), lb.shape());
        }
        let mut y = vec![0f32; x.len()];
        const ROWS: usize = 16;
        let one = |(x, y): (&[f32], &mut [f32])| norms::layer_norm(x, weight, bias, self.eps, y);
        match rayon::current_num_threads() {
            1 => one((x, &mut y)),
            _ => x.par_chunks(ROWS * width).zip(y.par_chunks_mut(ROWS * width)).for_each(one),
        }
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Grads3 {
        let grad = grad.contiguous()?;
        let (by_x, by_weight, by_bias) = with(x, |x| with(w, |w| with(&grad, |g| self.back(x, w, g))))???;
        let made = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        Ok((made(by_x, x)?, made(by_weight, w)?, made(by_bias, b)?))
    }
}

/// `x + y`; without a graph on a CPU, in the caller's rayon pool (candle's own threads serve one caller at a time and
/// spin while they wait for work).
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let whole = x.dims() == y.dims() && x.is_contiguous() && y.is_contiguous();
    if !whole || !plain(&[x, y]) {
        return x + y;
    }
    const PIECE: usize = 1 << 16;
    let sum = with(x, |x| {
        with(y, |y| {
            let mut sum = x.to_vec();
            let one = |(s, y): (&mut [f32], &[f32])| s.iter_mut().zip(y).for_each(|(s, y)| *s += y);
            match rayon::current_num_threads() > 1 && sum.len() > PIECE {
                true => sum.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(one),
                false => one((&mut sum, y)),
            }
            sum
        })
    })??;
    Tensor::from_vec(sum, x.shape(), x.device())
}

/// `x · sigmoid(1.702 x)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if on_cpu(&[x]) {
        return x.contiguous()?.apply_op1(QuickGelu);
    }
    quick_gelu_composed(x)
}

fn quick_gelu_composed(x: &Tensor) -> Result<Tensor> {
    x * ops::sigmoid(&(x * 1.702)?)?
}

struct QuickGelu;

impl CustomOp1 for QuickGelu {
    fn name(&self) -> &'static str {
        "quick-gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = flat(x, l)?.to_vec();
        match rayon::current_num_threads() {
            1 => curves::quick_gelu(&mut y),
            _ => y.par_chunks_mut(1 << 14).for_each(curves::quick_gelu),
        }
        Ok((CpuStorage::F32(y), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let slope = |x: f32| {
            let s = sigmoid(1.702 * x);
            s + 1.702 * x * s * (1.0 - s)
        };
        let grad = grad.contiguous()?;
        let by_x = with(x, |x| with(&grad, |g| x.iter().zip(g).map(|(x, g)| g * slope(*x)).collect::<Vec<_>>()))??;
        Ok(Some(Tensor::from_vec(by_x, x.shape(), x.device())?))
    }
}

/// Multi-head attention without its projections: `q`, `k`, `v` and the result are `(n, t, heads · size)`.
///
/// `softmax(q kᵀ / √size) v` in each head; a token sees itself and, if `causal`, only earlier ones.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    if on_cpu(&[q, k, v]) {
        let op = Attend { heads, causal };
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    attend_composed(q, k, v, heads, causal)
}

fn attend_composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (n, t, width) = q.dims3()?;
    let size = width / heads;
    let split = |y: &Tensor| y.reshape((n, t, heads, size))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let mut scores = (q.matmul(&k.transpose(2, 3)?)? * (size as f64).powf(-0.5))?.to_dtype(DType::F32)?;
    if causal {
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (t, t), scores.device())?)?;
    }
    let weights = ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((n, t, width))
}

struct Attend {
    heads: usize,
    causal: bool,
}

/// The sizes of one attention: `parts` heads of `n` sequences, `t` tokens, `size` numbers a head.
#[derive(Clone, Copy)]
struct Sizes {
    parts: usize,
    heads: usize,
    t: usize,
    size: usize,
}

impl Sizes {
    fn scale(&self) -> f32 {
        (self.size as f32).powf(-0.5)
    }

    /// Copies between `(n, t, heads, size)` and `(n, heads, t, size)`: token-major to head-major, or back.
    fn turn(&self, from: &[f32], back: bool) -> Vec<f32> {
        let (outer, inner) = if back { (self.heads, self.t) } else { (self.t, self.heads) };
        let mut out = vec![0f32; from.len()];
        let image = (self.t * self.heads * self.size).max(1);
        for (from, out) in from.chunks_exact(image).zip(out.chunks_exact_mut(image)) {
            for (i, piece) in from.chunks_exact(self.size).enumerate() {
                let at = (i % inner * outer + i / inner) * self.size;
                out[at..at + self.size].copy_from_slice(piece);
            }
        }
        out
    }

    /// `a bᵀ` in each head, both `(parts, t, size)`: `(parts, t, t)`.
    fn outer(&self, a: &CpuStorage, b: &CpuStorage) -> Result<Vec<f32>> {
        let l = self.tall();
        floats(a.matmul(b, (self.parts, self.t, self.t, self.size), &l, &l.transpose(1, 2)?)?)
    }

    /// `p a` or `pᵀ a` in each head, `p` `(parts, t, t)`, `a` `(parts, t, size)`: token-major.
    fn mix(&self, p: &CpuStorage, a: &CpuStorage, transposed: bool) -> Result<Vec<f32>> {
        let square = Layout::contiguous((self.parts, self.t, self.t));
        let square = if transposed { square.transpose(1, 2)? } else { square };
        let mixed = p.matmul(a, (self.parts, self.t, self.size, self.t), &square, &self.tall())?;
        Ok(self.turn(&floats(mixed)?, true))
    }

    fn tall(&self) -> Layout {
        Layout::contiguous((self.parts, self.t, self.size))
    }
}

impl Attend {
    fn sizes(&self, l: &Layout) -> Result<Sizes> {
        let (n, t, width) = l.shape().dims3()?;
        if self.heads == 0 || !width.is_multiple_of(self.heads) || l.shape().elem_count() == 0 {
            bail!("attention: {} heads of {:?}", self.heads, l.shape());
        }
        Ok(Sizes { parts: n * self.heads, heads: self.heads, t, size: width / self.heads })
    }

    /// Softmax of scaled scores, row by row, in place; what a token may not see gets 0.
    fn softmax(&self, scores: &mut [f32], s: &Sizes) {
        let scale = s.scale();
        for (i, row) in scores.chunks_exact_mut(s.t).enumerate() {
            let (seen, hidden) = row.split_at_mut(if self.causal { i % s.t + 1 } else { s.t });
            hidden.fill(0.0);
            curves::softmax(seen, scale);
        }
    }

    fn weights(&self, q: &CpuStorage, k: &CpuStorage, s: &Sizes) -> Result<CpuStorage> {
        let mut scores = s.outer(q, k)?;
        self.softmax(&mut scores, s);
        Ok(CpuStorage::F32(scores))
    }
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if lq.shape() != lk.shape() || lq.shape() != lv.shape() {
            bail!("attention: q {:?}, k {:?}, v {:?}", lq.shape(), lk.shape(), lv.shape());
        }
        let s = self.sizes(lq)?;
        let [q, k, v] = [flat(q, lq)?, flat(k, lk)?, flat(v, lv)?].map(|x| CpuStorage::F32(s.turn(x, false)));
        let weights = self.weights(&q, &k, &s)?;
        Ok((CpuStorage::F32(s.mix(&weights, &v, false)?), lq.shape().clone()))
    }

    /// With `P` the weights and `G` the gradient: `dV = Pᵀ G`, `dP = G Vᵀ`, `dS = P ∘ (dP − rowsum(P ∘ dP))`,
    /// `dQ = dS K / √size`, `dK = dSᵀ Q / √size`. The weights are computed again instead of kept.
    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, _: &Tensor, grad: &Tensor) -> Grads3 {
        let s = self.sizes(q.layout())?;
        let turned = |x: &Tensor| with(x, |x| CpuStorage::F32(s.turn(x, false)));
        let (tq, tk, tv, tg) = (turned(q)?, turned(k)?, turned(v)?, turned(&grad.contiguous()?)?);
        let weights = self.weights(&tq, &tk, &s)?;
        let by_v = s.mix(&weights, &tg, true)?;
        let mut by_scores = s.outer(&tg, &tv)?;
        let p = weights.as_slice::<f32>()?;
        let scale = s.scale();
        for (row, p) in by_scores.chunks_exact_mut(s.t).zip(p.chunks_exact(s.t)) {
            let along = sum(row.iter().zip(p).map(|(d, p)| d * p));
            row.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - along) * scale);
        }
        let by_scores = CpuStorage::F32(by_scores);
        let made = |values: Vec<f32>| Tensor::from_vec(values, q.shape(), q.device()).map(Some);
        Ok((made(s.mix(&by_scores, &tk, false)?)?, made(s.mix(&by_scores, &tq, true)?)?, made(by_v)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::key::{Key, Purpose};

    fn draw(shape: &[usize], n: u64, size: f64) -> Var {
        let mut rng = Key::from_seed(11).fold(Purpose::Test, n).rng();
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| (rng.normal() * size) as f32).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor, what: &str) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (x, y) in flat(a).iter().zip(flat(b)) {
            assert!((x - y).abs() < 2e-5 * (1.0 + y.abs()), "{what}: {x} and {y}");
        }
    }

    /// Values and the gradients by every input of a weighted sum of the outputs.
    fn same(fused: impl Fn() -> Result<Tensor>, composed: impl Fn() -> Result<Tensor>, inputs: &[&Var]) {
        let (a, b) = (fused().unwrap(), composed().unwrap());
        close(&a, &b, "value");
        let seed = draw(a.dims(), 99, 1.0);
        let grads = |y: &Tensor| (y * seed.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (ga, gb) = (grads(&a), grads(&b));
        for (i, var) in inputs.iter().enumerate() {
            close(ga.get(var).unwrap(), gb.get(var).unwrap(), &format!("gradient by input {i}"));
        }
    }

    #[test]
    fn linear_equals_its_composed_form() {
        let (x, w, b) = (draw(&[5, 7], 1, 1.0), draw(&[3, 7], 2, 1.0), draw(&[3], 3, 1.0));
        same(|| linear(&x, &w, &b), || linear_composed(&x, &w, &b), &[&x, &w, &b]);
    }

    #[test]
    fn layer_norm_equals_its_composed_form() {
        let (x, w, b) = (draw(&[2, 3, 37], 1, 3.0), draw(&[37], 2, 1.0), draw(&[37], 3, 1.0));
        same(|| layer_norm(&x, &w, &b, 1e-5), || layer_norm_composed(&x, &w, &b, 1e-5), &[&x, &w, &b]);
    }

    #[test]
    fn quick_gelu_equals_its_composed_form_even_far_out() {
        let x = draw(&[400], 1, 20.0);
        same(|| quick_gelu(&x), || quick_gelu_composed(&x), &[&x]);
    }

    #[test]
    fn attention_equals_its_composed_form_causal_or_not() {
        let [q, k, v] = [1, 2, 3].map(|i| draw(&[2, 5, 12], i, 1.5));
        for causal in [false, true] {
            same(|| attend(&q, &k, &v, 3, causal), || attend_composed(&q, &k, &v, 3, causal), &[&q, &k, &v]);
        }
    }

    #[test]
    fn wrong_shapes_are_errors() {
        let (x, w, b) = (draw(&[5, 7], 1, 1.0), draw(&[3, 6], 2, 1.0), draw(&[3], 3, 1.0));
        assert!(linear(&x, &w, &b).is_err());
        assert!(layer_norm(&x, &b, &b, 1e-5).is_err());
        let y = draw(&[1, 2, 7], 1, 1.0);
        assert!(attend(&y, &y, &y, 2, false).is_err());
    }
}
