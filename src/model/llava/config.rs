//! A LLaVA's `config.json`, in the Hub's form and in the one transformers 5 writes, and what it needs of memory.

use std::fmt;
use std::path::Path;

use candle_core::DType;
use serde_json::Value;

use crate::error::{Error, Place, Result};
use crate::exec::human;
use crate::fsx;
use crate::model::clip::Tokens;
use crate::model::clip::config::{Activation, VisionConfig};
use crate::model::llama::LlamaConfig;
use crate::model::llama::config::{flag, tokens};
use crate::model::weights::refuse_quantised;

/// What fixes a LLaVA's shape and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct LlavaConfig {
    /// The language model.
    pub text: LlamaConfig,
    /// The image tower.
    pub vision: VisionConfig,
    /// The token that stands for an image's places.
    pub image_token: u32,
    /// Hidden states of the tower that are joined, as transformers numbers them (−2: before the last layer).
    pub layers: Vec<i64>,
    /// Patches only (`default`) or the class token too (`full`).
    pub select: Tokens,
    /// Between the projector's two layers.
    pub activation: Activation,
    /// Biases in the projector.
    pub projector_bias: bool,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
}

impl LlavaConfig {
    /// Reads `config.json` and, for the tokens that end an answer, `generation_config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let mut config = Self::from_json(&fsx::read_json(&path)?).at(|| path.display().to_string())?;
        let generation = folder.join("generation_config.json");
        if generation.is_file()
            && let Some(stop) = tokens(&fsx::read_json(&generation)?, "eos_token_id")?
        {
            config.stop = stop;
        }
        Ok(config)
    }

    /// Reads the JSON object; absent fields have transformers' defaults (LLaVA-1.5-7B).
    pub fn from_json(json: &Value) -> Result<Self> {
        refuse_original(json)?;
        expect(json, "model_type", "llava")?;
        refuse_quantised(json)?;
        let empty = Value::Object(Default::default());
        let mut text = LlamaConfig::from_json(json.get("text_config").unwrap_or(&empty)).at(|| "text_config")?;
        text.tie_word_embeddings |= flag(json, "tie_word_embeddings", false)?;
        let image_token = match (tokens(json, "image_token_index")?, tokens(json, "image_token_id")?) {
            (Some(ids), _) | (None, Some(ids)) if ids.len() == 1 => ids[0],
            (None, None) => 32000,
            _ => return Err(Error::data("image_token_index is not one token id")),
        };
        if image_token as usize >= text.vocab_size {
            let named = ["image_token_index", "image_token_id"].iter().any(|k| json.get(*k).is_some());
            let whose = if named { "image_token_index" } else { "the file names no image_token_index; LLaVA-1.5's" };
            let words = text.vocab_size;
            return Err(Error::data(format!("{whose} = {image_token} is outside of the vocabulary of {words}")));
        }
        let stop = text.eos_token_id.clone();
        Ok(LlavaConfig {
            vision: vision(json.get("vision_config"))?,
            image_token,
            layers: layers(json.get("vision_feature_layer"))?,
            select: select(json)?,
            activation: activation(json)?,
            projector_bias: flag(json, "multimodal_projector_bias", true)?,
            text,
            stop,
        })
    }

    /// The object that transformers 5 reads.
    pub fn to_json(&self) -> Result<Value> {
        let mut vision = serde_json::to_value(&self.vision).map_err(|e| Error::defect(format!("config.json: {e}")))?;
        vision["model_type"] = "clip_vision_model".into();
        let layers: Value = match self.layers.as_slice() {
            [one] => (*one).into(),
            several => several.into(),
        };
        Ok(serde_json::json!({
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": self.image_token,
            "image_seq_length": self.image_tokens(),
            "projector_hidden_act": self.activation,
            "multimodal_projector_bias": self.projector_bias,
            "vision_feature_layer": layers,
            "vision_feature_select_strategy": if self.select == Tokens::All { "full" } else { "default" },
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "text_config": self.text.to_json(),
            "vision_config": vision,
        }))
    }

    /// Tokens that an image becomes.
    pub fn image_tokens(&self) -> usize {
        match self.select {
            Tokens::All => self.vision.tokens(),
            Tokens::Patches => self.vision.tokens() - 1,
        }
    }

    /// Memory for the weights in `dtype` and for the keys and values of `rows` texts of `tokens` tokens.
    pub fn need(&self, dtype: DType, rows: usize, tokens: usize) -> Need {
        let size = dtype.size_in_bytes() as u64;
        let (v, d) = (&self.vision, self.text.hidden_size as u64);
        let (width, inner) = (v.hidden_size as u64, v.intermediate_size as u64);
        let patch = (v.num_channels * v.patch_size * v.patch_size) as u64;
        let layer = 4 * width * width + 2 * width * inner + 9 * width + inner;
        let tower = width * (patch + 1 + v.tokens() as u64 + 4) + v.num_hidden_layers as u64 * layer;
        let bias = if self.projector_bias { 2 * d } else { 0 };
        let projector = self.layers.len() as u64 * width * d + d * d + bias;
        Need {
            parameters: self.text.parameters() + tower + projector,
            weights: size * (self.text.parameters() + tower + projector),
            cache: size * self.text.cache_per_token() * (rows * tokens) as u64,
        }
    }
}

