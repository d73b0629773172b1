//! LoRA (Hu et al., *LoRA: low-rank adaptation of large language models*, 2022): a frozen linear layer and, beside it,
//! two thin matrices that are trained: `y = W x + b + (alpha / rank) · B (A x)`.
//!
//! A model's definition does not know adapters: [`Linear::load`](crate::model::layers::Linear::load) asks the
//! [`Source`](crate::model::weights::Source) for one by the layer's name. What is trained is flat
//! ([`Params`](crate::nn::Params)), in the sorted order of PEFT's names, which is what a federation exchanges.
//!
//! | file | what |
//! |---|---|
//! | `adapter` | what is added to a layer, dropout, folding into the weight |
//! | `direct` | adapted layers on plain numbers, forward and back |
//! | `source` | tensors and adapters for a model, over a frozen base |
//! | `plan` | which modules are trained, their layout, fresh values |
//! | `peft` | folders as PEFT reads and writes them |

mod adapter;
mod direct;
mod peft;
mod plan;
mod source;

#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use adapter::{Adapter, Dropout};
pub use direct::{Inner, Learnt, Side, backward, forward};
pub use peft::{Saved, read, write};
pub use plan::{Plan, Slots};
pub use source::{Adapted, Modules};

use crate::error::{Error, Result};

/// Which adapters are trained, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of each adapter: rows of A, columns of B.
    pub rank: usize,
    /// What an adapter adds is multiplied by alpha / rank.
    pub alpha: f64,
    /// Share of an adapter's inputs that is dropped in training, in [0, 1).
    pub dropout: f32,
    /// Linear layers with an adapter: names inside the language model, or one regular expression over whole paths.
    pub targets: Targets,
    /// Only these layers of the language model, counted from 0; empty: all.
    pub layers: Vec<usize>,
    /// Modules that are trained and exchanged whole, such as embed_tokens and resampler.
    pub modules_to_save: Vec<String>,
}

/// Which linear layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Targets {
    /// Last names of layers inside the language model.
    Names(Vec<String>),
    /// A regular expression that matches a whole module path, as PEFT has it.
    Pattern(String),
}

impl Default for LoraConfig {
    /// PEFT's rank and alpha, on the language model's attention.
    fn default() -> Self {
        LoraConfig {
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::Names(["q_proj", "k_proj", "v_proj", "o_proj"].map(String::from).to_vec()),
            layers: Vec::new(),
            modules_to_save: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// Refuses numbers out of range; `section` is where they stand.
    pub fn check(&self, section: &str) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::input(format!("{section}.rank = 0: expected at least 1")));
        }
        // As training has it, in f32: an adapter that is multiplied by nothing has no gradient.
        if !(self.alpha.is_finite() && self.scale() as f32 > 0.0) {
            return Err(Error::input(format!("{section}.alpha = {}: expected a number above 0", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::input(format!("{section}.dropout = {}: expected a number in [0, 1)", self.dropout)));
        }
        if matches!(&self.targets, Targets::Names(names) if names.is_empty()) && self.modules_to_save.is_empty() {
            return Err(Error::input(format!("{section}.targets is empty: nothing would be trained")));
        }
        plan::Wanted::new(self).map(|_| ())
    }

    /// What an adapter's output is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}
