//! `config.json` of a CLIP, as the Hub has it and as transformers writes it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::weights;

/// The non-linearity of a transformer's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(1.702 x)`: OpenAI's.
    QuickGelu,
    /// `x · Φ(x)` by the error function.
    Gelu,
    /// The same by a hyperbolic tangent: SigLIP's.
    GeluPytorchTanh,
}

/// A CLIP: two towers and a shared space. Keys that are not listed here do not change the function computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Always `clip`.
    pub model_type: String,
    /// The class transformers builds.
    pub architectures: Vec<String>,
    /// Dimension of the shared space.
    pub projection_dim: usize,
    /// Natural logarithm of the initial factor on cosines.
    pub logit_scale_init_value: f64,
    /// Multiplies every initial standard deviation.
    pub initializer_factor: f64,
    /// The text tower.
    pub text_config: TextConfig,
    /// The image tower.
    pub vision_config: VisionConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            model_type: "clip".into(),
            architectures: vec!["CLIPModel".into()],
            projection_dim: 512,
            logit_scale_init_value: 2.6592,
            initializer_factor: 1.0,
            text_config: TextConfig::default(),
            vision_config: VisionConfig::default(),
        }
    }
}

impl Config {
    /// Multiply-adds of the image tower for one image: patches, attention, MLPs, projection.
    pub fn image_multiply_adds(&self) -> u64 {
        let v = &self.vision_config;
        let patches = (v.image_size / v.patch_size.max(1)).pow(2);
        let (tokens, d) = (patches + 1, v.hidden_size);
        let layer = tokens * (4 * d * d + 2 * d * v.intermediate_size) + 2 * tokens * tokens * d;
        let embed = patches * d * v.num_channels * v.patch_size.pow(2);
        (embed + v.num_hidden_layers * layer + d * self.projection_dim) as u64
    }
}

/// The text tower; defaults are those of `openai/clip-vit-base-patch32`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; they divide the width.
    pub num_attention_heads: usize,
    /// Longest text in tokens, start and end included.
    pub max_position_embeddings: usize,
    /// The MLP's non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// The token whose state is the text's; 2 means the highest id of the text (configs before transformers 4.31).
    pub eos_token_id: u32,
    /// The first token; not used by the tower.
    pub bos_token_id: u32,
    /// The padding token; not used by the tower.
    pub pad_token_id: u32,
    /// Multiplies every initial standard deviation.
    pub initializer_factor: f64,
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            bos_token_id: 49406,
            pad_token_id: 1,
            initializer_factor: 1.0,
        }
    }
}

/// The image tower; defaults are those of `openai/clip-vit-base-patch32`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads; they divide the width.
    pub num_attention_heads: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The MLP's non-linearity.
    pub hidden_act: Activation,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// Initial standard deviation of the patch and position embeddings.
    pub initializer_range: f64,
    /// Multiplies every initial standard deviation.
    pub initializer_factor: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            initializer_range: 0.02,
            initializer_factor: 1.0,
        }
    }
}

impl VisionConfig {
    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of an image: its patches and the class token.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid() + 1
    }

    /// Refuses shapes that cannot be computed.
    pub fn check(&self) -> Result<()> {
        check_heads("vision_config", self.hidden_size, self.num_attention_heads)?;
        if self.patch_size == 0 || self.grid() == 0 || self.num_channels == 0 {
            return Err(Error::data(format!(
                "vision_config: patches of {} pixels in images of {} pixels with {} channels",
                self.patch_size, self.image_size, self.num_channels
            )));
        }
        Ok(())
    }
}

impl TextConfig {
    /// Refuses shapes that cannot be computed.
    pub fn check(&self) -> Result<()> {
        check_heads("text_config", self.hidden_size, self.num_attention_heads)?;
        if self.vocab_size == 0 || self.max_position_embeddings < 2 {
            return Err(Error::data(format!(
                "text_config: {} tokens, texts of up to {}",
                self.vocab_size, self.max_position_embeddings
            )));
        }
        Ok(())
    }
}

fn check_heads(section: &str, hidden: usize, heads: usize) -> Result<()> {
    if heads == 0 || hidden == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::data(format!("{section}: {heads} heads do not divide a width of {hidden}")));
    }
    Ok(())
}

impl Config {
    /// Reads a `config.json`; older files keep the towers' true values in `text_config_dict` and `vision_config_dict`.
    pub fn read(path: &Path) -> Result<Config> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let missing = |e: Error| if path.exists() { e } else { e.hint(weights::without_config(folder)) };
        let mut json: serde_json::Value = fsx::read_json(path).map_err(missing)?;
        weights::refuse_quantised(&json).at(|| path.display().to_string())?;
        for (old, new) in [("text_config_dict", "text_config"), ("vision_config_dict", "vision_config")] {
            let Some(serde_json::Value::Object(overrides)) = json.get(old).cloned() else { continue };
            match json.get_mut(new) {
                Some(serde_json::Value::Object(section)) => section.extend(overrides),
                _ => json[new] = overrides.into(),
            }
        }
        let config: Config = fsx::json(&json.to_string())
            .map_err(|e| Error::data(format!("{}: not a CLIP's: {}", path.display(), e.message())))?;
        config.check().map_err(|e| e.context(path.display().to_string()))?;
        Ok(config)
    }

    /// Refuses other models and shapes that cannot be computed.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "clip" {
            return Err(Error::data(format!("model_type is {:?}, not \"clip\"", self.model_type)));
        }
        self.text_config.check()?;
        self.vision_config.check()
    }

    /// The file transformers reads.
    pub fn to_json(&self) -> Result<String> {
        let mut json = serde_json::to_value(self).map_err(|e| Error::defect(format!("config.json: {e}")))?;
        json["text_config"]["model_type"] = "clip_text_model".into();
        json["text_config"]["projection_dim"] = self.projection_dim.into();
        json["vision_config"]["model_type"] = "clip_vision_model".into();
        json["vision_config"]["projection_dim"] = self.projection_dim.into();
        serde_json::to_string_pretty(&json).map_err(|e| Error::defect(format!("config.json: {e}")))
    }
}
