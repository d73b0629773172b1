//! The demo's own LLaVA: the demo CLIP's image tower, and a projector and a language model trained from scratch on what
//! is said in a universe of the procedural world that neither CLIP, pool, clients nor test see.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::data::world::{self, World};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event, ordered};
use crate::key::{Key, Purpose};
use crate::mllm::Instruction;
use crate::model::clip::{self, Picture, Preprocess, Tokens};
use crate::model::llama::{LlamaConfig, Tokenizer, words};
use crate::model::llava::train::{self, Lesson, TrainConfig};
use crate::model::llava::{self, Llava, LlavaConfig, Parts, Sample};
use crate::model::weights::{Frozen, Init, Source, Trainable, Weights};

/// The instruction that the demo's LLaVA knows.
pub const INSTRUCTION: &str = "short";

/// How the demo's LLaVA is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DemoLlavaConfig {
    /// Images drawn from the world's universe for LLaVA.
    pub images: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Images in a step.
    pub batch_size: usize,
    /// The highest learning rate.
    pub learning_rate: f32,
    /// Width of the language model; 32 of it are one attention head.
    pub width: usize,
    /// Layers of the language model.
    pub layers: usize,
    /// Root of all draws.
    pub seed: u64,
}

impl Default for DemoLlavaConfig {
    fn default() -> Self {
        DemoLlavaConfig {
            images: 16_000,
            epochs: 3,
            batch_size: 64,
            learning_rate: 3e-3,
            width: 64,
            layers: 2,
            seed: 2025,
        }
    }
}

/// The tower of a CLIP, frozen; everything else is trained.
struct Grafted<'a> {
    tower: Frozen<'a>,
    rest: Trainable<'a>,
    taken: RefCell<BTreeMap<String, Tensor>>,
}

const TOWER: &str = "vision_tower.";

impl Source for Grafted<'_> {
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let Some(own) = name.strip_prefix(TOWER) else { return self.rest.tensor(name, shape, init) };
        let tensor = self.tower.tensor(own, shape, init)?;
        self.taken.borrow_mut().insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }
}

/// Trains the LLaVA on `world`'s universe for it, with the tower of the CLIP in `clip`, and saves it in `folder`. Gives
/// the mean loss of the last tenth of the steps, in nats per answer token.
pub fn train_llava(config: &DemoLlavaConfig, world: &World, clip: &Path, folder: &Path, cx: &Context) -> Result<f32> {
    let key = Key::from_seed(config.seed);
    let made = tempfile_beside(folder)?;
    let vocabulary = words::save(&vocabulary()?, &made)?;
    let shape = shape(config, vocabulary, &clip::Config::read(&clip.join("config.json"))?);
    let weights = Weights::open(clip)?;
    let source = Grafted {
        tower: weights.frozen(cx.dtype, &cx.device),
        rest: Trainable::fresh(key.fold(Purpose::Init, 0), &cx.device),
        taken: RefCell::default(),
    };
    let preprocess = Preprocess::open(clip)?;
    let tokenizer = Tokenizer::open(&made)?;
    let llava = Llava::build(folder, &source, &Parts::default(), shape.clone(), tokenizer, preprocess.clone())?;
    let (vars, tower) = (source.rest.into_vars(), source.taken.into_inner());
    let lessons = Lessons::draw(config, world, &llava, cx)?;
    let per_epoch = config.images / config.batch_size.max(1);
    let steps = per_epoch * config.epochs;
    let mut training = TrainConfig { steps, warmup: steps / 20, ..TrainConfig::default() };
    training.adamw.lr = config.learning_rate;
    let next = |step: usize| {
        let mut order: Vec<usize> = (0..config.images).collect();
        key.fold(Purpose::Epoch, (step / per_epoch) as u64).fold(Purpose::Shuffle, 0).rng().shuffle(&mut order);
        let at = step % per_epoch * config.batch_size;
        lessons.of(&order[at..at + config.batch_size], &cx.device)
    };
    let log = train::train(&llava, &vars, &training, next, cx)?;
    let trained = vars.iter().map(|(name, var)| (name, var.as_tensor()));
    llava::save(folder, &shape, trained.chain(&tower), &preprocess, &made).at(|| folder.display().to_string())?;
    std::fs::remove_dir_all(&made).map_err(|e| Error::io("remove", &made, e))?;
    let last = &log[log.len() - log.len().div_ceil(10)..];
    Ok(last.iter().sum::<f32>() / last.len().max(1) as f32)
}

