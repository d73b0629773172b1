//! Stage 1 through a multimodal large language model: the compact model learns to make the same frozen LLaVA say of an
//! image what LLaVA said of it, with the help of LLaVA's own tower fading. The loss is
//! [`mllm::caption_loss`](crate::mllm::caption_loss)'s; θ and W_s (W_c by config) are trained, and only θ is exported.
//!
//! Recorded each epoch: the loss; the student's loss (a = 1), because a mixture can hide an untrained student; the
//! student's loss with another image's map, and the gap between the two in nats per token.

mod inputs;
mod sharded;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use inputs::{annotations, cached_annotations, tower_features};
pub use sharded::gradients;

use crate::data::features::Features;
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event, lock};
use crate::fl::brief::{Feed, Length, Loss, Train};
use crate::fl::feed::{Data, Source};
use crate::fl::fit::{Observer, Plan, Standing, fit};
use crate::fl::{Here, Named, Objective, Tap};
use crate::key::{Key, Purpose};
use crate::mllm::caption_loss::{CaptionLoss, Sample, Shown, StudentProjection};
use crate::nn::optim::AdamwConfig;
use crate::nn::weight::Ramp;
use crate::nn::{Backend, Net, Node, OptimiserConfig, Params, Samples, Schedule, Weight};
use crate::run::checkpoint::{self, Files};
use crate::run::{Records, RunDir, Times};

/// The `pretrain.llm` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LlmPretrainConfig {
    /// The LLaVA: a folder in Hugging Face layout, or an id.
    pub llava: String,
    /// The prompts that the captions answer; a caption that names none answers the first.
    pub prompts: Vec<String>,
    /// The dynamic weight a(t).
    pub weight: Weight,
    /// W_s, from the student's channels to the language model's width.
    pub student: StudentProjection,
    /// Whether W_c is trained too; otherwise it is LLaVA's own projector.
    pub train_tower_projection: bool,
    /// Passes over the pool.
    pub epochs: usize,
    /// Images in a step.
    pub batch_size: usize,
    /// The optimiser of θ and the projections; its rate rises over the warm-up and falls as a half cosine.
    pub optimiser: OptimiserConfig,
    /// Share of all steps in which the rate rises.
    pub warmup: f32,
    /// The student alone is looked at every so many steps, and at the last of an epoch.
    pub look_every: usize,
    /// Control: annotations dealt to the wrong images.
    pub shuffle_captions: bool,
}

impl Default for LlmPretrainConfig {
    fn default() -> Self {
        LlmPretrainConfig {
            llava: "llava-hf/llava-1.5-7b-hf".into(),
            prompts: ["conversation", "detail", "reasoning"].map(String::from).to_vec(),
            weight: Weight::Linear(Ramp::default()),
            student: StudentProjection::Linear,
            train_tower_projection: false,
            epochs: 1,
            batch_size: 16,
            optimiser: OptimiserConfig::Adamw(AdamwConfig { lr: 2e-3, ..AdamwConfig::default() }),
            warmup: 0.03,
            look_every: 20,
            shuffle_captions: false,
        }
    }
}

impl LlmPretrainConfig {
    /// Whether a(t) is ever below 1, so that the tower's features are needed.
    pub fn needs_tower(&self) -> bool {
        (0..=1000).any(|i| self.weight.at(i as f32 / 1000.0).unwrap_or(1.0) < 1.0)
    }

    /// Refuses what cannot run.
    pub fn check(&self) -> Result<()> {
        self.weight.check("pretrain.llm.weight", false)?;
        if self.batch_size < 2 || self.look_every == 0 || !(0.0..=1.0).contains(&self.warmup) {
            return Err(Error::input("pretrain.llm: batch_size ≥ 2, look_every ≥ 1, warmup in [0, 1]"));
        }
        Ok(())
    }
}

