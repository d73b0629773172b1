//! Contrastive training of a CLIP (Radford et al., 2021, figure 3): symmetric InfoNCE with a learnable scale.
//!
//! A batch is cut into shards of a fixed size. Workers compute the shards' embeddings and keep their graphs; the loss and
//! its gradient by the embeddings are computed once for the whole batch; then each shard carries its part back, and the
//! shards' gradients are added in order. So the batch's negatives are all there, and the result does not depend on the
//! number of threads.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops;
use serde::{Deserialize, Serialize};

use super::{Clip, normalise};
use crate::error::{Error, Result};
use crate::exec::{Context, Event, ordered};
use crate::key::{Key, Purpose};
use crate::nn::optim::{AdamwConfig, Optimiser, OptimiserConfig};

/// How a CLIP is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: usize,
    /// Steps of rising learning rate.
    pub warmup: usize,
    /// AdamW with the highest learning rate. Tensors with fewer than two dimensions (gains, biases, the scale of cosines)
    /// do not decay, as in OpenAI's CLIP.
    pub adamw: AdamwConfig,
    /// Pairs a worker handles at a time; it fixes the order of sums, so changing it changes the last bits.
    pub shard: usize,
    /// Whether pairs with the same text in a batch count as each other's positives, in equal parts (Yang et al.,
    /// *Unified contrastive learning*, 2022). Without duplicates it is plain InfoNCE.
    pub share_duplicates: bool,
    /// The largest factor on cosines.
    pub max_scale: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            steps: 1000,
            warmup: 50,
            // Radford et al., table 18, for vision transformers; the decay of small models.
            adamw: AdamwConfig { lr: 1e-3, beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 },
            shard: 128,
            share_duplicates: true,
            max_scale: 100.0,
        }
    }
}

/// Images and their texts.
pub struct Pairs {
    /// Preprocessed, `(n, 3, side, side)`, f32.
    pub pixels: Tensor,
    /// `n` texts as token ids with their end tokens, padded or not.
    pub ids: Vec<Vec<u32>>,
}

/// What a step tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The symmetric cross entropy of the batch.
    pub loss: f32,
    /// The factor on cosines.
    pub scale: f64,
    /// Learning rate used.
    pub learning_rate: f64,
}

/// Trains `vars`, the variables of `clip`, on the pairs that `next` draws for each step's key. One entry a step.
pub fn train(
    clip: &Clip,
    vars: &BTreeMap<String, Var>,
    config: &TrainConfig,
    key: Key,
    mut next: impl FnMut(usize, Key) -> Result<Pairs>,
    cx: &Context,
) -> Result<Vec<Progress>> {
    let mut optimisers = optimisers(vars, &config.adamw);
    let mut log = Vec::with_capacity(config.steps);
    cx.events.on(Event::Begin { name: "train CLIP", unit: "step", done: 0, total: config.steps as u64 });
    for step in 0..config.steps {
        cx.cancel.check()?;
        let pairs = next(step, key.fold(Purpose::Step, step as u64))?;
        let rate = warmup_cosine(step, config.steps, config.warmup);
        let (loss, grads) = gradients(clip, vars, &pairs, config, cx)?;
        if !loss.is_finite() {
            return Err(Error::data(format!("CLIP training: the loss is {loss} at step {step}"))
                .hint("lower the learning rate"));
        }
        update(vars, &mut optimisers, &grads, rate as f32)?;
        clamp_scale(vars, config.max_scale)?;
        log.push(Progress { loss, scale: clip.scale()?, learning_rate: rate * f64::from(config.adamw.lr) });
        let figures = [("loss", f64::from(loss)), ("scale", clip.scale()?)];
        cx.events.on(Event::Advance { done: step as u64 + 1, figures: &figures });
    }
    cx.events.on(Event::End);
    Ok(log)
}

/// Linear warm-up to 1 over `warmup` steps, then a half cosine to 0 at `steps` (OpenCLIP's `cosine_lr`).
pub fn warmup_cosine(step: usize, steps: usize, warmup: usize) -> f64 {
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let (done, all) = ((step - warmup) as f64, steps.saturating_sub(warmup).max(1) as f64);
    0.5 * (1.0 + (std::f64::consts::PI * (done / all).min(1.0)).cos())
}