/// A folder for the tokenizer's files while the model has none of its own.
fn tempfile_beside(folder: &Path) -> Result<std::path::PathBuf> {
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = folder.with_file_name(format!(".{name}-tokenizer"));
    crate::fsx::create_dir(&beside)?;
    Ok(beside)
}

/// Every word of captions, of class names, of the instruction and of a conversation's frame.
fn vocabulary() -> Result<Vec<&'static str>> {
    let mut words = world::vocabulary();
    words.extend(["user", "assistant", ":", ".", "?"]);
    words.extend(["say", "in", "one", "sentence", "what", "this", "picture", "shows"]);
    let asked = Instruction::find(INSTRUCTION)?.text.to_lowercase();
    let known = |w: &str| words.contains(&w);
    match asked.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).find(|w| !known(w)) {
        Some(word) => Err(Error::defect(format!("the demo's LLaVA does not know {word:?}"))),
        None => Ok(words),
    }
}

fn shape(config: &DemoLlavaConfig, vocabulary: usize, clip: &clip::Config) -> LlavaConfig {
    let text = LlamaConfig {
        vocab_size: vocabulary,
        hidden_size: config.width,
        intermediate_size: config.width * 8 / 3 / 32 * 32,
        num_hidden_layers: config.layers,
        num_attention_heads: config.width / 32,
        num_key_value_heads: config.width / 32,
        head_dim: 32,
        max_position_embeddings: 256,
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_id: vec![2],
        pad_token_id: Some(4),
        ..LlamaConfig::default()
    };
    LlavaConfig {
        text,
        vision: clip.vision_config.clone(),
        image_token: 3,
        layers: vec![-2, -1],
        select: Tokens::All,
        activation: clip::config::Activation::Gelu,
        projector_bias: true,
        stop: vec![2],
    }
}

/// What the tower sees in each image, and what is said of it.
struct Lessons {
    features: Vec<f32>,
    row: (usize, usize),
    samples: Vec<Sample>,
}

impl Lessons {
    fn draw(config: &DemoLlavaConfig, world: &World, llava: &Llava, cx: &Context) -> Result<Self> {
        const CHUNK: usize = 64;
        let drawn = world.llava_training(config.images);
        let instruction = Instruction::find(INSTRUCTION)?;
        let sample = |c: &world::Caption| llava.sample(&instruction.text, &c.text);
        let samples = drawn.captions.iter().map(sample).collect::<Result<_>>()?;
        let row = (llava.config().image_tokens(), llava.config().layers.len() * llava.config().vision.hidden_size);
        let mut features = Vec::with_capacity(config.images * row.0 * row.1);
        let total = config.images;
        let chunk = |_: &mut (), n: usize| {
            cx.cancel.check()?;
            let pictures: Vec<Picture> = (n * CHUNK..((n + 1) * CHUNK).min(total))
                .map(|i| super::demo_models::picture(&drawn.pixels, i))
                .collect();
            let seen = llava.tower_features(&llava.preprocess().batch(&pictures, &cx.device)?)?;
            Ok(seen.flatten_all()?.to_vec1::<f32>()?)
        };
        cx.events.on(Event::Begin { name: "tower", unit: "image", done: 0, total: total as u64 });
        let fold = |n: usize, rows: Vec<f32>| {
            features.extend(rows);
            cx.events.on(Event::Advance { done: ((n + 1) * CHUNK).min(total) as u64, figures: &[] });
            Ok(())
        };
        let workers = if cx.device.is_cpu() { cx.threads } else { 1 };
        ordered(workers, total.div_ceil(CHUNK), 2 * workers, |_| Ok(()), chunk, fold)?;
        cx.events.on(Event::End);
        Ok(Lessons { features, row, samples })
    }

    fn of(&self, chosen: &[usize], device: &candle_core::Device) -> Result<Lesson<'_>> {
        let size = self.row.0 * self.row.1;
        let rows: Vec<f32> = chosen.iter().flat_map(|&i| &self.features[i * size..(i + 1) * size]).copied().collect();
        Ok(Lesson {
            features: Tensor::from_vec(rows, (chosen.len(), self.row.0, self.row.1), device)?,
            samples: chosen.iter().map(|&i| &self.samples[i]).collect(),
        })
    }
}
