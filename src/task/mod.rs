//! What is trained and how it is judged; the federated loop knows neither.
//!
//! | file | what |
//! |---|---|
//! | this one | the `task` section |
//! | [`mllm`] | the LoRA adapters of a multimodal LLM, judged by its answers |
//!
//! A compact network that classifies images is the pipeline's own business; here is what its place is taken by.

pub mod mllm;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use mllm::MllmTaskConfig;

/// The `task` section: what the federation trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TaskConfig {
    /// A compact network that classifies images.
    Classify(ClassifyConfig),
    /// LoRA adapters of a multimodal LLM that answers questions.
    Mllm(Box<MllmTaskConfig>),
}

/// Nothing to choose: the sections `model`, `data` and the others say it all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClassifyConfig {}

impl Default for TaskConfig {
    fn default() -> Self {
        TaskConfig::Classify(ClassifyConfig::default())
    }
}

impl TaskConfig {
    /// The multimodal LLM's section, where one is trained.
    pub fn mllm(&self) -> Option<&MllmTaskConfig> {
        match self {
            TaskConfig::Mllm(config) => Some(config),
            TaskConfig::Classify(_) => None,
        }
    }
}
