//! The demo's own CLIP: tiny but real, trained on the procedural world, saved in Hugging Face layout.

use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::data::world::{self, World};
use crate::error::Result;
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::model::clip::config::{Activation, Config, TextConfig, VisionConfig};
use crate::model::clip::train::{self, Pairs, TrainConfig};
use crate::model::clip::{self, Clip, Picture, Preprocess, Tokenizer};

/// How the demo's CLIP is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DemoClipConfig {
    /// Images drawn from the world's CLIP universe.
    pub images: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Pairs in a step.
    pub batch_size: usize,
    /// The highest learning rate.
    pub learning_rate: f32,
    /// Width of both towers.
    pub width: usize,
    /// Layers of the image tower; the text tower has 2.
    pub layers: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Dimension of the shared space.
    pub projection: usize,
    /// Root of all draws.
    pub seed: u64,
}

impl Default for DemoClipConfig {
    fn default() -> Self {
        DemoClipConfig {
            images: 40_000,
            epochs: 6,
            batch_size: 256,
            learning_rate: 2e-3,
            width: 64,
            layers: 4,
            patch: 4,
            projection: 64,
            seed: 2024,
        }
    }
}

/// Trains the CLIP on `world`'s CLIP universe and saves it in `folder`. Gives the last step's loss.
pub fn train_clip(config: &DemoClipConfig, world: &World, folder: &Path, cx: &Context) -> Result<f32> {
    let key = Key::from_seed(config.seed);
    let tokenizer = tokenizer(&world::vocabulary())?;
    let shape = shape(config, &tokenizer);
    let (model, vars) = Clip::fresh(&shape, key.fold(Purpose::Init, 0), &cx.device)?;
    let preprocess = Preprocess::square(world::SIDE);
    let drawn = world.clip_training(config.images);
    let ids = tokenizer.encode_all(&drawn.captions.iter().map(|c| c.text.as_str()).collect::<Vec<_>>())?;
    let per_epoch = config.images / config.batch_size;
    let steps = per_epoch * config.epochs;
    let next = |step: usize, _: Key| -> Result<Pairs> {
        let epoch = key.fold(Purpose::Epoch, (step / per_epoch) as u64);
        let mut order: Vec<usize> = (0..config.images).collect();
        epoch.fold(Purpose::Shuffle, 0).rng().shuffle(&mut order);
        let at = (step % per_epoch) * config.batch_size;
        let chosen = &order[at..at + config.batch_size];
        let pictures: Vec<Picture> = chosen.iter().map(|&i| picture(&drawn.pixels, i)).collect();
        let pixels: Tensor = preprocess.batch(&pictures, &cx.device)?;
        Ok(Pairs { pixels, ids: chosen.iter().map(|&i| ids[i].clone()).collect() })
    };
    let mut training = TrainConfig { steps, warmup: steps / 20, ..TrainConfig::default() };
    training.adamw.lr = config.learning_rate;
    let log = train::train(&model, &vars, &training, key.fold(Purpose::Pretrain, 0), next, cx)?;
    clip::save(folder, &shape, &vars, &tokenizer, &preprocess)?;
    Ok(log.last().map_or(f32::NAN, |s| s.loss))
}

/// Picture `i` of a run of the world's pictures.
pub(super) fn picture(pixels: &[u8], i: usize) -> Picture<'_> {
    let bytes = &pixels[i * world::PIXELS..(i + 1) * world::PIXELS];
    Picture { height: world::SIDE, width: world::SIDE, pixels: bytes.into() }
}

fn shape(config: &DemoClipConfig, tokenizer: &Tokenizer) -> Config {
    let width = config.width;
    let text = TextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: width,
        intermediate_size: 4 * width,
        num_hidden_layers: 2,
        num_attention_heads: width / 32,
        max_position_embeddings: tokenizer.length(),
        hidden_act: Activation::QuickGelu,
        eos_token_id: tokenizer.id(clip::tokenizer::END).unwrap_or(1),
        bos_token_id: tokenizer.id(clip::tokenizer::START).unwrap_or(0),
        pad_token_id: tokenizer.id(clip::tokenizer::END).unwrap_or(1),
        ..TextConfig::default()
    };
    let vision = VisionConfig {
        hidden_size: width,
        intermediate_size: 4 * width,
        num_hidden_layers: config.layers,
        num_attention_heads: width / 32,
        image_size: world::SIDE,
        patch_size: config.patch,
        ..VisionConfig::default()
    };
    Config { projection_dim: config.projection, text_config: text, vision_config: vision, ..Config::default() }
}

/// A byte-level BPE in CLIP's form, with merges until every word of `words` is one token.
pub fn tokenizer(words: &[&str]) -> Result<Tokenizer> {
    Tokenizer::learn(words, usize::MAX, world::MAX_WORDS + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_world_is_one_token() {
        let words = world::vocabulary();
        let tokenizer = tokenizer(&words).unwrap();
        for word in words {
            assert_eq!(tokenizer.encode(word).unwrap().len(), 3, "{word}");
        }
    }
}
