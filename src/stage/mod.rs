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
pub mod teach;
pub mod teach_mllm;

use crate::data::{Dataset, Loader};
use crate::error::Result;
use crate::fl::trainer::Images;
use crate::key::Key;
use crate::nn::Batch;

/// A data set behind a loader, as the federated loop sees it.
pub struct Loaded<'a> {
    /// Images and labels.
    pub data: &'a Dataset,
    /// Normalisation and augmentation.
    pub loader: &'a Loader,
}

impl Images for Loaded<'_> {
    fn fill(&self, ids: &[u32], augment: Option<Key>, batch: &mut Batch) -> Result<()> {
        match augment {
            Some(key) => self.loader.train(self.data, ids, key, batch),
            None => self.loader.plain(self.data, ids, batch),
        }
    }
}
