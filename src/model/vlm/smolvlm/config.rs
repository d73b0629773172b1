//! `config.json` of an Idefics3 or SmolVLM, as the Hub has it and as transformers 5 writes it.

use std::path::Path;

use serde_json::Value;

use super::super::folder::{image_token, stops};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::llama::LlamaConfig;
use crate::model::llama::config::{count, flag};
use crate::model::siglip::SiglipConfig;
use crate::model::weights::refuse_quantised;

/// What fixes the model's shape and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct SmolVlmConfig {
    /// The language model.
    pub text: LlamaConfig,
    /// The image tower.
    pub vision: SiglipConfig,
    /// Patches a side that become one token.
    pub scale: usize,
    /// The token that stands for a picture's places.
    pub image_token: u32,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
}

impl SmolVlmConfig {
    /// Reads `config.json` and, for the tokens that end an answer, `generation_config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let mut config = Self::from_json(&fsx::read_json(&path)?).at(|| path.display().to_string())?;
        config.stop = stops(folder, config.stop)?;
        Ok(config)
    }

    /// Reads the JSON object; absent fields have transformers' defaults.
    pub fn from_json(json: &Value) -> Result<Self> {
        refuse_quantised(json)?;
        let empty = Value::Object(Default::default());
        let section = |name: &str| json.get(name).filter(|v| v.is_object()).unwrap_or(&empty);
        let mut text = LlamaConfig::from_json(section("text_config")).at(|| "text_config")?;
        // The outer key alone counts.
        text.tie_word_embeddings = flag(json, "tie_word_embeddings", false)?;
        let vision =
            SiglipConfig::from_json(section("vision_config"), &SiglipConfig::idefics3()).at(|| "vision_config")?;
        let scale = count(json, "scale_factor", 2)?;
        let image_token = image_token(json, 128_257, text.vocab_size)?;
        let stop = text.eos_token_id.clone();
        Ok(SmolVlmConfig { text, vision, scale, image_token, stop })
    }

    /// Tokens a side of a tile, what is left over at its right and bottom not counted; a tile that is no whole number
    /// of tokens is refused.
    pub(super) fn places(&self, tile: usize) -> Result<usize> {
        let patches = tile / self.vision.patch_size;
        match self.scale > 0 && patches > 0 && patches.is_multiple_of(self.scale) {
            true => Ok(patches / self.scale),
            false => Err(Error::data(format!(
                "tiles of {tile} pixels have {patches} patches a side, no whole number of tokens of {} a side",
                self.scale
            ))
            .hint("preprocessor_config.json and config.json do not belong together")),
        }
    }
}