/// An AdamW for each variable; those with fewer than two dimensions do not decay.
pub(crate) fn optimisers(vars: &BTreeMap<String, Var>, adamw: &AdamwConfig) -> BTreeMap<String, Optimiser> {
    let one = |(name, var): (&String, &Var)| {
        let weight_decay = if var.rank() < 2 { 0.0 } else { adamw.weight_decay };
        let config = OptimiserConfig::Adamw(AdamwConfig { weight_decay, ..adamw.clone() });
        let n = var.elem_count();
        (name.clone(), Optimiser::for_ranges(&config, std::iter::once(0..n).collect(), n))
    };
    vars.iter().map(one).collect()
}

/// A step of every variable.
pub(crate) fn update(
    vars: &BTreeMap<String, Var>,
    optimisers: &mut BTreeMap<String, Optimiser>,
    grads: &BTreeMap<String, Vec<f32>>,
    rate: f32,
) -> Result<()> {
    for (name, optimiser) in optimisers {
        let (Some(var), Some(grad)) = (vars.get(name), grads.get(name)) else {
            return Err(Error::defect(format!("training: no gradient for {name}")));
        };
        let mut values: Vec<f32> = var.flatten_all()?.to_vec1()?;
        optimiser.step(&mut values, grad, rate);
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?.to_device(var.device())?)?;
    }
    Ok(())
}

fn clamp_scale(vars: &BTreeMap<String, Var>, most: f64) -> Result<()> {
    if let Some(scale) = vars.get("logit_scale") {
        scale.set(&scale.clamp(0f32, most.ln() as f32)?)?;
    }
    Ok(())
}

/// The loss of a batch and its gradient by every variable, by name, flat.
pub fn gradients(
    clip: &Clip,
    vars: &BTreeMap<String, Var>,
    pairs: &Pairs,
    config: &TrainConfig,
    cx: &Context,
) -> Result<(f32, BTreeMap<String, Vec<f32>>)> {
    let n = pairs.ids.len();
    if n == 0 || pairs.pixels.dim(0)? != n || config.shard == 0 {
        return Err(Error::defect(format!(
            "CLIP training: pixels {:?} with {n} texts in shards of {}",
            pairs.pixels.dims(),
            config.shard
        )));
    }
    let shards: Vec<(usize, usize)> = (0..n).step_by(config.shard).map(|a| (a, config.shard.min(n - a))).collect();
    let mut embedded: Vec<[Tensor; 2]> = Vec::with_capacity(shards.len());
    let forward = |i: usize| {
        let (at, rows) = shards[i];
        let image = clip.image_features(&pairs.pixels.narrow(0, at, rows)?)?;
        let text = clip.text_features(&pairs.ids[at..at + rows])?;
        Ok([normalise(&image)?, normalise(&text)?])
    };
    each(shards.len(), cx, forward, |pair| {
        embedded.push(pair);
        Ok(())
    })?;
    let whole = contrast(clip, &embedded, &pairs.ids, config, cx)?;
    let mut sums: BTreeMap<String, Vec<f32>> =
        vars.iter().map(|(name, var)| (name.clone(), vec![0.0; var.elem_count()])).collect();
    let backward = |i: usize| {
        let (at, rows) = shards[i];
        let part = |k: usize| (&embedded[i][k] * whole.by_embedding[k].narrow(0, at, rows)?)?.sum_all();
        let grads = (part(0)? + part(1)?)?.backward()?;
        let flat = |(name, var): (&String, &Var)| match grads.get(var) {
            Some(grad) => Ok((name.clone(), grad.flatten_all()?.to_vec1::<f32>()?)),
            None if name == "logit_scale" => Ok((name.clone(), vec![0.0])),
            None => Err(Error::defect(format!("CLIP training: {name} gets no gradient"))),
        };
        vars.iter().map(flat).collect::<Result<Vec<_>>>()
    };
    each(shards.len(), cx, backward, |grads: Vec<(String, Vec<f32>)>| {
        for (name, grad) in grads {
            if let Some(sum) = sums.get_mut(&name) {
                sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g);
            }
        }
        Ok(())
    })?;
    sums.insert("logit_scale".into(), vec![whole.by_scale]);
    Ok((whole.loss, sums))
}

