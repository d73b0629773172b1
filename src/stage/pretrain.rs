//! Stage 1 without a large language model (a named substitution): the compact model learns to say in CLIP's text
//! space what an image's caption says, beside a frozen CLIP whose weight fades.
//!
//! `L = contrast(z, t) + λ (1 − a) (1 − cos(W_s f_θ(x), g))`, with `z = a · W_s f_θ(x) + (1 − a) · g`; g is the frozen
//! CLIP's image feature, t the caption's text feature, `a(t)` the dynamic weight that rises from 0 to 1.
//! `contrast` is the symmetric InfoNCE of CLIP (Radford et al. 2021) over cosines; captions with equal features
//! share the target. The loss at a = 1 is recorded throughout: a mixture can hide an untrained student.
//! Where only text features exist, a = 1 and the second term is absent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use candle_core::{D, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::pretrain_llm::LlmPretrainConfig;
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event, lock};
use crate::fl::brief::{Feed, Length, Loss, Train};
use crate::fl::feed::{Data, Source};
use crate::fl::fit::{Observer, Plan, Standing, fit};
use crate::fl::{Here, Objective};
use crate::key::{Key, Purpose};
use crate::nn::optim::AdamwConfig;
use crate::nn::session::Session;
use crate::nn::tap::tap_gradient;
use crate::nn::weight::Ramp;
use crate::nn::{Backend, Batch, Mode, Net, OptimiserConfig, Params, Samples, Schedule, View, Weight};
use crate::run::checkpoint::{self, Files};
use crate::run::{Records, RunDir, Times};

/// Pool images whose projected features' length is averaged.
const NORM_IMAGES: usize = 256;

/// What the compact model learns from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pretext {
    /// The contrast with CLIP's text space, this module's.
    #[default]
    Contrast,
    /// Making a frozen LLaVA say the captions, [`super::pretrain_llm`]'s; its section is `pretrain.llm`.
    Llm,
}

/// The `pretrain` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// What the compact model learns from; `llm` reads its own keys in `pretrain.llm`, all others here are for `contrast`.
    pub objective: Pretext,
    /// The dynamic weight a(t).
    pub weight: Weight,
    /// λ of the term that pulls the compact feature to CLIP's image feature.
    pub lambda: f32,
    /// Temperature τ of the contrast.
    pub temperature: f32,
    /// Passes over the pool.
    pub epochs: usize,
    /// Images in a step.
    pub batch_size: usize,
    /// The optimiser; its rate rises over the warm-up and falls as a half cosine.
    pub optimiser: OptimiserConfig,
    /// Share of all steps in which the rate rises.
    pub warmup: f32,
    /// Control: captions dealt to the wrong images.
    pub shuffle_captions: bool,
    /// Control: false leaves the image term alone.
    pub text: bool,
    /// The keys of `objective = "llm"`.
    pub llm: LlmPretrainConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        PretrainConfig {
            enabled: true,
            objective: Pretext::default(),
            weight: Weight::Linear(Ramp::default()),
            lambda: 1.0,
            temperature: 0.07,
            epochs: 10,
            batch_size: 128,
            optimiser: OptimiserConfig::Adamw(AdamwConfig { lr: 2e-3, ..AdamwConfig::default() }),
            warmup: 0.05,
            shuffle_captions: false,
            text: true,
            llm: LlmPretrainConfig::default(),
        }
    }
}

impl PretrainConfig {
    /// Refuses what cannot run.
    pub fn check(&self) -> Result<()> {
        if self.objective == Pretext::Llm {
            return self.llm.check();
        }
        self.weight.check("pretrain.weight", false)?;
        if self.batch_size < 2 {
            return Err(Error::input("pretrain.batch_size: a contrast needs at least 2 images"));
        }
        if !(self.temperature.is_finite()
            && self.temperature > 0.0
            && (0.0..=f32::MAX).contains(&self.lambda)
            && (0.0..=1.0).contains(&self.warmup))
        {
            return Err(Error::input("pretrain: temperature > 0, lambda ≥ 0, warmup in [0, 1]"));
        }
        if self.lambda == 0.0 && !self.text {
            return Err(Error::input("pretrain.lambda = 0 and pretrain.text = false: nothing would be learned")
                .hint("pretrain.enabled=false switches the stage off"));
        }
        Ok(())
    }
}

