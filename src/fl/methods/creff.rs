//! CReFF: Shang, Lu, Huang and Wang, *Federated Learning on Heterogeneous and Long-Tailed Data via Classifier
//! Re-Training with Federated Features*, IJCAI 2022.
//!
//! A round: clients train from the plain global model w and the server averages them, as in FedAvg. Beside that each
//! client measures, for every class c it holds, the gradient of mean cross-entropy with respect to the last retrained
//! classifier φ laid over w, batch norm in evaluation: the mean over `repeats` draws of at most `real_batch` images, each
//! batch under one siamese augmentation. The server takes the plain mean over those of the cohort that hold c (not by
//! counts), moves the federated features of class c until their gradient at φ points there ([`super::matching`]), and
//! trains a classifier on all features: the next φ. What is judged is w's body with φ; φ never returns to training.
//!
//! Features are drawn once, N(0, 1), and go on from round to round; a class that nobody in the cohort holds leaves its
//! features as they are. The defaults are those of the published code (shangxinyi/CReFF-FL: `main.py`, `options.py`).
//! It seeds its augmentation by the clock, so its own runs differ; here every draw has its key. FedLTLib's port feeds φ
//! back into the global model; neither the paper nor the published code does, and nor does this.

use std::borrow::Cow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::matching::{self, Linear, Term, residuals};
use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{
    About, Algorithm, Bn, Brief, ClientId, Collect, Collected, Cost, Exchange, Feed, Here, Job, Length, Measure, Named,
    Needs, Now, Order, Outcome, Part, Reply, Rows, Sizes, Slot, Statistic, Step, Sums, Tap, Train, Who,
};
use crate::key::{Key, Purpose};
use crate::nn::classifier::gradient;
use crate::nn::optim::SgdConfig;
use crate::nn::{Classifier, OptimiserConfig, Params, View};

/// The federated features, `(classes · features_per_class, width)`, class after class.
pub const FEATURES: &str = "features";
/// The last retrained classifier, under the model's own names.
pub const HEAD: &str = "head";
/// What the classifier is retrained from in every round, where `fresh_head` is off.
pub const START: &str = "start";
/// Most features of a class, and images and repeats of a look at one, that anybody asks for.
const MOST: usize = 100_000;

/// Prefix of a class's gradient.
const GRADIENT: &str = "gradient/";

/// The server trains a classifier on the features.
const RETRAIN: Exchange = Exchange { name: "retrain", who: Who::Server { jobs: 1 }, collect: Collect::Sum };

/// CReFF's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CReFF {
    /// Federated features of a class.
    pub features_per_class: usize,
    /// Matching steps in a round.
    pub match_steps: usize,
    /// Learning rate of the features.
    pub match_lr: f32,
    /// Passes over the features in retraining.
    pub head_epochs: usize,
    /// Learning rate of retraining.
    pub head_lr: f32,
    /// Features in a retraining step; 0 for all.
    pub head_batch: usize,
    /// Retraining starts from a new draw in every round, else from the same one.
    pub fresh_head: bool,
    /// Draws of real images that a gradient is the mean over.
    pub repeats: usize,
    /// Images of a class in such a draw, at most.
    pub real_batch: usize,
    /// Siamese augmentation of these images; without it they are shown plain.
    pub dsa: bool,
}

impl Default for CReFF {
    fn default() -> Self {
        CReFF {
            features_per_class: 100,
            match_steps: 100,
            match_lr: 0.1,
            head_epochs: 300,
            head_lr: 0.01,
            head_batch: 32,
            fresh_head: true,
            repeats: 10,
            real_batch: 32,
            dsa: true,
        }
    }
}

/// Gradients of mean cross-entropy by the classifier, a class a batch: `gradient/<class>`, W's `(classes, features)` and
/// then b's, the mean over repeats.
struct ClassGradients;

