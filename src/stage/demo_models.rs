//! The demo's own CLIP: tiny but real, trained on the procedural world, saved in Hugging Face layout.

use std::collections::BTreeMap;
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
    pub learning_rate: f64,
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
            epochs: 4,
            batch_size: 128,
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
    let training = TrainConfig { steps, warmup: steps / 20, learning_rate: config.learning_rate, ..Default::default() };
    let log = train::train(&model, &vars, &training, key.fold(Purpose::Pretrain, 0), next, cx)?;
    clip::save(folder, &shape, &vars, &tokenizer, &preprocess)?;
    Ok(log.last().map_or(f32::NAN, |s| s.loss))
}

fn picture(pixels: &[u8], i: usize) -> Picture<'_> {
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

/// A byte-level BPE in CLIP's form in which every word of `words` is one token: pairs are merged, the most frequent
/// first (ties by name), until none of the words has two parts.
pub fn tokenizer(words: &[&str]) -> Result<Tokenizer> {
    let letters: Vec<String> = ('!'..='~').map(String::from).collect();
    let mut tokens: Vec<String> = letters.clone();
    tokens.extend(letters.iter().map(|l| format!("{l}</w>")));
    let mut split: Vec<Vec<String>> = words.iter().map(|w| characters(w)).collect();
    let mut merges = Vec::new();
    loop {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for pair in split.iter().flat_map(|w| w.windows(2)) {
            *counts.entry((&pair[0], &pair[1])).or_default() += 1;
        }
        let best = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0)));
        let Some((left, right)) = best.map(|((l, r), _)| (l.to_string(), r.to_string())) else { break };
        split.iter_mut().for_each(|w| merge(w, &left, &right));
        tokens.push(format!("{left}{right}"));
        merges.push((left, right));
    }
    tokens.extend([clip::tokenizer::START.to_string(), clip::tokenizer::END.to_string()]);
    let vocabulary = tokens.into_iter().enumerate().map(|(i, t)| (t, i as u32)).collect();
    Tokenizer::from_parts(&vocabulary, &merges, world::MAX_WORDS + 2)
}

fn characters(word: &str) -> Vec<String> {
    let mut parts: Vec<String> = word.chars().map(String::from).collect();
    if let Some(last) = parts.last_mut() {
        last.push_str("</w>");
    }
    parts
}

fn merge(parts: &mut Vec<String>, left: &str, right: &str) {
    let mut i = 0;
    while i + 1 < parts.len() {
        if parts[i] == left && parts[i + 1] == right {
            let right = parts.remove(i + 1);
            parts[i].push_str(&right);
        }
        i += 1;
    }
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
