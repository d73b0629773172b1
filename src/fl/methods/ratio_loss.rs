//! Ratio Loss: Wang, Xu, Wang and Zhu, *Addressing Class Imbalance in Federated Learning*, AAAI 2021.
//!
//! The server holds a few labelled images of every class. In a round it trains a copy of the model that it sends on
//! each class's images alone and looks at the updates `d_c` of the classifier's weight. An entry of that matrix belongs
//! to class c where `d_c` is the largest, is not 0, and no other class's size reaches 0.8 of its own. Over c's entries
//! `R_c = |Σ d_c| / |Σ mean_{j≠c} d_j|` (10 where the denominator is 0, 5000 at most): a class that the clients show
//! seldom still moves the classifier. Clients minimise `mean_i (α + β R_{y_i}) CE_i`; the server averages as FedAvg.
//!
//! As in the published code, which finds R after the clients have trained, R comes from the model sent a round ago
//! (`ratios = "previous"`) and in round 1 every weight is 1; "current" finds it before the clients train. That code
//! runs the clients' own local training on a class's images (a batch or less, so a step an epoch), by their optimiser;
//! the paper speaks of one gradient. So `epochs` is 1 and all images of a class are one batch, unless set otherwise.
//!
//! Only sums of updates are compared, so their scale (the code multiplies by 100) does not matter.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collect, Collected, Cost, Exchange, Feed, Here, Job, Length, Loss, Named, Needs,
    Now, Objective, Outcome, Part, Reply, Rows, Sizes, Slot, Who,
};
use crate::nn::{Params, loss};

/// The server's state: `α + β R`, `(classes,)`, as the next round uses it.
pub const WEIGHTS: &str = "weights";
const RATIOS: &str = "ratios";
/// R where no other class moves the entries of a class.
const ALONE: f64 = 10.0;

/// Which model R is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ratios {
    /// The one sent a round ago.
    #[default]
    Previous,
    /// The one sent in this round.
    Current,
}

/// Ratio Loss's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RatioLoss {
    /// Weight α of every image.
    pub alpha: f32,
    /// Factor β of the ratio; 0 leaves it out.
    pub beta: f32,
    /// Another class's share of the largest update from which on an entry belongs to none, in `(0, 1)`.
    pub share: f64,
    /// The largest ratio.
    pub most: f64,
    /// Which model the ratios are of.
    pub ratios: Ratios,
    /// Passes of the server over a class's images.
    pub epochs: usize,
    /// Images in a step of the server; 0 for all of a class.
    pub batch_size: usize,
}

impl Default for RatioLoss {
    fn default() -> Self {
        RatioLoss {
            alpha: 1.0,
            beta: 0.1,
            share: 0.8,
            most: 5000.0,
            ratios: Ratios::Previous,
            epochs: 1,
            batch_size: 0,
        }
    }
}

