//! Optimisers on flat slices, with PyTorch's update rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::params::{Layout, Params, Role};
use crate::error::{Error, Result};

/// Which optimiser, with its constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OptimiserConfig {
    /// Stochastic gradient descent.
    Sgd(SgdConfig),
    /// Adam with decoupled weight decay.
    Adamw(AdamwConfig),
    /// Adam, weight decay added to the gradient.
    Adam(AdamConfig),
}

impl Default for OptimiserConfig {
    fn default() -> Self {
        OptimiserConfig::Sgd(SgdConfig::default())
    }
}

/// `torch.optim.SGD`. The defaults are CReFF's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f32,
    /// Momentum, 0 for none; the first step takes the gradient whole.
    pub momentum: f32,
    /// L2 term added to the gradient.
    pub weight_decay: f32,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    fn default() -> Self {
        SgdConfig { lr: 0.1, momentum: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

/// `torch.optim.AdamW`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamwConfig {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamwConfig {
    fn default() -> Self {
        AdamwConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// `torch.optim.Adam`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// L2 term added to the gradient, and so divided by the second moment's root as well.
    pub weight_decay: f32,
}

impl Default for AdamConfig {
    fn default() -> Self {
        AdamConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

impl OptimiserConfig {
    /// The learning rate before any schedule.
    pub fn lr(&self) -> f32 {
        match self {
            OptimiserConfig::Sgd(c) => c.lr,
            OptimiserConfig::Adamw(c) => c.lr,
            OptimiserConfig::Adam(c) => c.lr,
        }
    }

    /// The same with the learning rate multiplied by this.
    pub fn scaled(&self, by: f32) -> Self {
        let mut scaled = self.clone();
        match &mut scaled {
            OptimiserConfig::Sgd(c) => c.lr *= by,
            OptimiserConfig::Adamw(c) => c.lr *= by,
            OptimiserConfig::Adam(c) => c.lr *= by,
        }
        scaled
    }

    /// Vectors of the parameters' size that it keeps: 0 to 2.
    pub fn moments(&self) -> usize {
        match self {
            OptimiserConfig::Sgd(c) => usize::from(c.momentum != 0.0),
            OptimiserConfig::Adamw(_) | OptimiserConfig::Adam(_) => 2,
        }
    }

    /// Refuses constants with which no step makes sense; `key` is the section's.
    pub fn check(&self, key: &str) -> Result<()> {
        let (share, not_negative) = (|v: f32| (0.0..1.0).contains(&v), |v: f32| v.is_finite() && v >= 0.0);
        let values = match self {
            OptimiserConfig::Sgd(c) => vec![
                ("momentum", c.momentum, share(c.momentum), "0 ≤ momentum < 1"),
                ("weight_decay", c.weight_decay, not_negative(c.weight_decay), "0 or more"),
            ],
            OptimiserConfig::Adamw(AdamwConfig { beta1, beta2, eps, weight_decay, .. })
            | OptimiserConfig::Adam(AdamConfig { beta1, beta2, eps, weight_decay, .. }) => vec![
                ("beta1", *beta1, share(*beta1), "0 ≤ beta1 < 1"),
                ("beta2", *beta2, share(*beta2), "0 ≤ beta2 < 1"),
                ("eps", *eps, not_negative(*eps), "0 or more"),
                ("weight_decay", *weight_decay, not_negative(*weight_decay), "0 or more"),
            ],
        };
        match values.into_iter().find(|(_, _, fine, _)| !fine) {
            Some((name, value, _, want)) => Err(Error::input(format!("{key}.{name} = {value}: choose {want}"))),
            None => Ok(()),
        }
    }

    /// SGD without momentum and weight decay.
    pub fn is_plain_sgd(&self) -> bool {
        matches!(self, OptimiserConfig::Sgd(c) if c.momentum == 0.0 && c.weight_decay == 0.0)
    }
}

/// The learning rate's factor over a training's progress.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Always the same.
    Constant(f32),
    /// Rises over this share of the steps, then falls as half a cosine.
    WarmupCosine(f32),
    /// Falls in a line over each cycle, to `low` at its last step (Izmailov et al., UAI 2018, section 3.2).
    Cyclic {
        /// Steps of a cycle, ≥ 1.
        period: usize,
        /// The factor at the end of a cycle.
        low: f32,
    },
}

impl Schedule {
    /// The factor of step `step` of `steps`, from 0.
    pub fn of(self, step: usize, steps: usize) -> f32 {
        match self {
            Schedule::Cyclic { period, .. } => self.at((step % period.max(1) + 1) as f32 / period.max(1) as f32),
            _ => self.at(step as f32 / steps.saturating_sub(1).max(1) as f32),
        }
    }

    /// The factor at progress `t` in `[0, 1]`: of the training, or of one cycle.
    pub fn at(self, t: f32) -> f32 {
        match self {
            Schedule::Constant(rate) => rate,
            Schedule::Cyclic { low, .. } => (1.0 - t) + t * low,
            Schedule::WarmupCosine(warmup) if t < warmup => (t / warmup).max(0.01),
            Schedule::WarmupCosine(warmup) => {
                let progress = (t - warmup) / (1.0 - warmup).max(1e-6);
                0.5 * (1.0 + (std::f32::consts::PI * progress).cos())
            }
        }
    }
}

/// An optimiser's state for one slice of parameters. Buffers and frozen tensors are never touched.
pub struct Optimiser {
    config: OptimiserConfig,
    trained: Vec<std::ops::Range<usize>>,
    first: Vec<f32>,
    second: Vec<f32>,
    steps: i32,
}

impl Optimiser {
    /// For all weights of `layout`.
    pub fn new(config: &OptimiserConfig, layout: &Layout) -> Self {
        Self::for_ranges(config, layout.ranges(Role::Weight), layout.len())
    }

    /// For chosen ranges of a slice of `len` elements.
    pub fn for_ranges(config: &OptimiserConfig, trained: Vec<std::ops::Range<usize>>, len: usize) -> Self {
        let (first, second) = match config {
            OptimiserConfig::Sgd(c) if c.momentum == 0.0 => (0, 0),
            OptimiserConfig::Sgd(_) => (len, 0),
            OptimiserConfig::Adamw(_) | OptimiserConfig::Adam(_) => (len, len),
        };
        Optimiser { config: config.clone(), trained, first: vec![0.0; first], second: vec![0.0; second], steps: 0 }
    }

    /// One that goes on from a state that was kept elsewhere: steps taken, and as many moments as it has.
    pub fn from_moments(
        config: &OptimiserConfig,
        trained: Vec<std::ops::Range<usize>>,
        steps: i32,
        [first, second]: [Vec<f32>; 2],
    ) -> Self {
        Optimiser { config: config.clone(), trained, first, second, steps }
    }

    /// Steps taken, and the moments, empty where it has none.
    pub fn moments(&self) -> (i32, [&[f32]; 2]) {
        (self.steps, [&self.first, &self.second])
    }

    /// The state as named vectors, for a checkpoint of a network of this layout.
    pub fn state(&self, layout: &Arc<Layout>) -> Result<BTreeMap<String, Params>> {
        let mut counter = Layout::default();
        counter.push("steps", &[1], Role::Buffer)?;
        let mut named =
            BTreeMap::from([("steps".to_string(), Params::new(Arc::new(counter), vec![self.steps as f32])?)]);
        for (name, values) in [("first", &self.first), ("second", &self.second)] {
            if !values.is_empty() {
                named.insert(name.to_string(), Params::new(layout.clone(), values.clone())?);
            }
        }
        Ok(named)
    }

    /// Takes a state back that [`Optimiser::state`] gave.
    pub fn restore(&mut self, named: &BTreeMap<String, Params>) -> Result<()> {
        let get = |name: &str| named.get(name).ok_or_else(|| Error::data(format!("optimiser state: no {name}")));
        self.steps = get("steps")?.data().first().copied().unwrap_or(0.0) as i32;
        for (name, values) in [("first", &mut self.first), ("second", &mut self.second)] {
            if !values.is_empty() {
                values.copy_from_slice(get(name)?.data());
            }
        }
        Ok(())
    }

    /// One step: `params` move against `grads`; `rate` scales the learning rate (a schedule), 1 for none.
    pub fn step(&mut self, params: &mut [f32], grads: &[f32], rate: f32) {
        self.steps += 1;
        for range in self.trained.clone() {
            let (p, g) = (&mut params[range.clone()], &grads[range.clone()]);
            match &self.config {
                OptimiserConfig::Sgd(c) if c.momentum == 0.0 => {
                    let (lr, decay) = (c.lr * rate, c.weight_decay);
                    p.iter_mut().zip(g).for_each(|(p, g)| *p -= lr * (g + decay * *p));
                }
                OptimiserConfig::Sgd(c) => sgd(p, g, &mut self.first[range], c, rate, self.steps == 1),
                OptimiserConfig::Adamw(c) => {
                    adamw(p, g, &mut self.first[range.clone()], &mut self.second[range], c, rate, self.steps);
                }
                OptimiserConfig::Adam(c) => {
                    adam(p, g, &mut self.first[range.clone()], &mut self.second[range], c, rate, self.steps);
                }
            }
        }
    }
}

fn sgd(p: &mut [f32], g: &[f32], velocity: &mut [f32], c: &SgdConfig, rate: f32, first: bool) {
    for ((p, g), v) in p.iter_mut().zip(g).zip(velocity) {
        let g = g + c.weight_decay * *p;
        *v = if first { g } else { c.momentum * *v + g };
        let step = if c.nesterov { g + c.momentum * *v } else { *v };
        *p -= c.lr * rate * step;
    }
}

fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamwConfig, rate: f32, t: i32) {
    let lr = c.lr * rate;
    let (fix1, fix2) = (1.0 - c.beta1.powi(t), (1.0 - c.beta2.powi(t)).sqrt());
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        *p *= 1.0 - lr * c.weight_decay;
        *m = c.beta1 * *m + (1.0 - c.beta1) * g;
        *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
        *p -= lr / fix1 * *m / (v.sqrt() / fix2 + c.eps);
    }
}

fn adam(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamConfig, rate: f32, t: i32) {
    let lr = c.lr * rate;
    let (fix1, fix2) = (1.0 - c.beta1.powi(t), (1.0 - c.beta2.powi(t)).sqrt());
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g + c.weight_decay * *p;
        *m = c.beta1 * *m + (1.0 - c.beta1) * g;
        *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
        *p -= lr / fix1 * *m / (v.sqrt() / fix2 + c.eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(config: &OptimiserConfig) -> Vec<f32> {
        let mut optimiser = Optimiser::for_ranges(config, std::iter::once(0..2).collect(), 3);
        let mut p = vec![1.0, -2.0, 5.0];
        for g in [[0.5, -1.0, 9.0], [0.25, 0.5, 9.0], [-1.0, 2.0, 9.0]] {
            optimiser.step(&mut p, &g, 1.0);
        }
        p
    }

    /// Values from torch.optim (2.x), three steps from [1, −2] with the gradients above.
    #[test]
    fn steps_equal_torch_and_the_frozen_element_stays() {
        let sgd = SgdConfig { lr: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov: false };
        let cases = [
            (OptimiserConfig::Sgd(SgdConfig::default()), TORCH_SGD),
            (OptimiserConfig::Sgd(sgd.clone()), TORCH_MOMENTUM),
            (OptimiserConfig::Sgd(SgdConfig { nesterov: true, ..sgd }), TORCH_NESTEROV),
            (OptimiserConfig::Adamw(AdamwConfig { lr: 0.1, ..AdamwConfig::default() }), TORCH_ADAMW),
            (OptimiserConfig::Adam(AdamConfig { lr: 0.1, ..AdamConfig::default() }), TORCH_ADAM),
            (
                OptimiserConfig::Adam(AdamConfig { lr: 0.1, weight_decay: 0.3, ..AdamConfig::default() }),
                TORCH_ADAM_DECAY,
            ),
        ];
        for (config, want) in cases {
            let got = run(&config);
            assert!(
                got.iter().zip(want).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-6),
                "{config:?}: {got:?}, torch {want:?}"
            );
        }
    }

    #[test]
    fn constants_without_sense_are_refused_by_their_key() {
        for (text, key) in [
            ("kind = \"sgd\"\nmomentum = 2", "x.momentum = 2"),
            ("kind = \"sgd\"\nmomentum = nan", "x.momentum = NaN"),
            ("kind = \"sgd\"\nweight_decay = -5", "x.weight_decay = -5"),
            ("kind = \"adam\"\nbeta2 = 1", "x.beta2 = 1"),
            ("kind = \"adamw\"\neps = -1", "x.eps = -1"),
        ] {
            let config: OptimiserConfig = toml::from_str(text).unwrap();
            let e = config.check("x").unwrap_err().to_string();
            assert!(e.contains(key), "{e}");
        }
        assert!(OptimiserConfig::default().check("x").is_ok());
    }

    #[test]
    fn a_cyclic_rate_ends_every_cycle_at_its_low_and_others_go_by_progress() {
        let cyclic = Schedule::Cyclic { period: 4, low: 0.2 };
        let got: Vec<f32> = (0..9).map(|step| cyclic.of(step, 9)).collect();
        let want = [0.8, 0.6, 0.4, 0.2, 0.8, 0.6, 0.4, 0.2, 0.8];
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
        let cosine = Schedule::WarmupCosine(0.0);
        assert_eq!((cosine.of(0, 11), cosine.of(10, 11)), (1.0, 0.0));
        assert!((cosine.of(5, 11) - 0.5).abs() < 1e-6);
    }

    include!("../../../tests/golden/optim/expected.rs");
}
