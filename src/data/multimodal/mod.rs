//! Sets of pictures with texts and questions, and which client holds which modality of which sample.
//!
//! The benchmark of FedMLLM (Xu et al., arXiv 2411.14717), and one's own files. How the parts fit together:
//!
//! ```text
//! MultimodalConfig ──load──▶ Multimodal { train, val, tests }           what there is        (here)
//! ScenarioConfig ──scenario::draw(train, …)──▶ Holdings                  who holds what of it (scenario)
//! Prompts.training(sample, modalities) ──▶ Worded { picture, ask, answer } how it is said       (mllm::wording)
//! Parser / JudgeConfig: answers ──▶ Scores                               how it is judged     (mllm::judge)
//! ```
//!
//! [`load`] reads whole samples; a [`Held`](scenario::Held) names one by its place in `train.samples` and says which of its
//! modalities the client has; [`Sample::seen`] then gives the picture and the text that may be used. Tests are always
//! whole.
//!
//! | file | what |
//! |---|---|
//! | [`sample`] | one example |
//! | [`hateful_memes`], [`crisismmd`], [`vqa_rad`], [`slake`], [`flashcards`], [`jsonl`], [`conversations`] | sets in their published layouts |
//! | [`reading`] | what these readers share |
//! | [`world`] | a procedural set that needs both modalities, for the demo |
//! | [`shuffled`] | pictures or texts dealt anew: a control |
//! | [`scenario`] | who holds what |

pub mod conversations;
pub mod crisismmd;
pub mod flashcards;
pub mod hateful_memes;
pub mod jsonl;
pub mod reading;
pub mod sample;
pub mod scenario;
pub mod shuffled;
pub mod slake;
pub mod vqa_rad;
pub mod world;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::census::Census;
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::fsx;
use crate::key::Key;

pub use sample::{AnswerType, Ask, Choice, Facets, Modalities, Sample};
pub use shuffled::Shuffled;

/// Which multimodal set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MultimodalConfig {
    /// Hateful-Memes: `train.jsonl`, `dev_seen.jsonl`, `test_seen.jsonl` and the folder `img`.
    HatefulMemes(hateful_memes::HatefulMemesConfig),
    /// CrisisMMD 2.0, its humanitarian task.
    Crisismmd(crisismmd::CrisisMmdConfig),
    /// VQA-RAD, split by question as published.
    VqaRad(vqa_rad::VqaRadConfig),
    /// SLAKE 1.0; without its `train.json` for tests alone.
    Slake(slake::SlakeConfig),
    /// Questions and answers without pictures, in MedAlpaca's form; for training alone.
    MedicalFlashcards(flashcards::FlashcardsConfig),
    /// FedMLLM's medical task: VQA-RAD for image clients, flashcards for text clients, tests on VQA-RAD and SLAKE.
    Medical(MedicalConfig),
    /// One's own files: a record a line, or LLaVA's conversations.
    Jsonl(jsonl::JsonlConfig),
    /// A procedural set whose questions need both picture and text.
    World(world::QuestionsConfig),
}

impl Default for MultimodalConfig {
    fn default() -> Self {
        MultimodalConfig::World(world::QuestionsConfig::default())
    }
}

/// The medical kind: three sets in one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MedicalConfig {
    /// Pictures with questions, to train and to test on.
    pub vqa_rad: vqa_rad::VqaRadConfig,
    /// Questions without pictures, to train on.
    pub flashcards: flashcards::FlashcardsConfig,
    /// Pictures with questions, to test on; an empty `path` leaves them out.
    pub slake: slake::SlakeConfig,
}

/// Samples that are used together.
#[derive(Clone, Debug, Default)]
pub struct Subset {
    /// `vqa-rad test`.
    pub name: String,
    /// In the published order.
    pub samples: Vec<Sample>,
}

impl Subset {
    /// SHA-256 of its samples in their order: what a run's manifest names.
    pub fn digest(&self) -> Result<String> {
        let each: Vec<String> = self.samples.iter().map(Sample::digest).collect::<Result<_>>()?;
        Ok(fsx::sha256(each.join("\n").as_bytes()))
    }
}

/// What a set's answers are scored by, first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Area under the ROC curve, of two options.
    Auc,
    /// Mean F1 over the labels that are there.
    MacroF1,
    /// Share of right options.
    Accuracy,
    /// Exact match after the VQA normaliser.
    ExactMatch,
}

/// What FedMLLM's scripts fix for a set, and our draws do not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Seed of Python's and of numpy's generator.
    pub seed: u32,
    /// Whether only the first label's pieces are filled up to one sample a client, not every label's.
    pub fills_first_label_only: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe { seed: 42, fills_first_label_only: false }
    }
}

/// A multimodal set, read.
#[derive(Clone, Debug)]
pub struct Multimodal {
    /// What people call it.
    pub name: String,
    /// What clients train on.
    pub train: Subset,
    /// What may select, where the set has it.
    pub val: Subset,
    /// What judges, the benchmark's own first; never empty for a set that can be tested on.
    pub tests: Vec<Subset>,
    /// The options' words where samples are choices; empty for open questions.
    pub options: Vec<String>,
    /// What its answers are scored by.
    pub metric: Metric,
    /// What FedMLLM's scripts fix for it.
    pub recipe: Recipe,
    /// What each reader saw.
    pub sources: Vec<Census>,
}

impl MultimodalConfig {
    /// Refuses values that no data could make right; `section` is what the keys stand under.
    pub fn check(&self, section: &str) -> Result<()> {
        match self {
            MultimodalConfig::World(c) => c.check(section),
            MultimodalConfig::Jsonl(c) => c.check(section),
            _ => Ok(()),
        }
    }
}

/// Reads a set. `key` is the run's; only the procedural world draws from it.
pub fn load(config: &MultimodalConfig, key: Key, cx: &Context) -> Result<Multimodal> {
    config.check("data")?;
    let set = match config {
        MultimodalConfig::HatefulMemes(c) => hateful_memes::load(c),
        MultimodalConfig::Crisismmd(c) => crisismmd::load(c),
        MultimodalConfig::VqaRad(c) => vqa_rad::load(c),
        MultimodalConfig::Slake(c) => slake::load(c),
        MultimodalConfig::MedicalFlashcards(c) => flashcards::load(c),
        MultimodalConfig::Medical(c) => medical(c),
        MultimodalConfig::Jsonl(c) => jsonl::load(c),
        MultimodalConfig::World(c) => world::load(c, key),
    }?;
    cx.cancel.check()?;
    match set.train.samples.is_empty() && set.tests.iter().all(|t| t.samples.is_empty()) {
        true => Err(Error::data(format!("{}: no sample; {}", set.name, reading::lines(&set.sources)))),
        false => Ok(set),
    }
}

/// VQA-RAD's and the flashcards' training samples, in that order; VQA-RAD's tests, then SLAKE's.
fn medical(config: &MedicalConfig) -> Result<Multimodal> {
    let mut set = vqa_rad::load(&config.vqa_rad)?;
    let texts = flashcards::load(&config.flashcards)?;
    set.train.samples.extend(texts.train.samples);
    set.sources.extend(texts.sources);
    if !config.slake.path.is_empty() {
        let slake = slake::load(&config.slake)?;
        set.tests.extend(slake.tests);
        set.sources.extend(slake.sources);
    }
    set.train.name = format!("{} + {}", set.train.name, texts.train.name);
    Ok(Multimodal { name: format!("{} + {}", set.name, texts.name), ..set })
}

#[cfg(test)]
mod tests;