impl Statistic for ClassGradients {
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits, Tap::Feature, Tap::Head]
    }

    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()> {
        let Some(&class) = at.y.first() else { return Ok(()) };
        let (weight, bias) = (at.head.0.len(), at.head.1.len());
        let share = (at.rows() * (at.steps / at.batches.max(1)).max(1)) as f64;
        let (mut errors, mut own) = (Vec::new(), vec![0.0; weight]);
        residuals(at.logits, at.classes, class as usize, &mut errors);
        let seeds: Vec<f32> = errors.iter().map(|&e| e as f32).collect();
        gradient(at.feature, &seeds, at.features, &mut own);
        let sum = sums.entry(format!("{GRADIENT}{class}")).or_insert_with(|| vec![0.0; weight + bias]);
        sum.iter_mut().zip(&own).for_each(|(s, &g)| *s += f64::from(g) / share);
        for (k, s) in sum[weight..].iter_mut().enumerate() {
            *s += errors.iter().skip(k).step_by(at.classes).sum::<f64>() / share;
        }
        Ok(())
    }
}

impl CReFF {
    /// What clients measure: slot `at` holds the model with φ in place of its classifier.
    fn measuring(&self, at: usize) -> Step {
        let view = if self.dsa { View::Dsa } else { View::Plain };
        let feed = Feed { order: Order::ByClass { per_class: self.real_batch }, view, ..Feed::default() };
        Step::Measure(Measure {
            at: vec![at],
            feed,
            bn: Bn::Running,
            repeats: self.repeats,
            what: Arc::new(ClassGradients),
        })
    }

    /// The server's own job: a classifier trained on the features alone.
    fn retraining(&self, model: &Params, state: &Named, now: &Now<'_>) -> Result<Brief> {
        let (head, features) = (now.head()?, value(state, FEATURES)?);
        let start = match self.fresh_head {
            true => drawn(model, head, now.key.fold(Purpose::Init, 0))?,
            false => value(state, START)?,
        };
        let labels: Vec<f32> = (0..head.classes).flat_map(|c| vec![c as f32; self.features_per_class]).collect();
        let labels = Params::tensor("labels", &[labels.len()], labels)?;
        let feed = Feed {
            rows: Rows::Features(2),
            view: View::Plain,
            batch_size: self.head_batch,
            labels: Some(3),
            ..Feed::default()
        };
        let train = Train {
            from: 1,
            trained: Some(head.ranges()),
            feeds: vec![feed],
            length: Length::Epochs(self.head_epochs),
            optimiser: OptimiserConfig::Sgd(SgdConfig { lr: self.head_lr, ..SgdConfig::default() }),
            ..Train::default()
        };
        let rows = [(FEATURES, features), ("labels", labels)].map(|(name, rows)| Slot::Sent(name.into(), rows));
        Ok(Brief::train(train, std::iter::once(Slot::Patch(START.into(), start)).chain(rows).collect()))
    }

    /// What every brief is, with this training on clients.
    pub(super) fn brief_with(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        now: &Now<'_>,
        train: impl FnOnce() -> Train<'static>,
    ) -> Result<Brief> {
        if exchange.name == RETRAIN.name {
            return self.retraining(model, state, now);
        }
        let mut brief = Brief::train(train(), vec![Slot::Patch(HEAD.into(), value(state, HEAD)?)]);
        // Training comes first, so that it has the keys, and the bytes, of FedAvg's; measuring starts from the slots.
        brief.steps.push(self.measuring(1));
        Ok(brief)
    }

    /// Both server's steps; `term` is added to the matching loss.
    pub(super) fn server_with(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
        term: Option<&Term<'_>>,
    ) -> Result<(Params, Named)> {
        let mut state = state.clone();
        if exchange.name == RETRAIN.name {
            let sum = got.sum(HEAD)?;
            let mean: Vec<f32> = sum.mean()?.into_iter().map(|v| v as f32).collect();
            state.insert(HEAD.into(), Params::new(sum.layout().clone(), mean)?);
            return Ok((model.clone(), state));
        }
        let (head, mut features, last) = (now.head()?, value(&state, FEATURES)?, value(&state, HEAD)?);
        let (weight, bias) = last.data().split_at(head.weight.len());
        let linear = Linear { weight, bias, width: head.features };
        let real = |class: usize| -> Result<Option<Vec<f32>>> {
            let sum = got.sums.get(format!("{GRADIENT}{class}").as_str());
            sum.map(|sum| Ok(sum.mean()?.into_iter().map(|v| v as f32).collect())).transpose()
        };
        let real = (0..head.classes).map(real).collect::<Result<Vec<_>>>()?;
        matching::descend(features.data_mut(), linear, &real, term, (self.match_steps, self.match_lr), now.cx)?;
        state.insert(FEATURES.into(), features);
        Ok((got.moved(model, MODEL, 1.0)?, state))
    }
}

