//! Open image pools for pretraining: a folder of images, or WebDataset shards, with what is said about the images.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use image::RgbImage;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::captions::{Captions, spelled};
use super::census::{Census, Why};
use super::dataset::Images;
use super::encoded::Encoded;
use super::pictures::Pictures;
use super::{decode, folder, resolve, webdataset};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fsx;

pub use super::webdataset::WebDatasetConfig;

/// The `pool` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PoolConfig {
    /// Image files below a folder.
    Folder(FolderPoolConfig),
    /// Tar shards of `<key>.jpg`, `<key>.json`, `<key>.txt`.
    Webdataset(WebDatasetConfig),
    /// The open pool of the procedural world that `data.kind = "world"` draws.
    World(WorldPoolConfig),
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig::Folder(FolderPoolConfig::default())
    }
}

/// `pool.kind = "world"`: its knobs are the world's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorldPoolConfig {
    /// Control: each image's text is the name of its composition, without error or gap: supervised pretraining.
    pub labels: bool,
    /// A caption file (JSONL) instead of the renderer's captions; empty: none.
    pub captions: String,
}

/// `pool.kind = "folder"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FolderPoolConfig {
    /// The folder, searched to any depth; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// A caption file (JSONL); empty: none.
    pub captions: String,
}

/// One image of a pool.
#[derive(Clone, Debug)]
pub struct Item {
    /// Unique in the pool: the path below the folder, or the WebDataset key.
    pub id: String,
    /// What is said about it; may be empty.
    pub texts: Vec<String>,
    /// Where its pixels are.
    pub source: Source,
}

/// Where an image's bytes are.
#[derive(Clone, Debug)]
pub enum Source {
    /// An image file.
    File(PathBuf),
    /// Some bytes of a tar file.
    Slice {
        /// The shard.
        file: Arc<PathBuf>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Pixels in memory (a procedural world).
    Pixels(Arc<Images>, usize),
}

impl Source {
    /// The image file's bytes; of an image in memory its pixels, `(C, H, W)`.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Source::File(path) => fsx::read(path),
            Source::Slice { file, offset, len } => webdataset::slice(file, *offset, *len),
            Source::Pixels(images, at) => Ok(images.get(*at).to_vec()),
        }
    }

    /// The image in its own size, upright.
    pub fn rgb(&self) -> Result<RgbImage> {
        match self {
            Source::Pixels(images, at) => decode::from_planes(images.get(*at), images.shape()),
            _ => self.bytes().and_then(|bytes| decode::rgb(&bytes)),
        }
    }
}

/// A pool; decoded only when asked.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Name for people.
    pub name: String,
    /// The images in a fixed order: sorted paths, or shards in name order.
    pub items: Vec<Item>,
    /// Whether the texts are human class labels, so that pretraining on them is *supervised pretraining*.
    pub supervised: bool,
    /// SHA-256 of the caption file, if there is one.
    pub captions_digest: Option<String>,
    /// What was seen of the images, then of the caption file.
    pub census: Vec<Census>,
}

/// Images that can be decoded, and what could not be.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// `(kept, 3, side, side)`, or those that are decoded again when they are needed.
    pub images: Pictures,
    /// Item of each image, ascending.
    pub kept: Vec<u32>,
    /// Id of each item that failed, and why.
    pub failed: Vec<(String, String)>,
}

impl Decoded {
    /// What decoding saw, for images of `source`.
    pub fn census(&self, source: &str) -> Census {
        let mut census = Census::new(format!("{source} decoded"), "images");
        census.read = self.kept.len();
        for (id, why) in &self.failed {
            census.pass(Why::Unreadable, format!("{id}: {why}"));
        }
        census
    }
}

/// Lists a pool and attaches its captions.
pub fn load(config: &PoolConfig, cx: &Context) -> Result<Pool> {
    let (pool, captions) = match config {
        PoolConfig::Folder(c) => (from_folder(c, cx)?, &c.captions),
        PoolConfig::Webdataset(c) => (webdataset::load(c)?, &c.captions),
        PoolConfig::World(_) => {
            return Err(Error::input("pool.kind = \"world\" goes with data.kind = \"world\""));
        }
    };
    captioned(pool, captions, cx)
}

