//! What the server tells a client, as data: briefs and jobs. What comes back is in [`reply`](super::reply).
//!
//! A [`Brief`] is a list of steps on slots. Parameters are closed: a slot says where they come from, a pull acts on all
//! of them. Losses are open: an [`Objective`](super::Objective) of the method's own.

use std::borrow::Cow;
use std::sync::Arc;

use super::objective::{Objective, Statistic};
use super::{ClientId, Now};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::optim::Schedule;
use crate::nn::{Named, OptimiserConfig, Params, Pull, Ranges, View};

/// A name in briefs, replies and states.
pub type Name = Cow<'static, str>;

/// An input of a brief: its index in [`Brief::slots`].
pub type SlotId = usize;

/// The name under which the last training step's result is found.
pub const MODEL: &str = "model";

/// Where an input of the local work comes from.
#[derive(Clone, Debug)]
pub enum Slot {
    /// The model that the server sends to everybody.
    Start,
    /// The server's model, sent in an earlier exchange of this round and not moved since: not counted again.
    Known,
    /// Something else that the server sends: counted in the bytes down.
    Sent(Name, Params),
    /// The model with these of its tensors replaced; only they are counted in the bytes down.
    Patch(Name, Params),
    /// What this client kept, and what it is where nothing is kept yet.
    Kept(Name, Params),
    /// What the client kept of its own model; the server's where nothing is kept yet.
    KeptModel(Name),
    /// What an earlier step of this brief found or trained; [`MODEL`] is the last training step's result.
    Found(Name),
}

/// Which images a feed takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// The client's own.
    #[default]
    Own,
    /// The server's labelled set.
    Server,
    /// The server's images without labels.
    Unlabelled,
    /// Rows of a slot, `(rows, features)`, in place of images: the classifier alone is trained.
    Features(SlotId),
}

/// In which order they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Shuffled anew in each epoch.
    #[default]
    Shuffled,
    /// As they are stored.
    Stored,
    /// Every class that is there equally often: classes in turn, each one's images shuffled and used up before they
    /// come again; an epoch has as many rows as there are images.
    Balanced,
    /// One batch a class: up to so many of its images, drawn without replacement.
    ByClass {
        /// Images of a class at most.
        per_class: usize,
    },
    /// The very images of the first feed, row by row.
    Paired,
}

/// A stream of batches; several feeds go through the network in one forward.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Which images.
    pub rows: Rows,
    /// Those of one class alone.
    pub class: Option<u32>,
    /// In which order.
    pub order: Order,
    /// How they are shown.
    pub view: View,
    /// Samples in a batch; 0 for all.
    pub batch_size: usize,
    /// Whether a last batch that is not full is left out, unless it is the only one.
    pub drop_last: bool,
    /// Columns that are joined by the images' numbers.
    pub columns: Vec<Name>,
    /// Labels of stored features, `(rows,)`.
    pub labels: Option<SlotId>,
}

/// What batch norm does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bn {
    /// Batch statistics, and in training the running ones move; dropout is on.
    #[default]
    Batch,
    /// Running statistics are used and stay.
    Running,
}

/// The local loss.
#[derive(Clone, Default)]
pub enum Loss<'a> {
    /// The task's own: mean cross-entropy of a classifier.
    #[default]
    Task,
    /// The sum of these.
    Open(Vec<Arc<dyn Objective + 'a>>),
}

/// How long to train; a step is a batch of the first feed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Passes over the first feed.
    Epochs(usize),
    /// Optimiser steps.
    Steps(usize),
    /// As many steps as this many passes have, rounded up.
    Passes(f64),
}

/// Optimiser state that outlives the step.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Found as `name/first`, `name/second`, `name/steps`, and for a vector beside the network, by its slot's name, as
    /// `name/slot/first` and so on; taken from what the client kept under these names.
    pub name: Name,
    /// Where nothing is kept: what to go on from, under the same names; empty for a fresh state.
    pub start: Named,
}

/// Which iterates are averaged: the result is their mean, running statistics included, and the last iterate where there
/// is none (stochastic weight averaging, Izmailov et al., UAI 2018).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Averaging {
    /// Steps before the first may be taken.
    pub after: usize,
    /// One after every so many steps, ≥ 1, counted from the start.
    pub every: usize,
}

/// Early stopping by top-1 accuracy: the result is the best iterate looked at, the first of equal ones.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Labelled images; running statistics are used.
    pub feed: Feed,
    /// Steps between two looks, ≥ 1.
    pub every: usize,
    /// Training ends at a look so many steps after the best one.
    pub patience: usize,
}

/// Local training.
#[derive(Clone)]
pub struct Train<'a> {
    /// Where it starts.
    pub from: SlotId,
    /// Vectors trained beside the network by the same optimiser.
    pub beside: Vec<SlotId>,
    /// What moves; all weights if none.
    pub trained: Option<Ranges>,
    /// Frozen networks that see the same batches.
    pub witnesses: Vec<SlotId>,
    /// What frozen networks do with batch norm.
    pub witness_bn: Bn,
    /// The batches, all in one forward; the first one's rows count as samples.
    pub feeds: Vec<Feed>,
    /// Whether each feed has a forward of its own instead, batch statistics and all: running ones move feed by feed,
    /// losses and gradients add up, and an objective sees the rows of one feed at a time, the others' ranges empty.
    pub apart: bool,
    /// Batch norm.
    pub bn: Bn,
    /// The loss.
    pub loss: Loss<'a>,
    /// What pulls at the parameters.
    pub pulls: Vec<Pull<SlotId>>,
    /// How long.
    pub length: Length,
    /// Fresh for this step but for `moments`.
    pub optimiser: OptimiserConfig,
    /// The largest norm of a step's gradient over all that is trained, pulls included; a longer one is scaled down.
    pub clip: Option<f32>,
    /// The learning rate's factor over the steps.
    pub rate: Schedule,
    /// A mean of iterates in place of the last.
    pub average: Option<Averaging>,
    /// Early stopping, and the best iterate in place of the last; not with `average`.
    pub stop: Option<Box<Stop>>,
    /// Optimiser state to go on from and to keep.
    pub moments: Option<Moments>,
    /// Under which name the result is found; [`MODEL`] is the client's model.
    pub into: Name,
}

