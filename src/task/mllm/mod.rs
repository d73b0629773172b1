//! A multimodal LLM whose adapters a federation trains, after FedMLLM (Xu et al., arXiv 2411.14717): clients hold samples
//! that may lack their picture or their text; tests are whole.
//!
//! | file | what |
//! |---|---|
//! | this one | the keys below `task.kind = "mllm"` |
//! | [`lessons`] | what clients hold, in the model's tokens |
//! | [`speaker`] | the model as a network whose output is each row's loss |
//! | [`regular`] | the adaptive regularisation: which layers are held near the global adapters |
//! | [`judge`] | answers and likelihoods on the test sets |
//!
//! To the loop an MLLM is a [`Net`](crate::nn::Net) whose parameters are the adapters and whose output is the loss of each
//! row: [`fit`](crate::fl::fit), pulls, optimisers, stored moments and every method that works on parameters alone are those
//! of the compact networks. A method that looks at scores is refused before the first round.

pub mod judge;
pub mod lessons;
pub mod regular;
pub mod speaker;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::multimodal::Shuffled;
use crate::error::{Error, Result};
use crate::mllm::wording::Prompts;
use crate::model::lora::LoraConfig;
pub use regular::RegulariseConfig;

/// What the frozen weights are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 4 bytes a number.
    #[default]
    F32,
    /// 2 bytes, five bits of exponent.
    F16,
    /// 2 bytes, eight bits of exponent.
    Bf16,
}

impl From<Precision> for candle_core::DType {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => candle_core::DType::F32,
            Precision::F16 => candle_core::DType::F16,
            Precision::Bf16 => candle_core::DType::BF16,
        }
    }
}

/// The keys of `task.kind = "mllm"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MllmTaskConfig {
    /// Folder of the multimodal LLM in its Hugging Face layout, or its id.
    pub model: String,
    /// How samples are put into words: `base` names the modalities at hand, `agnostic` is the paper's prompt strategy.
    pub prompts: Prompts,
    /// A control: what is dealt anew among samples, in training and in tests, before clients get theirs.
    pub shuffled: Shuffled,
    /// Which adapters are trained.
    pub lora: LoraConfig,
    /// The paper's adaptive regularisation; off where `lambda` is 0.
    pub regularise: RegulariseConfig,
    /// What the frozen weights are kept in; adapters, sums and optimisers are f32.
    pub precision: Precision,
    /// Samples whose answer tokens share one mean; a step's loss is the mean over such groups. 1 is the reference's.
    pub micro_batch: usize,
    /// Most tokens of a training sample, pictures included; longer ones are left out, and counted.
    pub max_length: usize,
    /// Most tokens of an answer when the model is judged; answers are greedy.
    pub answer_tokens: usize,
    /// Questions answered side by side by one worker.
    pub answer_batch: usize,
    /// Whether a choice's options are scored by their likelihood too: one more pass an option, for the area under the
    /// curve by probability.
    pub likelihood: bool,
    /// Whether the activations of a layer are computed again on the way back instead of being kept.
    pub recompute: bool,
    /// MiB of prepared pictures that are kept in memory: so much for the clients' samples, for the tests, and for validation;
    /// the rest is prepared whenever it is needed.
    pub keep_pictures: usize,
}

impl Default for MllmTaskConfig {
    fn default() -> Self {
        MllmTaskConfig {
            model: "data/demo-llava".into(),
            prompts: Prompts::Base,
            shuffled: Shuffled::Nothing,
            lora: LoraConfig::default(),
            regularise: RegulariseConfig::default(),
            precision: Precision::F32,
            micro_batch: 1,
            max_length: 1200,
            answer_tokens: 32,
            answer_batch: 8,
            likelihood: true,
            recompute: true,
            keep_pictures: 1024,
        }
    }
}

impl MllmTaskConfig {
    /// Refuses values out of range.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("micro_batch", self.micro_batch),
            ("max_length", self.max_length),
            ("answer_tokens", self.answer_tokens),
            ("answer_batch", self.answer_batch),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, value)| *value == 0) {
            return Err(Error::input(format!("task.{key} = 0: the smallest is 1")));
        }
        if self.model.is_empty() {
            return Err(Error::input("task.model is empty").hint("name a folder in the Hugging Face layout, or an id"));
        }
        self.lora.check("task.lora")?;
        self.regularise.check()
    }
}
