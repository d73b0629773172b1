//! What the frozen CLIP sees and reads: image and text features, computed once and cached with digests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::features::{Features as Cache, Rows};
use crate::data::pool::Pool;
use crate::data::{self, Dataset};
use crate::error::{Error, Place, Result, closest};
use crate::exec::Context;
use crate::fsx;
use crate::model::clip::embed::{self, Features};
use crate::model::clip::zeroshot::{Prompts, ZeroShot};
use crate::model::clip::{Clip, Picture, Preprocess, Tokenizer};
use crate::model::hub;

/// The `clip` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ClipConfig {
    /// A CLIP in Hugging Face layout.
    Model(ClipModel),
    /// Text features from files; there is no image tower.
    Texts(ClipTexts),
}

impl Default for ClipConfig {
    fn default() -> Self {
        ClipConfig::Model(ClipModel::default())
    }
}

impl ClipConfig {
    /// Refuses prompts that no class could fill.
    pub fn check(&self) -> Result<()> {
        match self {
            ClipConfig::Model(c) => c.prompts.check(),
            ClipConfig::Texts(_) => Ok(()),
        }
    }
}

/// A CLIP by folder or by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClipModel {
    /// A folder, or an id such as `openai/clip-vit-base-patch32`.
    pub path: String,
    /// How a class name becomes texts.
    pub prompts: Prompts,
}

impl Default for ClipModel {
    fn default() -> Self {
        ClipModel { path: "openai/clip-vit-base-patch32".into(), prompts: Prompts::default() }
    }
}

/// Files of text features; texts are looked up by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTexts {
    /// Each a `.npy` of `(rows, width)` and a JSON that names the rows.
    pub files: Vec<TextFile>,
}

/// One file of text features.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextFile {
    /// `.npy`, f32, `(rows, width)`.
    pub features: String,
    /// JSON `{"rows": [{"words": "goldfish, Carassius auratus", "wnid": "n01443537"}, …]}`: a row is found by its
    /// wnid, its words, or the first of them.
    pub rows: String,
}

/// The factor on cosines where the features come from files: published CLIPs have 100.
const PUBLISHED_SCALE: f64 = 100.0;

/// The frozen CLIP at work. It is opened when first needed.
pub struct Embedder {
    config: ClipConfig,
    cache: PathBuf,
    opened: OnceLock<Opened>,
}

enum Opened {
    Model { clip: Box<Clip>, preprocess: Preprocess, tokenizer: Box<Tokenizer>, digest: String },
    Texts { width: usize, rows: BTreeMap<String, Vec<f32>>, digest: String },
}

impl Embedder {
    /// For the `clip` section, keeping features below `cache`.
    pub fn new(config: &ClipConfig, cache: &str) -> Self {
        Embedder { config: config.clone(), cache: PathBuf::from(cache), opened: OnceLock::new() }
    }

    /// Width of the features.
    pub fn width(&self, cx: &Context) -> Result<usize> {
        Ok(match self.open(cx)? {
            Opened::Model { clip, .. } => clip.config().projection_dim,
            Opened::Texts { width, .. } => *width,
        })
    }

    /// Whether images can be embedded.
    pub fn sees(&self) -> bool {
        matches!(self.config, ClipConfig::Model(_))
    }

    /// SHA-256 of the model's or the files' bytes.
    pub fn digest(&self, cx: &Context) -> Result<String> {
        Ok(match self.open(cx)? {
            Opened::Model { digest, .. } | Opened::Texts { digest, .. } => digest.clone(),
        })
    }

    /// Multiply-adds of the image tower for one image; 0 where features come from files.
    pub fn image_multiply_adds(&self, cx: &Context) -> Result<u64> {
        Ok(match self.open(cx)? {
            Opened::Model { clip, .. } => clip.config().image_multiply_adds(),
            Opened::Texts { .. } => 0,
        })
    }

    /// The zero-shot classifier over class names.
    pub fn zero_shot(&self, classes: &[String], cx: &Context) -> Result<ZeroShot> {
        self.zero_shot_with(None, classes, cx)
    }

