//! A benchmark as published lists: `path label` a line for training, validation and test, the images below one folder.
//!
//! ImageNet-LT and Places-LT (Liu et al., CVPR 2019) come this way, iNaturalist 2018 in the same form. No image is opened
//! here: what comes out knows where the bytes of each lie, and its labels, which is all that a split needs.
//!
//! | file | what |
//! |---|---|
//! | `lines` | a list's lines |
//! | `names` | what the classes are called |
//! | `official` | the published lists and their counts |
//! | `join` | which picture a line means |

mod join;
mod lines;
mod names;
mod official;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::census::Why;
use super::crop::CropConfig;
use super::dataset::{Benchmark, Dataset, Order};
use super::encoded::Encoded;
use super::pictures::Streamed;
use super::resolve;
use super::source::{Form, Found, stem};
use super::stream::{Decode, StreamConfig};
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context};
use crate::fsx;
use join::join;
use lines::Lines;
pub use official::{IMAGENET_LT, Official, PLACES_LT};

/// `data.kind = "list"`, `"imagenet-lt"` and `"places-lt"`: lists of images with their labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListConfig {
    /// The folder below which the images lie; a relative one may lie below `$FEDLLAVA_DATA`.
    pub path: String,
    /// How they lie there: image files in folders, tar shards, or Parquet files with `image.path`.
    pub images: Form,
    /// The list of training images, looked for below `path`, then as it is; gzipped ones are read. Empty: the published
    /// name, where the kind has one.
    pub train: String,
    /// The list of validation images, likewise; empty: the published name, or none.
    pub val: String,
    /// The list of test images, likewise.
    pub test: String,
    /// The classes' names, a line each in label order (`tench`), or behind their folders (`n01440764 tench`). Empty: the
    /// published file, or the folders' own names.
    pub names: String,
    /// How an image becomes a square: at random for training, by its middle for evaluation.
    pub crop: CropConfig,
    /// How JPEGs are decoded.
    pub decode: Decode,
    /// Memory for encoded images, MiB: what fits is read once.
    pub cache: usize,
}

impl Default for ListConfig {
    fn default() -> Self {
        let none = String::new;
        ListConfig {
            path: "images".into(),
            images: Form::Auto,
            train: none(),
            val: none(),
            test: none(),
            names: none(),
            crop: CropConfig::default(),
            decode: Decode::Exact,
            cache: 1024,
        }
    }
}

impl ListConfig {
    /// Refuses values that no data could make right; `section` is what the keys stand under.
    pub fn check(&self, section: &str) -> Result<()> {
        self.crop.check(&format!("{section}.crop"))
    }

    fn check_named(&self) -> Result<()> {
        match [("train", &self.train), ("test", &self.test)].iter().find(|(_, list)| list.is_empty()) {
            Some((key, _)) => Err(Error::input(format!("data.{key} names no list"))
                .hint("name a file with one image a line: folder/picture.jpg 17")),
            None => Ok(()),
        }
    }
}

/// Reads the lists and finds their images; `official` are those that must be met.
pub fn load(config: &ListConfig, official: Option<&Official>, cx: &Context) -> Result<Benchmark> {
    config.check("data")?;
    let config = official.map_or_else(|| config.clone(), |o| o.complete(config));
    config.check_named()?;
    let root = resolve(&config.path).at(|| "data.path")?;
    let mut lists = Lists::read(&config, &root, official)?;
    let wanted: HashSet<String> = lists.all().flat_map(|l| &l.lines).map(|l| stem(&l.path).to_string()).collect();
    let found = Found::look(&root, config.images, &|name| wanted.contains(name), &cx.cancel)?;
    let at = lists.join(&found);
    let used = at.iter().flatten().copied().collect::<HashSet<u32>>().len();
    let mut seen = found.census.clone();
    seen.pass_unnamed(Why::Unlisted, found.names.len() - used);
    seen.read = used;
    let sets = lists.sets(official.map_or("list", |o| o.name), at, found, &config, cx)?;
    Ok(Benchmark { sources: vec![seen], ..sets })
}

/// The lists of a benchmark, read; the classes' names.
struct Lists {
    train: Lines,
    val: Option<Lines>,
    test: Lines,
    names: Vec<String>,
}

impl Lists {
    fn read(config: &ListConfig, root: &Path, official: Option<&Official>) -> Result<Lists> {
        let at = |key: &'static str, file: &str| find(root, file, official).at(move || format!("data.{key}"));
        let given = match config.names.is_empty() {
            true => None,
            false => Some(names::read(&at("names", &config.names)?)?),
        };
        let classes = given.as_ref().map(Vec::len);
        let mut train = Lines::read(&at("train", &config.train)?, classes)?;
        let classes = classes.unwrap_or_else(|| train.lines.iter().map(|l| l.label as usize + 1).max().unwrap_or(0));
        let mut test = Lines::read(&at("test", &config.test)?, Some(classes))?;
        let mut val = match config.val.is_empty() {
            true => None,
            false => Some(Lines::read(&at("val", &config.val)?, Some(classes))?),
        };
        if let Some(official) = official {
            official.check(&train, val.as_ref(), &test)?;
        }
        let folders = names::folders(&train.lines);
        if let Some(folders) = &folders {
            [Some(&mut train), val.as_mut(), Some(&mut test)]
                .into_iter()
                .flatten()
                .for_each(|l| names::refuse_strays(l, folders));
        }
        let names = names::names(given, folders.as_ref(), classes).at(|| format!("data.names = {:?}", config.names))?;
        Ok(Lists { train, val, test, names })
    }

