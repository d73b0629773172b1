//! Cached features of frozen models: computed once, and refused when they are stale.
//!
//! A cache is a safetensors file with `features` (f32, `(rows, dim)`), `digests` (u8, `(rows, 32)`: SHA-256 of what
//! each row was computed from), `ids` (UTF-8, one a line) and `proof` (u8, `(32,)`: SHA-256 over all of it); its metadata
//! name the model by its digest. Matrices that others published as `.npy` are read too.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::npy::npy;
use crate::error::{Error, Place, Result};
use crate::exec::{Event, Events};
use crate::fsx;

pub use super::npy::{Row, Rows, npy_integers};

/// A row of features for each image or text.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Numbers in a row.
    pub dim: usize,
    /// Name of each row: a pool item's id, an image index, a prompt. `(rows,)`.
    pub ids: Vec<String>,
    /// SHA-256 (hexadecimal) of what each row was computed from; empty where that is not known. `(rows,)` or `()`.
    pub digests: Vec<String>,
    /// `(rows, dim)`.
    pub data: Vec<f32>,
    /// Digest or name of the frozen model, its preprocessing included.
    pub model: String,
}

impl Features {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Row `i`, `(dim,)`; `i` < [`len`](Self::len), as any slice index.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// Divides each row by its Euclidean length (rows of zeros stay).
    pub fn normalise(&mut self) {
        for row in self.data.chunks_exact_mut(self.dim.max(1)) {
            let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
            if norm > 0.0 {
                row.iter_mut().for_each(|v| *v /= norm);
            }
        }
    }

    /// The row nearest to `query` by scalar product, the first of equals. `query` has `dim` numbers.
    pub fn nearest(&self, query: &[f32]) -> Option<usize> {
        let score = |i: usize| self.row(i).iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let mut best: Option<(usize, f64)> = None;
        for i in 0..self.len() {
            let s = score(i);
            if best.is_none_or(|(_, b)| s > b) {
                best = Some((i, s));
            }
        }
        best.map(|(i, _)| i)
    }

    /// Writes the cache, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.check().at(|| format!("features {}", path.display()))?;
        let ids = self.ids.join("\n").into_bytes();
        let digests: Vec<u8> = self.digests.iter().map(|d| unhex(d)).collect::<Result<Vec<_>>>()?.concat();
        let proof = self.proof(&ids, &digests);
        let view = |dtype, shape: Vec<usize>, bytes| {
            TensorView::new(dtype, shape, bytes).map_err(|e| Error::defect(format!("safetensors: {e}")))
        };
        let tensors = [
            ("features", view(Dtype::F32, vec![self.len(), self.dim], bytemuck::cast_slice(&self.data))?),
            ("ids", view(Dtype::U8, vec![ids.len()], &ids)?),
            ("digests", view(Dtype::U8, vec![self.digests.len(), 32], &digests)?),
            ("proof", view(Dtype::U8, vec![32], &proof)?),
        ];
        // One entry only: several would be written in the order of a hash map, which changes from run to run.
        let metadata = [("model".to_string(), self.model.clone())];
        let bytes = safetensors::serialize(tensors, Some(metadata.into()))
            .map_err(|e| Error::defect(format!("safetensors: {}: {e}", path.display())))?;
        fsx::write_atomic(path, &bytes)
    }

    fn proof(&self, ids: &[u8], digests: &[u8]) -> [u8; 32] {
        let dim = (self.dim as u64).to_le_bytes();
        fsx::proof(&[bytemuck::cast_slice(&self.data), ids, digests, self.model.as_bytes(), &dim])
    }

    /// The cache, where there is one that [`load`](Self::load) takes; another one is said, and is to be made again.
    pub fn kept(path: &Path, model: &str, digests: &[String], events: &dyn Events) -> Option<Features> {
        if !path.exists() {
            return None;
        }
        let loaded = Self::load(path, model, digests);
        let said =
            |e: Error| events.on(Event::Warning(&format!("{}: {}: computed again", path.display(), e.message())));
        loaded.map_err(said).ok()
    }

    /// Reads a cache made by `model` from inputs with these `digests` (row by row). Anything else is stale: refused.
    pub fn load(path: &Path, model: &str, digests: &[String]) -> Result<Features> {
        let features = Self::read(path)?;
        let stale = |why: String| {
            Err(Error::data(format!("features {}: {why}", path.display()))
                .hint("delete the file; it is computed again"))
        };
        if features.model != model {
            return stale(format!("made by model {}, this is {model}", features.model));
        }
        if features.digests.len() != digests.len() {
            return stale(format!("{} rows for {} inputs", features.digests.len(), digests.len()));
        }
        match features.digests.iter().zip(digests).position(|(a, b)| a != b) {
            Some(i) => stale(format!("row {i} ({}) was made from another input", features.ids[i])),
            None => Ok(features),
        }
    }

    /// Reads a cache without asking what it was made from; [`load`](Self::load) asks.
    pub fn read(path: &Path) -> Result<Features> {
        let place = || format!("features {}", path.display());
        let bytes = fsx::read(path)?;
        let damaged = |e: safetensors::SafeTensorError| Error::data(format!("not a safetensors file: {e}"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged).at(place)?;
        let file = SafeTensors::deserialize(&bytes).map_err(damaged).at(place)?;
        let tensor = |name: &str| file.tensor(name).map_err(damaged).at(place);
        let (features, ids, digests, proof) =
            (tensor("features")?, tensor("ids")?, tensor("digests")?, tensor("proof")?);
        let &[_, dim] = features.shape() else { return Err(Error::data("not a matrix")).at(place) };
        if features.dtype() != Dtype::F32 || digests.dtype() != Dtype::U8 || ids.dtype() != Dtype::U8 {
            return Err(Error::data("tensors of another type than f32 and u8")).at(place);
        }
        let text = String::from_utf8_lossy(ids.data()).into_owned();
        let metadata: BTreeMap<_, _> = header.metadata().iter().flatten().collect();
        let got = Features {
            dim,
            ids: if text.is_empty() { Vec::new() } else { text.split('\n').map(str::to_string).collect() },
            digests: digests.data().chunks_exact(32).map(fsx::hex).collect(),
            data: features.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            model: metadata.get(&"model".to_string()).map(|m| m.to_string()).unwrap_or_default(),
        };
        got.check().at(place)?;
        if proof.data() != got.proof(ids.data(), digests.data()) {
            return Err(Error::data("damaged: not the numbers that were written")).at(place);
        }
        Ok(got)
    }

    /// Reads an f32 matrix from an `.npy` file; rows are named by their number unless `ids` names them.
    pub fn from_npy(path: &Path, ids: Option<Vec<String>>) -> Result<Features> {
        let place = || format!("features {}", path.display());
        let (shape, data) = npy::<f32>(path)?;
        let &[rows, dim] = shape.as_slice() else {
            return Err(Error::data(format!("shape {shape:?}, expected (rows, dim)"))).at(place);
        };
        let ids = ids.unwrap_or_else(|| (0..rows).map(|i| i.to_string()).collect());
        let features = Features { dim, ids, digests: Vec::new(), data, model: path.display().to_string() };
        features.check().at(place)?;
        Ok(features)
    }

    fn check(&self) -> Result<()> {
        let (rows, dim) = (self.len(), self.dim);
        if self.data.len() != rows * dim || !(self.digests.is_empty() || self.digests.len() == rows) {
            return Err(Error::data(format!(
                "{rows} names, {} digests and {} numbers do not make rows of {dim}",
                self.digests.len(),
                self.data.len()
            )));
        }
        if let Some(id) = self.ids.iter().find(|id| id.contains('\n')) {
            return Err(Error::data(format!("the name {id:?} has a line break")));
        }
        match self.data.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(Error::data(format!("row {} holds a number that is not finite", i / dim.max(1)))),
            None => Ok(()),
        }
    }
}

