//! SigLIP's image tower (Zhai et al., *Sigmoid loss for language image pre-training*, 2023) for pictures of any shape,
//! as Idefics3, SmolVLM and MiniCPM-V have it: no class token, no pooling, and a square table of positions of which a
//! grid of patches takes the nearest rows and columns.

use candle_core::Tensor;
use serde_json::Value;

use crate::error::{Error, Place, Result};
use crate::model::clip::config::Activation;
use crate::model::clip::layers::{Encoder, LayerNorm, Linear, Shape};
use crate::model::llama::config::{count, number};
use crate::model::weights::{Init, Scope};

/// The tower's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; they divide the width.
    pub num_attention_heads: usize,
    /// Side of the picture for which the table of positions was made, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// The MLP's non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
}

impl SiglipConfig {
    /// Transformers' defaults of `Idefics3VisionConfig`.
    pub fn idefics3() -> Self {
        SiglipConfig {
            hidden_size: 1152,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::GeluPytorchTanh,
            layer_norm_eps: 1e-6,
        }
    }

    /// Transformers' defaults of `SiglipVisionConfig`.
    pub fn siglip() -> Self {
        SiglipConfig { hidden_size: 768, num_attention_heads: 12, patch_size: 16, ..Self::idefics3() }
    }

    /// Reads a `vision_config`; absent fields are those of `base`.
    pub fn from_json(json: &Value, base: &SiglipConfig) -> Result<Self> {
        let hidden_act = match json.get("hidden_act").and_then(Value::as_str) {
            None => base.hidden_act,
            Some("gelu_pytorch_tanh") => Activation::GeluPytorchTanh,
            Some("gelu") => Activation::Gelu,
            Some(other) => {
                return Err(Error::data(format!("image tower: hidden_act \"{other}\" is not supported"))
                    .hint("gelu_pytorch_tanh and gelu are"));
            }
        };
        if count(json, "num_channels", 3)? != 3 {
            return Err(Error::data("image tower: num_channels other than 3 is not supported"));
        }
        let config = SiglipConfig {
            hidden_size: count(json, "hidden_size", base.hidden_size)?,
            intermediate_size: count(json, "intermediate_size", base.intermediate_size)?,
            num_hidden_layers: count(json, "num_hidden_layers", base.num_hidden_layers)?,
            num_attention_heads: count(json, "num_attention_heads", base.num_attention_heads)?,
            image_size: count(json, "image_size", base.image_size)?,
            patch_size: count(json, "patch_size", base.patch_size)?,
            hidden_act,
            layer_norm_eps: number(json, "layer_norm_eps", base.layer_norm_eps)?,
        };
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) || config.patch_size == 0 || config.side() == 0 {
            return Err(Error::data(format!(
                "image tower: {heads} heads of {width}, patches of {} in pictures of {}",
                config.patch_size, config.image_size
            )));
        }
        Ok(config)
    }

    /// Rows and columns of the table of positions.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// Under published names: `embeddings.{patch_embedding, position_embedding}`, `encoder.layers.…`, `post_layernorm`.
pub struct Siglip {
    config: SiglipConfig,
    patch: Linear,
    position: Tensor,
    encoder: Encoder,
    post_norm: LayerNorm,
}

impl Siglip {
    /// Loads the tower below `at`.
    pub fn load(at: &Scope, config: &SiglipConfig) -> Result<Self> {
        let (width, side) = (config.hidden_size, config.patch_size);
        let embeddings = at.pp("embeddings");
        let kernel = embeddings.tensor("patch_embedding.weight", &[width, 3, side, side], Init::Normal(0.02))?;
        let bias = embeddings.tensor("patch_embedding.bias", &[width], Init::Constant(0.0))?;
        let places = config.side() * config.side();
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            factor: 1.0,
        };
        Ok(Siglip {
            config: config.clone(),
            patch: Linear::new(kernel.reshape((width, 3 * side * side))?, Some(bias)),
            position: embeddings.tensor("position_embedding.weight", &[places, width], Init::Normal(0.02))?,
            encoder: Encoder::load(&at.pp("encoder"), &shape)?,
            post_norm: LayerNorm::load(&at.pp("post_layernorm"), width, config.layer_norm_eps)?,
        })
    }

    /// Its shape.
    pub fn config(&self) -> &SiglipConfig {
        &self.config
    }

    /// Pictures of one grid: patches `(n, patches, 3 · p · p)` whose places are `buckets` `(patches)` of the table →
    /// `(n, patches, width)`, normed.
    pub fn forward(&self, patches: &Tensor, buckets: &[u32]) -> Result<Tensor> {
        let (_, count, _) = patches.dims3().at(|| "image tower: patches")?;
        if count != buckets.len() {
            return Err(Error::defect(format!("image tower: {count} patches with {} places", buckets.len())));
        }
        let places = Tensor::new(buckets, self.position.device())?;
        let position = self.position.index_select(&places, 0)?;
        let patches = patches.to_dtype(self.position.dtype())?;
        let x = self.patch.forward(&patches)?.broadcast_add(&position)?;
        self.post_norm.forward(&self.encoder.forward(&x, self.encoder.depth(), false)?)
    }
}

