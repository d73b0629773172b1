//! Alignment on the server: `L = CE(y, p) + β · mean_i w_i · KL(q_i ‖ p_i)` on a small balanced set.
//!
//! The equation is MLLM-LLaVA-FL's (arXiv 2409.06067, as third parties quote it), with p the softmax of the federated
//! model, q the frozen teacher's distribution and y the label. The dynamic weight w, the optimiser, the number of
//! steps and the frozen batch norm are this project's choices.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::round::ServerStep;
use super::trainer::{Arena, Images};
use crate::error::{Error, Result};
use crate::exec::{self, Context};
use crate::key::{Key, Purpose};
use crate::nn::weight::{Confidence, Weight};
use crate::nn::{Backend, Mode, Net, Optimiser, OptimiserConfig, Params, loss, optim::SgdConfig};

/// When alignment runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// After every round.
    EveryRound,
    /// Once, after the last round.
    End,
}

/// Which parameters alignment moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trainable {
    /// The whole network.
    All,
    /// The classifier only.
    Head,
}

/// What happens to batch norm during alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNorm {
    /// Running statistics are used and stay.
    Frozen,
    /// Batch statistics are used, running ones move.
    Update,
}

/// The `align` section: the objective and its optimisation. Who teaches is the `teacher` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignConfig {
    /// Whether alignment runs.
    pub enabled: bool,
    /// β of the KL term, ≥ 0; 0 leaves cross-entropy alone.
    pub beta: f32,
    /// The dynamic weight w of the KL term.
    pub weight: Weight,
    /// Whether labels are used: the cross-entropy term.
    pub cross_entropy: bool,
    /// Softmax temperature of the student in the KL term; 1 as in the printed equation.
    pub temperature: f32,
    /// Which parameters move.
    pub trainable: Trainable,
    /// Batch norm during alignment.
    pub bn: BatchNorm,
    /// The server's optimiser, fresh in every alignment.
    pub optimiser: OptimiserConfig,
    /// Optimiser steps in one alignment.
    pub steps: usize,
    /// Samples in a step.
    pub batch_size: usize,
    /// After every round, or once at the end.
    pub when: When,
    /// Whether clients start from the aligned model.
    pub feedback: bool,
    /// Control: the teacher's distributions dealt to the wrong images.
    pub shuffle_teacher: bool,
}

impl Default for AlignConfig {
    fn default() -> Self {
        AlignConfig {
            enabled: true,
            beta: 1.0,
            weight: Weight::Confidence(Confidence {}),
            cross_entropy: true,
            temperature: 1.0,
            trainable: Trainable::All,
            bn: BatchNorm::Frozen,
            optimiser: OptimiserConfig::Sgd(SgdConfig { lr: 0.01, momentum: 0.9, ..SgdConfig::default() }),
            steps: 100,
            batch_size: 32,
            when: When::EveryRound,
            feedback: false,
            shuffle_teacher: false,
        }
    }
}

impl AlignConfig {
    /// Refuses objectives that cannot run.
    pub fn check(&self) -> Result<()> {
        self.weight.check("align.weight", self.cross_entropy)?;
        if !(self.beta.is_finite() && self.beta >= 0.0 && self.temperature > 0.0) {
            return Err(Error::input(format!("align: beta {} ≥ 0, temperature {} > 0", self.beta, self.temperature)));
        }
        if !self.cross_entropy && self.beta == 0.0 {
            return Err(Error::input("align: no term is left").hint("set align.cross_entropy = true or align.beta > 0"));
        }
        if self.batch_size == 0 {
            return Err(Error::input("align.batch_size = 0: the smallest is 1"));
        }
        Ok(())
    }
}

/// Alignment ready to run.
pub struct Aligner<'a> {
    net: Arc<Net>,
    images: &'a dyn Images,
    set: &'a [u32],
    teacher: Option<&'a [f32]>,
    config: &'a AlignConfig,
    backend: Backend,
    key: Key,
}