/// A pretraining ready to run.
pub struct LlmPretrain<'a> {
    /// Where it writes.
    pub dir: &'a RunDir,
    /// The compact network; its head is not trained.
    pub net: &'a Arc<Net>,
    /// Who runs it.
    pub backend: Backend,
    /// The section.
    pub config: &'a LlmPretrainConfig,
    /// The loss, for maps of [`map_of`]'s shape.
    pub objective: &'a CaptionLoss<'a>,
    /// The pool's images as the compact network sees them.
    pub images: &'a dyn Samples,
    /// Annotations of each image.
    pub annotations: &'a [Vec<Sample>],
    /// The tower's features `(images, places · width)`, where a(t) is ever below 1.
    pub tower: Option<&'a Features>,
    /// Places and width of a row of the tower's features.
    pub tower_shape: (usize, usize),
    /// Randomness of the stage.
    pub key: Key,
}

/// The node whose value the language model is shown, and its shape `(C, h, w)`: the last spatial map, or the feature
/// where a network has none.
pub fn map_of(net: &Net) -> Result<(Node, [usize; 3])> {
    let node = net.tap("map").or_else(|_| net.tap("feature"))?;
    match net.shapes[node].as_slice() {
        &[c, h, w] => Ok((node, [c, h, w])),
        &[c] => Ok((node, [c, 1, 1])),
        other => Err(Error::defect(format!("{}: a map of shape {other:?}", net.name))),
    }
}

/// Sums over an epoch.
#[derive(Default)]
struct Means {
    loss: f64,
    steps: f64,
    own: f64,
    others: f64,
    looks: f64,
}

impl LlmPretrain<'_> {
    /// Trains from fresh parameters; a finished stage is read back, a stopped one goes on after its last epoch.
    pub fn run(&self, cx: &Context) -> Result<Params> {
        if let Some((params, _)) = self.dir.finished("pretrain", &self.net.layout)? {
            return Ok(params);
        }
        self.config.check()?;
        if self.annotations.len() < self.config.batch_size {
            let (have, want) = (self.annotations.len(), self.config.batch_size);
            return Err(Error::input(format!("pretrain: a pool of {have} annotated images for batches of {want}")));
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
        let mut log = Log { folder, records, times, began: Instant::now(), means: means.clone(), cx };
        let params = self.fit(standing, means, &mut log, &cx.part((total - done) as f64))?;
        cx.events.on(Event::End);
        let facts = json!({ "epochs": self.config.epochs, "images": self.annotations.len(), "objective": "llm" });
        self.dir.finish("pretrain", &params, facts)?;
        Ok(params)
    }

    fn fit(&self, standing: Standing, means: Arc<Mutex<Means>>, log: &mut Log<'_>, cx: &Context) -> Result<Params> {
        let train = Train {
            beside: vec![1],
            feeds: vec![Feed { batch_size: self.config.batch_size, drop_last: true, ..Feed::default() }],
            loss: Loss::Open(vec![Arc::new(Spoken { stage: self, means, cx })]),
            length: Length::Epochs(self.config.epochs),
            optimiser: self.config.optimiser.clone(),
            rate: Schedule::WarmupCosine(self.config.warmup),
            ..Train::default()
        };
        let ids: Vec<u32> = (0..self.annotations.len() as u32).collect();
        let (own, columns) = (Source { samples: self.images, ids: &ids }, BTreeMap::new());
        let data = Data { own, server: None, unlabelled: None, columns: &columns };
        let projections = self.objective.init(self.key.fold(Purpose::Init, 1))?;
        let slots = [self.net.init(self.key.fold(Purpose::Init, 0)), projections];
        let plan = Plan { train: &train, slots: &slots, data: &data, key: self.key };
        let mut session = self.backend.session(self.net, cx, cx.threads, 1)?;
        let fitted = fit(session.as_mut(), &[plan], vec![standing], cx, log)?.pop();
        Ok(fitted.ok_or_else(|| Error::defect("pretrain: nothing was trained"))?.params)
    }

    /// One annotation for each image, drawn by key; the shuffled control takes another image's.
    fn samples(&self, ids: &[u32], key: Key) -> Result<Vec<&Sample>> {
        let mut rng = key.fold(Purpose::Caption, 0).rng();
        let n = self.annotations.len();
        let shift = match self.config.shuffle_captions {
            true => 1 + self.key.fold(Purpose::Caption, 1).rng().below(n.max(2) - 1),
            false => 0,
        };
        let one = |&id: &u32| {
            let all = &self.annotations[(id as usize + shift) % n];
            all.get(rng.below(all.len().max(1))).ok_or_else(|| Error::defect(format!("image {id} has no annotation")))
        };
        ids.iter().map(one).collect()
    }

    fn seen(&self, ids: &[u32], cx: &Context) -> Result<Tensor> {
        let features = self.tower.ok_or_else(|| Error::defect("pretrain: a < 1 needs the tower's features"))?;
        let data: Vec<f32> = ids.iter().flat_map(|&i| features.row(i as usize)).copied().collect();
        let (places, width) = self.tower_shape;
        Ok(Tensor::from_vec(data, (ids.len(), places, width), &cx.device)?)
    }
}

