//! Pictures as files hold them.

use crate::error::Result;

/// Encoded pictures by number: what a list, a folder, shards or a Parquet file give to the decoder. Shared by threads.
pub trait Encoded: Send + Sync {
    /// Pictures.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What people call picture `index`.
    fn name(&self, index: usize) -> String;

    /// The bytes of picture `index`, as its file has them.
    fn bytes(&self, index: usize) -> Result<Vec<u8>>;
}