impl Algorithm for RatioLoss {
    fn about(&self) -> About {
        About { paper: "Wang et al., Addressing Class Imbalance in Federated Learning, AAAI 2021", leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { server_set: true, classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let weight = |v: f32| v.is_finite() && v >= 0.0;
        if !(weight(self.alpha) && weight(self.beta) && self.share > 0.0 && self.share < 1.0 && self.most > 0.0) {
            let (alpha, beta, share, most) = (self.alpha, self.beta, self.share, self.most);
            return Err(Error::input(format!(
                "algorithm: alpha {alpha} ≥ 0, beta {beta} ≥ 0, share {share} in (0, 1), most {most} > 0"
            )));
        }
        Ok(())
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        let weights = if self.plain() { 0 } else { sizes.classes };
        Cost { down: sizes.model + weights, up: sizes.model, extra: 0 }
    }

    fn init(&self, _: &Params, now: &Now<'_>) -> Result<Named> {
        let classes = now.head()?.classes;
        let first = if self.beta == 0.0 { self.alpha } else { 1.0 };
        Ok(Named::from([(WEIGHTS.to_string(), vector(vec![first; classes])?)]))
    }

    fn exchanges(&self, _: &Named, now: &Now<'_>) -> Vec<Exchange> {
        if self.beta == 0.0 {
            return vec![Exchange::TRAIN];
        }
        let who = Who::Server { jobs: now.classifier.map_or(0, |head| head.classes) };
        vec![Exchange { name: RATIOS, who, collect: Collect::Sum }, Exchange::TRAIN]
    }

    fn brief(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        now: &Now<'_>,
        client: ClientId,
    ) -> Result<Brief> {
        let mut train = Brief::training(now);
        if exchange.name == RATIOS {
            let weight = model.part(std::slice::from_ref(&now.head()?.weight))?;
            let (rows, class) = (Rows::Server, Some(client));
            train.feeds = vec![Feed { rows, class, batch_size: self.batch_size, ..Feed::default() }];
            train.length = Length::Epochs(self.epochs);
            // What the update is taken of rides along; nothing is sent to the server's own jobs.
            return Ok(Brief::train(train, vec![Slot::Patch(RATIOS.into(), weight)]));
        }
        if self.plain() {
            return Ok(Brief::train(train, vec![]));
        }
        train.loss = Loss::Open(vec![Arc::new(Weighted)]);
        Ok(Brief::train(train, vec![Slot::Sent(WEIGHTS.into(), weights(state)?.clone())]))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        if job.exchange != RATIOS {
            let weight = outcome.samples as f64;
            return Ok((Reply::model(job, outcome, weight), None));
        }
        let Some(Slot::Patch(_, before)) = job.brief.slots.get(1) else {
            return Err(Error::defect("ratio-loss: a job without the classifier's place"));
        };
        let mut update = before.clone();
        for entry in before.layout().entries() {
            let after = outcome.params.get(&entry.name)?;
            update.data_mut()[entry.range()].iter_mut().zip(after).for_each(|(b, a)| *b = a - *b);
        }
        Ok((Reply::of(&outcome, vec![Part::value(update_of(job.client), update)]), None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        let training = exchange.name != RATIOS;
        let next = if training { got.moved(model, MODEL, 1.0)? } else { model.clone() };
        let found = match (self.ratios, training) {
            _ if self.beta == 0.0 => None,
            (Ratios::Current, false) => Some(got),
            (Ratios::Previous, true) => now.got.first(),
            _ => None,
        };
        let Some(found) = found else { return Ok((next, state.clone())) };
        let classes = now.head()?.classes as ClientId;
        let updates = (0..classes).map(|c| found.sum(&update_of(c))?.mean()).collect::<Result<Vec<_>>>()?;
        let weigh = |r: f64| (f64::from(self.alpha) + f64::from(self.beta) * r) as f32;
        let weights = self.ratios_of(&updates).into_iter().map(weigh).collect();
        Ok((next, Named::from([(WEIGHTS.to_string(), vector(weights)?)])))
    }
}

impl RatioLoss {
    /// Whether the loss is plain cross-entropy.
    fn plain(&self) -> bool {
        self.alpha == 1.0 && self.beta == 0.0
    }

    /// R of every class, from the classes' updates of the classifier's weight.
    fn ratios_of(&self, updates: &[Vec<f64>]) -> Vec<f64> {
        let mut own = vec![0.0; updates.len()];
        let mut others = vec![0.0; updates.len()];
        for at in 0..updates.first().map_or(0, Vec::len) {
            let (mut first, mut total) = (0, 0.0);
            for (c, update) in updates.iter().enumerate() {
                total += update[at];
                if update[at] > updates[first][at] {
                    first = c;
                }
            }
            let top = updates[first][at];
            let rivals = updates.iter().filter(|u| u[at].abs() > self.share * top.abs()).count();
            if top != 0.0 && rivals < 2 {
                own[first] += top;
                others[first] += (total - top) / (updates.len() - 1).max(1) as f64;
            }
        }
        let ratio = |(own, others): (f64, f64)| if others == 0.0 { ALONE } else { (own / others).abs().min(self.most) };
        own.into_iter().zip(others).map(ratio).collect()
    }
}

fn update_of(class: ClientId) -> String {
    format!("update-{class}")
}

fn vector(values: Vec<f32>) -> Result<Params> {
    Params::tensor(WEIGHTS, &[values.len()], values)
}

fn weights(state: &Named) -> Result<&Params> {
    state.get(WEIGHTS).ok_or_else(|| Error::data("ratio-loss: the state has no weights"))
}

/// `mean_i w_{y_i} CE_i` with w in slot 1, a plain mean over the batch.
struct Weighted;

impl Objective for Weighted {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let known = at.slot(1)?.data();
        let none = |y: u32| Error::data(format!("ratio-loss: no weight of class {y}"));
        let weight = |&y: &u32| known.get(y as usize).map(|&w| f64::from(w)).ok_or_else(|| none(y));
        let weights = at.y.iter().map(weight).collect::<Result<Vec<f64>>>()?;
        loss::weighted_cross_entropy(at.logits, at.y, &weights, at.classes, 1.0, at.d_logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;

    fn made(weights: Vec<f32>) -> Made {
        let mut made = Made::new(&[2, 0, 2, 1], 3, 4);
        made.slots = vec![Params::tensor("model", &[0], Vec::new()).unwrap(), vector(weights).unwrap()];
        made
    }

    #[test]
    fn the_gradient_is_that_of_the_value() {
        made(vec![1.5, 0.25, 3.0]).differs_by(&Weighted, 1e-3, &[1, 2, 3]);
    }

    #[test]
    fn weights_of_one_give_the_mean_cross_entropy_to_the_bit() {
        let made = made(vec![1.0; 3]);
        let mut seeds = vec![0.0; 12];
        let want = loss::cross_entropy(&made.logits, &made.y, 3, 1.0, &mut seeds).unwrap();
        let (value, gradients) = made.run(&Weighted);
        assert_eq!((value, &gradients[0]), (want, &seeds));
    }

    #[test]
    fn entries_belong_to_the_class_that_moves_them_alone() {
        let updates = [
            vec![4.0, 1.0, -3.0, 0.0, 2.0],
            vec![1.0, 8.0, -1.0, 0.0, 1.9],
            vec![-2.0, 3.0, -2.0, 0.0, 0.0],
        ];
        // Entry 0: class 0 alone. Entry 1: class 1 alone. Entry 2: class 1 is largest, yet others are 0.8 of it and
        // more. Entry 3: nobody moves. Entry 4: class 1 reaches 0.95 of class 0's.
        let got = RatioLoss::default().ratios_of(&updates);
        assert_eq!(got, [4.0 / 0.5, 8.0 / 2.0, ALONE]);
    }

    #[test]
    fn ratios_stop_at_the_largest_one_and_the_first_of_equals_has_an_entry() {
        let config = RatioLoss { most: 3.0, ..RatioLoss::default() };
        assert_eq!(config.ratios_of(&[vec![1.0], vec![0.1]]), [3.0, ALONE]);
        assert_eq!(config.ratios_of(&[vec![1.0], vec![1.0]]), [ALONE, ALONE]);
    }
}