/// The pool as this stage sees it. Features are L2-normalised rows of the network's output width.
pub struct PoolFeatures<'a> {
    /// The images.
    pub images: &'a dyn Samples,
    /// How many.
    pub len: usize,
    /// Text features of each image's captions: `(first row, rows)` into `text`.
    pub captions: &'a [(usize, usize)],
    /// `(captions, width)`.
    pub text: &'a [f32],
    /// CLIP's image features `(len, width)`, where there are any.
    pub image: Option<&'a [f32]>,
}

/// A pretraining ready to run.
pub struct Pretrain<'a> {
    /// Where it writes.
    pub dir: &'a RunDir,
    /// The network with a projection as its output.
    pub net: &'a Arc<Net>,
    /// Who runs it.
    pub backend: Backend,
    /// The section.
    pub config: &'a PretrainConfig,
    /// The pool.
    pub pool: PoolFeatures<'a>,
    /// Randomness of the stage.
    pub key: Key,
}

/// Means over an epoch.
#[derive(Default)]
struct Means {
    loss: f64,
    student: f64,
    cosine: f64,
    steps: f64,
}

impl Pretrain<'_> {
    /// Trains from fresh parameters; a finished stage is read back, a stopped one goes on after its last epoch.
    pub fn run(&self, cx: &Context) -> Result<Params> {
        if let Some((params, _)) = self.dir.finished("pretrain", &self.net.layout)? {
            return Ok(params);
        }
        self.config.check()?;
        if self.pool.len < self.config.batch_size {
            let (images, batch) = (self.pool.len, self.config.batch_size);
            return Err(Error::input(format!("pretrain: a pool of {images} images for batches of {batch}"))
                .hint(format!("bring more images, or --set pretrain.batch_size={}", images.max(1))));
        }
        let folder = self.dir.file("pretrain/checkpoints");
        let mut records = Records::open(&self.dir.file("metrics.jsonl"))?;
        let standing = match checkpoint::latest(&folder, &*cx.events)? {
            Some((epochs, files)) => restore(epochs, files)?,
            None => Standing::default(),
        };
        records.require("pretrain", standing.epochs)?;
        records.cut("pretrain", standing.epochs + 1)?;
        let times = Times::open(self.dir.path(), "pretrain", standing.epochs + 1)?;
        let (done, total) = (standing.epochs as u64, self.config.epochs as u64);
        cx.events.on(Event::Begin { name: "pretrain", unit: "epoch", done, total });
        let means = Arc::new(Mutex::new(Means::default()));
        let mut session = self.backend.session(self.net, cx, cx.threads, 1)?;
        let params = {
            let mut log = Log { folder, records, times, began: Instant::now(), means: means.clone(), cx };
            self.fit(session.as_mut(), standing, means, &mut log, &cx.part((total - done) as f64))?
        };
        cx.events.on(Event::End);
        let norm = self.norm(&params, session.as_mut())?;
        let facts = json!({ "epochs": self.config.epochs, "images": self.pool.len, "norm": norm });
        self.dir.finish("pretrain", &params, facts)?;
        Ok(params)
    }

    fn fit(
        &self,
        session: &mut dyn Session,
        standing: Standing,
        means: Arc<Mutex<Means>>,
        log: &mut Log<'_>,
        cx: &Context,
    ) -> Result<Params> {
        let train = Train {
            feeds: vec![Feed { batch_size: self.config.batch_size, drop_last: true, ..Feed::default() }],
            loss: Loss::Open(vec![Arc::new(FadingTeacher { stage: self, means })]),
            length: Length::Epochs(self.config.epochs),
            optimiser: self.config.optimiser.clone(),
            rate: Schedule::WarmupCosine(self.config.warmup),
            ..Train::default()
        };
        let ids: Vec<u32> = (0..self.pool.len as u32).collect();
        let (own, columns) = (Source { samples: self.pool.images, ids: &ids }, BTreeMap::new());
        let data = Data { own, server: None, unlabelled: None, columns: &columns };
        let slots = [self.net.init(self.key.fold(Purpose::Init, 0))];
        let plan = Plan { train: &train, slots: &slots, data: &data, key: self.key };
        let fitted = fit(session, &[plan], vec![standing], cx, log)?.pop();
        Ok(fitted.ok_or_else(|| Error::defect("pretrain: nothing was trained"))?.params)
    }

    /// Mean length of the projected features over the first images of the pool, in evaluation mode.
    fn norm(&self, params: &Params, session: &mut dyn Session) -> Result<f64> {
        let ids: Vec<u32> = (0..self.pool.len.min(NORM_IMAGES) as u32).collect();
        let (mut batch, mut values) = (Batch::default(), [Vec::new()]);
        self.pool.images.fill(&ids, View::Plain, self.key, &mut batch)?;
        session.look(params, &batch.x, ids.len(), Mode::Infer, &[self.net.logits], &mut values)?;
        let rows = values[0].chunks(self.net.outputs());
        let lengths = rows.map(|r| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt());
        Ok(lengths.sum::<f64>() / ids.len().max(1) as f64)
    }

    /// One caption's feature for each image, drawn by key; the shuffled control takes another image's.
    fn captions(&self, ids: &[u32], key: Key) -> Vec<f32> {
        let width = self.net.outputs();
        let mut rng = key.fold(Purpose::Caption, 0).rng();
        let mut out = Vec::with_capacity(ids.len() * width);
        for &id in ids {
            let id = if self.config.shuffle_captions { self.wrong_image(id) } else { id as usize };
            let (first, count) = self.pool.captions[id];
            let row = first + rng.below(count.max(1));
            out.extend_from_slice(&self.pool.text[row * width..(row + 1) * width]);
        }
        out
    }

    /// A fixed permutation of the pool, so that each image keeps its wrong caption.
    fn wrong_image(&self, id: u32) -> usize {
        let shift = 1 + self.key.fold(Purpose::Caption, 1).rng().below(self.pool.len.max(2) - 1);
        (id as usize + shift) % self.pool.len
    }
}

