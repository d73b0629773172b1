//! `config.json` of a Qwen2.5-VL: flat as the Hub has it, nested as transformers 5 writes it.

use std::path::Path;

use serde_json::Value;

use super::super::folder::{image_token, stops};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::llama::LlamaConfig;
use crate::model::llama::config::{count, flag};
use crate::model::weights::refuse_quantised;

/// What fixes the model's shape and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct QwenVlConfig {
    /// The language model.
    pub text: LlamaConfig,
    /// The image tower.
    pub vision: TowerConfig,
    /// The token that stands for a picture's places.
    pub image_token: u32,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
}

/// The image tower's shape; defaults are transformers' `Qwen2_5_VLVisionConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TowerConfig {
    /// Blocks.
    pub depth: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the gated MLP.
    pub intermediate_size: usize,
    /// Heads; they divide the width, and a head's width is a multiple of 4.
    pub num_heads: usize,
    /// Width of what the tower gives.
    pub out_hidden_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Patches a side that become one token.
    pub spatial_merge_size: usize,
    /// Pictures that a patch spans; a still picture is repeated.
    pub temporal_patch_size: usize,
    /// Side of a window of attention, in pixels.
    pub window_size: usize,
    /// Blocks that attend to the whole picture.
    pub fullatt_block_indexes: Vec<usize>,
}

impl QwenVlConfig {
    /// Reads `config.json` and, for the tokens that end an answer, `generation_config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let mut config = Self::from_json(&fsx::read_json(&path)?).at(|| path.display().to_string())?;
        config.stop = stops(folder, config.stop)?;
        Ok(config)
    }

    /// Reads the JSON object.
    pub fn from_json(json: &Value) -> Result<Self> {
        refuse_quantised(json)?;
        let nested = json.get("text_config").filter(|v| v.is_object());
        let mut text = LlamaConfig::from_json(nested.unwrap_or(json)).at(|| "language model")?;
        text.tie_word_embeddings = flag(json, "tie_word_embeddings", text.tie_word_embeddings)?;
        if text.rope_sections.is_empty() {
            return Err(
                Error::data("no mrope_section").hint("rope_scaling or rope_parameters of the published model has it")
            );
        }
        let image_token = image_token(json, 151_655, text.vocab_size)?;
        let empty = Value::Object(Default::default());
        let vision = TowerConfig::from_json(json.get("vision_config").filter(|v| v.is_object()).unwrap_or(&empty));
        let vision = vision.at(|| "vision_config")?;
        if vision.out_hidden_size != text.hidden_size {
            let (made, wanted) = (vision.out_hidden_size, text.hidden_size);
            return Err(Error::data(format!(
                "the tower gives {made} numbers a token, the language model takes {wanted}"
            )));
        }
        let stop = text.eos_token_id.clone();
        Ok(QwenVlConfig { text, vision, image_token, stop })
    }
}

impl TowerConfig {
    fn from_json(json: &Value) -> Result<Self> {
        let act = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        let channels = count(json, "in_channels", count(json, "in_chans", 3)?)?;
        if act != "silu" || channels != 3 {
            return Err(Error::data(format!("hidden_act \"{act}\" of {channels} channels: silu of 3 is supported")));
        }
        let full = match json.get("fullatt_block_indexes") {
            None => vec![7, 15, 23, 31],
            Some(v) => {
                let list: Option<Vec<usize>> =
                    v.as_array().and_then(|l| l.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
                list.ok_or_else(|| Error::data("fullatt_block_indexes is no list of numbers"))?
            }
        };
        let config = TowerConfig {
            depth: count(json, "depth", 32)?,
            hidden_size: count(json, "hidden_size", 3584)?,
            intermediate_size: count(json, "intermediate_size", 3420)?,
            num_heads: count(json, "num_heads", 16)?,
            out_hidden_size: count(json, "out_hidden_size", 3584)?,
            patch_size: count(json, "patch_size", 14)?,
            spatial_merge_size: count(json, "spatial_merge_size", 2)?,
            temporal_patch_size: count(json, "temporal_patch_size", 2)?,
            window_size: count(json, "window_size", 112)?,
            fullatt_block_indexes: full,
        };
        let sizes = [config.num_heads, config.patch_size, config.spatial_merge_size, config.temporal_patch_size];
        if sizes.contains(&0) || !config.hidden_size.is_multiple_of(4 * config.num_heads) || config.window_cells() == 0
        {
            return Err(Error::data(format!("impossible sizes: {config:?}")));
        }
        Ok(config)
    }

    /// Merged cells a side of a window.
    pub fn window_cells(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }
}
