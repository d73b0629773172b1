//! Layers on candle tensors that know whether a gradient is asked for, and of what.
//!
//! Three ways through each layer, tested equal: nothing is tracked (fused operations, no graph); the input is tracked
//! and the weight is frozen (a backward for the input alone: no gradient buffer of the weight's size is ever made);
//! the weight is trained (composed operations, which candle differentiates).

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::fused;
use super::graph::with_backward;
use super::lora::Adapter;
use super::view::{View, plain};
use super::weights::{Init, Scope};
use crate::error::{Error, Place, Result};
use crate::nn::kernels::matrix::{Matrix, products, serves};
use crate::nn::kernels::norms;

/// `x Wᵀ + b`, and what an adapter adds; weight `(out, in)`, bias `(out)`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// From its tensors.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Linear { weight, bias, adapter: None }
    }

    /// Loads `weight`, with `bias` also `bias`, and the adapter that the source has for it; a fresh weight is normal
    /// with standard deviation `std`.
    pub fn load(at: &Scope, input: usize, output: usize, std: f64, bias: bool) -> Result<Self> {
        let weight = at.tensor("weight", &[output, input], Init::Normal(std))?;
        let bias = if bias { Some(at.tensor("bias", &[output], Init::Constant(0.0))?) } else { None };
        Ok(Linear { weight, bias, adapter: at.adapter(input, output)? })
    }

    /// `(…, in)` → `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let inputs = shape.pop().unwrap_or(0);
        shape.push(self.weight.dim(0)?);
        let flat = x.reshape(((), inputs.max(1))).at(|| self.place(x))?;
        let frozen = flat.track_op() && !self.weight.track_op();
        let y = match &self.bias {
            Some(b) if !frozen => fused::linear(&flat, &self.weight, b).at(|| self.place(x))?,
            Some(b) => self.product(&flat).at(|| self.place(x))?.broadcast_add(b)?,
            None => self.product(&flat).at(|| self.place(x))?,
        };
        match &self.adapter {
            Some(adapter) => Ok((&y + adapter.forward(&flat, y.dtype()).at(|| self.place(x))?)?.reshape(shape)?),
            None => Ok(y.reshape(shape)?),
        }
    }

    /// Whether anything of it is trained: the weight, the bias, or what stands beside it.
    pub fn trains(&self) -> bool {
        let own = self.weight.track_op() || self.bias.as_ref().is_some_and(Tensor::track_op);
        own || self.adapter.as_ref().is_some_and(|a| !a.trained().is_empty())
    }

    /// What is trained beside it. A path that computes from the weight alone must ask.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The weight `(out, in)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Its tensors with their names under `name`.
    pub fn tensors(&self, name: &str, out: &mut Vec<(String, Tensor)>) {
        out.push((format!("{name}.weight"), self.weight.clone()));
        out.extend(self.bias.iter().map(|b| (format!("{name}.bias"), b.clone())));
    }

    /// The same layer without a tie to the graph; storage is shared.
    pub fn frozen(&self) -> Self {
        Linear {
            weight: self.weight.detach(),
            bias: self.bias.as_ref().map(Tensor::detach),
            adapter: self.adapter.as_ref().map(Adapter::frozen),
        }
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        if self.weight.track_op() {
            return Ok(x.matmul(&self.weight.t()?)?);
        }
        let value = self.value(&x.detach())?;
        if !x.track_op() {
            return Ok(value);
        }
        let weight = self.weight.clone();
        with_backward(x, &value, move |grad| grad.matmul(&weight))
    }

    /// `x Wᵀ` without a graph.
    fn value(&self, x: &Tensor) -> Result<Tensor> {
        let ((rows, inputs), (outputs, width)) = (x.dims2()?, self.weight.dims2()?);
        let whole = inputs == width && self.weight.is_contiguous();
        if !whole || !plain(&[x, &self.weight]) || !serves(rows, inputs, outputs) {
            return Ok(x.matmul(&self.weight.t()?)?);
        }
        let x = x.contiguous()?;
        let weight = View::of(&self.weight)?;
        let y = products(&View::of(&x)?, inputs, &[Matrix { weight: &weight, inputs, bias: None }]).swap_remove(0);
        Ok(Tensor::from_vec(y, (rows, outputs), x.device())?)
    }

    /// Its numbers where they lie on a CPU in f32.
    pub fn view(&self) -> Result<LinearView<'_>> {
        if self.adapter.is_some() {
            return Err(Error::defect("the plain numbers of a linear layer that has an adapter"));
        }
        self.base()
    }

    /// As [`view`](Self::view), without what stands beside it: whoever asks adds that.
    pub fn base(&self) -> Result<LinearView<'_>> {
        let bias = self.bias.as_ref().map(View::of).transpose()?;
        Ok(LinearView { weight: View::of(&self.weight)?, inputs: self.weight.dim(1)?, bias })
    }

    fn place(&self, x: &Tensor) -> String {
        format!("linear layer with weight {:?} on {:?}", self.weight.dims(), x.dims())
    }
}