/// The stage's loss: the student beside the frozen CLIP whose weight fades.
struct FadingTeacher<'a> {
    stage: &'a Pretrain<'a>,
    means: Arc<Mutex<Means>>,
}

impl Objective for FadingTeacher<'_> {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let (stage, t) = (self.stage, at.progress);
        let (rows, width, device) = (at.ids.len(), at.classes, Device::Cpu);
        let text = Tensor::from_vec(stage.captions(at.ids, at.key), (rows, width), &device)?;
        let image = stage.pool.image.map(|all| Tensor::from_vec(gather(all, at.ids, width), (rows, width), &device));
        let image = image.transpose()?;
        let a = if image.is_some() { f64::from(stage.config.weight.at(t).unwrap_or(1.0)) } else { 1.0 };
        let mut facts = (0.0, 0.0);
        let (loss, gradient) = tap_gradient(at.logits, &[rows, width], &device, |z| {
            let contrast = |z: &Tensor| contrast(z, &text, stage.config.temperature);
            facts.0 = scalar(&contrast(&z.detach())?)?;
            // Where both terms weigh nothing, as at first without λ, a product keeps the way to z: its gradient is 0.
            let idle = a == 0.0 && stage.config.lambda == 0.0;
            let mut terms = if idle { (z * z.zeros_like()?)?.sum_all()? } else { (z.sum_all()? * 0.0)? };
            if stage.config.text {
                let mixed = match &image {
                    Some(g) => ((z * a)? + (g * (1.0 - a))?)?,
                    None => z.clone(),
                };
                terms = (terms + contrast(&mixed)?)?;
            }
            if let Some(g) = &image {
                let cosine = (normalise(z)? * g)?.sum(D::Minus1)?.mean_all()?;
                facts.1 = scalar(&cosine)?;
                // Without text nothing else would train the compact model, so the term does not fade.
                let share = if stage.config.text { 1.0 - a } else { 1.0 };
                terms = (terms + ((1.0 - cosine)? * (f64::from(stage.config.lambda) * share))?)?;
            }
            Ok(terms)
        })
        .at(|| format!("pretrain, t = {t:.4}"))?;
        if !loss.is_finite() {
            return Err(Error::input(format!("pretrain: the loss is {loss}")).hint("lower pretrain.optimiser.lr"));
        }
        at.d_logits.iter_mut().zip(&gradient).for_each(|(d, g)| *d += g);
        let mut means = lock(&self.means);
        means.loss += loss;
        means.student += facts.0;
        means.cosine += facts.1;
        means.steps += 1.0;
        Ok(loss)
    }
}