/// Memory that a model needs, in bytes; activations come on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of keys and values.
    pub cache: u64,
}

impl Need {
    /// Refuses what does not fit into `available` bytes.
    pub fn check(&self, available: Option<u64>) -> Result<()> {
        match available {
            Some(free) if self.weights + self.cache > free => {
                Err(Error::environment(format!("this model needs {self}, and {} of memory is available", human(free)))
                    .hint("a smaller model, --dtype bf16 for half of it, or a machine with more memory"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} million parameters: {} for weights, {} for keys and values",
            self.parameters as f64 / 1e6,
            human(self.weights),
            human(self.cache)
        )
    }
}

/// Refuses the LLaVA repository's own layout by its name.
fn refuse_original(json: &Value) -> Result<()> {
    let flat = ["mm_vision_tower", "mm_projector_type", "mm_hidden_size"].into_iter().find(|k| json.get(*k).is_some());
    let Some(key) = flat.filter(|_| json.get("text_config").is_none()) else { return Ok(()) };
    Err(Error::data(format!("a LLaVA in the layout of LLaVA's own repository ({key}), which is not read")).hint(
        "take its conversion for transformers, such as llava-hf/llava-1.5-7b-hf, or convert it with transformers' \
         convert_llava_weights_to_hf.py",
    ))
}

fn expect(json: &Value, name: &str, wanted: &str) -> Result<()> {
    match json.get(name).and_then(Value::as_str) {
        Some(found) if found == wanted => Ok(()),
        found => Err(Error::data(format!("{name} {found:?} is not supported"))
            .hint(format!("supported: {wanted} (LLaVA-1.5: a CLIP tower, a two-layer projector, a Llama)"))),
    }
}

fn vision(json: Option<&Value>) -> Result<VisionConfig> {
    let Some(json) = json.filter(|v| !v.is_null()) else {
        // CLIP ViT-L/14 at 336 pixels.
        return Ok(VisionConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            ..VisionConfig::default()
        });
    };
    expect(json, "model_type", "clip_vision_model").at(|| "vision_config")?;
    let config: VisionConfig =
        serde_json::from_value(json.clone()).map_err(|e| Error::data(format!("vision_config: {e}")))?;
    config.check()?;
    Ok(config)
}

fn layers(json: Option<&Value>) -> Result<Vec<i64>> {
    let layers: Option<Vec<i64>> = match json {
        None | Some(Value::Null) => Some(vec![-2]),
        Some(Value::Array(list)) => list.iter().map(Value::as_i64).collect(),
        Some(v) => v.as_i64().map(|n| vec![n]),
    };
    match layers {
        Some(layers) if !layers.is_empty() => Ok(layers),
        _ => Err(Error::data("vision_feature_layer is not a layer or a list of them")),
    }
}

fn select(json: &Value) -> Result<Tokens> {
    match json.get("vision_feature_select_strategy").and_then(Value::as_str) {
        None | Some("default") => Ok(Tokens::Patches),
        Some("full") => Ok(Tokens::All),
        Some(other) => Err(Error::data(format!("vision_feature_select_strategy \"{other}\" is not supported"))
            .hint("supported: default, full")),
    }
}

fn activation(json: &Value) -> Result<Activation> {
    match json.get("projector_hidden_act").and_then(Value::as_str) {
        None | Some("gelu") => Ok(Activation::Gelu),
        Some("quick_gelu") => Ok(Activation::QuickGelu),
        Some(other) => Err(Error::data(format!("projector_hidden_act \"{other}\" is not supported"))
            .hint("supported: gelu, quick_gelu")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The fields of `config.json` of llava-hf/llava-1.5-7b-hf.
    fn published() -> Value {
        json!({
            "model_type": "llava", "image_token_index": 32000, "projector_hidden_act": "gelu",
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "pad_token_id": 32001,
            "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064},
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
                "projection_dim": 768, "vocab_size": 32000}
        })
    }

    #[test]
    fn llava_1_5_7b_has_its_published_size_and_image_tokens() {
        let config = LlavaConfig::from_json(&published()).unwrap();
        assert_eq!(config.image_tokens(), 576);
        let need = config.need(DType::F16, 1, 1000);
        // 7,063,427,072: the sum over the index of the published shards, 14,126,854,144 bytes in f16.
        assert_eq!(need.parameters, 7_063_427_072);
        assert_eq!(need.weights, 14_126_854_144);
        assert_eq!(need.cache, 2 * 2 * 32 * 4096 * 1000);
        assert!(need.to_string().starts_with("7063.4 million parameters: 13.2 GiB for weights"));
        assert!(need.check(Some(need.weights + need.cache)).is_ok() && need.check(None).is_ok());
        let e = need.check(Some(8 << 30)).unwrap_err().to_string();
        assert!(e.contains("13.2 GiB for weights") && e.contains("8.0 GiB of memory is available"), "{e}");
    }

    #[test]
    fn other_models_are_refused_and_the_supported_one_is_named() {
        let mut next = published();
        next["model_type"] = "llava_next".into();
        let e = LlavaConfig::from_json(&next).unwrap_err().to_string();
        assert!(e.contains("llava_next") && e.contains("supported: llava"), "{e}");
        let mut siglip = published();
        siglip["vision_config"]["model_type"] = "siglip_vision_model".into();
        let e = LlavaConfig::from_json(&siglip).unwrap_err().to_string();
        assert!(e.contains("siglip_vision_model") && e.contains("clip_vision_model"), "{e}");
    }

    #[test]
    fn llavas_own_layout_and_quantised_weights_are_named() {
        let own =
            json!({"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "vocab_size": 32000});
        let e = LlavaConfig::from_json(&own).unwrap_err().to_string();
        assert!(e.contains("LLaVA's own repository") && e.contains("llava-hf/llava-1.5-7b-hf"), "{e}");
        let mut four = published();
        four["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        let e = LlavaConfig::from_json(&four).unwrap_err().to_string();
        assert!(e.contains("quantised weights (bitsandbytes 4bit)"), "{e}");
    }

    #[test]
    fn an_image_token_beyond_the_vocabulary_is_refused() {
        let mut wrong = published();
        wrong["image_token_index"] = 40000.into();
        assert!(LlavaConfig::from_json(&wrong).unwrap_err().to_string().contains("40000"));
    }
}
