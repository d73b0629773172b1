//! Stage 1 through a multimodal large language model: the compact model learns to make the same frozen LLaVA say of an
//! image what LLaVA said of it, with the help of LLaVA's own tower fading. The loss is
//! [`mllm::objective`](crate::mllm::objective)'s; θ and W_s (W_c by config) are trained, and only θ is exported.
//!
//! Recorded each epoch: the loss; the student's loss (a = 1), because a mixture can hide an untrained student; the
//! student's loss with another image's map, and the gap between the two in nats per token.

mod inputs;
mod sharded;
mod tokens;

use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use inputs::{annotations, cached_annotations, tower_features};
pub use sharded::gradients;

use crate::data::features::Features;
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event};
use crate::fl::trainer::Images;
use crate::key::{Key, Purpose};
use crate::mllm::objective::{Objective, Sample, Shown, StudentProjection};
use crate::nn::optim::AdamwConfig;
use crate::nn::weight::Ramp;
use crate::nn::{Backend, Batch, Interpreter, Mode, Net, Node, Optimiser, OptimiserConfig, Params, Weight};
use crate::run::checkpoint::{self, Files};
use crate::run::{Records, RunDir};

/// The `pretrain.llm` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmPretrainConfig {
    /// The LLaVA: a folder in Hugging Face layout, or an id.
    pub llava: String,
    /// The prompts that the captions answer; a caption that names none answers the first.
    pub prompts: Vec<String>,
    /// The dynamic weight a(t).
    pub weight: Weight,
    /// W_s.
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
    pub objective: &'a Objective<'a>,
    /// The pool's images as the compact network sees them.
    pub images: &'a dyn Images,
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

