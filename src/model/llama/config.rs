//! A Llama's `config.json`, in the Hub's form and in the one transformers 5 writes.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rope::RopeScaling;
use crate::error::{Error, Result};

/// Architectures that this definition serves (`model_type`).
pub const SUPPORTED: [&str; 6] = ["llama", "vicuna", "qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "minicpmv"];

/// Of them, those with Qwen2's biases: in the projections of queries, keys and values alone.
const QWEN: [&str; 4] = ["qwen2", "qwen2_5_vl", "qwen2_5_vl_text", "minicpmv"];

/// What fixes a Llama's shape and arithmetic; defaults are transformers' `LlamaConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlamaConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// How many frequencies turn by a token's first, second and third position (Qwen2-VL); empty: positions have one
    /// axis.
    pub rope_sections: Vec<usize>,
    /// Biases in the projections of queries, keys and values.
    pub attention_bias: bool,
    /// A bias in the attention's output projection.
    pub output_bias: bool,
    /// Biases in the MLP's three projections.
    pub mlp_bias: bool,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh matrices.
    pub initializer_range: f64,
    /// First token of a sequence, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_id: Vec<u32>,
    /// Fills short rows, if any.
    pub pad_token_id: Option<u32>,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        LlamaConfig {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            rope_scaling: RopeScaling::None,
            rope_sections: Vec::new(),
            attention_bias: false,
            output_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            bos_token_id: Some(1),
            eos_token_id: vec![2],
            pad_token_id: None,
        }
    }
}

impl LlamaConfig {
    /// Reads the JSON object that transformers saves (`config.json`, or `text_config` inside a LLaVA's).
    /// Absent fields have transformers' defaults; an architecture that computes otherwise is refused.
    pub fn from_json(json: &Value) -> Result<Self> {
        let base = LlamaConfig::default();
        let kind = json.get("model_type").and_then(Value::as_str).unwrap_or("llama");
        if !SUPPORTED.contains(&kind) {
            return Err(Error::data(format!("language model: model_type \"{kind}\" is not supported"))
                .hint(format!("supported: {}", SUPPORTED.join(", "))));
        }
        let act = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if act != "silu" {
            return Err(Error::data(format!("language model: hidden_act \"{act}\" is not supported (only silu)")));
        }
        let hidden_size = count(json, "hidden_size", base.hidden_size)?;
        let heads = count(json, "num_attention_heads", base.num_attention_heads)?;
        let (rope_theta, rope_scaling) = RopeScaling::from_json(json, base.rope_theta)?;
        let qwen = QWEN.contains(&kind);
        if qwen && flag(json, "use_sliding_window", false)? {
            return Err(Error::data("language model: use_sliding_window = true is not supported"));
        }
        let attention_bias = qwen || flag(json, "attention_bias", base.attention_bias)?;
        LlamaConfig {
            vocab_size: count(json, "vocab_size", base.vocab_size)?,
            hidden_size,
            intermediate_size: count(json, "intermediate_size", base.intermediate_size)?,
            num_hidden_layers: count(json, "num_hidden_layers", base.num_hidden_layers)?,
            num_attention_heads: heads,
            num_key_value_heads: count(json, "num_key_value_heads", heads)?,
            head_dim: count(json, "head_dim", hidden_size / heads.max(1))?,
            max_position_embeddings: count(json, "max_position_embeddings", base.max_position_embeddings)?,
            rms_norm_eps: number(json, "rms_norm_eps", base.rms_norm_eps)?,
            rope_theta,
            rope_scaling,
            rope_sections: RopeScaling::sections(json)?,
            attention_bias,
            output_bias: attention_bias && !qwen,
            mlp_bias: flag(json, "mlp_bias", base.mlp_bias)?,
            tie_word_embeddings: flag(json, "tie_word_embeddings", base.tie_word_embeddings)?,
            initializer_range: number(json, "initializer_range", base.initializer_range)?,
            bos_token_id: tokens(json, "bos_token_id")?.map_or(base.bos_token_id, |ids| ids.first().copied()),
            eos_token_id: tokens(json, "eos_token_id")?.unwrap_or(base.eos_token_id),
            pad_token_id: tokens(json, "pad_token_id")?.and_then(|ids| ids.first().copied()),
        }
        .checked()
    }

