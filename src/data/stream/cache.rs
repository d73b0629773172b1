//! Encoded bytes that stay in memory: the first ones that fit, so that an epoch in random order finds the same share of
//! them as the budget has of the whole. What is read again must be what was read before.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::data::encoded::Encoded;
use crate::error::{Error, Result};

pub(super) struct Cache {
    source: Arc<dyn Encoded>,
    /// One for each picture; none where nothing is kept.
    kept: Vec<OnceLock<Vec<u8>>>,
    /// What was read of each, [`sum`]; 0 where nothing was yet.
    seen: Vec<AtomicU64>,
    /// Bytes that may still be kept.
    room: AtomicUsize,
}

impl Cache {
    /// Keeps up to `budget` bytes of the source's.
    pub fn new(source: Arc<dyn Encoded>, budget: usize) -> Self {
        let slots = if budget > 0 { source.len() } else { 0 };
        let seen = (0..source.len()).map(|_| AtomicU64::new(0)).collect();
        Cache { kept: (0..slots).map(|_| OnceLock::new()).collect(), seen, source, room: AtomicUsize::new(budget) }
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
        self.prove(index, &bytes)?;
        let result = f(&bytes);
        if let Some(slot) = slot.filter(|_| result.is_ok() && self.take(bytes.len())) {
            bytes.shrink_to_fit();
            if let Err(again) = slot.set(bytes) {
                self.room.fetch_add(again.len(), Ordering::Relaxed);
            }
        }
        result
    }

    /// Refuses a picture that is not the one that was read before.
    fn prove(&self, index: usize, bytes: &[u8]) -> Result<()> {
        let sum = sum(bytes);
        match self.seen.get(index).map(|seen| seen.swap(sum, Ordering::Relaxed)) {
            Some(before) if before != 0 && before != sum => {
                Err(Error::data("other bytes than this run read of it before")
                    .hint("a run's files must stay as they are"))
            }
            _ => Ok(()),
        }
    }

    fn take(&self, bytes: usize) -> bool {
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes)).is_ok()
    }
}

/// A checksum (CRC-32C), told apart from none.
fn sum(bytes: &[u8]) -> u64 {
    (1u64 << 32) | u64::from(crc32c::crc32c(bytes))
}