/// Everything that a step changes.
struct Student {
    params: Params,
    projections: Params,
    body: Optimiser,
    bridge: Optimiser,
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
        let mut student = self.fresh()?;
        let mut done = 0;
        if let Some((epoch, files)) = checkpoint::latest(&folder)? {
            self.restore(files, &mut student)?;
            done = epoch;
        }
        records.cut("pretrain", done + 1)?;
        let total = self.config.epochs as u64;
        cx.events.on(Event::Begin { name: "pretrain", unit: "epoch", done: done as u64, total });
        let mut interpreter = self.backend.workspace(self.net, cx, cx.threads)?;
        for epoch in done..self.config.epochs {
            let m = self.epoch(epoch, &mut student, interpreter.as_mut(), cx)?;
            let (own, others) = (m.own / m.looks.max(1.0), m.others / m.looks.max(1.0));
            let figures = [
                ("loss", m.loss / m.steps.max(1.0)),
                ("student_loss", own),
                ("shuffled_loss", others),
                ("gap", others - own),
            ];
            records.add("pretrain", epoch + 1, "pool", &figures)?;
            checkpoint::save(&folder, epoch + 1, &self.files(&student)?, 1)?;
            cx.events.on(Event::Advance { done: epoch as u64 + 1, figures: &figures });
        }
        cx.events.on(Event::End);
        let facts = json!({ "epochs": self.config.epochs, "images": self.annotations.len(), "objective": "llm" });
        self.dir.finish("pretrain", &student.params, facts)?;
        Ok(student.params)
    }

    fn fresh(&self) -> Result<Student> {
        Ok(Student {
            params: self.net.init(self.key.fold(Purpose::Init, 0)),
            projections: self.objective.init(self.key.fold(Purpose::Init, 1))?,
            body: Optimiser::new(&self.config.optimiser, &self.net.layout),
            bridge: Optimiser::new(&self.config.optimiser, self.objective.layout()),
        })
    }

    fn epoch(&self, epoch: usize, s: &mut Student, net: &mut dyn Interpreter, cx: &Context) -> Result<Means> {
        let key = self.key.fold(Purpose::Epoch, epoch as u64);
        let mut order: Vec<u32> = (0..self.annotations.len() as u32).collect();
        key.fold(Purpose::Shuffle, 0).rng().shuffle(&mut order);
        let per_epoch = order.len() / self.config.batch_size;
        let last = (self.config.epochs * per_epoch).saturating_sub(1).max(1) as f32;
        let (node, _) = map_of(self.net)?;
        let (mut batch, mut map, mut grads) = (Batch::default(), Vec::new(), vec![0.0; s.params.data().len()]);
        let mut means = Means::default();
        for (step, ids) in order.chunks_exact(self.config.batch_size).enumerate() {
            cx.cancel.check()?;
            let key = key.fold(Purpose::Step, step as u64);
            let t = (epoch * per_epoch + step) as f32 / last;
            self.images.fill(ids, Some(key.fold(Purpose::Augment, 0)), &mut batch)?;
            net.forward(s.params.data(), &batch.x, &batch.rows, Mode::Train(&[key]))?;
            net.read(node, &mut map)?;
            let samples = self.samples(ids, key)?;
            let a = f64::from(self.config.weight.at(t).unwrap_or(1.0)).clamp(0.0, 1.0);
            let tower = if a < 1.0 { Some(self.seen(ids, cx)?) } else { None };
            let this = Shown { samples: &samples, map: &map, tower: tower.as_ref(), a };
            if step % self.config.look_every == 0 || step + 1 == per_epoch {
                self.look(this, s, &mut means)?;
            }
            let got = gradients(self.objective, this, &s.projections, cx).at(|| format!("pretrain, t = {t:.4}"))?;
            if !got.loss.is_finite() {
                return Err(Error::input(format!("pretrain: the loss is {}", got.loss))
                    .hint("lower pretrain.llm.optimiser.lr, or compute in f32"));
            }
            means.loss += got.loss;
            means.steps += 1.0;
            net.backward(s.params.data(), &[(node, &got.map)], &mut grads)?;
            net.update_buffers(s.params.data_mut())?;
            let rate = self.rate(t);
            s.body.step(s.params.data_mut(), &grads, rate);
            s.bridge.step(s.projections.data_mut(), &got.projections, rate);
        }
        Ok(means)
    }

    /// The student's loss alone, with its own map and with its neighbour's in the batch.
    fn look(&self, shown: Shown, s: &Student, means: &mut Means) -> Result<()> {
        let alone = Shown { tower: None, a: 1.0, ..shown };
        means.own += self.objective.loss(alone, &s.projections)?;
        let mut moved = shown.map.to_vec();
        moved.rotate_left(shown.map.len() / shown.samples.len().max(1));
        means.others += self.objective.loss(Shown { map: &moved, ..alone }, &s.projections)?;
        means.looks += 1.0;
        Ok(())
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

    fn rate(&self, t: f32) -> f32 {
        let warmup = self.config.warmup;
        if t < warmup {
            return (t / warmup).max(0.01);
        }
        let progress = (t - warmup) / (1.0 - warmup).max(1e-6);
        0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
    }

    fn files(&self, s: &Student) -> Result<Files> {
        let mut model = s.body.state(&self.net.layout)?;
        model.insert("model".into(), s.params.clone());
        let mut bridge = s.bridge.state(self.objective.layout())?;
        bridge.insert("projections".into(), s.projections.clone());
        Ok(Files::from([("model".to_string(), model), ("projections".to_string(), bridge)]))
    }

    fn restore(&self, mut files: Files, s: &mut Student) -> Result<()> {
        let mut take = |file: &str, name: &str, optimiser: &mut Optimiser| -> Result<Params> {
            let missing = || Error::data(format!("pretrain: the checkpoint holds no {name}"));
            let mut named = files.remove(file).ok_or_else(missing)?;
            let params = named.remove(name).ok_or_else(missing)?;
            optimiser.restore(&named)?;
            Ok(params)
        };
        s.params = take("model", "model", &mut s.body)?;
        s.projections = take("projections", "projections", &mut s.bridge)?;
        Ok(())
    }
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
    use std::path::Path;

    /// Twelve images in two kinds, four of them dark and eight bright, with noise.
    fn pixels() -> Vec<u8> {
        let mut rng = Key::from_seed(5).rng();
        let level = |i: usize| if i.is_multiple_of(3) { 20 } else { 200 };
        (0..12).flat_map(|i| vec![level(i); 192]).map(|v| v + rng.below(40) as u8).collect()
    }

    struct Plain(Vec<u8>);

    impl Images for Plain {
        fn fill(&self, ids: &[u32], _: Option<Key>, batch: &mut Batch) -> Result<()> {
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
        let objective = Objective::new(&llava, shape, StudentProjection::Linear, false)?;
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
