//! The pre-norm transformer that both towers share, from operations that have a backward.
//!
//! Dosovitskiy et al., *An image is worth 16×16 words*, 2021; Radford et al., *Learning transferable visual models from
//! natural language supervision*, 2021. Names and arithmetic follow transformers' `modeling_clip.py`.

use candle_core::{D, DType, Tensor};
use candle_nn::ops;

use super::config::Activation;
use crate::error::Result;
pub use crate::model::layers::Linear;
use crate::model::weights::{Init, Scope};

/// Layer normalisation over the last dimension, composed (candle's fused one has no backward); in f32 inside.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Loads `weight` and `bias`, `(width)`.
    pub fn load(at: &Scope, width: usize, eps: f64) -> Result<Self> {
        let weight = at.tensor("weight", &[width], Init::Constant(1.0))?;
        let bias = at.tensor("bias", &[width], Init::Constant(0.0))?;
        Ok(LayerNorm { weight, bias, eps })
    }

    /// `(…, width)` → the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?.to_dtype(x.dtype())?;
        Ok(normal.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

impl Activation {
    /// Element by element.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::QuickGelu => (x * ops::sigmoid(&(x * 1.702)?)?)?,
            Activation::Gelu => x.gelu_erf()?,
        })
    }
}

/// The shape of a tower's transformer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width.
    pub width: usize,
    /// Width inside the MLP.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Added to variances.
    pub eps: f64,
    /// Multiplies every initial standard deviation.
    pub factor: f64,
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn load(at: &Scope, shape: &Shape) -> Result<Self> {
        let width = shape.width;
        let out_std = (width as f64).powf(-0.5) * shape.factor;
        let in_std = out_std * (2.0 * shape.layers as f64).powf(-0.5);
        let linear = |name: &str, std: f64| Linear::load(&at.pp(name), width, width, std, true);
        Ok(Attention {
            q: linear("q_proj", in_std)?,
            k: linear("k_proj", in_std)?,
            v: linear("v_proj", in_std)?,
            out: linear("out_proj", out_std)?,
            heads: shape.heads,
        })
    }

    /// `x` is `(n, t, width)`; `mask`, `(t, t)`, is added to the scores.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (n, t, width) = x.dims3()?;
        let head = width / self.heads;
        let split = |y: Tensor| y.reshape((n, t, self.heads, head))?.transpose(1, 2)?.contiguous();
        let q = split(self.q.forward(x)?)?;
        let k = split(self.k.forward(x)?)?;
        let v = split(self.v.forward(x)?)?;
        let scores = (q.matmul(&k.transpose(2, 3)?)? * (head as f64).powf(-0.5))?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = ops::softmax(&scores.to_dtype(DType::F32)?, D::Minus1)?.to_dtype(v.dtype())?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((n, t, width))?;
        self.out.forward(&mixed)
    }
}

struct Layer {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Layer {
    fn load(at: &Scope, shape: &Shape) -> Result<Self> {
        let width = shape.width as f64;
        let fc1_std = (2.0 * width).powf(-0.5) * shape.factor;
        let fc2_std = width.powf(-0.5) * (2.0 * shape.layers as f64).powf(-0.5) * shape.factor;
        Ok(Layer {
            norm1: LayerNorm::load(&at.pp("layer_norm1"), shape.width, shape.eps)?,
            attention: Attention::load(&at.pp("self_attn"), shape)?,
            norm2: LayerNorm::load(&at.pp("layer_norm2"), shape.width, shape.eps)?,
            fc1: Linear::load(&at.pp("mlp.fc1"), shape.width, shape.inner, fc1_std, true)?,
            fc2: Linear::load(&at.pp("mlp.fc2"), shape.inner, shape.width, fc2_std, true)?,
            activation: shape.activation,
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.norm1.forward(x)?, mask)?)?;
        let inner = self.activation.forward(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok((x + self.fc2.forward(&inner)?)?)
    }
}

/// A stack of layers.
pub struct Encoder(Vec<Layer>);

impl Encoder {
    /// Loads `layers.0` and so on.
    pub fn load(at: &Scope, shape: &Shape) -> Result<Self> {
        let layers: Result<Vec<_>> = (0..shape.layers).map(|i| Layer::load(&at.pp("layers").pp(i), shape)).collect();
        Ok(Encoder(layers?))
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// The states after the first `layers` layers, `(n, t, width)`; `mask`, `(t, t)`, is added to the scores.
    pub fn forward(&self, x: &Tensor, layers: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        self.0.iter().take(layers).try_fold(x.clone(), |x, layer| layer.forward(&x, mask))
    }
}