/// The pool with what a caption file says of its images (of a pool in memory instead of what was said before); with no
/// file, the pool as it is.
pub fn captioned(mut pool: Pool, captions: &str, cx: &Context) -> Result<Pool> {
    if captions.is_empty() {
        return Ok(pool);
    }
    for item in pool.items.iter_mut().filter(|i| matches!(i.source, Source::Pixels(..))) {
        item.texts.clear();
    }
    let path = resolve(captions)?;
    let (given, name) = (Captions::read(&path)?, pool.name.clone());
    let census = pool.attach(&given, cx).at(|| format!("captions {}", path.display()))?;
    if census.joined.is_none_or(|(some, _)| some == 0) {
        let (first, own) = (census.passed.get(&Why::NoImage), pool.items.first());
        let first = first.and_then(|p| p.first.first()).cloned().unwrap_or_default();
        let own = own.map(|i| i.id.clone()).unwrap_or_default();
        let advice = if census.advice.is_empty() { String::new() } else { format!("{}; ", census.advice) };
        return Err(Error::data(format!("{}: no caption is about an image of {name}", path.display())).hint(format!(
            "{advice}`image` is an item's id: its path below the pool's folder, or its WebDataset key; the file has {first}, the pool {own}"
        )));
    }
    pool.census.push(census);
    Ok(pool)
}

fn from_folder(config: &FolderPoolConfig, cx: &Context) -> Result<Pool> {
    let root = resolve(&config.path)?;
    let mut census = Census::new(config.path.clone(), "images");
    let files = folder::images(&root, &root, &mut fsx::Met::default(), &cx.cancel, &mut census)?;
    census.read = files.len();
    let item = |path: PathBuf| Item { id: folder::below(&path, &root), texts: Vec::new(), source: Source::File(path) };
    let mut items: Vec<Item> = files.into_iter().map(item).collect();
    items.sort_by(|a, b| a.id.cmp(&b.id));
    Pool::read(&config.path, items, false, census)
}

/// What cannot be decoded: id and reason.
type Failure = (String, String);

impl Pool {
    /// A pool of what a reader found, and what it saw.
    pub(super) fn read(name: &str, items: Vec<Item>, supervised: bool, census: Census) -> Result<Pool> {
        if items.is_empty() {
            return Err(Error::data(format!("pool {name}: no image; {}", census.line()))
                .hint(format!("endings that are read: {}", decode::ENDINGS.join(", "))));
        }
        let mut pool = Self::new(name, items, supervised)?;
        pool.census.push(census);
        Ok(pool)
    }

