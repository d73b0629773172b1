//! The stages: each a function of its own configuration, its inputs and a context.

pub mod align;
pub mod caption;
pub mod demo_captions;
pub mod demo_llava;
pub mod demo_models;
pub mod embed;
pub mod evaluate;
pub mod finetune;
pub mod metrics;
pub mod pretrain;
pub mod pretrain_llm;
pub mod probe;
pub mod selection;
pub mod teach;
pub mod teach_mllm;

use crate::data::{Dataset, Loader};
use crate::error::Result;
use crate::key::Key;
use crate::nn::{Batch, Samples, View};

/// A data set behind a loader, as the training loop sees it.
pub struct Loaded<'a> {
    /// Images and labels.
    pub data: &'a Dataset,
    /// Normalisation and augmentation.
    pub loader: &'a Loader,
}

impl Samples for Loaded<'_> {
    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        self.loader.fill(self.data, ids, view, key, batch)
    }

    fn labels(&self) -> &[u32] {
        &self.data.labels
    }
}
