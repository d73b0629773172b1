//! `config.json` and `preprocessor_config.json` of a MiniCPM-V 2.6.

use std::path::Path;

use serde_json::Value;

use super::super::folder::three;
use super::super::pixels::{PictureConfig, tables};
use super::slices::Slicing;
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::llama::LlamaConfig;
use crate::model::llama::config::{count, flag, tokens};
use crate::model::siglip::SiglipConfig;
use crate::model::weights::refuse_quantised;

/// What fixes the model's shape and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct MiniCpmConfig {
    /// The language model.
    pub text: LlamaConfig,
    /// The image tower.
    pub vision: SiglipConfig,
    /// Tokens that a slice becomes.
    pub queries: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
}

impl MiniCpmConfig {
    /// Reads `config.json`; the tokens that end an answer are named by the tokenizer.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        Self::from_json(&fsx::read_json(&path)?).at(|| path.display().to_string())
    }

    /// Reads the JSON object.
    pub fn from_json(json: &Value) -> Result<Self> {
        refuse_quantised(json)?;
        if let Some(version) = json["version"].as_f64().filter(|v| *v != 2.6) {
            return Err(Error::data(format!("MiniCPM-V {version} is not supported")).hint("2.6 is"));
        }
        let text = LlamaConfig::from_json(json).at(|| "language model")?;
        let empty = Value::Object(Default::default());
        let section = json.get("vision_config").filter(|v| v.is_object()).unwrap_or(&empty);
        let mut vision = SiglipConfig::from_json(section, &SiglipConfig::siglip()).at(|| "vision_config")?;
        if flag(json, "drop_vision_last_layer", true)? {
            vision.num_hidden_layers = vision.num_hidden_layers.saturating_sub(1);
        }
        let heads = text.hidden_size / 128;
        if heads == 0 || !text.hidden_size.is_multiple_of(heads) || !text.hidden_size.is_multiple_of(4) {
            return Err(Error::data(format!("a resampler of {heads} heads on {} numbers", text.hidden_size)));
        }
        let stop = tokens(json, "eos_token_id")?.unwrap_or_default();
        Ok(MiniCpmConfig { text, vision, queries: count(json, "query_num", 64)?, stop })
    }
}

/// Longest side of a slice, in pixels.
const SIDE: usize = 4096;

/// Reads `preprocessor_config.json`.
pub(super) fn slicing(folder: &Path, how: &PictureConfig) -> Result<Slicing> {
    let path = folder.join("preprocessor_config.json");
    let json: Value = fsx::read_json(&path)?;
    let read = || -> Result<Slicing> {
        let three = |key: &str| three(&json, key, [0.5; 3]);
        let on = flag(&json, "slice_mode", true)?;
        let most = how.max_slices.unwrap_or(count(&json, "max_slice_nums", 9)?);
        let slicing = Slicing {
            most: if on { most } else { 1 },
            scale: count(&json, "scale_resolution", 448)?,
            patch: count(&json, "patch_size", 14)?,
            numbered: flag(&json, "use_image_id", true)?,
            tables: Box::new(tables(1.0 / 255.0, three("norm_mean")?, three("norm_std")?)),
        };
        match (1..=SIDE).contains(&slicing.scale) && slicing.patch > 0 {
            true => Ok(slicing),
            false => Err(Error::data(format!(
                "scale_resolution = {}, patch_size = {}: expected 1 to {SIDE} pixels, and more than 0",
                slicing.scale, slicing.patch
            ))),
        }
    };
    read().at(|| path.display().to_string())
}
