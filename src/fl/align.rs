//! Alignment on the server: `L = CE(y, p) + β · mean_i w_i · KL(q_i ‖ p_i)` on a small balanced set.
//!
//! The equation is MLLM-LLaVA-FL's (arXiv 2409.06067, as third parties quote it), with p the softmax of the federated
//! model, q the frozen teacher's distribution and y the label. The dynamic weight w, the optimiser, the number of
//! steps and the frozen batch norm are this project's choices.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::brief::{Bn, Feed, Length, Loss, Name, Train};
use super::feed::{Data, Source};
use super::fit::{Plan, Standing, fit};
use super::objective::{Column, Here, Objective};
use super::round::ServerStep;
use super::trainer::Supplies;
use crate::error::{Error, Result};
use crate::exec::{self, Context};
use crate::key::{Key, Purpose};
use crate::nn::weight::{Confidence, Weight};
use crate::nn::{Backend, Net, OptimiserConfig, Params, Samples, Schedule, loss, optim::SgdConfig};

/// When alignment runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// After every round.
    EveryRound,
    /// Once, after the last round.
    End,
}

/// Which parameters alignment moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Trainable {
    /// The whole network.
    All,
    /// The classifier only.
    Head,
}

/// What happens to batch norm during alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BatchNorm {
    /// Running statistics are used and stay.
    Frozen,
    /// Batch statistics are used, running ones move.
    Update,
}

/// The `align` section: the objective and its optimisation. Who teaches is the `teacher` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

    /// Whether a set of so many images gives a batch of a single one, of which batch norm would take the statistics.
    pub fn leaves_one(&self, images: usize) -> bool {
        let (size, batches) = (self.batch_size, images.div_ceil(self.batch_size.max(1)));
        self.bn == BatchNorm::Update && images > 0 && (size == 1 || (images % size == 1 && self.steps >= batches))
    }
}

/// Alignment ready to run: the server as a client with data of its own.
pub struct Aligner<'a> {
    net: Arc<Net>,
    own: Source<'a>,
    columns: BTreeMap<Name, Column>,
    config: &'a AlignConfig,
    backend: Backend,
    key: Key,
}

impl<'a> Aligner<'a> {
    /// For the images `set`, with teacher distributions `(set, classes)` in the set's order; none where β is 0.
    pub fn new(
        net: Arc<Net>,
        backend: Backend,
        samples: &'a dyn Samples,
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
        let mut columns = BTreeMap::new();
        match (config.beta > 0.0, teacher) {
            (true, None) => return Err(Error::defect("align: β > 0 and no teacher distributions")),
            (true, Some(q)) => {
                let column = Column::new(net.outputs(), set, q.to_vec())?;
                columns.insert(Supplies::TEACHER.into(), column);
            }
            (false, _) => {}
        }
        Ok(Aligner { net, own: Source { samples, ids: set }, columns, config, backend, key })
    }

    fn train(&self) -> Train<'a> {
        let config = self.config;
        let names = self.columns.keys().cloned().collect();
        Train {
            trained: match config.trainable {
                Trainable::All => None,
                Trainable::Head => Some(self.net.head()),
            },
            feeds: vec![Feed { batch_size: config.batch_size, columns: names, ..Feed::default() }],
            bn: match config.bn {
                BatchNorm::Frozen => Bn::Running,
                BatchNorm::Update => Bn::Batch,
            },
            loss: Loss::Open(vec![Arc::new(Aligned(config))]),
            length: Length::Steps(config.steps),
            optimiser: config.optimiser.clone(),
            rate: Schedule::Constant(1.0),
            ..Train::default()
        }
    }
}

/// `CE(y, p) + β · mean_i w_i · KL(q_i ‖ p_i)`.
struct Aligned<'a>(&'a AlignConfig);

impl Objective for Aligned<'_> {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let AlignConfig { beta, weight, cross_entropy, temperature, .. } = self.0;
        let mut value = 0.0;
        if *cross_entropy {
            value += loss::cross_entropy(at.logits, at.y, at.classes, 1.0, at.d_logits)?;
        }
        if *beta > 0.0 {
            let q = at.column(Supplies::TEACHER)?.to_vec();
            let w = weight.of_samples(at.progress, &q, at.y, at.classes);
            let kl = loss::kl_divergence(at.logits, &q, &w, at.classes, *temperature, *beta, at.d_logits)?;
            value += f64::from(*beta) * kl;
        }
        Ok(value)
    }
}

impl ServerStep for Aligner<'_> {
    fn apply(&self, model: &Params, round: usize, cx: &Context) -> Result<Params> {
        let (train, slots) = (self.train(), [model.clone()]);
        let data = Data { own: self.own, server: None, unlabelled: None, columns: &self.columns };
        let key = self.key.fold(Purpose::Round, round as u64);
        let mut aligned = None;
        exec::ordered(
            1,
            1,
            1,
            |_| self.backend.session(&self.net, cx, cx.threads, 1),
            |session, _| {
                let plan = Plan { train: &train, slots: &slots, data: &data, key };
                fit(session.as_mut(), &[plan], vec![Standing::default()], cx, &mut ())
            },
            |_, fitted| {
                aligned = fitted.into_iter().next().map(|f| f.params);
                Ok(())
            },
        )?;
        aligned.ok_or_else(|| Error::defect("alignment gave no model"))
    }
}