    /// The same config, or what is impossible in it.
    pub fn checked(self) -> Result<Self> {
        let wrong = |what: String| Err(Error::data(format!("language model config: {what}")));
        let (heads, kv, dim) = (self.num_attention_heads, self.num_key_value_heads, self.head_dim);
        if [self.vocab_size, self.hidden_size, self.intermediate_size, heads, kv, dim].contains(&0) {
            return wrong("a size is 0".into());
        }
        // So that no product of them is out of range: far more than any published model has.
        let bounds = [
            ("vocab_size", self.vocab_size, 24),
            ("hidden_size", self.hidden_size, 20),
            ("intermediate_size", self.intermediate_size, 22),
            ("num_hidden_layers", self.num_hidden_layers, 12),
            ("num_attention_heads", heads, 16),
            ("head_dim", dim, 20),
            ("num_attention_heads · head_dim", heads.saturating_mul(dim), 20),
            ("max_position_embeddings", self.max_position_embeddings, 32),
        ];
        if let Some((name, size, bits)) = bounds.into_iter().find(|&(_, size, bits)| size > 1 << bits) {
            return wrong(format!("{name} = {size} is more than the {} that are read", 1usize << bits));
        }
        if !heads.is_multiple_of(kv) {
            return wrong(format!("num_key_value_heads = {kv} does not divide num_attention_heads = {heads}"));
        }
        if !dim.is_multiple_of(2) {
            return wrong(format!("head_dim = {dim} is odd; rotary embeddings turn pairs"));
        }
        let sections = &self.rope_sections;
        if !sections.is_empty() && (sections.len() != 3 || sections.iter().sum::<usize>() != dim / 2) {
            return wrong(format!("mrope_section = {sections:?} are not three parts of {} frequencies", dim / 2));
        }
        Ok(self)
    }

    /// The object that transformers 5 reads.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "model_type": if self.attention_bias == self.output_bias { "llama" } else { "qwen2" },
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": self.rope_scaling.to_json(self.rope_theta),
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        })
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        let n = |x: usize| x as u64;
        let (d, inner) = (n(self.hidden_size), n(self.intermediate_size));
        let (q, kv) = (n(self.num_attention_heads * self.head_dim), n(self.num_key_value_heads * self.head_dim));
        let bias = u64::from(self.attention_bias) * (q + 2 * kv)
            + u64::from(self.output_bias) * d
            + u64::from(self.mlp_bias) * (2 * inner + d);
        let layer = 2 * d * q + 2 * d * kv + 3 * d * inner + 2 * d + bias;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        n(self.num_hidden_layers) * layer + tables * n(self.vocab_size) * d + d
    }

    /// Numbers that one token adds to the key-value cache.
    pub fn cache_per_token(&self) -> u64 {
        2 * (self.num_hidden_layers * self.num_key_value_heads * self.head_dim) as u64
    }
}

/// A non-negative integer field; absent or null gives `default`.
pub(crate) fn count(json: &Value, name: &str, default: usize) -> Result<usize> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => match v.as_u64() {
            Some(n) => Ok(n as usize),
            None => Err(Error::data(format!("config.json: {name} = {v} is not a count"))),
        },
    }
}

/// A number field; absent or null gives `default`.
pub(crate) fn number(json: &Value, name: &str, default: f64) -> Result<f64> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => v.as_f64().ok_or_else(|| Error::data(format!("config.json: {name} = {v} is not a number"))),
    }
}

/// A boolean field; absent or null gives `default`.
pub(crate) fn flag(json: &Value, name: &str, default: bool) -> Result<bool> {
    match json.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => v.as_bool().ok_or_else(|| Error::data(format!("config.json: {name} = {v} is not true or false"))),
    }
}

/// A token id or a list of them; absent: `None`, null: an empty list.
pub(crate) fn tokens(json: &Value, name: &str) -> Result<Option<Vec<u32>>> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let ids = match json.get(name) {
        None => return Ok(None),
        Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(v) => id(v).map(|n| vec![n]),
    };
    match ids {
        Some(ids) => Ok(Some(ids)),
        None => Err(Error::data(format!("config.json: {name} is not a token id or a list of them"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_text_config_of_llava_on_the_hub_is_vicuna_7b() {
        let c = LlamaConfig::from_json(&json!({
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
            "torch_dtype": "float16", "vocab_size": 32064
        }))
        .unwrap();
        assert_eq!((c.hidden_size, c.num_hidden_layers, c.head_dim, c.vocab_size), (4096, 32, 128, 32064));
        // 6,738,415,616 for 32,000 words; 64 more rows in two tables.
        assert_eq!(c.parameters(), 6_738_415_616 + 2 * 64 * 4096);
    }

    #[test]
    fn another_architecture_is_refused_and_the_supported_ones_are_named() {
        let e = LlamaConfig::from_json(&json!({"model_type": "mixtral"})).unwrap_err().to_string();
        assert!(e.contains("mixtral") && e.contains("supported: llama"), "{e}");
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let e = LlamaConfig::from_json(&json!({"num_attention_heads": 8, "num_key_value_heads": 3})).unwrap_err();
        assert!(e.to_string().contains("num_key_value_heads = 3"), "{e}");
    }
}
