//! A LLaVA on disk, as published ones lie there.

use std::path::Path;

use candle_core::Tensor;

use super::LlavaConfig;
use crate::error::{Error, Result};
use crate::fsx;
use crate::model::clip::Preprocess;
use crate::model::weights::{self, Width};

/// Writes a folder in the Hugging Face layout that [`Llava::open`] and transformers read: config, weights by published
/// name (`tensors`), image preprocessing, and the tokenizer's files, copied from the folder `tokenizer`.
pub fn save<'t>(
    folder: &Path,
    config: &LlavaConfig,
    tensors: impl IntoIterator<Item = (&'t String, &'t Tensor)>,
    width: Width,
    preprocess: &Preprocess,
    tokenizer: &Path,
) -> Result<()> {
    fsx::create_dir(folder)?;
    for name in [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
    ] {
        if tokenizer.join(name).is_file() {
            fsx::write_atomic(&folder.join(name), &fsx::read(&tokenizer.join(name))?)?;
        }
    }
    fsx::write_atomic(&folder.join("preprocessor_config.json"), preprocess.to_json()?.as_bytes())?;
    weights::save_in(width, tensors, &folder.join("model.safetensors"))?;
    let json = |value: &serde_json::Value| {
        serde_json::to_string_pretty(value).map_err(|e| Error::defect(format!("config.json: {e}")))
    };
    let generation = serde_json::json!({ "eos_token_id": config.stop });
    fsx::write_atomic(&folder.join("generation_config.json"), json(&generation)?.as_bytes())?;
    // Last: a folder with a config.json is complete.
    fsx::write_atomic(&folder.join("config.json"), json(&config.to_json()?)?.as_bytes())
}
