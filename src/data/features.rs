//! Cached features of frozen models: computed once, and refused when they are stale.
//!
//! A cache is a safetensors file with `features` (f32, `(rows, dim)`), `digests` (u8, `(rows, 32)`: SHA-256 of what
//! each row was computed from) and `ids` (UTF-8, one a line); its metadata name the model by its digest. Matrices that
//! others published as `.npy` are read too.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use crate::error::{Error, Place, Result};
use crate::fsx;

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
        let view = |dtype, shape: Vec<usize>, bytes| {
            TensorView::new(dtype, shape, bytes).map_err(|e| Error::defect(format!("safetensors: {e}")))
        };
        let tensors = [
            ("features", view(Dtype::F32, vec![self.len(), self.dim], bytemuck::cast_slice(&self.data))?),
            ("ids", view(Dtype::U8, vec![ids.len()], &ids)?),
            ("digests", view(Dtype::U8, vec![self.digests.len(), 32], &digests)?),
        ];
        // One entry only: several would be written in the order of a hash map, which changes from run to run.
        let metadata = [("model".to_string(), self.model.clone())];
        let bytes = safetensors::serialize(tensors, Some(metadata.into()))
            .map_err(|e| Error::defect(format!("safetensors: {}: {e}", path.display())))?;
        fsx::write_atomic(path, &bytes)
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
        let (features, ids, digests) = (tensor("features")?, tensor("ids")?, tensor("digests")?);
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

/// An `.npy` file in C order: its shape and its numbers.
fn npy<T: npyz::Deserialize>(path: &Path) -> Result<(Vec<usize>, Vec<T>)> {
    let bytes = fsx::read(path)?;
    let wrong = |e: std::io::Error| Error::data(format!("{}: not a readable .npy file: {e}", path.display()));
    let file = npyz::NpyFile::new(bytes.as_slice()).map_err(wrong)?;
    if file.order() == npyz::Order::Fortran && file.shape().len() > 1 {
        return Err(
            Error::data(format!("{}: in Fortran order", path.display())).hint("save it from np.ascontiguousarray")
        );
    }
    let shape = file.shape().iter().map(|&n| n as usize).collect();
    Ok((shape, file.into_vec().map_err(wrong)?))
}

/// Reads labels or row numbers from an `.npy` file of any integer type, `(rows,)`.
pub fn npy_integers(path: &Path) -> Result<Vec<u32>> {
    let out_of_range = |v: i64| Error::data(format!("{}: {v} is not a label or row number", path.display()));
    let wide = |v: Vec<i64>| v.into_iter().map(|v| u32::try_from(v).map_err(|_| out_of_range(v))).collect();
    let (bytes, descr) = (fsx::read(path)?, |e: std::io::Error| Error::data(format!("{}: {e}", path.display())));
    let kind = npyz::NpyFile::new(bytes.as_slice()).map_err(descr)?.dtype().descr();
    // The kind reads `'<u2'`: byte order, type, bytes.
    match kind.trim_matches('\'').trim_start_matches(['<', '>', '|', '=']) {
        "u1" => Ok(npy::<u8>(path)?.1.into_iter().map(u32::from).collect()),
        "u2" => Ok(npy::<u16>(path)?.1.into_iter().map(u32::from).collect()),
        "u4" => Ok(npy::<u32>(path)?.1),
        "i4" => wide(npy::<i32>(path)?.1.into_iter().map(i64::from).collect()),
        "i8" => wide(npy::<i64>(path)?.1),
        other => Err(Error::data(format!("{}: type {other}, expected integers", path.display()))),
    }
}

/// What the rows of a published matrix of text features mean (`*_rows.json`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Rows {
    /// The sentence around the name.
    #[serde(default)]
    pub prompt: String,
    /// One entry a row.
    pub rows: Vec<Row>,
}

/// The meaning of one row.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Row {
    /// Names, separated by commas.
    pub words: String,
    /// WordNet id.
    #[serde(default)]
    pub wnid: Option<String>,
}

impl Rows {
    /// Reads `*_rows.json`.
    pub fn read(path: &Path) -> Result<Rows> {
        let text = fsx::read_text(path)?;
        serde_json::from_str(&text).map_err(|e| Error::data(format!("{}: {e}", path.display())))
    }

    /// The row whose name is `class`: an exact match of the words or of one of their names; `_` counts as a space.
    pub fn find(&self, class: &str) -> Option<usize> {
        let plain = |s: &str| s.trim().replace('_', " ").to_lowercase();
        let wanted = plain(class);
        let whole = self.rows.iter().position(|r| plain(&r.words) == wanted);
        whole.or_else(|| self.rows.iter().position(|r| r.words.split(',').any(|name| plain(name) == wanted)))
    }
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

    #[test]
    fn rows_are_found_by_any_of_their_names() {
        let row = |words: &str| Row { words: words.into(), wnid: None };
        let rows =
            Rows { prompt: String::new(), rows: vec![row("tailed frog, bell toad"), row("maple_tree"), row("frog")] };
        assert_eq!((rows.find("Bell toad"), rows.find("maple tree"), rows.find("frog")), (Some(0), Some(1), Some(2)));
        assert_eq!(rows.find("toad"), None);
    }

    /// Published figure: 449 of 500 CIFAR-10 test images by ViT-B/32, zero-shot.
    #[test]
    fn real_clip_features_classify_as_published_when_they_are_there() {
        let Some(root) = std::env::var_os("FEDLLAVA_DATA") else {
            #[allow(clippy::print_stderr, reason = "a skipped test says so")]
            {
                eprintln!("skipped: FEDLLAVA_DATA is not set");
            }
            return;
        };
        let root = Path::new(&root);
        let (images, texts) = (root.join("clip-image-features"), root.join("clip-text-embeddings"));
        let rows = Rows::read(&texts.join("cifar10_rows.json")).unwrap();
        let names = rows.rows.iter().map(|r| r.words.clone()).collect();
        let mut text = Features::from_npy(&texts.join("cifar10_clip_vitb32_text.npy"), Some(names)).unwrap();
        text.normalise();
        let image = Features::from_npy(&images.join("cifar10_test500_clip_vitb32.npy"), None).unwrap();
        let labels = npy_integers(&images.join("cifar10_test500_labels.npy")).unwrap();
        assert_eq!((image.dim, image.len(), labels.len(), text.len()), (512, 500, 500, 10));
        let right = (0..500).filter(|&i| text.nearest(image.row(i)) == Some(labels[i] as usize)).count();
        assert_eq!(right, 449);
        let parquet_rows = npy_integers(&images.join("cifar10_test500_parquet_row.npy")).unwrap();
        assert_eq!(parquet_rows[..3], [6858, 5125, 6383]);
    }
}