/// Runs `count` jobs on the context's workers; a device other than a CPU is fed by one.
fn each<T: Send>(
    count: usize,
    cx: &Context,
    job: impl Fn(usize) -> Result<T> + Sync,
    mut fold: impl FnMut(T) -> Result<()> + Send,
) -> Result<()> {
    let threads = if cx.device.is_cpu() { cx.threads } else { 1 };
    ordered(threads, count, count, |_| Ok(()), |_, i| job(i), |_, value| fold(value))
}

/// The loss over the whole batch and its gradients by the embeddings, `(n, projection)` each, and by `logit_scale`.
struct Contrast {
    loss: f32,
    by_embedding: [Tensor; 2],
    by_scale: f32,
}

fn contrast(
    clip: &Clip,
    embedded: &[[Tensor; 2]],
    ids: &[Vec<u32>],
    config: &TrainConfig,
    cx: &Context,
) -> Result<Contrast> {
    let gather = |k: usize| -> Result<Var> {
        let parts: Vec<Tensor> = embedded.iter().map(|pair| pair[k].detach()).collect();
        Ok(Var::from_tensor(&Tensor::cat(&parts, 0)?)?)
    };
    let job = |_: usize| {
        let (image, text) = (gather(0)?, gather(1)?);
        let scale = Var::from_tensor(&clip.logit_scale().detach().to_dtype(DType::F32)?)?;
        let targets = targets(ids, config.share_duplicates, image.device())?;
        let logits = image.matmul(&text.t()?)?.broadcast_mul(&scale.exp()?)?;
        let loss = ((cross_entropy(&logits, &targets)? + cross_entropy(&logits.t()?.contiguous()?, &targets)?)? * 0.5)?;
        let grads = loss.backward()?;
        let of = |var: &Var| grads.get(var).cloned().ok_or_else(|| Error::defect("contrastive loss: no gradient"));
        Ok(Contrast {
            loss: loss.to_scalar()?,
            by_embedding: [of(&image)?, of(&text)?],
            by_scale: of(&scale)?.to_scalar()?,
        })
    };
    let mut got = None;
    let one = Context { threads: 1, ..cx.clone() };
    each(1, &one, job, |c| {
        got = Some(c);
        Ok(())
    })?;
    got.ok_or_else(|| Error::defect("contrastive loss: no result"))
}

/// `(n, n)`: each row a distribution over the batch. The matrix is symmetric, so columns need no second one.
fn targets(ids: &[Vec<u32>], share: bool, device: &Device) -> Result<Tensor> {
    let n = ids.len();
    let mut rows = vec![0f32; n * n];
    let mut groups: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
    for (i, text) in ids.iter().enumerate() {
        groups.entry(text).or_default().push(i);
    }
    for group in groups.into_values() {
        for &i in &group {
            match share {
                true => group.iter().for_each(|&j| rows[i * n + j] = 1.0 / group.len() as f32),
                false => rows[i * n + i] = 1.0,
            }
        }
    }
    Ok(Tensor::from_vec(rows, (n, n), device)?)
}

/// The mean over rows of `−Σ target · log softmax(logits)`.
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let rows = logits.dim(0)? as f64;
    let log = ops::log_softmax(logits, D::Minus1)?;
    Ok(((log * targets)?.sum_all()? * (-1.0 / rows))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_rises_to_its_peak_and_falls_to_zero() {
        let rate = |step| warmup_cosine(step, 110, 10);
        assert_eq!((rate(0), rate(9), rate(10)), (0.1, 1.0, 1.0));
        assert!((rate(60) - 0.5).abs() < 1e-12 && rate(110).abs() < 1e-12);
    }

    #[test]
    fn equal_texts_share_their_target_only_when_asked() {
        let ids = [vec![1, 9], vec![2, 9], vec![1, 9]];
        let rows = |share| targets(&ids, share, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows(true), [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]);
        assert_eq!(rows(false), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    }
}
