//! Who teaches in alignment: a frozen model's class distributions for the server's images.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Loaded;
use super::embed::Embedder;
use super::teach_mllm::{self, MllmTeacher};
use crate::data::features::{Features as Cache, npy_integers};
use crate::data::{self, Augment, Dataset, Loader};
use crate::error::{Error, Place, Result};
use crate::exec::Context;
use crate::fl::predict::predict;
use crate::model::clip::embed::Features;
use crate::model::clip::zeroshot::Prompts;
use crate::model::weights::Start;
use crate::model::{Head, ModelConfig};
use crate::nn::Backend;

/// The `teacher` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TeacherConfig {
    /// The frozen CLIP of the `clip` section, zero-shot over the class names.
    Clip(ClipTeacher),
    /// A LLaVA, by the likelihood of the class names as its answer.
    Mllm(MllmTeacher),
    /// Image features from a file, against the class texts of the `clip` section.
    Features(FeatureTeacher),
    /// A classifier trained on labels: an oracle where those are the benchmark's own.
    Classifier(ClassifierTeacher),
}

impl Default for TeacherConfig {
    fn default() -> Self {
        TeacherConfig::Clip(ClipTeacher::default())
    }
}

/// Zero-shot CLIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTeacher {
    /// Divides `scale · cosine` before the softmax.
    pub temperature: f64,
    /// Prompts instead of the `clip` section's: templates, a file of templates, or descriptions of each class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Prompts>,
}

impl Default for ClipTeacher {
    fn default() -> Self {
        ClipTeacher { temperature: 1.0, prompts: None }
    }
}

/// Features from files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FeatureTeacher {
    /// `.npy` of image features `(rows, width)`.
    pub images: String,
    /// `.npy` of the training image that each row belongs to; empty where row i is image i.
    pub rows: String,
    /// Divides `100 · cosine` before the softmax.
    pub temperature: f64,
}

impl Default for FeatureTeacher {
    fn default() -> Self {
        FeatureTeacher { images: String::new(), rows: String::new(), temperature: 1.0 }
    }
}

/// A trained compact classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClassifierTeacher {
    /// `.safetensors`, `.pt`, `.pth`, `.bin` or `.npz`, by PyTorch's names.
    pub path: String,
    /// Its network.
    pub model: ModelConfig,
    /// Its normalisation, a value per channel (the defaults are ImageNet's).
    pub mean: Vec<f32>,
    /// See `mean`.
    pub std: Vec<f32>,
    /// Divides the logits before the softmax.
    pub temperature: f32,
    /// Whether it saw the benchmark's own labels: its rows are marked in every table.
    pub oracle: bool,
}

impl Default for ClassifierTeacher {
    fn default() -> Self {
        ClassifierTeacher {
            path: String::new(),
            model: ModelConfig::default(),
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            temperature: 1.0,
            oracle: true,
        }
    }
}

impl TeacherConfig {
    /// The teacher in a table: its kind, and whether it is an oracle.
    pub fn label(&self) -> String {
        match self {
            TeacherConfig::Clip(c) if c.prompts.is_some() => "clip prompts".into(),
            TeacherConfig::Clip(_) => "clip".into(),
            TeacherConfig::Mllm(_) => "mllm".into(),
            TeacherConfig::Features(_) => "clip features".into(),
            TeacherConfig::Classifier(c) if c.oracle => "classifier (oracle)".into(),
            TeacherConfig::Classifier(_) => "classifier".into(),
        }
    }

    /// Refuses values that no model could make right.
    pub fn check(&self) -> Result<()> {
        let temperature = match self {
            TeacherConfig::Clip(c) => {
                c.prompts.as_ref().map_or(Ok(()), Prompts::check)?;
                c.temperature
            }
            TeacherConfig::Mllm(c) => c.temperature,
            TeacherConfig::Features(c) => c.temperature,
            TeacherConfig::Classifier(c) => {
                c.model.check()?;
                f64::from(c.temperature)
            }
        };
        match temperature.is_finite() && temperature > 0.0 {
            true => Ok(()),
            false => Err(Error::input(format!("temperature = {temperature}: expected a number above 0"))),
        }
    }

    /// Whether the teacher saw the benchmark's own labels.
    pub fn oracle(&self) -> bool {
        matches!(self, TeacherConfig::Classifier(c) if c.oracle)
    }
}

/// Class distributions `(ids, classes)` for the images `ids` of `data`.
pub fn distributions(
    config: &TeacherConfig,
    data: &Dataset,
    ids: &[u32],
    embedder: &Embedder,
    cx: &Context,
) -> Result<Vec<f32>> {
    match config {
        TeacherConfig::Clip(c) => {
            let zero_shot = embedder.zero_shot_with(c.prompts.as_ref(), &data.classes, cx)?;
            let subset = data.select(format!("{} (taught)", data.name), ids)?;
            let features = embedder.dataset_features(&subset, cx)?;
            zero_shot.probabilities(&features, c.temperature)
        }
        TeacherConfig::Mllm(c) => teach_mllm::distributions(c, data, ids, embedder, cx),
        TeacherConfig::Features(c) => {
            let zero_shot = embedder.zero_shot(&data.classes, cx)?;
            zero_shot.probabilities(&rows_of(c, ids)?, c.temperature)
        }
        TeacherConfig::Classifier(c) => classify(c, data, ids, cx),
    }
    .at(|| "teacher")
}

fn rows_of(config: &FeatureTeacher, ids: &[u32]) -> Result<Features> {
    let all = Cache::from_npy(&data::resolve(&config.images)?, None)?;
    let position: std::collections::BTreeMap<u32, usize> = match config.rows.as_str() {
        "" => (0..all.len()).map(|i| (i as u32, i)).collect(),
        path => {
            let rows = npy_integers(&data::resolve(path)?)?;
            rows.into_iter().enumerate().map(|(i, id)| (id, i)).collect()
        }
    };
    let mut out = Vec::with_capacity(ids.len() * all.dim);
    for id in ids {
        let Some(&row) = position.get(id) else {
            return Err(Error::data(format!("{}: no feature of training image {id}", config.images))
                .hint("the file must hold every image of the server set"));
        };
        out.extend_from_slice(all.row(row));
    }
    Features::new(all.dim, out)
}

fn classify(config: &ClassifierTeacher, data: &Dataset, ids: &[u32], cx: &Context) -> Result<Vec<f32>> {
    let classes = data.classes.len();
    let net = Arc::new(config.model.build(data.images.shape(), Head::Classes(classes))?);
    let path = data::resolve(&config.path)?;
    let params = Start::whole(&path, &net.layout)?;
    let augment = Augment { mean: config.mean.clone(), std: config.std.clone(), ..Augment::default() };
    let loader = Loader::new(&augment, data.images.shape())?;
    let images = Loaded { data, loader: &loader };
    let (logits, _) = predict(&net, Backend::default(), &params, net.logits, &images, ids, cx)?;
    let scaled: Vec<f32> = logits.iter().map(|z| z / config.temperature).collect();
    let mut q = Vec::new();
    crate::nn::loss::softmax(&scaled, classes, &mut q);
    Ok(q)
}
