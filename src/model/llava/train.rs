//! Training a LLaVA from scratch on what images are said to show, in two parts: first the tower learns which words are
//! said of an image (Huang et al., *Classification done right for vision-language pre-training*, 2024), then, with the
//! tower frozen, projector and language model learn to say them (Liu et al., *Visual instruction tuning*, 2023).

use std::collections::BTreeMap;

use candle_core::{D, Tensor, Var};
use candle_nn::ops;
use serde::{Deserialize, Serialize};

use super::{Llava, Sample};
use crate::error::{Error, Result};
use crate::exec::{Context, Event, ordered};
use crate::model::clip::train::{optimisers, update, warmup_cosine};
use crate::nn::optim::AdamwConfig;

/// How a LLaVA is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: usize,
    /// Steps of rising learning rate; it falls as a half cosine afterwards.
    pub warmup: usize,
    /// AdamW with the highest learning rate; tensors with fewer than two dimensions do not decay.
    pub adamw: AdamwConfig,
    /// Images that a worker handles at a time; it fixes the order of sums, so changing it changes the last bits. A few
    /// at a time: candle hands large element-wise operations to one pool, on which workers wait for each other.
    pub shard: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            steps: 1000,
            warmup: 50,
            adamw: AdamwConfig { lr: 2e-3, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.05 },
            shard: 8,
        }
    }
}

/// One step of teaching the tower.
pub struct Words {
    /// Preprocessed, `(n, 3, side, side)`.
    pub pixels: Tensor,
    /// What is said of each image as a distribution over the vocabulary, `(n, vocabulary)`.
    pub said: Tensor,
}

/// One step of teaching projector and language model.
pub struct Lesson<'a> {
    /// What the tower sees, `(n, image tokens, layers · width)`.
    pub features: Tensor,
    /// `n` texts.
    pub samples: Vec<&'a Sample>,
}

/// A text's words as a distribution, `(vocabulary,)`: each once, weighted by the logarithm of the inverse share of texts
/// that have it, so that what is always said weighs nothing.
pub fn said(samples: &[Sample], vocabulary: usize) -> Vec<Vec<f32>> {
    let words = |s: &Sample| s.ids[s.from..].iter().map(|id| *id as usize).collect::<std::collections::BTreeSet<_>>();
    let mut texts = vec![0usize; vocabulary];
    samples.iter().for_each(|s| words(s).into_iter().for_each(|w| texts[w] += 1));
    let rarity = |w: usize| (samples.len() as f32 / texts[w] as f32).ln();
    let one = |s: &Sample| {
        let sum: f32 = words(s).into_iter().map(rarity).sum();
        let mut row = vec![0f32; vocabulary];
        words(s).into_iter().for_each(|w| row[w] = rarity(w) / sum.max(f32::MIN_POSITIVE));
        row
    };
    samples.iter().map(one).collect()
}

/// Trains `vars`, the variables of `llava`'s tower and of `head` `(vocabulary, tower's width)`, to tell from the class
/// token's normalised state which words are said. Gives the cross-entropy of each step in nats.
pub fn train_tower(
    llava: &Llava,
    head: &Tensor,
    vars: &BTreeMap<String, Var>,
    config: &TrainConfig,
    mut next: impl FnMut(usize) -> Result<Words>,
    cx: &Context,
) -> Result<Vec<f32>> {
    let loss = |words: &Words, at: usize, rows: usize| {
        let scores = llava.tower().pooled(&words.pixels.narrow(0, at, rows)?)?.matmul(&head.t()?)?;
        let log = ops::log_softmax(&scores, D::Minus1)?;
        let all = words.pixels.dim(0)? as f64;
        Ok(((log * words.said.narrow(0, at, rows)?)?.sum_all()? * (-1.0 / all))?)
    };
    let next = |step| {
        let words = next(step)?;
        Ok((words.pixels.dim(0)?, words))
    };
    descend("train tower", vars, config, next, loss, cx)
}

/// Trains `vars`, the variables of `llava`'s projector and language model, on the lesson of each step. Gives the loss
/// of each step in nats per answer token.
pub fn train<'a>(
    llava: &Llava,
    vars: &BTreeMap<String, Var>,
    config: &TrainConfig,
    mut next: impl FnMut(usize) -> Result<Lesson<'a>>,
    cx: &Context,
) -> Result<Vec<f32>> {
    let answers = |samples: &[&Sample]| samples.iter().map(|s| s.ids.len() - s.from).sum::<usize>() as f64;
    let loss = |lesson: &Lesson, at: usize, rows: usize| {
        let samples = &lesson.samples[at..at + rows];
        let images = llava.projector().forward(&lesson.features.narrow(0, at, rows)?)?;
        Ok((llava.answer_loss(samples, &images)? * (answers(samples) / answers(&lesson.samples)))?)
    };
    let next = |step| {
        let lesson = next(step)?;
        Ok((lesson.samples.len(), lesson))
    };
    descend("train LLaVA", vars, config, next, loss, cx)
}