/// The language model's loss of the captions, on the compact network's map; W_s (and W_c) are trained beside it.
struct Spoken<'a> {
    stage: &'a LlmPretrain<'a>,
    means: Arc<Mutex<Means>>,
    cx: &'a Context,
}

impl Spoken<'_> {
    /// The student's loss alone, with its own map and with its neighbour's in the batch.
    fn look(&self, step: Shown, projections: &Params) -> Result<()> {
        let objective = self.stage.objective;
        let alone = Shown { tower: None, a: 1.0, ..step };
        let own = objective.loss(alone, projections)?;
        let mut moved = step.map.to_vec();
        moved.rotate_left(step.map.len() / step.samples.len().max(1));
        let others = objective.loss(Shown { map: &moved, ..alone }, projections)?;
        let mut means = lock(&self.means);
        means.own += own;
        means.others += others;
        means.looks += 1.0;
        Ok(())
    }
}

impl Objective for Spoken<'_> {
    fn taps(&self) -> &[Tap] {
        &[Tap::Map]
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let (stage, config, t) = (self.stage, self.stage.config, at.progress);
        let samples = stage.samples(at.ids, at.key)?;
        let a = f64::from(config.weight.at(t).unwrap_or(1.0)).clamp(0.0, 1.0);
        let tower = if a < 1.0 { Some(stage.seen(at.ids, self.cx)?) } else { None };
        let this = Shown { samples: &samples, map: at.map, tower: tower.as_ref(), a };
        let [beside] = at.beside else { return Err(Error::defect("pretrain: no projections beside the network")) };
        if at.batch.is_multiple_of(config.look_every) || at.batch + 1 == at.batches {
            self.look(this, &beside.values)?;
        }
        let got = gradients(stage.objective, this, &beside.values, self.cx).at(|| format!("pretrain, t = {t:.4}"))?;
        if !got.loss.is_finite() {
            return Err(Error::input(format!("pretrain: the loss is {}", got.loss))
                .hint("lower pretrain.llm.optimiser.lr, or compute in f32"));
        }
        at.d_map.iter_mut().zip(&got.map).for_each(|(d, g)| *d += g);
        beside.gradient.iter_mut().zip(&got.projections).for_each(|(d, g)| *d += g);
        let mut means = lock(&self.means);
        means.loss += got.loss;
        means.steps += 1.0;
        Ok(got.loss)
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
        let m = std::mem::take(&mut *lock(&self.means));
        let (own, others) = (m.own / m.looks.max(1.0), m.others / m.looks.max(1.0));
        let figures = [
            ("loss", m.loss / m.steps.max(1.0)),
            ("student_loss", own),
            ("shuffled_loss", others),
            ("gap", others - own),
        ];
        self.records.add("pretrain", done, "pool", &figures)?;
        let seconds = std::mem::replace(&mut self.began, Instant::now()).elapsed().as_secs_f64();
        self.times.add("pretrain", done, &[("seconds", seconds)])?;
        self.records.seal()?;
        checkpoint::save(&self.folder, done, &files(standing()?), 1)?;
        self.cx.events.on(Event::Advance { done: done as u64, figures: &figures });
        Ok(())
    }
}

