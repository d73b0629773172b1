//! The CIFAR batches as Python pickles: `data` (numpy, `(images, 3072)` bytes) and lists or arrays of labels.
//!
//! The published files were pickled by Python 2 (protocol 2, byte-string keys); later re-creations use text keys and
//! other protocols.

use std::path::Path;

use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::pickle::{Item, Pickle};

/// One unpickled batch or meta file: a dictionary.
pub struct Batch(Pickle);

impl Batch {
    /// Reads a pickle file that holds a dictionary.
    pub fn read(path: &Path) -> Result<Batch> {
        let place = || path.display().to_string();
        let (pickle, _) = Pickle::read(&fsx::read(path)?).at(place)?;
        match pickle.root().pairs() {
            Some(_) => Ok(Batch(pickle)),
            None => Err(Error::data(format!("holds {}, expected a dictionary", pickle.root().what()))).at(place),
        }
    }

    fn get(&self, key: &str) -> Result<Item<'_>> {
        self.0.root().get(key).ok_or_else(|| Error::data(format!("the batch has no {key}")))
    }

    /// A two-dimensional array of bytes, row-major, whose rows have `width` bytes.
    pub fn rows(&self, key: &str, width: usize) -> Result<Vec<u8>> {
        let item = self.get(key)?;
        let wrong = |what: String| Error::data(format!("{key}: {what}, expected an array of bytes in rows of {width}"));
        let array = item.array().ok_or_else(|| wrong(item.what()))?.at(|| key)?;
        match (array.shape.as_slice(), array.kind.as_str()) {
            (&[_, columns], "u1") if columns == width => Ok(array.bytes),
            (shape, kind) => Err(wrong(format!("shape {shape:?} of type {kind}"))),
        }
    }

    /// Labels, as a list or an array.
    pub fn labels(&self, key: &str) -> Result<Vec<u32>> {
        let label = |n: i64| u32::try_from(n).map_err(|_| Error::data(format!("{key}: {n} is no class")));
        self.get(key)?.integers().at(|| key)?.into_iter().map(label).collect()
    }

    /// A list of names.
    pub fn names(&self, key: &str) -> Result<Vec<String>> {
        let item = self.get(key)?;
        let list = item.list().ok_or_else(|| Error::data(format!("{key}: {}, expected a list", item.what())))?;
        let name = |v: Item| match v.bytes() {
            Some(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            None => {
                v.text().map(str::to_string).ok_or_else(|| Error::data(format!("{key}: {}, expected a name", v.what())))
            }
        };
        list.into_iter().map(name).collect()
    }
}