/// A [`Linear`]'s numbers, held for reading.
pub struct LinearView<'a> {
    weight: View<'a>,
    inputs: usize,
    bias: Option<View<'a>>,
}

impl LinearView<'_> {
    /// As the kernels take it.
    pub fn matrix(&self) -> Matrix<'_> {
        Matrix { weight: &self.weight, inputs: self.inputs, bias: self.bias.as_deref() }
    }
}

/// Root-mean-square norm (Zhang and Sennrich, 2019): `w · x / √(mean(x²) + eps)`, statistics in f32 as transformers'
/// `LlamaRMSNorm` has them.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Loads `weight`, `(size)`; a fresh one is 1.
    pub fn load(at: &Scope, size: usize, eps: f64) -> Result<Self> {
        Ok(RmsNorm { weight: at.tensor("weight", &[size], Init::Constant(1.0))?, eps })
    }

    /// `(…, size)` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if self.weight.track_op() {
            return self.composed(x);
        }
        let value = candle_nn::ops::rms_norm(&x.detach().contiguous()?, &self.weight, self.eps as f32)?;
        if !x.track_op() {
            return Ok(value);
        }
        let (input, weight, eps) = (x.detach(), self.weight.clone(), self.eps);
        with_backward(x, &value, move |grad| input_gradient(&input, &weight, eps, grad))
    }

    /// Its tensor with its name under `name`.
    pub fn tensors(&self, name: &str, out: &mut Vec<(String, Tensor)>) {
        out.push((format!("{name}.weight"), self.weight.clone()));
    }

    /// The same layer without a tie to the graph; storage is shared.
    pub fn frozen(&self) -> Self {
        RmsNorm { weight: self.weight.detach(), eps: self.eps }
    }

    /// Of rows that lie on a CPU in f32, without a graph, into `y` of the same length.
    pub fn rows(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        norms::rms_norm(x, &View::of(&self.weight)?, self.eps as f32, y);
        Ok(())
    }

    /// The way back of [`rows`](Self::rows) to its input, added to `gx`.
    pub fn back(&self, x: &[f32], grad: &[f32], gx: &mut [f32]) -> Result<()> {
        let (weight, eps) = (View::of(&self.weight)?, self.eps as f32);
        let some = (1usize << 14).next_multiple_of(weight.len().max(1));
        match rayon::current_num_threads() {
            1 => norms::rms_norm_back(x, &weight, eps, grad, gx),
            _ => gx
                .par_chunks_mut(some)
                .zip(x.par_chunks(some))
                .zip(grad.par_chunks(some))
                .for_each(|((gx, x), grad)| norms::rms_norm_back(x, &weight, eps, grad, gx)),
        }
        Ok(())
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?.recip()?;
        let normed = wide.broadcast_mul(&scale)?.to_dtype(x.dtype())?;
        Ok(normed.broadcast_mul(&self.weight)?)
    }
}