/// How a patch's place is computed; all mean floor(i · side / n), and differ where a place falls on a boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Idefics3's and SmolVLM's.
    Idefics3,
    /// MiniCPM-V's.
    MiniCpm,
}

/// Row or column of a table of `side` for each of `n` patches in a row: the number of boundaries j / side that are not
/// above i / n, in PyTorch's f32.
pub fn buckets(side: usize, n: usize, rounding: Rounding) -> Vec<u32> {
    let boundaries = arange(1.0 / side as f64, 1.0, 1.0 / side as f64);
    let part = 1.0f32 / n as f32;
    let fractions = match rounding {
        Rounding::Idefics3 => (0..n).map(|i| (i as f32 * part).min((1.0 - 1e-6) as f32)).collect(),
        Rounding::MiniCpm => arange(0.0, 1.0 - 1e-6, f64::from(part)),
    };
    fractions.iter().map(|f| boundaries.iter().filter(|b| *b <= f).count() as u32).collect()
}

/// Places of a grid of patches, row by row.
pub fn grid(side: usize, [rows, columns]: [usize; 2], rounding: Rounding) -> Vec<u32> {
    let (down, across) = (buckets(side, rows, rounding), buckets(side, columns, rounding));
    down.iter().flat_map(|r| across.iter().map(move |c| r * side as u32 + c)).collect()
}

/// `torch.arange` in f32 on a CPU: by blocks of eight, whose start is rounded before the steps are added in f64.
fn arange(start: f64, end: f64, step: f64) -> Vec<f32> {
    let n = ((end - start) / step).ceil().max(0.0) as usize;
    let whole = n / 8 * 8;
    let value = |i: usize| match i < whole {
        true => (f64::from((start + step * (i / 8 * 8) as f64) as f32) + step * (i % 8) as f64) as f32,
        false => (start + step * i as f64) as f32,
    };
    (0..n).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, without ties: floor(i · side / n).
    #[test]
    fn a_patch_takes_the_place_below_its_share() {
        for rounding in [Rounding::Idefics3, Rounding::MiniCpm] {
            assert_eq!(buckets(4, 3, rounding), [0, 1, 2]);
            assert_eq!(buckets(4, 6, rounding), [0, 0, 1, 2, 2, 3]);
            assert_eq!(grid(4, [1, 3], rounding), [0, 1, 2]);
            assert_eq!(grid(4, [2, 2], rounding), [0, 2, 8, 10]);
        }
    }

    /// Where a share lies on a boundary, f32 may put it one lower: 25 patches on a table of 70 (PyTorch's own numbers).
    #[test]
    fn ties_fall_as_in_pytorch() {
        let root = std::env::var_os("FEDLLAVA_FIXTURES").map(std::path::PathBuf::from);
        for (file, rounding) in [("idefics3", Rounding::Idefics3), ("minicpmv", Rounding::MiniCpm)] {
            let exact = |n: usize| (0..n).map(|i| (i * 70 / n) as u32).collect::<Vec<_>>();
            assert_eq!(buckets(70, 24, rounding), exact(24), "no ties");
            assert_ne!(buckets(70, 25, rounding), exact(25), "{file}");
            let Some(path) = root.as_ref().map(|r| r.join(format!("tables/{file}_position_buckets.json"))) else {
                continue;
            };
            let rows: Value = crate::fsx::read_json(&path).unwrap();
            for row in rows.as_array().unwrap() {
                let n = |key: &str| row[key].as_u64().unwrap() as usize;
                let got = buckets(n("side"), n("patches"), rounding);
                assert_eq!(serde_json::json!(got), row["bucket"], "{row}");
            }
        }
    }
}
