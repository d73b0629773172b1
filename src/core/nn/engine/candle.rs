//! The first interpreter: candle tensors with autograd, wherever candle runs.
//!
//! Not fast, but made only of operations whose backward is right, so it is the oracle of the others. candle's
//! `max_pool2d` (wrong gradient) and grouped convolution's backward are avoided; batch norm is composed.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use crate::error::{Error, Place, Result};
use crate::key::Key;
use crate::nn::dropout;
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::net::{BN_EPS, BN_MOMENTUM, Net, Node, Op, ParamId};

/// One network's workspace on candle.
pub struct Candle {
    net: Arc<Net>,
    device: Device,
    dtype: DType,
    vars: Vec<Var>,
    values: Vec<Tensor>,
    statistics: Vec<(ParamId, Tensor)>,
    /// Whether backward may follow.
    kept: bool,
}

impl Candle {
    /// A workspace for `net` on `device`, computing in `dtype`.
    pub fn new(net: Arc<Net>, device: Device, dtype: DType) -> Self {
        Candle { net, device, dtype, vars: Vec::new(), values: Vec::new(), statistics: Vec::new(), kept: false }
    }

    fn param(&self, id: ParamId) -> &Tensor {
        self.vars[id].as_tensor()
    }

    /// A vector over channels, shaped to broadcast over `(rows, C, H, W)`.
    fn channels(&self, id: ParamId) -> Result<Tensor> {
        Ok(self.param(id).reshape((1, (), 1, 1))?)
    }

    fn step(&mut self, node: Node, input: &Tensor, mode: Mode) -> Result<Tensor> {
        let op = self.net.ops[node].clone();
        let v = |i: Node| &self.values[i];
        Ok(match op {
            Op::Input => input.clone(),
            Op::Conv2d { x, weight, bias, stride, padding, groups } => {
                let y = convolve(v(x), self.param(weight), stride, padding, groups)?;
                match bias {
                    Some(b) => y.broadcast_add(&self.channels(b)?)?,
                    None => y,
                }
            }
            Op::BatchNorm { x, weight, bias, mean, var } => {
                let x = v(x).clone();
                let (m, s) = match mode {
                    Mode::Train(_) => self.batch_statistics(&x, mean, var)?,
                    Mode::Eval | Mode::Infer => (self.channels(mean)?.detach(), self.channels(var)?.detach()),
                };
                let normal = x.broadcast_sub(&m)?.broadcast_div(&(s + f64::from(BN_EPS))?.sqrt()?)?;
                normal.broadcast_mul(&self.channels(weight)?)?.broadcast_add(&self.channels(bias)?)?
            }
            Op::Relu { x } => v(x).relu()?,
            Op::Add { a, b } => (v(a) + v(b))?,
            Op::MaxPool { x, kernel, stride, padding } => max_pool(v(x), kernel, stride, padding)?,
            Op::AvgPool { x, kernel, stride } => {
                let windows = windows(v(x), kernel, stride)?;
                (Tensor::stack(&windows, 0)?.sum(0)? / (kernel * kernel) as f64)?
            }
            Op::GlobalAvgPool { x } => v(x).mean((2, 3))?,
            Op::Subsample { x, stride, before, after } => {
                every(&every(v(x), 2, 0, stride)?, 3, 0, stride)?.pad_with_zeros(1, before, after)?
            }
            Op::Flatten { x } => v(x).flatten_from(1)?,
            Op::Linear { x, weight, bias } => {
                let y = v(x).matmul(&self.param(weight).t()?)?;
                match bias {
                    Some(b) => y.broadcast_add(self.param(b))?,
                    None => y,
                }
            }
            Op::Loss { .. } => return Err(Error::defect("a row's loss is its own interpreter's to find")),
            Op::Dropout { x, p } => match mode {
                Mode::Eval | Mode::Infer => v(x).clone(),
                Mode::Train(key) => {
                    let x = v(x);
                    let mut mask = vec![0.0; x.elem_count()];
                    let sample = x.elem_count() / x.dim(0)?.max(1);
                    for (row, mask) in mask.chunks_mut(sample.max(1)).enumerate() {
                        dropout::mask(key, node, row, p, mask);
                    }
                    (x * Tensor::from_vec(mask, x.shape(), &self.device)?.to_dtype(self.dtype)?)?
                }
            },
        })
    }

    /// Mean and biased variance over batch and space; the new running statistics are kept aside.
    fn batch_statistics(&mut self, x: &Tensor, mean: ParamId, var: ParamId) -> Result<(Tensor, Tensor)> {
        let (b, _, h, w) = x.dims4()?;
        let n = (b * h * w) as f64;
        let m = x.mean_keepdim((0, 2, 3))?;
        let s = x.broadcast_sub(&m)?.sqr()?.mean_keepdim((0, 2, 3))?;
        if n < 2.0 {
            return Err(Error::input(format!("{}: batch norm needs more than one value per channel", self.net.name))
                .hint("a batch of one 1×1 image cannot be normalised: raise the batch size"));
        }
        let rate = f64::from(BN_MOMENTUM);
        for (id, new, scale) in [(mean, &m, 1.0), (var, &s, n / (n - 1.0))] {
            let old = self.channels(id)?.detach();
            let mixed = ((old * (1.0 - rate))? + (new.detach() * (rate * scale))?)?;
            self.statistics.push((id, mixed));
        }
        Ok((m, s))
    }
}

