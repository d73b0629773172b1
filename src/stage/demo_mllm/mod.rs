//! The demo's own multimodal LLM that a federation finetunes: a LLaVA whose tower is the demo LLaVA's without its last
//! layer, frozen, and whose projector and language model are trained from scratch on lessons about the procedural world.
//!
//! The tower's last layer is left out as LLaVA leaves it out: it was taught to gather what is said of a picture in one
//! token. The tokenizer is a byte-level BPE, so that every text comes back as it was and real questions can be read, a
//! syllable at a time.
//!
//! | file | what |
//! |---|---|
//! | this one | the model, its training, what it knows in the end |
//! | [`lessons`] | what it is taught |

pub mod lessons;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::demo_llava::{INSTRUCTION, descent, tempfile_beside};
use super::demo_models::picture;
use crate::data::Images;
use crate::data::world::{self, World};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, ordered};
use crate::key::{Key, Purpose};
use crate::mllm::Instruction;
use crate::model::chat::{Message, Role};
use crate::model::clip::{Picture, Preprocess};
use crate::model::llama::{LlamaConfig, Tokenizer, bytes};
use crate::model::llava::train::{TrainConfig, descend};
use crate::model::llava::{self, Llava, LlavaConfig, Parts, Turn, vicuna};
use crate::model::sample::Decoding;
use crate::model::vlm::{Ask, Sample, Vlm};
use crate::model::weights::{Frozen, Init, Source, Trainable, Weights, Width};
use lessons::{Gallery, Kind, Taught};

/// How the demo's multimodal LLM is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DemoMllmConfig {
    /// Pictures that lessons are about.
    pub images: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Lessons in a step, a multiple of [`Kind::TURNS`]'s length.
    pub batch_size: usize,
    /// The highest learning rate.
    pub learning_rate: f32,
    /// Layers of the language model.
    pub layers: usize,
    /// Width of its feed-forward layers.
    pub inner: usize,
    /// Most tokens of the tokenizer.
    pub vocabulary: usize,
    /// New lessons of each kind that the trained model is examined in.
    pub examined: usize,
    /// Root of all draws.
    pub seed: u64,
}

impl Default for DemoMllmConfig {
    fn default() -> Self {
        DemoMllmConfig {
            images: 12_000,
            steps: 800,
            batch_size: 32,
            learning_rate: 3e-3,
            layers: 2,
            inner: 192,
            vocabulary: 640,
            examined: 200,
            seed: 2026,
        }
    }
}

/// Longest text in tokens.
const CONTEXT: usize = 1024;
/// Lessons whose words the tokenizer is learnt from.
const READ: usize = 4000;

/// Trains the model, its tower from the LLaVA in `eyes`, on pictures of `world`, and saves it in `folder`, in f16. Gives
/// the share of new lessons of each kind that it answers to the letter.
pub fn train_mllm(
    config: &DemoMllmConfig,
    world: &World,
    eyes: &Path,
    folder: &Path,
    cx: &Context,
) -> Result<Vec<(Kind, f64)>> {
    let key = Key::from_seed(config.seed);
    let gallery = gallery(config, world)?;
    let made = tempfile_beside(folder)?;
    let tokens = bytes::save(&texts(&gallery, key.fold(Purpose::Caption, 0)), config.vocabulary, &made)?;
    let shape = shape(config, LlavaConfig::read(eyes)?, tokens);
    let (weights, parts) = (Weights::open(eyes)?, Parts::default());
    let source = Grafted {
        prefix: parts.tower.clone(),
        tower: weights.frozen(DType::F32, &cx.device),
        kept: RefCell::default(),
        rest: Trainable::fresh(key.fold(Purpose::Init, 0), &cx.device),
    };
    let preprocess = Preprocess::square(world::SIDE);
    let llava = Llava::build(folder, &source, &parts, shape.clone(), Tokenizer::open(&made)?, preprocess.clone())?;
    let (vars, tower) = (source.rest.into_vars(), source.kept.into_inner());
    let school = School { llava: &llava, seen: seen(&gallery, &llava, cx)?, gallery: &gallery, cx };
    let plan = TrainConfig {
        shard: config.batch_size.div_ceil(Kind::TURNS.len()),
        ..descent(config.steps, config.learning_rate)
    };
    let step = |step: usize| Ok((config.batch_size, key.fold(Purpose::Step, step as u64)));
    let rows = config.batch_size as f64;
    let loss = |key: &Key, at: usize, n: usize| {
        let kind = Kind::TURNS[at / plan.shard % Kind::TURNS.len()];
        let samples = school.samples(kind, n, key.fold(Purpose::Item, at as u64))?;
        let refs: Vec<&Sample> = samples.iter().collect();
        Ok((llava.loss(&refs, None)? * (n as f64 / rows))?)
    };
    descend("train MLLM", &vars, &plan, step, loss, cx)?;
    let trained = vars.iter().map(|(name, var)| (name, var.as_tensor()));
    llava::save(folder, &shape, trained.chain(&tower), Width::F16, &preprocess, &made)
        .at(|| folder.display().to_string())?;
    std::fs::remove_dir_all(&made).map_err(|e| Error::io("remove", &made, e))?;
    let known = |kind: Kind| school.known(kind, config.examined, key.fold(Purpose::Test, kind as u64));
    let share = |kind: Kind| Ok((kind, known(kind)?));
    Kind::ALL.into_iter().map(share).collect()
}