fn files(standing: Standing) -> Files {
    let mut model = standing.moments;
    model.extend(standing.params.map(|params| ("model".to_string(), params)));
    let mut files = Files::from([("model".to_string(), model)]);
    for (projections, mut bridge) in standing.beside {
        bridge.insert("projections".into(), projections);
        files.insert("projections".into(), bridge);
    }
    files
}

fn restore(epochs: usize, mut files: Files) -> Result<Standing> {
    let mut take = |name: &str| -> Result<(Params, Named)> {
        let missing = || Error::data(format!("pretrain: the checkpoint holds no {name}"));
        let mut named = files.remove(name).ok_or_else(missing)?;
        let params = named.remove(name).ok_or_else(missing)?;
        Ok((params, named))
    };
    let ((params, moments), beside) = (take("model")?, vec![take("projections")?]);
    Ok(Standing { epochs, params: Some(params), moments, beside })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::captions::Caption;
    use crate::data::dataset::Images as Pixels;
    use crate::data::pool::Pool;
    use crate::data::pool::{Item, Source};
    use crate::exec::{Cancel, Events};
    use crate::mllm::Instruction;
    use crate::model::llava::Llava;
    use crate::model::{Head, ModelConfig, resnet};
    use crate::nn::{Batch, View};
    use std::path::Path;

    /// Twelve images in two kinds, four of them dark and eight bright, with noise.
    fn pixels() -> Vec<u8> {
        let mut rng = Key::from_seed(5).rng();
        let level = |i: usize| if i.is_multiple_of(3) { 20 } else { 200 };
        (0..12).flat_map(|i| vec![level(i); 192]).map(|v| v + rng.below(40) as u8).collect()
    }

    struct Plain(Vec<u8>);

    impl Samples for Plain {
        fn fill(&self, ids: &[u32], _: View, _: Key, batch: &mut Batch) -> Result<()> {
            let image = |i: &u32| {
                self.0[*i as usize * 192..(*i as usize + 1) * 192].iter().map(|v| f32::from(*v) / 128.0 - 1.0)
            };
            batch.x = ids.iter().flat_map(image).collect();
            batch.y = vec![0; ids.len()];
            batch.ids = ids.to_vec();
            batch.rows = vec![ids.len()];
            Ok(())
        }
    }

    fn pool() -> Pool {
        let images = Arc::new(Pixels::new([3, 8, 8], pixels()).unwrap());
        let item = |i: usize| Item { id: format!("i{i}"), texts: vec![], source: Source::Pixels(images.clone(), i) };
        Pool::new("p", (0..12).map(item).collect(), false).unwrap()
    }

    fn records() -> Vec<Caption> {
        let text =
            |i: usize| if i.is_multiple_of(3) { "The small red star lies under the grass." } else { "Two boxes." };
        let record = |i: usize| Caption { image: format!("i{i}"), caption: Some(text(i).into()), ..Caption::default() };
        (0..12).map(record).collect()
    }

    fn prompts() -> Vec<Instruction> {
        vec![Instruction::new("short", "What is it?").unwrap()]
    }

    struct StopAfter(u64, Cancel);

    impl Events for StopAfter {
        fn on(&self, event: Event<'_>) {
            if let Event::Advance { done, figures } = event
                && done >= self.0
                && !figures.is_empty()
            {
                self.1.stop();
            }
        }
    }

    fn run(dir: &Path, epochs: usize, cx: &Context) -> Result<(Params, Vec<serde_json::Value>)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/default");
        let llava = Llava::open(&folder, &Context::cpu(1))?;
        let model = ModelConfig::Resnet8(resnet::Resnet8 { width: 4, ..resnet::Resnet8::default() });
        let net = Arc::new(model.build([3, 8, 8], Head::Projection(4))?);
        let (_, shape) = map_of(&net)?;
        let objective = CaptionLoss::new(&llava, shape, StudentProjection::Linear, false)?;
        let (pool, kept): (Pool, Vec<u32>) = (pool(), (0..12).collect());
        let annotations = annotations(&llava, &pool, &kept, &records(), &prompts())?;
        let tower = tower_features(&llava, &pool, &kept, dir, cx)?;
        let config = LlmPretrainConfig {
            epochs,
            batch_size: 4,
            look_every: 1,
            optimiser: OptimiserConfig::Adamw(AdamwConfig { lr: 0.02, ..AdamwConfig::default() }),
            ..LlmPretrainConfig::default()
        };
        let run = RunDir::open(&dir.join("run"), &toml::Table::new())?;
        let stage = LlmPretrain {
            dir: &run,
            net: &net,
            backend: Backend::Auto,
            config: &config,
            objective: &objective,
            images: &Plain(pixels()),
            annotations: &annotations,
            tower: Some(&tower),
            tower_shape: (9, 12),
            key: Key::from_seed(3),
        };
        let params = stage.run(cx)?;
        Ok((params, Records::read(&run.file("metrics.jsonl"))?))
    }

    #[test]
    fn the_student_learns_to_speak_and_prefers_its_own_image() {
        let dir = tempfile::tempdir().unwrap();
        let (_, records) = run(dir.path(), 25, &Context::cpu(2)).unwrap();
        let figure = |i: usize, name: &str| records[i][name].as_f64().unwrap();
        assert_eq!(records.len(), 25);
        assert!(figure(24, "student_loss") < figure(0, "student_loss") - 0.5, "{records:?}");
        assert!(figure(24, "gap") > 0.05 && figure(0, "gap") < 0.05, "{:?}", records[24]);
    }

    #[test]
    fn stopped_after_an_epoch_it_comes_to_the_same_bytes() {
        let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (want, records) = run(whole.path(), 3, &Context::cpu(1)).unwrap();
        let mut cx = Context::cpu(2);
        cx.events = Arc::new(StopAfter(1, cx.cancel.clone()));
        let e = run(stopped.path(), 3, &cx).unwrap_err();
        assert_eq!(e.class(), crate::error::Class::Stopped);
        let (got, again) = run(stopped.path(), 3, &Context::cpu(2)).unwrap();
        assert_eq!(got.data(), want.data());
        assert_eq!(again, records);
        assert_ne!(want.data(), run_fresh().data());
    }

    fn run_fresh() -> Params {
        let model = ModelConfig::Resnet8(resnet::Resnet8 { width: 4, ..resnet::Resnet8::default() });
        let net = model.build([3, 8, 8], Head::Projection(4)).unwrap();
        net.init(Key::from_seed(3).fold(Purpose::Init, 0))
    }

    #[test]
    fn captions_of_another_prompt_text_are_refused() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava/default");
        let llava = Llava::open(&folder, &Context::cpu(1)).unwrap();
        let mut records = records();
        records[3].more.insert("prompt_digest".into(), "00".into());
        let e = annotations(&llava, &pool(), &[0, 3], &records, &prompts()).unwrap_err().to_string();
        assert!(e.contains("another text of prompt short"), "{e}");
        let e = annotations(&llava, &pool(), &[0, 1], &records[..1], &prompts()).unwrap_err().to_string();
        assert!(e.contains("image i1 has no annotation"), "{e}");
    }
}