/// Steps of AdamW down `loss(batch, first row, rows)`, a shard's share of the batch's loss; `next` gives a batch and
/// its rows. The loss of each step. A shard may leave variables untouched; a step that does is refused.
pub fn descend<T: Sync>(
    name: &'static str,
    vars: &BTreeMap<String, Var>,
    config: &TrainConfig,
    mut next: impl FnMut(usize) -> Result<(usize, T)>,
    loss: impl Fn(&T, usize, usize) -> Result<Tensor> + Sync,
    cx: &Context,
) -> Result<Vec<f32>> {
    if config.shard == 0 {
        return Err(Error::input(format!("{name}: shards of 0 images")));
    }
    let mut optimisers = optimisers(vars, &config.adamw);
    let mut log = Vec::with_capacity(config.steps);
    cx.events.on(Event::Begin { name, unit: "step", done: 0, total: config.steps as u64 });
    for step in 0..config.steps {
        cx.cancel.check()?;
        let rate = warmup_cosine(step, config.steps, config.warmup);
        let (rows, batch) = next(step)?;
        let (value, grads) = gradients(vars, rows, config.shard, |at, n| loss(&batch, at, n), cx)?;
        if !value.is_finite() {
            return Err(
                Error::data(format!("{name}: the loss is {value} at step {step}")).hint("lower the learning rate")
            );
        }
        update(vars, &mut optimisers, &grads, rate as f32)?;
        log.push(value);
        cx.events.on(Event::Advance { done: step as u64 + 1, figures: &[("loss", f64::from(value))] });
    }
    cx.events.on(Event::End);
    Ok(log)
}

/// The sum of all shards' losses and its gradient by every variable, by name, flat. Shards run side by side and are
/// added in order, so the bytes do not depend on the number of threads.
fn gradients(
    vars: &BTreeMap<String, Var>,
    n: usize,
    shard: usize,
    loss: impl Fn(usize, usize) -> Result<Tensor> + Sync,
    cx: &Context,
) -> Result<(f32, BTreeMap<String, Vec<f32>>)> {
    let one = |_: &mut (), i: usize| {
        let at = i * shard;
        let loss = loss(at, shard.min(n - at))?;
        let grads = loss.backward()?;
        let found = vars.iter().filter_map(|(name, var)| Some((name, grads.get(var)?)));
        let flat = |(name, grad): (&String, &Tensor)| -> Result<_> {
            Ok((name.clone(), grad.flatten_all()?.to_vec1::<f32>()?))
        };
        Ok((loss.to_scalar::<f32>()?, found.map(flat).collect::<Result<Vec<_>>>()?))
    };
    let mut total = 0.0;
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let fold = |_, (loss, grads): (f32, Vec<(String, Vec<f32>)>)| {
        total += loss;
        for (name, grad) in grads {
            match sums.get_mut(&name) {
                Some(sum) => sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g),
                None => drop(sums.insert(name, grad)),
            }
        }
        Ok(())
    };
    let threads = if cx.device.is_cpu() { cx.threads } else { 1 };
    ordered(threads, n.div_ceil(shard), n, |_| Ok(()), one, fold)?;
    match vars.keys().find(|name| !sums.contains_key(*name)) {
        Some(name) => Err(Error::defect(format!("LLaVA training: {name} gets no gradient"))),
        None => Ok((total, sums)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_words_weigh_more_than_common_ones_and_what_is_always_said_nothing() {
        let sample = |ids: &[u32]| Sample { ids: [&[9, 9], ids].concat(), from: 2 };
        let said = said(&[sample(&[0, 1, 1]), sample(&[0, 2]), sample(&[0, 2]), sample(&[0, 1, 3])], 10);
        // Of four texts two have word 1, two word 2, one word 3.
        let (half, quarter) = (2f32.ln(), 4f32.ln());
        assert_eq!(said[0][..4], [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(said[1][..4], [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(said[3][..4], [0.0, half / (half + quarter), 0.0, quarter / (half + quarter)]);
        assert!(said.iter().all(|row| row[9] == 0.0));
    }
}
