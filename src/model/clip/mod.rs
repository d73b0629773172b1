//! CLIP: an image tower and a text tower in one space (Radford et al., *Learning transferable visual models from natural
//! language supervision*, 2021), our own differentiable definition on candle tensors.
//!
//! A folder in the Hugging Face layout is loaded, trained and saved under its published names, so that what
//! transformers writes is read here and what is written here is read by transformers.

pub mod bpe;
pub mod config;
mod direct;
pub mod embed;
pub mod layers;
pub mod preprocess;
pub mod text;
pub mod tokenizer;
pub mod train;
pub mod vision;
pub mod zeroshot;

#[cfg(test)]
mod tests;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};

pub use config::Config;
pub use preprocess::{Picture, Preprocess};
pub use text::TextTower;
pub use tokenizer::Tokenizer;
pub use vision::{Tokens, VisionTower};

use crate::error::{Place, Result};
use crate::fsx;
use crate::key::Key;
use crate::model::weights::{self, Init, Scope, Source, Trainable, Weights};
use layers::Linear;

/// Both towers, their projections into the shared space, and the scale of cosines.
pub struct Clip {
    config: Config,
    vision: VisionTower,
    text: TextTower,
    visual_projection: Linear,
    text_projection: Linear,
    logit_scale: Tensor,
}

impl Clip {
    /// Builds the model from a source of tensors.
    pub fn new(source: &dyn Source, config: &Config) -> Result<Clip> {
        config.check()?;
        let at = Scope::root(source);
        let (image, text, out) = (&config.vision_config, &config.text_config, config.projection_dim);
        let projection = |name: &str, width: usize| {
            let std = (width as f64).powf(-0.5) * config.initializer_factor;
            Linear::load(&at.pp(name), width, out, std, false)
        };
        Ok(Clip {
            config: config.clone(),
            vision: VisionTower::load(&at.pp("vision_model"), image)?,
            text: TextTower::load(&at.pp("text_model"), text)?,
            visual_projection: projection("visual_projection", image.hidden_size)?,
            text_projection: projection("text_projection", text.hidden_size)?,
            logit_scale: at.tensor("logit_scale", &[], Init::Constant(config.logit_scale_init_value))?,
        })
    }

    /// Loads a frozen model from a folder in the Hugging Face layout.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Clip> {
        let config = Config::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder)?;
        Clip::new(&weights.frozen(dtype, device), &config).at(|| format!("CLIP of {}", folder.display()))
    }

    /// Loads a model to train, with its variables by published name.
    pub fn open_trainable(folder: &Path, device: &Device) -> Result<(Clip, BTreeMap<String, Var>)> {
        let config = Config::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder)?;
        let source = Trainable::load(&weights, device);
        let clip = Clip::new(&source, &config).at(|| format!("CLIP of {}", folder.display()))?;
        Ok((clip, source.into_vars()))
    }

    /// A fresh model, drawn as transformers does, with its variables by published name.
    pub fn fresh(config: &Config, key: Key, device: &Device) -> Result<(Clip, BTreeMap<String, Var>)> {
        let source = Trainable::fresh(key, device);
        let clip = Clip::new(&source, config)?;
        Ok((clip, source.into_vars()))
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The image tower.
    pub fn vision(&self) -> &VisionTower {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &TextTower {
        &self.text
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        self.logit_scale.device()
    }

    /// Image embeddings, `(n, projection)`, f32, not normalised, of preprocessed `pixels`, `(n, 3, side, side)`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let features = self.visual_projection.forward(&self.vision.pooled(pixels)?)?;
        Ok(features.to_dtype(DType::F32)?)
    }

    /// Text embeddings, `(n, projection)`, f32, not normalised, of token ids with their end tokens.
    pub fn text_features(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let features = self.text_projection.forward(&self.text.pooled(ids)?)?;
        Ok(features.to_dtype(DType::F32)?)
    }

    /// The natural logarithm of the factor on cosines, a scalar; differentiable when trained.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }

    /// The factor on cosines: `exp(logit_scale)`, 100 in published models.
    pub fn scale(&self) -> Result<f64> {
        let log: f32 = self.logit_scale.to_dtype(DType::F32)?.to_scalar()?;
        Ok(f64::from(log).exp())
    }
}

/// Rows divided by their Euclidean norm, as transformers does: no floor on the norm.
pub fn normalise(features: &Tensor) -> Result<Tensor> {
    let norm = features.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(features.broadcast_div(&norm)?)
}

/// Writes a folder in the Hugging Face layout: `config.json`, `model.safetensors`, `preprocessor_config.json` and the
/// tokenizer's files. `transformers.CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read it.
pub fn save(
    folder: &Path,
    config: &Config,
    vars: &BTreeMap<String, Var>,
    tokenizer: &Tokenizer,
    preprocess: &Preprocess,
) -> Result<()> {
    fsx::create_dir(folder)?;
    fsx::write_atomic(&folder.join("preprocessor_config.json"), preprocess.to_json()?.as_bytes())?;
    tokenizer.save(folder)?;
    weights::save(vars.iter().map(|(name, var)| (name, var.as_tensor())), &folder.join("model.safetensors"))?;
    // Last: a folder with a config.json is complete.
    fsx::write_atomic(&folder.join("config.json"), config.to_json()?.as_bytes())
}