/// With r = 1/√(mean(x²) + eps) and h = grad·w: `dx = r·h − x · r³ · mean(h·x)`.
fn input_gradient(x: &Tensor, w: &Tensor, eps: f64, grad: &Tensor) -> candle_core::Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let h = grad.to_dtype(DType::F32)?.broadcast_mul(&w.to_dtype(DType::F32)?)?;
    let r = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let along = ((&h * &x)?.mean_keepdim(D::Minus1)? * (&r * &r)?)?;
    (h - x.broadcast_mul(&along)?)?.broadcast_mul(&r)?.to_dtype(dtype)
}

/// Softmax over the last axis, in f32 as transformers has it, in the input's type again.
/// The fused kernel runs where nothing is tracked.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let p = if x.track_op() {
        candle_nn::ops::softmax(&wide, D::Minus1)?
    } else {
        candle_nn::ops::softmax_last_dim(&wide.contiguous()?)?
    };
    Ok(p.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn wave(shape: &[usize], step: f32) -> Tensor {
        let n: usize = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| (i as f32 * step + 0.3).sin()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    /// Value and input gradient of `layer` under three regimes: input only, and input and weight tracked.
    fn run(
        x: &Var,
        seed: &Tensor,
        f: &dyn Fn(&Tensor) -> Result<Tensor>,
    ) -> (Vec<f32>, Vec<f32>, candle_core::backprop::GradStore) {
        let y = f(x.as_tensor()).unwrap();
        let grads = (&y * seed).unwrap().sum_all().unwrap().backward().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let g = flat(grads.get(x.as_tensor()).unwrap());
        (flat(&y), g, grads)
    }

    fn near(a: &[f32], b: &[f32]) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 2e-6 * (1.0 + a.abs()), "{a} and {b}");
        }
    }

    #[test]
    fn a_linear_layer_is_the_same_frozen_and_trained_and_a_frozen_weight_gets_no_gradient() {
        let x = Var::from_tensor(&wave(&[2, 3, 5], 0.7)).unwrap();
        let w = Var::from_tensor(&wave(&[4, 5], 0.9)).unwrap();
        let seed = wave(&[2, 3, 4], 1.3);
        let trained = Linear::new(w.as_tensor().clone(), Some(wave(&[4], 0.2)));
        let frozen = trained.frozen();
        let (y1, g1, grads1) = run(&x, &seed, &|x| trained.forward(x));
        let (y2, g2, grads2) = run(&x, &seed, &|x| frozen.forward(x));
        near(&y1, &y2);
        near(&g1, &g2);
        assert!(grads1.get(w.as_tensor()).is_some());
        assert!(grads2.get(frozen.weight()).is_none());
    }

    #[test]
    fn the_norm_is_the_same_fused_joined_and_composed() {
        let x = Var::from_tensor(&wave(&[2, 3, 8], 0.7)).unwrap();
        let seed = wave(&[2, 3, 8], 1.3);
        let w = Var::from_tensor(&wave(&[8], 0.4)).unwrap();
        let trained = RmsNorm { weight: w.as_tensor().clone(), eps: 1e-5 };
        let (y1, g1, _) = run(&x, &seed, &|x| trained.forward(x));
        let (y2, g2, _) = run(&x, &seed, &|x| trained.frozen().forward(x));
        let y3 = trained.frozen().forward(&x.as_tensor().detach()).unwrap();
        near(&y1, &y2);
        near(&g1, &g2);
        near(&y1, &y3.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }

    #[test]
    fn a_wrong_width_is_an_error_that_shows_both_shapes() {
        let layer = Linear::new(wave(&[4, 5], 0.9), None);
        let e = layer.forward(&wave(&[2, 3], 0.1)).unwrap_err().to_string();
        assert!(e.contains("[4, 5]") && e.contains("[2, 3]"), "{e}");
    }
}
