//! Matrices and labels that others published as `.npy` files, and what their rows mean.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::fsx;

/// An `.npy` file in C order: its shape and its numbers.
pub(super) fn npy<T: npyz::Deserialize>(path: &Path) -> Result<(Vec<usize>, Vec<T>)> {
    let bytes = fsx::read(path)?;
    let wrong =
        |_: std::io::Error| Error::data(format!("{}: no whole .npy file, or one of other numbers", path.display()));
    let file = fsx::bound::npy(bytes.as_slice()).and_then(npyz::NpyFile::new).map_err(wrong)?;
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
    let (bytes, descr) =
        (fsx::read(path)?, |_: std::io::Error| Error::data(format!("{}: not a whole .npy file", path.display())));
    let kind = fsx::bound::npy(bytes.as_slice()).and_then(npyz::NpyFile::new).map_err(descr)?.dtype().descr();
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
        fsx::read_json(path)
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
    use super::super::features::Features;
    use super::super::real_data;
    use super::*;

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
        let Some(root) = real_data() else { return };
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