    /// A pool of these items, whose ids are unique.
    pub fn new(name: impl Into<String>, items: Vec<Item>, supervised: bool) -> Result<Pool> {
        let name = name.into();
        if items.is_empty() {
            return Err(Error::data(format!("pool {name}: no image")));
        }
        let mut ids: Vec<&str> = items.iter().map(|i| i.id.as_str()).collect();
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|p| p[0] == p[1]) {
            return Err(Error::data(format!("pool {name}: two images are called {}", pair[0])));
        }
        Ok(Pool { name, items, supervised, captions_digest: None, census: Vec::new() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn item(&self, i: usize) -> Result<&Item> {
        self.items.get(i).ok_or_else(|| Error::defect(format!("pool {}: no item {i} of {}", self.name, self.len())))
    }

    /// The image file's bytes; of an image in memory its pixels, `(C, H, W)`.
    pub fn bytes(&self, i: usize) -> Result<Vec<u8>> {
        self.item(i)?.source.bytes()
    }

    /// The image in its own size.
    pub fn rgb(&self, i: usize) -> Result<RgbImage> {
        let item = self.item(i)?;
        item.source.rgb().at(|| format!("pool {}: {}", self.name, item.id))
    }

    /// The image as a square of `side` pixels (shorter side scaled, middle cut).
    pub fn square(&self, i: usize, side: usize) -> Result<RgbImage> {
        Ok(decode::square(&self.rgb(i)?, side as u32))
    }

    /// SHA-256 of each image's bytes, `(items,)`: what captions and cached features name.
    pub fn digests(&self, cx: &Context) -> Result<Vec<String>> {
        let one = |i: usize| cx.cancel.check().and_then(|()| Ok(fsx::sha256(&self.bytes(i)?)));
        decode::on_threads(cx, || (0..self.len()).into_par_iter().map(one).collect::<Result<Vec<_>>>())?
    }

    /// SHA-256 of each image as it is seen, `(items,)`: of its bytes and of how they become pixels (turned by their EXIF
    /// orientation). What is computed from pixels is kept under these.
    pub fn seen_digests(&self, cx: &Context) -> Result<Vec<String>> {
        let seen = |digest: String| fsx::sha256(format!("upright {digest}").as_bytes());
        Ok(self.digests(cx)?.into_iter().map(seen).collect())
    }

    /// Decodes the items at `wanted` to squares of `side` pixels. Undecodable ones are left out and reported; only if
    /// nothing is left is that an error.
    pub fn decode(&self, wanted: &[u32], side: usize, cx: &Context) -> Result<Decoded> {
        let mut pixels = Vec::new();
        let square = |image: &RgbImage| decode::to_planes(&decode::square(image, side as u32));
        let (kept, failed) = self.each(wanted, cx, square, |image| pixels.extend(image))?;
        Ok(Decoded { images: Images::new([3, side, side], pixels)?.into(), kept, failed })
    }

    /// The items at `wanted` as a data set like `model` has its images: in memory and of its size, or in files, where each
    /// is decoded here once, to know which cannot be.
    pub fn like(&self, model: &Pictures, wanted: &[u32], cx: &Context) -> Result<Decoded> {
        let Pictures::Streamed(streamed) = model else { return self.decode(wanted, model.shape()[1], cx) };
        let (kept, failed) = self.each(wanted, cx, |_| (), |()| ())?;
        let digest = fsx::sha256(self.digests(cx)?.join("\n").as_bytes());
        let images = streamed.like(Arc::new(self.clone()), cx)?.with(kept.clone(), digest);
        Ok(Decoded { images: images.into(), kept, failed })
    }

    /// Decodes the items at `wanted` in their own sizes and hands what `look` makes of each to `take`, in order: those
    /// that could be decoded, and id and reason of the others.
    fn each<T: Send>(
        &self,
        wanted: &[u32],
        cx: &Context,
        look: impl Fn(&RgbImage) -> T + Sync,
        mut take: impl FnMut(T),
    ) -> Result<(Vec<u32>, Vec<Failure>)> {
        let one = |&i: &u32| -> Result<Result<T, Failure>> {
            cx.cancel.check()?;
            let item = self.item(i as usize)?;
            let image = self.rgb(i as usize);
            Ok(image.map(|image| look(&image)).map_err(|e| (item.id.clone(), e.message().to_string())))
        };
        let results: Vec<_> = decode::on_threads(cx, || wanted.par_iter().map(one).collect::<Result<_>>())??;
        let (mut kept, mut failed) = (Vec::new(), Vec::new());
        for (&i, result) in wanted.iter().zip(results) {
            match result {
                Ok(image) => {
                    take(image);
                    kept.push(i);
                }
                Err(why) => failed.push(why),
            }
        }
        match (kept.is_empty(), failed.first()) {
            (true, Some((id, why))) => {
                Err(Error::data(format!("pool {}: no image can be decoded; {id}: {why}", self.name)))
            }
            _ => Ok((kept, failed)),
        }
    }

    /// Which item each name of a record means: its id, or its id but for the ending. Names are compared as [`spelled`].
    pub fn find<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Vec<Option<usize>> {
        let mut index: BTreeMap<String, usize> = BTreeMap::new();
        for (i, item) in self.items.iter().enumerate() {
            index.entry(spelled(&item.id).into_owned()).or_insert(i);
        }
        let find = |name: &str| {
            let name = spelled(name);
            let base = name.rfind('/').map_or(0, |i| i + 1);
            let last = name[base..].rfind('.').map(|i| &name[..base + i]);
            let first = name[base..].find('.').filter(|i| *i > 0).map(|i| &name[..base + i]);
            [Some(name.as_ref()), last, first].into_iter().flatten().find_map(|n| index.get(n)).copied()
        };
        names.into_iter().map(find).collect()
    }

    /// What a caption file says of this pool: its own census with what it joins, and the item of each record. Records
    /// about other images are no loss where every image of the pool has one: the file is a larger pool's.
    pub fn match_up(&self, captions: &Captions) -> (Census, Vec<Option<usize>>) {
        let found = self.find(captions.records.iter().map(|r| r.image.as_str()));
        let met: std::collections::BTreeSet<usize> = found.iter().flatten().copied().collect();
        let mut census = captions.census.clone();
        census.read = found.iter().flatten().count();
        census.joined = Some((met.len(), self.len()));
        census.advice = self.other_root(captions, &found);
        let why = if met.len() == self.len() { Why::Elsewhere } else { Why::NoImage };
        let strangers = captions.records.iter().zip(&found).filter(|(_, at)| at.is_none());
        strangers.for_each(|(record, _)| census.pass(why, record.image.as_str()));
        (census, found)
    }

    /// What to say where every stranger would be met without the folder in front of its name.
    fn other_root(&self, captions: &Captions, found: &[Option<usize>]) -> String {
        let lost = || captions.records.iter().zip(found).filter(|(_, at)| at.is_none()).map(|(r, _)| r.image.as_str());
        let root = lost().next().and_then(|name| name.rfind('/').map(|i| &name[..=i]));
        let Some(root) = root.filter(|r| lost().all(|name| name.starts_with(r))) else { return String::new() };
        let there = self.find(lost().map(|name| &name[root.len()..])).iter().all(Option::is_some);
        if there { format!("without {root:?} in front they name images of the pool") } else { String::new() }
    }

    /// Gives each item the texts of the records about it, after those it has. A record whose digest is another than
    /// the image's is refused.
    pub fn attach(&mut self, captions: &Captions, cx: &Context) -> Result<Census> {
        let (census, found) = self.match_up(captions);
        let check = |(record, at): (&super::captions::Caption, &Option<usize>)| -> Result<()> {
            let (Some(i), Some(digest)) = (at, &record.digest) else { return Ok(()) };
            if fsx::sha256(&self.bytes(*i)?) == digest.to_ascii_lowercase() {
                return Ok(());
            }
            Err(Error::data(format!(
                "the caption of {} was made from another image (its digest differs)",
                record.image
            ))
            .hint("caption this pool again"))
        };
        decode::on_threads(cx, || captions.records.par_iter().zip(&found).try_for_each(check))??;
        for (record, at) in captions.records.iter().zip(found) {
            if let Some(i) = at {
                self.items[i].texts.extend(record.captions.iter().cloned());
            }
        }
        self.captions_digest = Some(captions.digest.clone());
        Ok(census)
    }
}

impl Encoded for Pool {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn name(&self, index: usize) -> String {
        self.items.get(index).map_or_else(String::new, |item| format!("pool {}: {}", self.name, item.id))
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        match &self.item(index)?.source {
            Source::Pixels(..) => Err(Error::defect(format!("pool {}: pixels in memory are no file", self.name))),
            _ => Pool::bytes(self, index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::captions::Caption;
    use super::super::decode::tests::png;
    use super::*;

    fn small() -> (tempfile::TempDir, Pool) {
        let dir = tempfile::tempdir().unwrap();
        for (path, v) in [("b/2.png", 20), ("b/1.png", 10), ("a.png", 30)] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, png(6, 4, |_, _| [v; 3])).unwrap();
        }
        std::fs::write(dir.path().join("b/broken.png"), "no image").unwrap();
        let config = FolderPoolConfig { path: dir.path().display().to_string(), captions: String::new() };
        let pool = load(&PoolConfig::Folder(config), &Context::cpu(2)).unwrap();
        (dir, pool)
    }

    fn ids(pool: &Pool) -> Vec<&str> {
        pool.items.iter().map(|i| i.id.as_str()).collect()
    }

    #[test]
    fn a_folder_is_listed_to_any_depth_and_sorted() {
        let (_dir, pool) = small();
        assert_eq!(ids(&pool), ["a.png", "b/1.png", "b/2.png", "b/broken.png"]);
        assert_eq!(pool.rgb(0).unwrap().dimensions(), (6, 4));
    }

    #[test]
    fn an_undecodable_image_is_reported_and_the_rest_is_decoded() {
        let (_dir, pool) = small();
        let got = pool.decode(&[0, 1, 2, 3], 8, &Context::cpu(2)).unwrap();
        assert_eq!((got.images.shape(), got.kept.as_slice()), ([3, 8, 8], [0, 1, 2].as_slice()));
        assert_eq!((got.images.get(0)[0], got.images.get(2)[0]), (30, 20));
        assert!(got.failed[0].0 == "b/broken.png" && got.failed[0].1.contains("not a readable image"));
        assert!(pool.decode(&[3], 8, &Context::cpu(1)).unwrap_err().to_string().contains("b/broken.png"));
    }

    #[test]
    fn captions_find_their_image_by_id_or_stem_and_digests_are_checked() {
        let (_dir, mut pool) = small();
        let cx = Context::cpu(2);
        let digest = pool.digests(&cx).unwrap()[1].clone();
        let record = |image: &str, text: &str, digest: Option<String>| Caption {
            image: image.into(),
            captions: vec![text.into()],
            digest,
            ..Default::default()
        };
        let records = vec![
            record("b/1.png", "ten", Some(digest)),
            record("b/1.png", "again", None),
            record("c.png", "none", None),
        ];
        let census = pool.attach(&Captions { records, ..Captions::default() }, &cx).unwrap();
        assert_eq!((census.joined, census.read, census.passed(Why::NoImage)), (Some((1, 4)), 2, 1));
        assert_eq!(pool.items[1].texts, ["ten", "again"]);
        let stale = Captions { records: vec![record("a.png", "x", Some("00".into()))], ..Captions::default() };
        let e = pool.attach(&stale, &cx).unwrap_err().to_string();
        assert!(e.contains("caption of a.png was made from another image"), "{e}");
    }

    #[test]
    fn a_pool_in_memory_decodes_like_files() {
        let images = Arc::new(Images::new([3, 2, 2], (0..24).collect()).unwrap());
        let item = |i: usize| Item { id: format!("w{i}"), texts: vec![], source: Source::Pixels(images.clone(), i) };
        let pool = Pool::new("world", vec![item(0), item(1)], false).unwrap();
        let got = pool.decode(&[0, 1], 2, &Context::cpu(1)).unwrap();
        assert_eq!(got.images.held(), Some(&*images));
    }
}
