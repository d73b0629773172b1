//! The CIFAR batches as Python pickles: `data` (numpy, `(images, 3072)` bytes) and lists of labels.
//!
//! The published files were pickled by Python 2 (protocol 2, byte-string keys); later re-creations use text keys.

use std::path::Path;

use serde_pickle::{DeOptions, HashableValue, Value};

use crate::error::{Error, Place, Result};
use crate::fsx;

/// One unpickled batch or meta file: a dictionary.
pub struct Batch(std::collections::BTreeMap<HashableValue, Value>);

impl Batch {
    /// Reads a pickle file that holds a dictionary.
    pub fn read(path: &Path) -> Result<Batch> {
        let bytes = fsx::read(path)?;
        let place = || path.display().to_string();
        // numpy's constructors are unknown here; the arrays' state, which holds shape and bytes, takes their place.
        let options = DeOptions::new().replace_unresolved_globals();
        match serde_pickle::value_from_slice(&bytes, options) {
            Ok(Value::Dict(entries)) => Ok(Batch(entries)),
            Ok(_) => Err(Error::data("the pickle does not hold a dictionary")).at(place),
            Err(e) => Err(Error::data(format!("cannot be read as a pickle: {e}"))).at(place),
        }
    }

    fn get(&self, key: &str) -> Result<&Value> {
        let bytes = HashableValue::Bytes(key.as_bytes().to_vec());
        let text = HashableValue::String(key.to_string());
        self.0.get(&bytes).or_else(|| self.0.get(&text)).ok_or_else(|| Error::data(format!("the batch has no {key}")))
    }

    /// A two-dimensional array of bytes, row-major, whose rows have `width` bytes.
    pub fn rows(&self, key: &str, width: usize) -> Result<Vec<u8>> {
        let wrong = |what: &str| Error::data(format!("{key} is not a numpy array of bytes: {what}"));
        let Value::Tuple(state) = self.get(key)? else { return Err(wrong("no array state")) };
        // numpy's `__setstate__`: (version, shape, dtype, column-major, bytes).
        let [_, Value::Tuple(shape), _, Value::Bool(column_major), Value::Bytes(bytes)] = state.as_slice() else {
            return Err(wrong("unknown array state"));
        };
        let [Value::I64(rows), Value::I64(columns)] = shape.as_slice() else {
            return Err(wrong("not two-dimensional"));
        };
        let (rows, columns) = (*rows as usize, *columns as usize);
        if columns != width || rows.checked_mul(columns) != Some(bytes.len()) {
            return Err(wrong(&format!("shape ({rows}, {columns}), {} bytes, expected rows of {width}", bytes.len())));
        }
        if !column_major {
            return Ok(bytes.clone());
        }
        Ok((0..bytes.len()).map(|i| bytes[i % columns * rows + i / columns]).collect())
    }

    /// A list of labels.
    pub fn labels(&self, key: &str) -> Result<Vec<u32>> {
        let Value::List(items) = self.get(key)? else { return Err(Error::data(format!("{key} is not a list"))) };
        let label = |v: &Value| match v {
            Value::I64(n) => u32::try_from(*n).map_err(|_| Error::data(format!("{key}: {n} is no class"))),
            other => Err(Error::data(format!("{key}: {other} is not an integer"))),
        };
        items.iter().map(label).collect()
    }

    /// A list of names.
    pub fn names(&self, key: &str) -> Result<Vec<String>> {
        let Value::List(items) = self.get(key)? else { return Err(Error::data(format!("{key} is not a list"))) };
        let name = |v: &Value| match v {
            Value::Bytes(b) => Ok(String::from_utf8_lossy(b).into_owned()),
            Value::String(s) => Ok(s.clone()),
            other => Err(Error::data(format!("{key}: {other} is not a name"))),
        };
        items.iter().map(name).collect()
    }
}