/// A new classifier as PyTorch starts one, uniform within `±1/√features`, under the model's own names.
fn drawn(model: &Params, head: &Classifier, key: Key) -> Result<Params> {
    let mut part = model.part(&head.ranges())?;
    let (mut rng, bound) = (key.rng(), 1.0 / (head.features as f32).sqrt());
    part.data_mut().iter_mut().for_each(|v| *v = bound * (2.0 * rng.f32() - 1.0));
    Ok(part)
}

fn value(state: &Named, name: &str) -> Result<Params> {
    state.get(name).cloned().ok_or_else(|| Error::data(format!("creff: the state has no {name}")))
}

impl Algorithm for CReFF {
    fn about(&self) -> About {
        About {
            paper: "Shang et al., Classifier Re-Training with Federated Features, IJCAI 2022",
            leaves: "gradients of a classifier for each class that the client holds",
        }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let (n, images) = (self.features_per_class, self.real_batch);
        for (key, value) in [("features_per_class", n), ("repeats", self.repeats), ("real_batch", images)] {
            if !(1..=MOST).contains(&value) {
                return Err(Error::input(format!("algorithm.{key} = {value}: 1 to {MOST}")));
            }
        }
        for (key, lr) in [("match_lr", self.match_lr), ("head_lr", self.head_lr)] {
            if !(lr.is_finite() && lr >= 0.0) {
                return Err(Error::input(format!("algorithm.{key} = {lr}: a learning rate is finite and not negative")));
            }
        }
        Ok(())
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        let seen = sizes.samples.min(sizes.held * self.real_batch as u64) * self.repeats as u64;
        let (down, up) = (sizes.model + sizes.head, sizes.model + sizes.held * sizes.head);
        Cost { down, up, extra: seen * sizes.forward }
    }

    fn init(&self, model: &Params, now: &Now<'_>) -> Result<Named> {
        let head = now.head()?;
        let (rows, key) = (head.classes * self.features_per_class, now.key.fold(Purpose::Init, 2));
        let mut features = Vec::with_capacity(rows * head.features);
        for class in 0..head.classes {
            let mut rng = key.fold(Purpose::Item, class as u64).rng();
            features.extend((0..self.features_per_class * head.features).map(|_| rng.normal() as f32));
        }
        let mut state = Named::from([
            (FEATURES.to_string(), Params::tensor(FEATURES, &[rows, head.features], features)?),
            (HEAD.to_string(), drawn(model, head, now.key.fold(Purpose::Init, 1))?),
        ]);
        if !self.fresh_head {
            state.insert(START.into(), drawn(model, head, now.key.fold(Purpose::Init, 0))?);
        }
        Ok(state)
    }

    fn exchanges(&self, _: &Named, _: &Now<'_>) -> Vec<Exchange> {
        vec![Exchange::TRAIN, RETRAIN]
    }

    fn brief(&self, model: &Params, state: &Named, exchange: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        self.brief_with(model, state, exchange, now, || Brief::training(now))
    }

    fn reply(&self, job: &Job, mut outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        if let (true, Some(Step::Train(Train { trained: Some(ranges), .. }))) = (job.server, job.brief.steps.first()) {
            let head = outcome.params.part(ranges)?;
            return Ok((Reply::of(&outcome, vec![Part::value(HEAD, head)]), None));
        }
        let (found, weight) = (std::mem::take(&mut outcome.found), outcome.samples as f64);
        let mut reply = Reply::model(job, outcome, weight);
        reply.parts.extend(found.into_iter().map(|(name, sum)| Part::value(name, sum)));
        Ok((reply, None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        self.server_with(model, state, exchange, got, now, None)
    }

    fn deploy<'m>(&self, model: &'m Params, state: &Named, _: &Now<'_>) -> Result<Cow<'m, Params>> {
        Ok(Cow::Owned(model.patched(&value(state, HEAD)?)?))
    }
}
