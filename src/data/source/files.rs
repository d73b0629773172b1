//! Image files below a folder.

use std::path::{Path, PathBuf};

use super::{Names, Place};
use crate::data::folder;
use crate::error::{Error, Result};
use crate::fsx;

pub(super) struct Files(Vec<PathBuf>);

impl Files {
    /// Those of `paths`, sorted, that somebody wants.
    pub fn new(root: &Path, mut paths: Vec<PathBuf>, names: &mut Names<'_>) -> Files {
        paths.sort();
        paths.retain(|path| names.take(&folder::below(path, root)));
        Files(paths)
    }

    fn path(&self, index: usize) -> Result<&PathBuf> {
        self.0.get(index).ok_or_else(|| Error::defect(format!("no image file {index} of {}", self.0.len())))
    }
}

impl Place for Files {
    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        fsx::read(self.path(index)?)
    }

    fn mark(&self, index: usize) -> Result<u64> {
        let path = self.path(index)?;
        Ok(path.metadata().map_err(|e| Error::io("look at", path, e))?.len())
    }
}
