//! Training tower, projector and language model together on what images are said to show (Liu et al., *Visual
//! instruction tuning*, 2023, from scratch instead of from a trained CLIP and a trained Llama).

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
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
            shard: 4,
        }
    }
}

/// One step's images and what is said of them.
pub struct Lesson<'a> {
    /// Preprocessed, `(n, 3, side, side)`.
    pub pixels: Tensor,
    /// `n` texts.
    pub samples: Vec<&'a Sample>,
}

/// Trains `vars`, the variables of `llava`, on the lesson of each step. Gives the loss of each step in nats per answer
/// token.
pub fn train<'a>(
    llava: &Llava,
    vars: &BTreeMap<String, Var>,
    config: &TrainConfig,
    mut next: impl FnMut(usize) -> Result<Lesson<'a>>,
    cx: &Context,
) -> Result<Vec<f32>> {
    let mut optimisers = optimisers(vars, &config.adamw);
    let mut log = Vec::with_capacity(config.steps);
    cx.events.on(Event::Begin { name: "train LLaVA", unit: "step", done: 0, total: config.steps as u64 });
    for step in 0..config.steps {
        cx.cancel.check()?;
        let rate = warmup_cosine(step, config.steps, config.warmup);
        let (loss, grads) = gradients(llava, vars, &next(step)?, config.shard, cx)?;
        if !loss.is_finite() {
            return Err(Error::data(format!("LLaVA training: the loss is {loss} at step {step}"))
                .hint("lower the learning rate"));
        }
        update(vars, &mut optimisers, &grads, rate as f32)?;
        log.push(loss);
        cx.events.on(Event::Advance { done: step as u64 + 1, figures: &[("loss", f64::from(loss))] });
    }
    cx.events.on(Event::End);
    Ok(log)
}

/// The mean loss of all answer tokens and its gradient by every variable, by name, flat. Shards run side by side and
/// are added in order, so the bytes do not depend on the number of threads.
pub fn gradients(
    llava: &Llava,
    vars: &BTreeMap<String, Var>,
    lesson: &Lesson,
    shard: usize,
    cx: &Context,
) -> Result<(f32, BTreeMap<String, Vec<f32>>)> {
    let n = lesson.samples.len();
    if n == 0 || shard == 0 || lesson.pixels.dim(0)? != n {
        return Err(Error::defect(format!("LLaVA training: pixels {:?} for {n} texts", lesson.pixels.dims())));
    }
    let answers = |samples: &[&Sample]| samples.iter().map(|s| s.ids.len() - s.from).sum::<usize>() as f64;
    let all = answers(&lesson.samples);
    let one = |_: &mut (), i: usize| {
        let (at, rows) = (i * shard, shard.min(n - i * shard));
        let samples = &lesson.samples[at..at + rows];
        let images = llava.image_features(&lesson.pixels.narrow(0, at, rows)?)?;
        let loss = (llava.answer_loss(samples, &images)? * (answers(samples) / all))?;
        let grads = loss.backward()?;
        let flat = |(name, var): (&String, &Var)| match grads.get(var) {
            Some(grad) => Ok((name.clone(), grad.flatten_all()?.to_vec1::<f32>()?)),
            // The tower's last norm stands behind what a LLaVA reads.
            None if name.contains("post_layernorm") => Ok((name.clone(), vec![0.0; var.elem_count()])),
            None => Err(Error::defect(format!("LLaVA training: {name} gets no gradient"))),
        };
        Ok((loss.to_scalar::<f32>()?, vars.iter().map(flat).collect::<Result<Vec<_>>>()?))
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
    Ok((total, sums))
}
