//! The order in which a client sees its images, and how they make batches.

use serde::{Deserialize, Serialize};

use crate::key::{Key, Purpose};

/// The order of a client's images in an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampler {
    /// Images of a batch, at least 1.
    pub batch_size: usize,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler { batch_size: 32, drop_last: false }
    }
}

impl Sampler {
    /// Puts `samples` into `order`, shuffled by `key` (the epoch's own); its memory is reused.
    pub fn shuffle(&self, samples: &[u32], key: Key, order: &mut Vec<u32>) {
        order.clear();
        order.extend_from_slice(samples);
        key.fold(Purpose::Shuffle, 0).rng().shuffle(order);
    }

    /// The batches of an order, one after the other.
    pub fn batches<'o>(&self, order: &'o [u32]) -> impl Iterator<Item = &'o [u32]> + use<'o> {
        let size = self.batch_size.max(1);
        let kept = if self.drop_last { order.len() / size * size } else { order.len() };
        order[..kept].chunks(size)
    }

    /// Batches of an epoch over `samples` images.
    pub fn steps(&self, samples: usize) -> usize {
        let size = self.batch_size.max(1);
        if self.drop_last { samples / size } else { samples.div_ceil(size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_every_sample_once_and_ends_with_the_rest() {
        let (samples, mut order): (Vec<u32>, _) = ((100..170).collect(), Vec::new());
        let sampler = Sampler::default();
        sampler.shuffle(&samples, Key::from_seed(1), &mut order);
        assert_ne!(order, samples);
        assert_eq!(sampler.batches(&order).map(<[u32]>::len).collect::<Vec<_>>(), [32, 32, 6]);
        let drop = Sampler { drop_last: true, ..sampler.clone() };
        assert_eq!((drop.batches(&order).count(), drop.steps(70), sampler.steps(70)), (2, 2, 3));
        let first = order.clone();
        sampler.shuffle(&samples, Key::from_seed(2), &mut order);
        assert_ne!(order, first);
        order.sort_unstable();
        assert_eq!(order, samples);
    }
}