    /// As [`zero_shot`](Self::zero_shot), with other prompts than the section's where a model reads them.
    pub fn zero_shot_with(&self, prompts: Option<&Prompts>, classes: &[String], cx: &Context) -> Result<ZeroShot> {
        match (self.open(cx)?, &self.config) {
            (Opened::Model { clip, tokenizer, .. }, ClipConfig::Model(c)) => {
                ZeroShot::new(clip, tokenizer, prompts.unwrap_or(&c.prompts), classes, cx)
            }
            _ => ZeroShot::from_features(self.texts(classes, cx)?, PUBLISHED_SCALE),
        }
    }

    /// Unit features of texts, `(texts, width)`; equal texts are computed once.
    pub fn texts(&self, texts: &[String], cx: &Context) -> Result<Features> {
        match self.open(cx)? {
            Opened::Texts { width, rows, .. } => {
                let found: Result<Vec<&Vec<f32>>> = texts.iter().map(|t| look_up(rows, t)).collect();
                Features::new(*width, found?.into_iter().flatten().copied().collect())
            }
            Opened::Model { clip, tokenizer, digest, .. } => {
                let distinct: Vec<&String> =
                    texts.iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
                let items: Vec<String> = distinct.iter().map(|t| fsx::sha256(t.as_bytes())).collect();
                let unique =
                    self.cached("texts", digest, items, cx, || embed::texts(clip, tokenizer, &distinct, cx))?;
                let position: BTreeMap<&String, usize> = distinct.iter().enumerate().map(|(i, t)| (*t, i)).collect();
                let data = texts.iter().flat_map(|t| unique.row(position[t])).copied().collect();
                Features::new(unique.dim, data)
            }
        }
    }

    /// Unit image features of a data set, `(images, width)`.
    pub fn dataset_features(&self, data: &Dataset, cx: &Context) -> Result<Features> {
        let (clip, preprocess, digest) = self.tower(cx)?;
        let items = (0..data.len()).map(|i| fsx::sha256(format!("{} {i}", data.digest).as_bytes())).collect();
        let load = |i: usize| {
            let ([height, width], planes) = data.images.seen(i)?;
            Ok(Picture { height, width, pixels: planes.into_owned().into() })
        };
        let compute = || match data.images.held() {
            Some(images) => embed::squares(clip, preprocess, images.pixels(), images.shape()[1], cx),
            None => embed::images(clip, preprocess, data.len(), load, cx),
        };
        self.cached(&data.name, digest, items, cx, compute).at(|| format!("features of {}", data.name))
    }

    /// Unit image features of the pool's items `kept`, `(kept, width)`, each seen in its own size.
    pub fn pool_features(&self, pool: &Pool, kept: &[u32], cx: &Context) -> Result<Features> {
        let (clip, preprocess, digest) = self.tower(cx)?;
        let digests = pool.seen_digests(cx)?;
        let items = kept.iter().map(|&i| digests[i as usize].clone()).collect();
        let load = |i: usize| {
            let image = pool.rgb(kept[i] as usize)?;
            let (width, height) = (image.width() as usize, image.height() as usize);
            let mut planes = Vec::new();
            data::decode::planes(&image, &mut planes);
            Ok(Picture { height, width, pixels: planes.into() })
        };
        let compute = || embed::images(clip, preprocess, kept.len(), load, cx);
        self.cached(&pool.name, digest, items, cx, compute).at(|| format!("features of {}", pool.name))
    }

    fn tower(&self, cx: &Context) -> Result<(&Clip, &Preprocess, &str)> {
        match self.open(cx)? {
            Opened::Model { clip, preprocess, digest, .. } => Ok((clip, preprocess, digest)),
            Opened::Texts { .. } => Err(Error::input("clip.kind = \"texts\" cannot embed images")
                .hint("name a CLIP with clip.kind = \"model\" and clip.path")),
        }
    }