impl Interpreter for Candle {
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        let &[rows] = rows else {
            return Err(Error::defect(format!("candle interpreter: one client a batch, got {}", rows.len())));
        };
        mode.check(1)?;
        let mode = mode.of(0)?;
        let net = self.net.clone();
        self.vars.clear();
        for entry in net.layout.entries() {
            let tensor = Tensor::from_slice(&params[entry.range()], entry.shape.as_slice(), &self.device)?;
            self.vars.push(Var::from_tensor(&tensor.to_dtype(self.dtype)?)?);
        }
        let mut shape = vec![rows];
        shape.extend_from_slice(net.input_shape());
        let input = Tensor::from_slice(x, shape, &self.device)?.to_dtype(self.dtype)?;
        self.values.clear();
        self.statistics.clear();
        self.kept = mode != Mode::Infer;
        for node in 0..net.ops.len() {
            let value =
                self.step(node, &input, mode).at(|| format!("{}: node {node} {:?}", net.name, net.ops[node]))?;
            self.values.push(value);
        }
        Ok(())
    }

    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()> {
        for (id, value) in &self.statistics {
            let flat = value.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            params[self.net.layout.entries()[*id].range()].copy_from_slice(&flat);
        }
        Ok(())
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        let Some(value) = self.values.get(node) else {
            return Err(Error::defect(format!("{}: node {node} read before forward", self.net.name)));
        };
        *out = value.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(())
    }

    fn backward(&mut self, _: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()> {
        if !self.kept {
            return Err(Error::defect(format!("{}: backward after a forward in Mode::Infer", self.net.name)));
        }
        let mut objective = Tensor::zeros((), self.dtype, &self.device)?;
        for (node, seed) in seeds {
            let value = &self.values[*node];
            let seed = Tensor::from_slice(seed, value.shape(), &self.device)?.to_dtype(self.dtype)?;
            objective = (objective + (value * seed)?.sum_all()?)?;
        }
        let store = objective.backward()?;
        for (entry, var) in self.net.layout.entries().iter().zip(&self.vars) {
            let to = &mut grads[entry.range()];
            match store.get(var) {
                Some(g) => to.copy_from_slice(&g.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?),
                None => to.fill(0.0),
            }
        }
        Ok(())
    }
}

fn convolve(x: &Tensor, weight: &Tensor, stride: usize, padding: usize, groups: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let kernel = weight.dim(2)?;
    let (down, right) = ((h + 2 * padding - kernel) % stride, (w + 2 * padding - kernel) % stride);
    if down != right {
        // candle's backward takes what the window leaves over at the right from what it leaves over below.
        let x = x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
        let x = x.narrow(2, 0, h + 2 * padding - down)?.narrow(3, 0, w + 2 * padding - right)?;
        return convolve(&x.contiguous()?, weight, stride, 0, groups);
    }
    if groups == 1 {
        return Ok(x.conv2d(weight, padding, stride, 1, 1)?);
    }
    let (xs, ws) = (x.chunk(groups, 1)?, weight.chunk(groups, 0)?);
    let ys: Result<Vec<Tensor>> =
        xs.iter().zip(&ws).map(|(x, w)| Ok(x.contiguous()?.conv2d(&w.contiguous()?, padding, stride, 1, 1)?)).collect();
    Ok(Tensor::cat(&ys?, 1)?)
}

/// Elements `first, first + stride, …` along `dim`.
fn every(x: &Tensor, dim: usize, first: usize, stride: usize) -> Result<Tensor> {
    let indices: Vec<u32> = (first..x.dim(dim)?).step_by(stride).map(|i| i as u32).collect();
    Ok(x.contiguous()?.index_select(&Tensor::new(indices, x.device())?, dim)?)
}

/// The `kernel²` shifted slices of `x` that a pooling window sees, in row-major order; no padding.
fn windows(x: &Tensor, kernel: usize, stride: usize) -> Result<Vec<Tensor>> {
    let (_, _, h, w) = x.dims4()?;
    let (oh, ow) = ((h - kernel) / stride + 1, (w - kernel) / stride + 1);
    let mut slices = Vec::with_capacity(kernel * kernel);
    for i in 0..kernel {
        let rows = every(&x.narrow(2, i, (oh - 1) * stride + 1)?, 2, 0, stride)?;
        for j in 0..kernel {
            slices.push(every(&rows.narrow(3, j, (ow - 1) * stride + 1)?, 3, 0, stride)?);
        }
    }
    Ok(slices)
}

/// The value is a masked sum over the window, the mask a constant that marks the first maximum.
fn max_pool(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let low = f64::from(f32::MIN) / 4.0;
    let padded = if padding == 0 {
        x.clone()
    } else {
        let inside = x.ones_like()?.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)?;
        let border = ((1.0 - inside)? * low)?;
        (x.pad_with_zeros(2, padding, padding)?.pad_with_zeros(3, padding, padding)? + border)?
    };
    let slices = windows(&padded, kernel, stride)?;
    let highest = Tensor::stack(&slices, 0)?.detach().max(0)?;
    let mut free = highest.ones_like()?;
    let mut sum = highest.zeros_like()?;
    for slice in &slices {
        let hit = (slice.detach().eq(&highest)?.to_dtype(x.dtype())? * &free)?;
        free = (free - &hit)?;
        sum = (sum + (slice * hit)?)?;
    }
    Ok(sum)
}