/// Writes every epoch's records and checkpoint.
struct Log<'a> {
    folder: PathBuf,
    records: Records,
    times: Times,
    /// When the epoch at hand began.
    began: Instant,
    means: Arc<Mutex<Means>>,
    cx: &'a Context,
}

impl Observer for Log<'_> {
    fn epoch(&mut self, done: usize, standing: &mut dyn FnMut() -> Result<Standing>) -> Result<()> {
        let means = std::mem::take(&mut *lock(&self.means));
        let n = means.steps.max(1.0);
        let figures =
            [("loss", means.loss / n), ("student_loss", means.student / n), ("image_cosine", means.cosine / n)];
        self.records.add("pretrain", done, "pool", &figures)?;
        let seconds = std::mem::replace(&mut self.began, Instant::now()).elapsed().as_secs_f64();
        self.times.add("pretrain", done, &[("seconds", seconds)])?;
        self.records.seal()?;
        checkpoint::save(&self.folder, done, &files(standing()?), 1)?;
        self.cx.events.on(Event::Advance { done: done as u64, figures: &figures[..2] });
        Ok(())
    }
}

fn files(standing: Standing) -> Files {
    let mut named = standing.moments;
    named.extend(standing.params.map(|params| ("model".to_string(), params)));
    Files::from([("model".to_string(), named)])
}

fn restore(epochs: usize, mut files: Files) -> Result<Standing> {
    let broken = || Error::data("pretrain: the checkpoint holds no model");
    let mut moments = files.remove("model").ok_or_else(broken)?;
    let params = moments.remove("model").ok_or_else(broken)?;
    Ok(Standing { epochs, params: Some(params), moments, beside: Vec::new() })
}

/// Symmetric InfoNCE over cosines of `z` and `text`, both `(rows, width)`, `text` normalised; equal captions share
/// the target.
pub fn contrast(z: &Tensor, text: &Tensor, temperature: f32) -> Result<Tensor> {
    let scores = (normalise(z)?.matmul(&text.t()?)? / f64::from(temperature))?;
    let same = text.matmul(&text.t()?)?.gt(0.9999f32)?.to_dtype(z.dtype())?;
    let target = same.broadcast_div(&same.sum_keepdim(1)?)?;
    let one_way = |scores: &Tensor| -> Result<Tensor> {
        let log_p = candle_nn::ops::log_softmax(scores, D::Minus1)?;
        Ok((&target * log_p)?.sum(D::Minus1)?.mean_all()?.neg()?)
    };
    Ok(((one_way(&scores)? + one_way(&scores.t()?.contiguous()?)?)? * 0.5)?)
}

/// Rows divided by their length.
pub fn normalise(z: &Tensor) -> Result<Tensor> {
    let length = (z.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
    Ok(z.broadcast_div(&length)?)
}

fn scalar(t: &Tensor) -> Result<f64> {
    Ok(f64::from(t.to_scalar::<f32>()?))
}

fn gather(all: &[f32], ids: &[u32], width: usize) -> Vec<f32> {
    ids.iter().flat_map(|&i| &all[i as usize * width..(i as usize + 1) * width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f32]) -> Tensor {
        normalise(&Tensor::from_slice(values, (values.len() / 2, 2), &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn contrast_of_two_opposite_pairs_is_its_closed_form() {
        let t = rows(&[1.0, 0.0, -1.0, 0.0]);
        let loss = scalar(&contrast(&t, &t, 1.0).unwrap()).unwrap();
        assert!((loss - (1.0 + (-2f64).exp()).ln()).abs() < 1e-6, "{loss}");
    }

    #[test]
    fn equal_captions_share_the_target_so_that_their_order_does_not_matter() {
        let t = rows(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        let z = rows(&[1.0, 0.2, 0.9, -0.1, 0.3, 1.0]);
        let swapped = rows(&[0.9, -0.1, 1.0, 0.2, 0.3, 1.0]);
        let (a, b) = (contrast(&z, &t, 0.5).unwrap(), contrast(&swapped, &t, 0.5).unwrap());
        assert!((scalar(&a).unwrap() - scalar(&b).unwrap()).abs() < 1e-6);
    }
}