impl<'a> Aligner<'a> {
    /// For the images `set`, with teacher distributions `(set, classes)` in the set's order; none where β is 0.
    pub fn new(
        net: Arc<Net>,
        backend: Backend,
        images: &'a dyn Images,
        set: &'a [u32],
        teacher: Option<&'a [f32]>,
        config: &'a AlignConfig,
        key: Key,
    ) -> Result<Self> {
        config.check()?;
        if set.is_empty() {
            return Err(Error::input("align: the server set is empty")
                .hint("set server_set.per_class, or switch alignment off with align.enabled = false"));
        }
        if config.beta > 0.0 && teacher.map(<[f32]>::len) != Some(set.len() * net.outputs()) {
            return Err(Error::defect(format!(
                "align: teacher distributions of {:?} values for ({}, {})",
                teacher.map(<[f32]>::len),
                set.len(),
                net.outputs()
            )));
        }
        Ok(Aligner { net, images, set, teacher, config, backend, key })
    }

    /// One pass in shuffled order; position in the set, so that the teacher's row is found.
    fn epoch(&self, key: Key) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.set.len()).collect();
        key.fold(Purpose::Shuffle, 0).rng().shuffle(&mut order);
        order
    }

    fn step(&self, arena: &mut Arena, params: &mut Params, rows: &[usize], t: f32, key: Key) -> Result<()> {
        let ids: Vec<u32> = rows.iter().map(|&r| self.set[r]).collect();
        self.images.fill(&ids, Some(key.fold(Purpose::Augment, 0)), &mut arena.batch)?;
        let mode = match self.config.bn {
            BatchNorm::Frozen => Mode::Eval,
            BatchNorm::Update => Mode::Train(key),
        };
        let AlignConfig { beta, weight, cross_entropy, temperature, .. } = self.config;
        let data = params.data_mut();
        arena.gradient(data, mode, |logits, y, classes, seed| {
            let mut value = 0.0;
            if *cross_entropy {
                value += loss::cross_entropy(logits, y, classes, 1.0, seed)?;
            }
            if let (Some(teacher), true) = (self.teacher, *beta > 0.0) {
                let q: Vec<f32> =
                    rows.iter().flat_map(|&r| &teacher[r * classes..(r + 1) * classes]).copied().collect();
                let w = weight.of_samples(t, &q, y, classes);
                value += f64::from(*beta) * loss::kl_divergence(logits, &q, &w, classes, *temperature, *beta, seed)?;
            }
            Ok(value)
        })?;
        if self.config.bn == BatchNorm::Update {
            arena.update_buffers(data)?;
        }
        Ok(())
    }

    fn train(&self, arena: &mut Arena, model: &Params, round: usize, cx: &Context) -> Result<Params> {
        let mut params = model.clone();
        let ranges = match self.config.trainable {
            Trainable::All => self.net.layout.ranges(crate::nn::Role::Weight),
            Trainable::Head => self.net.head(),
        };
        let mut optimiser = Optimiser::for_ranges(&self.config.optimiser, ranges, params.data().len());
        let key = self.key.fold(Purpose::Round, round as u64);
        let size = self.config.batch_size.min(self.set.len());
        let per_epoch = self.set.len().div_ceil(size);
        let mut order = Vec::new();
        for step in 0..self.config.steps {
            cx.cancel.check()?;
            let (epoch, batch) = (step / per_epoch, step % per_epoch);
            let key = key.fold(Purpose::Epoch, epoch as u64);
            if batch == 0 {
                order = self.epoch(key);
            }
            let rows = &order[batch * size..((batch + 1) * size).min(order.len())];
            let t = step as f32 / self.config.steps.saturating_sub(1).max(1) as f32;
            self.step(arena, &mut params, rows, t, key.fold(Purpose::Step, batch as u64))?;
            optimiser.step(params.data_mut(), arena.grads(), 1.0);
        }
        Ok(params)
    }
}

impl ServerStep for Aligner<'_> {
    fn apply(&self, model: &Params, round: usize, cx: &Context) -> Result<Params> {
        let mut aligned = None;
        exec::ordered(
            1,
            1,
            1,
            |_| Arena::new(&self.net, self.backend, cx, cx.threads),
            |arena, _| self.train(arena, model, round, cx),
            |_, params| {
                aligned = Some(params);
                Ok(())
            },
        )?;
        aligned.ok_or_else(|| Error::defect("alignment gave no model"))
    }
}
