//! Encoded bytes that stay in memory: the first ones that fit, so that an epoch in random order finds the same share of
//! them as the budget has of the whole.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::data::encoded::Encoded;
use crate::error::Result;

pub(super) struct Cache {
    source: Arc<dyn Encoded>,
    /// One for each picture; none where nothing is kept.
    kept: Vec<OnceLock<Vec<u8>>>,
    /// Bytes that may still be kept.
    room: AtomicUsize,
}

impl Cache {
    /// Keeps up to `budget` bytes of the source's.
    pub fn new(source: Arc<dyn Encoded>, budget: usize) -> Self {
        let slots = if budget > 0 { source.len() } else { 0 };
        Cache { kept: (0..slots).map(|_| OnceLock::new()).collect(), source, room: AtomicUsize::new(budget) }
    }

    pub fn len(&self) -> usize {
        self.source.len()
    }

    pub fn name(&self, index: usize) -> String {
        self.source.name(index)
    }

    /// Calls `f` with the picture's bytes.
    pub fn with<T>(&self, index: usize, f: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let slot = self.kept.get(index);
        if let Some(bytes) = slot.and_then(OnceLock::get) {
            return f(bytes);
        }
        let mut bytes = self.source.bytes(index)?;
        let result = f(&bytes);
        if let Some(slot) = slot.filter(|_| result.is_ok() && self.take(bytes.len())) {
            bytes.shrink_to_fit();
            if let Err(again) = slot.set(bytes) {
                self.room.fetch_add(again.len(), Ordering::Relaxed);
            }
        }
        result
    }

    fn take(&self, bytes: usize) -> bool {
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes)).is_ok()
    }
}
