//! The image tower: a vision transformer.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::config::VisionConfig;
use super::layers::{Encoder, LayerNorm, Linear, Shape};
use crate::error::{Error, Result};
use crate::model::view::{View, plain};
use crate::model::weights::{Init, Scope};

/// Which tokens of a hidden state are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// The class token and the patches.
    All,
    /// The patches only: LLaVA's `default` feature selection.
    Patches,
}

/// A vision transformer under published names (`embeddings.…`, `pre_layrnorm`, `encoder.layers.…`).
pub struct VisionTower {
    config: VisionConfig,
    patch: Tensor,
    class: Tensor,
    position: Tensor,
    pre_norm: LayerNorm,
    encoder: Encoder,
    post_norm: LayerNorm,
}

impl VisionTower {
    /// Loads the tower below `at`, for example `vision_model`.
    pub fn load(at: &Scope, config: &VisionConfig) -> Result<Self> {
        config.check()?;
        let width = config.hidden_size;
        let embeddings = at.pp("embeddings");
        let std = config.initializer_range * config.initializer_factor;
        let class_std = (width as f64).powf(-0.5) * config.initializer_factor;
        let patch = [width, config.num_channels, config.patch_size, config.patch_size];
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            factor: config.initializer_factor,
        };
        Ok(VisionTower {
            config: config.clone(),
            patch: embeddings.tensor("patch_embedding.weight", &patch, Init::Normal(std))?,
            class: embeddings.tensor("class_embedding", &[width], Init::Normal(class_std))?,
            position: embeddings.tensor("position_embedding.weight", &[config.tokens(), width], Init::Normal(std))?,
            // The missing letter is in the published name.
            pre_norm: LayerNorm::load(&at.pp("pre_layrnorm"), width, config.layer_norm_eps)?,
            encoder: Encoder::load(&at.pp("encoder"), &shape)?,
            post_norm: LayerNorm::load(&at.pp("post_layernorm"), width, config.layer_norm_eps)?,
        })
    }

    /// Its shape.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// What the tower computes in.
    pub fn dtype(&self) -> DType {
        self.patch.dtype()
    }

    /// The normalised state of the class token, `(n, hidden)`, of `pixels`, `(n, channels, side, side)`.
    pub fn pooled(&self, pixels: &Tensor) -> Result<Tensor> {
        let last = self.encoder.forward(&self.embed(pixels)?, self.encoder.depth(), false)?;
        self.post_norm.forward(&last.narrow(1, 0, 1)?.squeeze(1)?)
    }

    /// Hidden states as transformers numbers them, `(n, tokens, hidden)`: 0 is the encoder's input, `i` the state after
    /// layer `i`, and negative numbers count from the end (LLaVA reads −2). No final normalisation.
    pub fn hidden_states(&self, pixels: &Tensor, layer: i64, tokens: Tokens) -> Result<Tensor> {
        let states = self.encoder.depth() as i64 + 1;
        let index = if layer < 0 { layer + states } else { layer };
        if !(0..states).contains(&index) {
            return Err(Error::input(format!("hidden state {layer} of a vision tower that has {states}"))
                .hint(format!("{} to {} are valid", -states, states - 1)));
        }
        let state = self.encoder.forward(&self.embed(pixels)?, index as usize, false)?;
        Ok(match tokens {
            Tokens::All => state,
            Tokens::Patches => state.narrow(1, 1, self.config.tokens() - 1)?,
        })
    }

    /// `(n, channels, side, side)` → `(n, tokens, hidden)`. The strided convolution is a product with flat patches.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let (n, channels, height, width) = pixels.dims4()?;
        if (channels, height, width) != (c.num_channels, c.image_size, c.image_size) {
            return Err(Error::defect(format!(
                "CLIP image tower: pixels {:?}, expected (n, {}, {}, {})",
                pixels.dims(),
                c.num_channels,
                c.image_size,
                c.image_size
            )));
        }
        let (grid, side) = (c.grid(), c.patch_size);
        let patches = patches(&pixels.to_dtype(self.dtype())?, grid, side)?;
        let kernel = self.patch.reshape((c.hidden_size, channels * side * side))?;
        let patches = Linear::new(kernel, None).forward(&patches)?.reshape((n, grid * grid, c.hidden_size))?;
        let class = self.class.reshape((1, 1, c.hidden_size))?.broadcast_as((n, 1, c.hidden_size))?;
        let tokens = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.position)?;
        self.pre_norm.forward(&tokens)
    }
}

/// `(n, channels, height, width)` → `(n · grid², channels · side²)`, patch by patch in reading order.
fn patches(pixels: &Tensor, grid: usize, side: usize) -> Result<Tensor> {
    let (n, channels, height, width) = pixels.dims4()?;
    let row = channels * side * side;
    if !plain(&[pixels]) {
        let used = pixels.narrow(2, 0, grid * side)?.narrow(3, 0, grid * side)?;
        let apart = used.reshape(&[n, channels, grid, side, grid, side])?.permute([0, 2, 4, 1, 3, 5])?;
        return Ok(apart.reshape((n * grid * grid, row))?);
    }
    let pixels = pixels.contiguous()?;
    let mut out = vec![0.0f32; n * grid * grid * row];
    let image = |(from, out): (&[f32], &mut [f32])| {
        for (p, patch) in out.chunks_exact_mut(row).enumerate() {
            for (i, line) in patch.chunks_exact_mut(side).enumerate() {
                let at = (i / side * height + p / grid * side + i % side) * width + p % grid * side;
                line.copy_from_slice(&from[at..at + side]);
            }
        }
    };
    let from = View::of(&pixels)?;
    let (one, made) = (channels * height * width, grid * grid * row);
    match rayon::current_num_threads() {
        1 => from.chunks_exact(one).zip(out.chunks_exact_mut(made)).for_each(image),
        _ => from.par_chunks_exact(one).zip(out.par_chunks_exact_mut(made)).for_each(image),
    }
    Ok(Tensor::from_vec(out, (n * grid * grid, row), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn patches_are_the_same_copied_and_permuted_also_where_the_patch_does_not_divide_the_image() {
        let values: Vec<f32> = (0..2 * 3 * 7 * 7).map(|i| i as f32).collect();
        let tracked = Var::from_vec(values, (2, 3, 7, 7), &Device::Cpu).unwrap();
        let flat = |t: &Tensor| patches(t, 2, 3).unwrap().to_vec2::<f32>().unwrap();
        assert!(!plain(&[tracked.as_tensor()]));
        assert_eq!(flat(tracked.as_tensor()), flat(&tracked.as_tensor().detach()));
    }
}