    fn all(&self) -> impl Iterator<Item = &Lines> {
        [Some(&self.train), self.val.as_ref(), Some(&self.test)].into_iter().flatten()
    }

    /// Finds every line's picture, training, validation, test; lines without one are taken out and counted, and so are
    /// training lines about test images: they never train.
    fn join(&mut self, found: &Found) -> Vec<Vec<u32>> {
        let test = located(&mut self.test, found, |_| None);
        let tested: HashSet<u32> = test.iter().copied().collect();
        let train = located(&mut self.train, found, |i| tested.contains(&i).then_some(Why::Test));
        let trained: HashSet<u32> = train.iter().copied().collect();
        let elsewhere = |i: u32| match (tested.contains(&i), trained.contains(&i)) {
            (true, _) => Some(Why::Test),
            (_, true) => Some(Why::Shared),
            _ => None,
        };
        let val = self.val.as_mut().map(|val| located(val, found, elsewhere));
        [Some(train), val, Some(test)].into_iter().flatten().collect()
    }

    /// The sets of the pictures `at` of each list.
    fn sets(
        self,
        title: &str,
        at: Vec<Vec<u32>>,
        found: Found,
        config: &ListConfig,
        cx: &Context,
    ) -> Result<Benchmark> {
        let ListConfig { crop, decode, cache, .. } = config.clone();
        let (found, stream) = (Arc::new(found), StreamConfig { crop, decode, cache, ..StreamConfig::default() });
        let pictures = Streamed::new(found.clone(), &stream, cx)?;
        let mut at = at.into_iter();
        let mut next = |part: &str, list: Lines| {
            let at = at.next().unwrap_or_default();
            let digest = digest(&list, &at, &found, cx)?;
            let labels = list.lines.iter().map(|l| l.label).collect();
            let (name, pictures) = (format!("{title} {part}"), pictures.with(at, digest));
            let set = Dataset::new(name, pictures, labels, self.names.clone(), Order::Original)?;
            Ok::<Dataset, Error>(set.counted(list.census))
        };
        let train = next("train", self.train)?;
        let val = self.val.map(|list| next("val", list)).transpose()?;
        let test = next("test", self.test)?;
        Ok(Benchmark { val, ..Benchmark::new(train, test)? })
    }
}

/// Pictures of a set of which every byte is digested, spread evenly: a set of ImageNet's size is opened in seconds.
const LOOKED_AT: usize = 1000;

/// Names these pictures in this order: by their paths, by what another file in their place would hardly have (bytes, or
/// where they lie), and by all bytes of up to [`LOOKED_AT`] of them.
fn digest(list: &Lines, at: &[u32], found: &Found, cx: &Context) -> Result<String> {
    let mut text = String::new();
    for (line, &i) in list.lines.iter().zip(at) {
        text += &format!("{} {}\n", line.path, found.mark(i as usize)?);
    }
    let looked = at.len().min(LOOKED_AT);
    let look = |_: &mut (), n: usize| {
        cx.cancel.check()?;
        let i = at[n * at.len() / looked] as usize;
        found.bytes(i).map(|bytes| fsx::sha256(&bytes)).at(|| found.name(i))
    };
    exec::ordered(
        cx.threads,
        looked,
        4 * cx.threads,
        |_| Ok(()),
        look,
        |_, seen| {
            text += &format!("{seen}\n");
            Ok(())
        },
    )?;
    Ok(fsx::sha256(text.as_bytes()))
}

/// The number of every line's picture, in the list's order, lines without one and those that `refused` names taken out.
fn located(list: &mut Lines, found: &Found, refused: impl Fn(u32) -> Option<Why>) -> Vec<u32> {
    let paths: Vec<&str> = list.lines.iter().map(|l| l.path.as_str()).collect();
    let joined = join(&paths, &found.names);
    if joined.parts < joined.of {
        let (parts, of) = (joined.parts, joined.of);
        list.census.source += &format!(" (found by the last {parts} of {of} parts of a path)");
    }
    let (mut at, mut met) = (Vec::new(), HashSet::new());
    let (census, mut next) = (&mut list.census, joined.at.into_iter());
    list.lines.retain(|line| {
        let why = match next.next().flatten() {
            None => Some(Why::NoImage),
            Some(i) => refused(i).or_else(|| (!met.insert(i)).then_some(Why::Double)).or_else(|| {
                at.push(i);
                None
            }),
        };
        why.into_iter().for_each(|why| census.pass(why, line.path.clone()));
        why.is_none()
    });
    census.read = at.len();
    at
}

/// A list's file: below the images' folder, as it is named, or where the published ones lie; also gzipped.
fn find(root: &Path, file: &str, official: Option<&Official>) -> Result<PathBuf> {
    let beside = official.map(|o| o.beside(file));
    let named = [Some(file), beside.as_deref()].into_iter().flatten();
    let places: Vec<String> = named.flat_map(|f| [f.to_string(), format!("{f}.gz")]).collect();
    let below = places.iter().map(|p| root.join(p)).find(|p| p.is_file());
    let found = below.or_else(|| places.iter().find_map(|p| resolve(p).ok()).filter(|p| p.is_file()));
    found.ok_or_else(|| {
        let text = format!("no file {file}, neither below {} nor here nor below $FEDLLAVA_DATA", root.display());
        Error::input(text).hint(match official {
            Some(o) => format!("put {}'s published lists into {}, or name the file", o.name, root.display()),
            None => "name the list's file".into(),
        })
    })
}

#[cfg(test)]
mod tests;
