//! WebDataset shards: tar files whose members `<key>.jpg`, `<key>.json`, `<key>.txt` make one sample.
//!
//! The key ends at the first dot of a name, as webdataset has it; behind it may stand a field (`<key>.input.jpg`). Where
//! a key has several images (`scene 22.00.jpg`, `scene 22.01.jpg`), each is a sample with the texts of its field.

mod sample;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::census::{Census, Why};
use super::pool::{Item, Pool, Source};
use super::resolve;
use crate::error::{Error, Place, Result};
use crate::fsx;
use sample::{Said, samples};
pub(super) use sample::{each_member, in_shard, is_hidden};

/// `pool.kind = "webdataset"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebDatasetConfig {
    /// A folder of `.tar` shards; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// Shards that must be there; 0: as many as are found, without gaps in their numbers.
    pub shards: usize,
    /// A caption file (JSONL); empty: none.
    pub captions: String,
    /// What in the shards serves as text: a field of the JSON member (`words`), `txt` for the text member, or empty.
    /// A text member of a field of its own is named whole: `outputs.txt`.
    pub text: String,
    /// Sentence around that text: `{}` is the text up to its first comma.
    pub template: String,
    /// Whether that text is a human class label. Pretraining on it is *supervised pretraining*, and tables say so.
    pub supervised: bool,
}

impl Default for WebDatasetConfig {
    fn default() -> Self {
        WebDatasetConfig {
            path: String::new(),
            shards: 0,
            captions: String::new(),
            text: String::new(),
            template: "{}".into(),
            supervised: false,
        }
    }
}

/// Fields that hold class labels in the wild: using one is supervised, whatever the config says.
const LABELS: [&str; 6] = ["words", "wnid", "label", "class", "cls", "class_name"];

/// Lists the samples of all shards, in shard order; image bytes stay in the files.
pub(super) fn load(config: &WebDatasetConfig) -> Result<Pool> {
    let folder = resolve(&config.path)?;
    let (mut items, mut census) = (Vec::new(), Census::new(config.path.clone(), "samples"));
    let (shards, mut silent) = (shards(&folder, config.shards, &mut census)?, None);
    for shard in shards {
        let shard = Arc::new(shard);
        for (key, sample) in samples(&shard, &mut census).at(|| format!("shard {}", shard.display()))? {
            for (id, image) in sample.named(&key) {
                let source = Source::Slice { file: shard.clone(), offset: image.offset, len: image.len };
                match sample.text(config, &key, &image.field) {
                    Said::Texts(texts) => items.push(Item { id, texts, source }),
                    Said::Nonsense(why) => census.pass(Why::NoText, in_shard(&shard, &why)),
                    Said::Nothing(e) => {
                        census.pass(Why::NoText, in_shard(&shard, &key));
                        silent = silent.or(Some(e.context(format!("{key} in {}", shard.display()))));
                    }
                }
            }
            if sample.images.is_empty() && sample.others.is_empty() {
                census.pass(Why::NoImage, in_shard(&shard, &key));
            } else if sample.images.is_empty() {
                sample.others.iter().for_each(|name| census.pass(Why::Ending, in_shard(&shard, name)));
            }
        }
    }
    census.read = items.len();
    if let Some(e) = silent.filter(|_| items.is_empty()) {
        return Err(e);
    }
    tell_apart(&mut items);
    let supervised = !config.text.is_empty() && (config.supervised || LABELS.contains(&config.text.as_str()));
    Pool::read(&config.path, items, supervised, census)
}

/// The tar files of a folder by name and number (`9.tar` before `10.tar`); a missing one is an error, and a packed one.
/// What else lies there is counted.
fn shards(folder: &Path, expected: usize, census: &mut Census) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for path in fsx::list(folder)? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        match () {
            () if is_hidden(&name) => census.pass(Why::Hidden, name),
            () if is_packed(&path) => return Err(packed(&path.display())),
            () if path.extension().is_some_and(|e| e == "tar") => shards.push(path),
            () => census.pass(Why::Other, name),
        }
    }
    if shards.is_empty() || (expected > 0 && shards.len() != expected) {
        let wanted = if expected > 0 { expected.to_string() } else { "at least 1".into() };
        let there =
            census.passed.get(&Why::Other).map_or(String::new(), |p| format!("; there are {}", p.first.join(", ")));
        return Err(Error::data(format!(
            "{}: {} tar shards, expected {wanted}{there}",
            folder.display(),
            shards.len()
        ))
        .hint("name the folder in which the .tar files themselves lie"));
    }
    let shards = in_order(shards);
    for pair in shards.windows(2) {
        let [(a, m), (b, n)] = [numbered(&pair[0]), numbered(&pair[1])];
        if let (Some(m), Some(n)) = (m, n)
            && a == b
            && n.saturating_sub(m) > 1
        {
            return Err(Error::data(format!(
                "shard number {} is missing between {} and {}",
                m + 1,
                pair[0].display(),
                pair[1].display()
            ))
            .hint("fetch it, or renumber the shards if the rest is all there is"));
        }
    }
    Ok(shards)
}

/// Whether a file is called as a packed tar is.
pub(super) fn is_packed(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"].iter().any(|ending| name.ends_with(ending))
}

/// The error about a packed tar.
pub(super) fn packed(name: &dyn std::fmt::Display) -> Error {
    Error::data(format!("{name}: a packed tar, whose members cannot be read one by one"))
        .hint("unpack it: gunzip shard.tar.gz")
}

/// Shards by folder, name and number.
pub(super) fn in_order(mut shards: Vec<PathBuf>) -> Vec<PathBuf> {
    shards.sort_by_cached_key(|p| (p.parent().map(Path::to_path_buf), numbered(p), p.clone()));
    shards
}

/// `pool-00012.tar` as `("pool-", 12)`.
fn numbered(path: &Path) -> (String, Option<u64>) {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    (name.to_string(), stem[name.len()..].parse().ok())
}

/// Keys that come back in another shard get the shard's name in front.
fn tell_apart(items: &mut [Item]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    items.iter().for_each(|i| *seen.entry(i.id.clone()).or_default() += 1);
    for item in items.iter_mut().filter(|i| seen.get(&i.id).is_some_and(|&n| n > 1)) {
        if let Source::Slice { file, .. } = &item.source {
            let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            item.id = format!("{stem}/{}", item.id);
        }
    }
}

/// Some bytes of a file.
pub(super) fn slice(path: &Path, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut file = fsx::open(path)?;
    let mut bytes = vec![0; len as usize];
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}
