//! What fills a batch: images behind a loader, seen one way or another.

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use crate::error::Result;
use crate::key::Key;

/// How an image is shown to a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// Normalised alone.
    Plain,
    /// The run's augmentation: crop and flip.
    #[default]
    Weak,
    /// AutoAugment and cutout on top of crop and flip.
    Strong,
    /// One differentiable augmentation for the whole batch, as gradient matching draws it.
    Dsa,
}

/// Numbered images, with labels where there are any.
pub trait Samples: Sync {
    /// Fills `x`, `y`, `ids` and `rows = [ids.len()]` with the images `ids` in a view; `key` is the draw's own.
    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()>;

    /// Says which images will be filled in soon, and how, so that work on them may begin. Changes no batch.
    fn ahead(&self, _ids: &[u32], _view: View, _key: Key) {}

    /// The label of every image by its number; empty where images have none.
    fn labels(&self) -> &[u32] {
        &[]
    }
}