/// A model whose tower is another's.
struct Grafted<'a> {
    prefix: String,
    tower: Frozen<'a>,
    kept: RefCell<BTreeMap<String, Tensor>>,
    rest: Trainable<'a>,
}

impl Source for Grafted<'_> {
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        if !name.starts_with(&self.prefix) {
            return self.rest.tensor(name, shape, init);
        }
        let tensor = self.tower.tensor(name, shape, init)?;
        self.kept.borrow_mut().insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }
}

fn gallery(config: &DemoMllmConfig, world: &World) -> Result<Gallery> {
    let drawn = world.plain_spoken().llava_training(config.images);
    Ok(Gallery {
        images: Arc::new(Images::new([3, world::SIDE, world::SIDE], drawn.pixels)?),
        truth: drawn.truth,
        captions: drawn.captions.into_iter().map(|c| c.text).collect(),
        instruction: Instruction::find(INSTRUCTION)?.text,
    })
}

/// What the tokenizer is learnt from: lessons as they are written, a turn of all kinds at a time.
fn texts(gallery: &Gallery, key: Key) -> Vec<String> {
    let mut rng = key.rng();
    let text = |i: usize| {
        let Taught { ask, answer, .. } = gallery.draw(Kind::TURNS[i % Kind::TURNS.len()], &mut rng);
        vicuna(&[Turn { images: 0, ..Turn::about_image(&ask) }, Turn::answer(&answer)], false)
    };
    (0..READ).map(text).collect()
}

fn shape(config: &DemoMllmConfig, eyes: LlavaConfig, vocabulary: usize) -> LlavaConfig {
    let text = LlamaConfig {
        vocab_size: vocabulary,
        intermediate_size: config.inner,
        num_hidden_layers: config.layers,
        max_position_embeddings: CONTEXT,
        ..eyes.text
    };
    let mut vision = eyes.vision;
    vision.num_hidden_layers = vision.num_hidden_layers.saturating_sub(1).max(1);
    LlavaConfig { text, vision, layers: vec![-1], ..eyes }
}

/// What the tower sees in each picture, `(n, image tokens, width)`.
fn seen(gallery: &Gallery, llava: &Llava, cx: &Context) -> Result<Tensor> {
    const CHUNK: usize = 64;
    let (total, mut all) = (gallery.truth.len(), Vec::new());
    let chunk = |_: &mut (), n: usize| {
        cx.cancel.check()?;
        let some = n * CHUNK..((n + 1) * CHUNK).min(total);
        let pictures: Vec<Picture> = some.map(|i| picture(gallery.images.pixels(), i)).collect();
        llava.tower_features(&llava.preprocess().batch(&pictures, &cx.device)?)
    };
    let fold = |_: usize, rows: Tensor| {
        all.push(rows);
        Ok(())
    };
    let workers = if cx.device.is_cpu() { cx.threads } else { 1 };
    ordered(workers, total.div_ceil(CHUNK), 2 * workers, |_| Ok(()), chunk, fold)?;
    Ok(Tensor::cat(&all, 0)?)
}