fn unhex(digest: &str) -> Result<[u8; 32]> {
    let wrong = || Error::defect(format!("features: {digest:?} is not a SHA-256"));
    let mut bytes = [0; 32];
    if digest.len() != 64 || !digest.is_ascii() {
        return Err(wrong());
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digest[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Features {
        Features {
            dim: 2,
            ids: vec!["a".into(), "b c".into()],
            digests: vec![fsx::sha256(b"a"), fsx::sha256(b"b")],
            data: vec![3.0, 4.0, 0.0, -2.0],
            model: "clip 12ab".into(),
        }
    }

    #[test]
    fn a_cache_is_read_back_and_a_stale_one_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.safetensors");
        let made = two();
        made.save(&path).unwrap();
        assert_eq!(Features::load(&path, "clip 12ab", &made.digests).unwrap(), made);
        let refuse = |model: &str, digests: &[String]| Features::load(&path, model, digests).unwrap_err().to_string();
        assert!(refuse("clip 99", &made.digests).contains("made by model clip 12ab, this is clip 99"));
        assert!(refuse("clip 12ab", &made.digests[..1]).contains("2 rows for 1 inputs"));
        let other = [made.digests[0].clone(), fsx::sha256(b"c")];
        assert!(refuse("clip 12ab", &other).contains("row 1 (b c) was made from another input"));
        std::fs::write(&path, b"nothing").unwrap();
        assert!(refuse("clip 12ab", &made.digests).contains("not a safetensors file"));
    }

    #[test]
    fn damaged_caches_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.safetensors");
        two().save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for value in [0, b'9', b'"', 255] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                std::fs::write(&path, &bytes).unwrap();
                // Another byte is refused wherever it is, unless it says the same (white space of the header).
                if let Ok(read) = Features::read(&path) {
                    assert_eq!(read, two(), "byte {at} as {value}");
                }
            }
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Features::read(&path).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn rows_are_normalised_and_the_nearest_is_found() {
        let mut features = two();
        features.normalise();
        assert_eq!(features.data, [0.6, 0.8, 0.0, -1.0]);
        assert_eq!((features.nearest(&[1.0, 0.0]), features.nearest(&[0.0, -1.0])), (Some(0), Some(1)));
    }

    #[test]
    fn what_makes_no_rows_is_refused() {
        let path = Path::new("never written");
        let broken = Features { data: vec![1.0], ..two() };
        assert!(broken.save(path).unwrap_err().to_string().contains("1 numbers do not make rows of 2"));
        let nan = Features { data: vec![1.0, 2.0, f32::NAN, 0.0], ..two() };
        assert!(nan.save(path).unwrap_err().to_string().contains("row 1 holds"));
    }
}
