//! WebDataset shards: tar files whose members `<key>.jpg`, `<key>.json`, `<key>.txt` make one sample.
//!
//! The key ends at the first dot of a name, as webdataset has it; behind it may stand a field (`<key>.input.jpg`). Where
//! a key has several images (`scene 22.00.jpg`, `scene 22.01.jpg`), each is a sample with the texts of its field.

mod sample;

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
    let shards = shards(&folder, config.shards)?;
    let (mut items, mut census) = (Vec::new(), Census::new(config.path.clone(), "samples"));
    for shard in shards {
        let shard = Arc::new(shard);
        for (key, sample) in samples(&shard, &mut census).at(|| format!("shard {}", shard.display()))? {
            for (id, image) in sample.named(&key) {
                let source = Source::Slice { file: shard.clone(), offset: image.offset, len: image.len };
                match sample.text(config, &image.field).at(|| format!("{key} in {}", shard.display()))? {
                    Said::Texts(texts) => items.push(Item { id, texts, source }),
                    Said::Nonsense(why) => census.pass(Why::NoText, in_shard(&shard, &why)),
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
    tell_apart(&mut items);
    let supervised = !config.text.is_empty() && (config.supervised || LABELS.contains(&config.text.as_str()));
    Pool::read(&config.path, items, supervised, census)
}

/// The tar files of a folder by name and number (`9.tar` before `10.tar`); a missing one is an error.
fn shards(folder: &Path, expected: usize) -> Result<Vec<PathBuf>> {
    let is_tar = |p: &PathBuf| p.extension().is_some_and(|e| e == "tar");
    let shards: Vec<PathBuf> = fsx::list(folder)?.into_iter().filter(is_tar).collect();
    if shards.is_empty() || (expected > 0 && shards.len() != expected) {
        let wanted = if expected > 0 { expected.to_string() } else { "at least 1".into() };
        return Err(Error::data(format!("{}: {} tar shards, expected {wanted}", folder.display(), shards.len())));
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

#[cfg(test)]
mod tests {
    use super::super::decode::tests::png;
    use super::super::pool::{PoolConfig, load as load_pool};
    use super::*;
    use crate::exec::Context;

    fn write(dir: &Path, name: &str, members: &[(&str, Vec<u8>)]) {
        let mut tar = tar::Builder::new(std::fs::File::create(dir.join(name)).unwrap());
        for (path, bytes) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, path, bytes.as_slice()).unwrap();
        }
        tar.finish().unwrap();
    }

    fn two_shards() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let json = |w: &str| format!("{{\"words\": \"{w}\", \"n\": 1}}").into_bytes();
        let image = |v: u8| png(2, 2, move |_, _| [v; 3]);
        let first =
            [("b.png", image(1)), ("b.json", json("torch")), ("a.json", json("frog, toad")), ("a.PNG", image(2))];
        write(dir.path(), "00000.tar", &first);
        write(dir.path(), "00001.tar", &[("a.png", image(3)), ("a.json", json("dog")), ("note.txt", b"x".to_vec())]);
        dir
    }

    fn config(dir: &Path) -> WebDatasetConfig {
        WebDatasetConfig { path: dir.display().to_string(), ..Default::default() }
    }

    fn load_config(config: &WebDatasetConfig) -> Result<Pool> {
        load_pool(&PoolConfig::Webdataset(config.clone()), &Context::cpu(2))
    }

    #[test]
    fn samples_keep_shard_order_and_repeated_keys_are_told_apart() {
        let dir = two_shards();
        let pool = load_config(&config(dir.path())).unwrap();
        assert_eq!(pool.items.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["b", "00000/a", "00001/a"]);
        let red: Vec<u8> = (0..3).map(|i| pool.rgb(i).unwrap().as_raw()[0]).collect();
        assert_eq!((red, pool.supervised), (vec![1, 2, 3], false));
    }

    #[test]
    fn words_as_text_make_the_pool_supervised() {
        let dir = two_shards();
        let text = |text: &str, template: &str| {
            load_config(&WebDatasetConfig { text: text.into(), template: template.into(), ..config(dir.path()) })
        };
        let pool = text("words", "a photo of a {}").unwrap();
        assert!(pool.supervised);
        assert_eq!(pool.items[1].texts, ["a photo of a frog"]);
        let e = text("caption", "{}").unwrap_err().to_string();
        assert!(e.contains("no text `caption`") && e.contains("words"), "{e}");
    }

    #[test]
    fn names_with_dots_and_fields_are_samples_too() {
        let dir = tempfile::tempdir().unwrap();
        let image = |v: u8| png(2, 2, move |_, _| [v; 3]);
        let text = |t: &str| t.as_bytes().to_vec();
        let members = [
            ("1.jpg", image(1)),
            ("1.txt", text("one")),
            ("2.v2.jpg", image(2)),
            ("2.v2.txt", text("two")),
            ("3.input.jpg", image(3)),
            ("3.txt", text("three")),
            ("v1.0/scene 4.00.jpg", image(4)),
            ("v1.0/scene 4.00.txt", text("four")),
            ("v1.0/scene 4.01.jpg", image(5)),
            ("v1.0/scene 4.01.txt", text("five")),
            ("6.gif", image(6)),
            ("6.txt", text("six")),
            ("._1.jpg", text("x")),
        ];
        write(dir.path(), "0.tar", &members);
        let pool = load_config(&WebDatasetConfig { text: "txt".into(), ..config(dir.path()) }).unwrap();
        let got: Vec<(&str, &str)> = pool.items.iter().map(|i| (i.id.as_str(), i.texts[0].as_str())).collect();
        let want =
            [("1", "one"), ("2", "two"), ("3", "three"), ("v1.0/scene 4.00", "four"), ("v1.0/scene 4.01", "five")];
        assert_eq!(got, want);
        let census = &pool.census[0];
        assert_eq!((census.read, census.passed(Why::Ending), census.passed(Why::Hidden)), (5, 1, 1));
    }

    #[test]
    fn a_text_that_is_none_costs_its_sample_alone() {
        let dir = tempfile::tempdir().unwrap();
        let image = |v: u8| png(2, 2, move |_, _| [v; 3]);
        let members = [
            ("1.jpg", image(1)),
            ("1.txt", b"\xef\xbb\xbfone".to_vec()),
            ("2.jpg", image(2)),
            ("2.txt", b"a dog\x92s ball".to_vec()),
        ];
        write(dir.path(), "0.tar", &members);
        let pool = load_config(&WebDatasetConfig { text: "txt".into(), ..config(dir.path()) }).unwrap();
        assert_eq!((pool.len(), pool.items[0].texts[0].as_str(), pool.census[0].passed(Why::NoText)), (1, "one", 1));
        assert!(
            pool.census[0].line().contains("0.tar: 2.txt: line 1: byte 0x92 is not UTF-8"),
            "{}",
            pool.census[0].line()
        );
        let all = load_config(&config(dir.path())).unwrap();
        assert_eq!(all.len(), 2, "texts that nobody asks for are no matter");
    }

    #[test]
    fn shards_go_by_number_and_not_by_spelling() {
        let dir = tempfile::tempdir().unwrap();
        for n in [10, 9, 8] {
            write(dir.path(), &format!("p-{n}.tar"), &[("x.png", png(1, 1, |_, _| [n; 3]))]);
        }
        let pool = load_config(&config(dir.path())).unwrap();
        assert_eq!(pool.items.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["p-8/x", "p-9/x", "p-10/x"]);
    }

    #[test]
    fn a_missing_and_a_cut_shard_are_named() {
        let dir = two_shards();
        std::fs::rename(dir.path().join("00001.tar"), dir.path().join("00003.tar")).unwrap();
        assert!(load_config(&config(dir.path())).unwrap_err().to_string().contains("shard number 1 is missing"));
        let e = load_config(&WebDatasetConfig { shards: 3, ..config(dir.path()) }).unwrap_err().to_string();
        assert!(e.contains("2 tar shards, expected 3"), "{e}");
        std::fs::remove_file(dir.path().join("00003.tar")).unwrap();
        let whole = std::fs::read(dir.path().join("00000.tar")).unwrap();
        std::fs::write(dir.path().join("00000.tar"), &whole[..560]).unwrap();
        let e = load_config(&config(dir.path())).unwrap_err().to_string();
        assert!(e.contains("00000.tar") && e.contains("not a whole tar file"), "{e}");
    }

    #[test]
    fn damaged_shards_never_panic() {
        let (dir, mut refused) = (two_shards(), 0);
        let path = dir.path().join("00000.tar");
        let whole = std::fs::read(&path).unwrap();
        let mut rng = crate::key::Key::from_seed(1).rng();
        for round in 0..300 {
            let mut bytes = whole.clone();
            // Headers are blocks of 512 bytes, here every second or so; half of the changes hit the sizes in them.
            let at = if round % 2 == 0 { rng.below(bytes.len()) } else { 512 * rng.below(8) + 124 + rng.below(12) };
            bytes[at] = rng.u32() as u8;
            if round % 5 == 0 {
                bytes.truncate(rng.below(whole.len()));
            }
            std::fs::write(&path, bytes).unwrap();
            match load_config(&WebDatasetConfig { text: "words".into(), ..config(dir.path()) }) {
                Ok(pool) => drop(pool.decode(&[0, 1], 8, &Context::cpu(1))),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 50, "{refused}");
    }

    #[test]
    fn the_real_pool_is_read_when_it_is_there() {
        let Some(root) = super::super::real_data() else { return };
        let folder = root.join("pool-tiny-imagenet");
        let pool = load_config(&WebDatasetConfig { shards: 2, text: "words".into(), ..config(&folder) }).unwrap();
        let words: std::collections::BTreeSet<&String> = pool.items.iter().flat_map(|i| &i.texts).collect();
        assert_eq!(
            (pool.len(), pool.items[0].id.as_str(), pool.items[0].texts[0].as_str()),
            (10_000, "0000000000", "torch")
        );
        assert!(words.len() > 190, "{}", words.len());
        let got = pool.decode(&(0..300).collect::<Vec<_>>(), 32, &Context::cpu(2)).unwrap();
        assert_eq!((got.kept.len(), got.failed.len()), (300, 0));
    }
}