struct School<'a> {
    llava: &'a Llava,
    gallery: &'a Gallery,
    seen: Tensor,
    cx: &'a Context,
}

impl School<'_> {
    /// Lessons of a kind, the pictures through the projector as it is now.
    fn samples(&self, kind: Kind, n: usize, key: Key) -> Result<Vec<Sample>> {
        let mut rng = key.rng();
        let taught: Vec<Taught> = (0..n).map(|_| self.gallery.draw(kind, &mut rng)).collect();
        let seen = self.projected(&taught)?;
        let one = |(row, t): (usize, &Taught)| {
            let (ask, pictures) = self.asked(t);
            let mut sample =
                Vlm::sample(self.llava, &[ask, Message::text(Role::Assistant, t.answer.as_str())], &pictures)?;
            sample.prompt.pictures.clear();
            sample.prompt.features = seen.as_ref().map(|all| all.get(row)).transpose()?;
            Ok(sample)
        };
        taught.iter().enumerate().map(one).collect()
    }

    fn asked(&self, t: &Taught) -> (Message, Vec<Picture<'_>>) {
        let pictures: Vec<Picture> = t.picture.iter().map(|&i| picture(self.gallery.images.pixels(), i)).collect();
        (Message::about(pictures.len(), t.ask.as_str()), pictures)
    }

    /// The pictures of lessons as the language model sees them, `(n, image tokens, hidden)`; none where there are none.
    fn projected(&self, taught: &[Taught]) -> Result<Option<Tensor>> {
        let pictures: Vec<u32> = taught.iter().filter_map(|t| t.picture).map(|i| i as u32).collect();
        if pictures.len() < taught.len() {
            return Ok(None);
        }
        let seen = self.seen.index_select(&Tensor::new(pictures, self.llava.device())?, 0)?;
        self.llava.projector().forward(&seen).map(Some)
    }

    /// The share of new lessons that greedy answers get right to the letter.
    fn known(&self, kind: Kind, lessons: usize, key: Key) -> Result<f64> {
        let mut rng = key.rng();
        let mut right = 0;
        for _ in 0..lessons {
            let taught = self.gallery.draw(kind, &mut rng);
            let (ask, pictures) = self.asked(&taught);
            let prompt = self.llava.prepare(&[ask], &pictures)?;
            let (decoding, cancel) = (Decoding::greedy(24), &self.cx.cancel);
            let ask = Ask { prompts: &[&prompt], keys: &[], decoding: &decoding, cancel };
            let written = Vlm::answer(self.llava, &ask, &mut |_, _| Ok(()))?;
            let said = Vlm::text(self.llava, &written.tokens[0])?;
            right += usize::from(said == taught.answer);
        }
        Ok(right as f64 / lessons.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::world::WorldConfig;

    #[test]
    fn a_small_one_is_made_to_the_same_bytes_by_any_number_of_threads_and_opens_as_any_model_does() {
        let small =
            DemoMllmConfig { images: 64, steps: 2, batch_size: 16, layers: 1, examined: 1, ..Default::default() };
        let world = World::new(WorldConfig::default(), Key::from_seed(1)).unwrap();
        let eyes = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo-llava");
        let dir = tempfile::tempdir().unwrap();
        let bytes = |threads| {
            let folder = dir.path().join(format!("with-{threads}"));
            train_mllm(&small, &world, &eyes, &folder, &Context::cpu(threads)).unwrap();
            let opened = crate::model::vlm::Opened::open(&folder, &Context::cpu(1)).unwrap();
            assert_eq!(opened.text().num_hidden_layers, 1);
            std::fs::read(folder.join("model.safetensors")).unwrap()
        };
        assert_eq!(bytes(1), bytes(2));
    }
}
