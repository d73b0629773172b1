//! The pre-norm transformer that both towers share, from operations that have a backward.
//!
//! Dosovitskiy et al., *An image is worth 16×16 words*, 2021; Radford et al., *Learning transferable visual models from
//! natural language supervision*, 2021. Names and arithmetic follow transformers' `modeling_clip.py`.

use candle_core::Tensor;

use super::config::Activation;
use super::direct;
use crate::error::Result;
use crate::model::fused;
pub use crate::model::layers::Linear;
use crate::model::weights::{Init, Scope};

/// Layer normalisation over the last dimension.
pub struct LayerNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f64,
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
        Ok(fused::layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}

impl Activation {
    /// Element by element.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::QuickGelu => fused::quick_gelu(x)?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluPytorchTanh => x.gelu()?,
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

pub(super) struct Attention {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) out: Linear,
    pub(super) heads: usize,
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

    /// `x` is `(n, t, width)`; `causal` hides later tokens.
    fn forward(&self, x: &Tensor, causal: bool) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        self.out.forward(&fused::attend(&q, &k, &v, self.heads, causal)?)
    }
}

pub(super) struct Layer {
    pub(super) norm1: LayerNorm,
    pub(super) attention: Attention,
    pub(super) norm2: LayerNorm,
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
    pub(super) activation: Activation,
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

    /// From operations that have a backward.
    pub(super) fn forward(&self, x: &Tensor, causal: bool) -> Result<Tensor> {
        let x = fused::add(x, &self.attention.forward(&self.norm1.forward(x)?, causal)?)?;
        let inner = self.activation.forward(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok(fused::add(&x, &self.fc2.forward(&inner)?)?)
    }
}

/// A stack of layers.
pub struct Encoder(pub(super) Vec<Layer>);

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

    /// The states after the first `layers` layers, `(n, t, width)`; `causal` hides later tokens.
    pub fn forward(&self, x: &Tensor, layers: usize, causal: bool) -> Result<Tensor> {
        let layers = self.0.get(..layers).unwrap_or(&self.0);
        if direct::serves(layers, x) {
            return direct::forward(layers, x, causal);
        }
        layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, causal))
    }
}