impl Default for Train<'_> {
    /// From the first slot, the usual feed, one epoch.
    fn default() -> Self {
        Train {
            from: 0,
            beside: Vec::new(),
            trained: None,
            witnesses: Vec::new(),
            witness_bn: Bn::Running,
            feeds: vec![Feed { batch_size: 32, ..Feed::default() }],
            apart: false,
            bn: Bn::Batch,
            loss: Loss::Task,
            pulls: Vec::new(),
            length: Length::Epochs(1),
            optimiser: OptimiserConfig::default(),
            clip: None,
            rate: Schedule::Constant(1.0),
            average: None,
            stop: None,
            moments: None,
            into: MODEL.into(),
        }
    }
}

/// A look at some data without training.
#[derive(Clone)]
pub struct Measure {
    /// The networks, one after the other on each batch.
    pub at: Vec<SlotId>,
    /// The data; with [`Order::Shuffled`] each repeat has its own order.
    pub feed: Feed,
    /// Batch norm; running statistics never move.
    pub bn: Bn,
    /// Passes, each with its own draws.
    pub repeats: usize,
    /// What is added up.
    pub what: Arc<dyn Statistic>,
}

/// A piece of local work.
#[derive(Clone)]
pub enum Step {
    /// Train from a slot's parameters.
    Train(Train<'static>),
    /// Measure, without training.
    Measure(Measure),
}

/// What the server sends: inputs and steps.
#[derive(Clone, Default)]
pub struct Brief {
    /// The inputs.
    pub slots: Vec<Slot>,
    /// The work, in order.
    pub steps: Vec<Step>,
}

impl Brief {
    /// The usual training as the `federated` section says: from the server's model (slot 0) by the task's loss.
    pub fn training(now: &Now<'_>) -> Train<'static> {
        let config = now.config;
        let (optimiser, rate) = config.training(now.round);
        Train {
            feeds: vec![Feed { batch_size: config.batch_size, drop_last: config.drop_last, ..Feed::default() }],
            length: config.length(now.clients),
            optimiser,
            clip: (config.clip_gradient > 0.0).then_some(config.clip_gradient),
            rate,
            ..Train::default()
        }
    }

    /// One training step; slot 0 is the server's model, `others` follow.
    pub fn train(train: Train<'static>, others: Vec<Slot>) -> Self {
        let mut slots = vec![Slot::Start];
        slots.extend(others);
        Brief { slots, steps: vec![Step::Train(train)] }
    }

    /// Measuring steps alone; slot 0 is the server's model.
    pub fn measure(steps: Vec<Measure>, others: Vec<Slot>) -> Self {
        let mut slots = vec![Slot::Start];
        slots.extend(others);
        Brief { slots, steps: steps.into_iter().map(Step::Measure).collect() }
    }

    /// Bytes that the server sends to one client: the model and every `Sent` or `Patch` slot.
    pub fn bytes_down(&self, model: &Params) -> u64 {
        let of = |slot: &Slot| match slot {
            Slot::Start => 4 * model.data().len() as u64,
            Slot::Sent(_, params) | Slot::Patch(_, params) => 4 * params.data().len() as u64,
            Slot::Known | Slot::Kept(..) | Slot::KeptModel(_) | Slot::Found(_) => 0,
        };
        self.slots.iter().map(of).sum()
    }
}

/// One client's work in an exchange, or one of the server's own.
#[derive(Clone)]
pub struct Job {
    /// Who; for the server's own work its number in the exchange.
    pub client: ClientId,
    /// Whether the server does it itself.
    pub server: bool,
    /// Which round, from 1.
    pub round: usize,
    /// The exchange's name.
    pub exchange: &'static str,
    /// What to do.
    pub brief: Brief,
    /// The server's model.
    pub model: Params,
    /// What the client kept.
    pub kept: Option<Arc<Named>>,
    /// Whether its labels are flipped: class `c` of `C` is taken for `C − 1 − c`.
    pub flipped: bool,
    /// Randomness of this client in this exchange.
    pub key: Key,
}

impl Job {
    /// Who does it, in words.
    pub fn place(&self) -> String {
        let who = if self.server { "server, job" } else { "client" };
        format!("round {}, {who} {}", self.round, self.client)
    }

    /// The parameters behind a slot; `found` is what earlier steps found.
    pub fn slot(&self, id: SlotId, found: &Named) -> Result<Params> {
        let kept = |name: &str| self.kept.as_ref().and_then(|k| k.get(name)).cloned();
        match self.brief.slots.get(id) {
            Some(Slot::Start | Slot::Known) => Ok(self.model.clone()),
            Some(Slot::Sent(_, params)) => Ok(params.clone()),
            Some(Slot::Patch(_, part)) => self.model.patched(part),
            Some(Slot::Kept(name, default)) => Ok(kept(name).unwrap_or_else(|| default.clone())),
            Some(Slot::KeptModel(name)) => Ok(kept(name).unwrap_or_else(|| self.model.clone())),
            Some(Slot::Found(name)) => {
                let none = || Error::defect(format!("brief: slot {id}: no earlier step found {name}"));
                found.get(name.as_ref()).cloned().ok_or_else(none)
            }
            None => Err(Error::defect(format!("brief: slot {id} of {}", self.brief.slots.len()))),
        }
    }
}
