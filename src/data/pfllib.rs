//! PFLlib's clients as a split: a folder of `train/<client>.npz` (and `test/<client>.npz`), each a pickled dictionary of
//! images `x` and labels `y`.
//!
//! Images have no numbers there, so each is looked up among the benchmark's by its pixels. PFLlib deals training and
//! test images alike: a benchmark's test images are left out of the clients and counted.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::census::{Census, Why};
use super::dataset::{Benchmark, Dataset};
use super::split::Split;
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::pickle::{Array, Pickle};

/// Most bytes of a client's images, unpacked.
const CLIENT: u64 = 1 << 30;

/// Images by their pixels and label: their indices that are not dealt yet, the last first.
type Index = BTreeMap<[u8; 32], Vec<u32>>;

/// Reads a folder of clients as a split of the benchmark's training images.
pub fn import(folder: &Path, benchmark: &Benchmark) -> Result<(Split, Census)> {
    let (train, test) = (&benchmark.train, &benchmark.test);
    let files = clients(folder)?;
    let (mut left, mut tests) = (index(train)?, index(test)?);
    let mut census = Census::new(folder.display().to_string(), "images");
    let mut lists = Vec::new();
    for (k, path) in files.iter().enumerate() {
        let mut own = Vec::new();
        for (i, key) in keys(path, train).at(|| path.display().to_string())?.into_iter().enumerate() {
            match (take(&mut left, &key), take(&mut tests, &key)) {
                (Some(image), _) => own.push(image),
                (None, Some(_)) => census.pass(Why::Test, format!("client {k}, image {i}")),
                (None, None) => census.pass(Why::NoImage, format!("client {k}, image {i}")),
            }
        }
        if own.is_empty() {
            return Err(Error::data(format!("{}: no image of client {k} is one of {}", path.display(), train.name))
                .hint("were the clients made of this very data set?"));
        }
        census.read += own.len();
        lists.push(own);
    }
    if census.passed(Why::Test) > 0 {
        census.advice = "PFLlib deals test images to clients too, and none of those may train".into();
    }
    let split = Split::from_lists(&train.labels, train.classes.len(), lists, Vec::new(), Vec::new());
    Ok((split.at(|| folder.display().to_string())?, census))
}

/// The clients' training files by number.
fn clients(folder: &Path) -> Result<Vec<PathBuf>> {
    let place = folder.join("train");
    let number = |p: &PathBuf| p.file_stem()?.to_str()?.parse::<usize>().ok();
    let is_client = |p: &PathBuf| p.extension().is_some_and(|e| e == "npz") && number(p).is_some();
    let mut files: Vec<PathBuf> = match place.is_dir() {
        true => fsx::list(&place)?.into_iter().filter(is_client).collect(),
        false => Vec::new(),
    };
    files.sort_by_key(number);
    match files.iter().enumerate().find(|(k, p)| number(p) != Some(*k)) {
        Some((k, _)) => Err(Error::data(format!("{}: no {k}.npz", place.display()))),
        None if files.is_empty() => Err(Error::data(format!("{}: not a folder of PFLlib's clients", folder.display()))
            .hint("expected train/0.npz, train/1.npz, …")),
        None => Ok(files),
    }
}

fn index(set: &Dataset) -> Result<Index> {
    let images = set.images.held().ok_or_else(|| {
        Error::input(format!("{}: PFLlib's clients are found by their pixels, and these images lie in files", set.name))
            .hint("import a list of image numbers instead: `fedllava split export` shows the form")
    })?;
    let mut index = Index::new();
    for i in (0..set.len()).rev() {
        index.entry(key(images.get(i), set.labels[i])).or_default().push(i as u32);
    }
    Ok(index)
}

fn key(pixels: &[u8], label: u32) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(label.to_le_bytes());
    hasher.update(pixels);
    hasher.finalize().into()
}

fn take(index: &mut Index, key: &[u8; 32]) -> Option<u32> {
    index.get_mut(key)?.pop()
}

/// The keys of a client's images.
fn keys(path: &Path, train: &Dataset) -> Result<Vec<[u8; 32]>> {
    let (x, y) = arrays(path)?;
    let [channels, height, width] = train.images.shape();
    let labels = y.integers().at(|| "y")?;
    let fits = matches!(x.shape.as_slice(), &[n, c, h, w] if n == labels.len() && (h, w) == (height, width) && (c == channels || c == 1));
    if !fits {
        return Err(Error::data(format!(
            "x of shape {:?} with {} labels, the benchmark's images are {:?}",
            x.shape,
            labels.len(),
            train.images.shape()
        )));
    }
    let (pixels, size) = (bytes(&x)?, x.shape[1..].iter().product::<usize>().max(1));
    let one = |(image, &label): (&[u8], &i64)| {
        let label = u32::try_from(label).map_err(|_| Error::data(format!("y: {label} is no class")))?;
        Ok(key(&image.repeat(channels / x.shape[1].max(1)), label))
    };
    pixels.chunks_exact(size).zip(&labels).map(one).collect()
}

/// Pixels as bytes: PFLlib stores `(p / 255 − 0.5) / 0.5`; `p / 255` and `p` are understood too.
fn bytes(x: &Array) -> Result<Vec<u8>> {
    if x.kind == "u1" {
        return Ok(x.bytes.clone());
    }
    let values: Vec<f64> = match x.kind.as_str() {
        "f4" => x.bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
        "f8" => x
            .bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect(),
        other => return Err(Error::data(format!("x of type {other}, expected f4"))),
    };
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    let (factor, shift) = match (least < 0.0, most <= 1.0) {
        (true, _) => (127.5, 1.0),
        (false, true) => (255.0, 0.0),
        (false, false) => (1.0, 0.0),
    };
    Ok(values.into_iter().map(|v| ((v + shift) * factor).round().clamp(0.0, 255.0) as u8).collect())
}

/// `x` and `y` of `data.npy`: an array of one object, which is a dictionary.
fn arrays(path: &Path) -> Result<(Array, Array)> {
    let wrong = |what: &str| Error::data(format!("not a client of PFLlib: {what}"));
    let mut archive = zip::ZipArchive::new(fsx::open(path)?).map_err(|_| wrong("no whole .npz"))?;
    let mut file = archive.by_name("data.npy").map_err(|_| wrong("no `data` in it"))?;
    let mut npy = Vec::new();
    file.by_ref().take(CLIENT + 1).read_to_end(&mut npy).map_err(|_| wrong("`data` is cut off"))?;
    if npy.len() as u64 > CLIENT {
        return Err(fsx::bound::too_long("`data`", format!("unpacked more than {CLIENT}"), CLIENT));
    }
    let header = match npy.get(6) {
        Some(1) => npy.get(8..10).map(|b| 10 + usize::from(b[0]) + 256 * usize::from(b[1])),
        _ => npy.get(8..12).map(|b| 12 + u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize),
    };
    let body = header.and_then(|at| npy.get(at..)).ok_or_else(|| wrong("`data` is no array"))?;
    let (pickle, _) = Pickle::read(body)?;
    let state = pickle.root().state().and_then(|s| s.list()).unwrap_or_default();
    let dict = state.last().and_then(|objects| objects.list()?.first().copied());
    let part = |name: &str| {
        let item = dict.and_then(|d| d.get(name)).ok_or_else(|| wrong(&format!("no `{name}` in it")))?;
        item.array().ok_or_else(|| wrong(&format!("`{name}` is {}", item.what())))?.at(|| name)
    };
    Ok((part("x")?, part("y")?))
}