    /// Features from the cache, or computed and cached. `items` names what each row is made from.
    pub(super) fn cached(
        &self,
        what: &str,
        model: &str,
        items: Vec<String>,
        cx: &Context,
        compute: impl FnOnce() -> Result<Features>,
    ) -> Result<Features> {
        let all = fsx::sha256(items.join("\n").as_bytes());
        let what: String = what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = self.cache.join(format!("{what}-{:.12}-{all:.12}.safetensors", model));
        if let Some(cached) = Cache::kept(&path, model, &items, &*cx.events) {
            return Ok(Features { dim: cached.dim, data: cached.data });
        }
        let features = compute()?;
        let ids = (0..items.len()).map(|i| i.to_string()).collect();
        let data = features.data.clone();
        Cache { dim: features.dim, ids, digests: items, data, model: model.to_string() }.save(&path)?;
        Ok(features)
    }

    fn open(&self, cx: &Context) -> Result<&Opened> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let opened = match &self.config {
            ClipConfig::Model(c) => open_model(c, cx).at(|| format!("clip.path = {:?}", c.path))?,
            ClipConfig::Texts(c) => open_texts(c).at(|| "clip.files")?,
        };
        Ok(self.opened.get_or_init(|| opened))
    }
}

fn open_model(config: &ClipModel, cx: &Context) -> Result<Opened> {
    let folder = match data::resolve(&config.path) {
        Ok(folder) => folder,
        Err(_) => hub::resolve_until(&config.path, &cx.cancel)?,
    };
    let clip = Clip::open(&folder, cx.dtype, &cx.device)?;
    let tokenizer = Tokenizer::open(&folder, clip.config().text_config.max_position_embeddings)?;
    let preprocess = Preprocess::open(&folder)?;
    let (side, made) = (clip.config().vision_config.image_size, preprocess.output(1, 1));
    if made != (side, side) {
        let (height, width) = made;
        return Err(Error::data(format!(
            "{}: its preprocessor makes pictures of {height} × {width}, its model sees {side} × {side}",
            folder.display()
        ))
        .hint("preprocessor_config.json and config.json do not belong together"));
    }
    let mut digests = Vec::new();
    for path in fsx::list(&folder)?.into_iter().filter(|p| p.is_file()) {
        if !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')) {
            digests.push(fsx::sha256_file(&path)?);
        }
    }
    let digest = fsx::sha256(digests.join("\n").as_bytes());
    Ok(Opened::Model { clip: Box::new(clip), preprocess, tokenizer: Box::new(tokenizer), digest })
}

fn open_texts(config: &ClipTexts) -> Result<Opened> {
    let (mut width, mut rows, mut digests) = (0, BTreeMap::new(), Vec::new());
    for file in &config.files {
        let path = data::resolve(&file.features)?;
        let matrix = Cache::from_npy(&path, None)?;
        digests.push(fsx::sha256_file(&path)?);
        let parsed = Rows::read(&data::resolve(&file.rows)?)?;
        if parsed.rows.len() != matrix.len() || (width != 0 && width != matrix.dim) {
            let shape = format!("({}, {})", matrix.len(), matrix.dim);
            return Err(Error::data(format!("{}: {shape}, and {} names", path.display(), parsed.rows.len())));
        }
        width = matrix.dim;
        for (row, values) in parsed.rows.into_iter().zip(matrix.data.chunks_exact(width)) {
            let first = row.words.split(',').next().unwrap_or_default().trim().to_string();
            for name in [Some(first), Some(row.words), row.wnid].into_iter().flatten() {
                rows.entry(name).or_insert_with(|| values.to_vec());
            }
        }
    }
    if rows.is_empty() {
        return Err(Error::input("clip.files names no file"));
    }
    Ok(Opened::Texts { width, rows, digest: fsx::sha256(digests.join("\n").as_bytes()) })
}

fn look_up<'r>(rows: &'r BTreeMap<String, Vec<f32>>, text: &str) -> Result<&'r Vec<f32>> {
    let spoken = text.replace('_', " ");
    rows.get(text).or_else(|| rows.get(&spoken)).ok_or_else(|| {
        let error = Error::data(format!("no text feature for {text:?}"));
        match closest(text, rows.keys().map(String::as_str)) {
            Some(near) => error.hint(format!("the files have {near:?}")),
            None => error.hint("clip.files must name every class and every pool text"),
        }
    })
}
