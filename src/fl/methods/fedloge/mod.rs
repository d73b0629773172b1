//! FedLoGe: Xiao et al., *FedLoGe: Joint Local and Generic Federated Learning under Long-tailed Data*, ICLR 2024.
//!
//! Three heads stand on one feature h. The body learns by `CE(M h + b, y)` through a frozen classifier, SSE-C (see
//! [`sparse_etf`]), M sparse, b random; the network's own classifier is the global head and learns by CE on h without a
//! gradient into h; so does a local head, which the client keeps. The server averages body and global head as FedAvg.
//! Three optimisers of the published code are one here: the losses share no parameter, so their sum has their
//! gradients.
//!
//! What is judged (`deploy`): "gla-fr", the paper's realignment, the global head's rows `1.7 w_c / ‖w_c‖` with the bias
//! as it is; or "sse-c", the frozen classifier itself, which the published logs judge. A client's own model adds its
//! local head to the global one, whose rows are scaled by the local ones' lengths: `w_c + ‖w_c‖ w_c^global`, biases
//! added.
//!
//! A client's first local head is the global one that it received (`local_head = "received"`), or the start model's
//! ("initial"). The published code draws one for every client. It also gives rows of −10¹⁰ to classes that are not in a
//! client's test set; as no client knows those, nothing of the kind is done here.
//!
//! SSE-C never changes, and a client could keep it; it is counted as sent in every round. Its making takes steps ×
//! C²d/2 multiply-adds once (seconds for 100 classes; for 1,000 lower `etf_steps`).

use std::borrow::Cow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Brief, ClientId, Cost, Exchange, Here, Job, Loss, Named, Needs, Now, Objective, Outcome, Reply,
    Sizes, Slot, Tap,
};
use crate::key::{Key, Purpose};
use crate::nn::{Classifier, Params, classifier, loss};

pub mod sparse_etf;

use sparse_etf::SparseEtf;

/// The server's state: the frozen classifier, under the names of the network's own.
pub const SSE_C: &str = "sse-c";
/// What clients keep: their local head, under the names of the network's classifier.
pub const LOCAL: &str = "local-head";
const INITIAL: &str = "initial-head";

/// Which classifier is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Deploy {
    /// The global head with rows of one length: the paper's.
    #[default]
    GlaFr,
    /// The frozen sparse frame: the published logs'.
    SseC,
}

/// A client's first local head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LocalHead {
    /// The global head as received.
    #[default]
    Received,
    /// The start model's classifier, which every client is taken to have.
    Initial,
}

/// FedLoGe's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedLoge {
    /// Share of the frame's entries that are 0, in `[0, 1)`.
    pub zeros: f64,
    /// Length of the frame's columns.
    pub etf_norm: f32,
    /// Adam's steps that make the frame.
    pub etf_steps: usize,
    /// Which classifier is judged.
    pub deploy: Deploy,
    /// Length of the realigned rows.
    pub row_norm: f32,
    /// A client's first local head.
    pub local_head: LocalHead,
}

impl Default for FedLoge {
    fn default() -> Self {
        FedLoge {
            zeros: 0.6,
            etf_norm: 0.1,
            etf_steps: 10_000,
            deploy: Deploy::GlaFr,
            row_norm: 1.7,
            local_head: LocalHead::Received,
        }
    }
}

impl Algorithm for FedLoge {
    fn about(&self) -> About {
        About { paper: "Xiao et al., FedLoGe: Joint Local and Generic Federated Learning, ICLR 2024", leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { kept: true, classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let positive = |v: f32| v.is_finite() && v > 0.0;
        if !(0.0..1.0).contains(&self.zeros) || !positive(self.etf_norm) || !positive(self.row_norm) {
            let (zeros, etf, row) = (self.zeros, self.etf_norm, self.row_norm);
            let message = format!("algorithm: zeros {zeros} in [0, 1), etf_norm {etf} > 0, row_norm {row} > 0");
            return Err(Error::input(message));
        }
        Ok(())
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        Cost { down: sizes.model + sizes.head, up: sizes.model, extra: 0 }
    }

    fn init(&self, model: &Params, now: &Now<'_>) -> Result<Named> {
        let head = now.head()?;
        let (classes, features) = (head.classes, head.features);
        let etf = SparseEtf { classes, features, zeros: self.zeros, norm: self.etf_norm, steps: self.etf_steps };
        let initial = model.part(&head.ranges())?;
        let mut frozen = initial.clone();
        let (weight, bias) = frozen.data_mut().split_at_mut(classes * features);
        weight.copy_from_slice(&etf.make(now.key.fold(Purpose::Init, 0), now.cx)?);
        random_bias(bias, features, now.key.fold(Purpose::Init, 1));
        let mut state = Named::from([(SSE_C.to_string(), frozen)]);
        if self.local_head == LocalHead::Initial {
            state.insert(INITIAL.to_string(), initial);
        }
        Ok(state)
    }

    fn brief(&self, model: &Params, state: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        let first = match self.local_head {
            LocalHead::Received => model.part(&now.head()?.ranges())?,
            LocalHead::Initial => known(state, INITIAL)?.clone(),
        };
        let mut train = Brief::training(now);
        train.beside = vec![2];
        train.loss = Loss::Open(vec![Arc::new(Head::Frozen), Arc::new(Head::Global), Arc::new(Head::Local)]);
        let frozen = Slot::Sent(SSE_C.into(), known(state, SSE_C)?.clone());
        Ok(Brief::train(train, vec![frozen, Slot::Kept(LOCAL.into(), first)]))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let kept = Named::from([(LOCAL.to_string(), outcome.found(LOCAL)?.clone())]);
        let weight = outcome.samples as f64;
        Ok((Reply::model(job, outcome, weight), Some(kept)))
    }

    fn deploy<'m>(&self, model: &'m Params, state: &Named, now: &Now<'_>) -> Result<Cow<'m, Params>> {
        Ok(Cow::Owned(match self.deploy {
            Deploy::SseC => model.patched(known(state, SSE_C)?)?,
            Deploy::GlaFr => realigned(model, now.head()?, f64::from(self.row_norm)),
        }))
    }

    fn personal(&self, model: &Params, _: &Params, kept: &Named, now: &Now<'_>) -> Result<Option<Params>> {
        let Some(local) = kept.get(LOCAL) else { return Ok(None) };
        let head = now.head()?;
        let (weight, bias) = local.data().split_at(head.classes * head.features);
        let mut own = model.clone();
        let data = own.data_mut();
        let rows = data[head.weight.clone()].chunks_exact_mut(head.features);
        for (row, local) in rows.zip(weight.chunks_exact(head.features)) {
            let length = length(local) as f32;
            row.iter_mut().zip(local).for_each(|(g, l)| *g = l + *g * length);
        }
        if let Some(place) = head.bias.clone() {
            data[place].iter_mut().zip(bias).for_each(|(g, l)| *g += l);
        }
        Ok(Some(own))
    }
}

fn known<'s>(state: &'s Named, name: &str) -> Result<&'s Params> {
    state.get(name).ok_or_else(|| Error::data(format!("fedloge: the state has no {name}")))
}

/// PyTorch's draw for a linear layer of this width: uniform in ±1/√features.
fn random_bias(bias: &mut [f32], features: usize, key: Key) {
    let (mut rng, bound) = (key.rng(), 1.0 / (features as f32).sqrt());
    bias.iter_mut().for_each(|b| *b = (2.0 * rng.f32() - 1.0) * bound);
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt()
}

/// The model with every row of its classifier's weight at this length; a row of zeros has no direction and stays.
fn realigned(model: &Params, head: &Classifier, to: f64) -> Params {
    let mut out = model.clone();
    for row in out.data_mut()[head.weight.clone()].chunks_exact_mut(head.features.max(1)) {
        let own = length(row);
        let scale = if own > 0.0 { to / own } else { 1.0 };
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
    }
    out
}

/// Cross-entropy through one of the three heads. SSE-C is slot 1, the local head the first vector beside the network.
enum Head {
    /// SSE-C: the gradient goes into the feature alone.
    Frozen,
    /// The network's own classifier: the gradient stays in it.
    Global,
    /// The client's own: the gradient stays in it.
    Local,
}

impl Objective for Head {
    fn taps(&self) -> &[Tap] {
        match self {
            Head::Global => &[Tap::Feature, Tap::Head],
            _ => &[Tap::Feature],
        }
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let (classes, d) = (at.classes, at.features);
        let absent = || Error::defect("fedloge: the network is trained without a local head beside it");
        let (weight, bias) = match self {
            Head::Frozen => at.slot(1)?.data().split_at(classes * d),
            Head::Global => at.head,
            Head::Local => at.beside.first().ok_or_else(absent)?.values.data().split_at(classes * d),
        };
        let (mut z, mut seeds) = (Vec::new(), vec![0.0; at.rows() * classes]);
        classifier::logits(weight, bias, at.feature, d, &mut z);
        let value = loss::cross_entropy(&z, at.y, classes, 1.0, &mut seeds)?;
        match self {
            Head::Frozen => classifier::input_gradient(weight, &seeds, d, at.d_feature),
            Head::Global => {
                classifier::gradient(at.feature, &seeds, d, at.d_head.0);
                classifier::bias_gradient(&seeds, at.d_head.1);
            }
            Head::Local => {
                let local = at.beside.first_mut().ok_or_else(absent)?;
                let (weight, bias) = local.gradient.split_at_mut(classes * d);
                classifier::gradient(at.feature, &seeds, d, weight);
                classifier::bias_gradient(&seeds, bias);
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;
    use crate::model::Head as Output;
    use crate::model::mlp::Mlp;

    /// A head's numbers, W `(3, 4)` then b `(3,)`.
    fn arrays(n: usize, step: f32) -> Params {
        Params::tensor("head", &[n], (0..n).map(|i| (i as f32 * step + 1.0).cos()).collect::<Vec<f32>>()).unwrap()
    }

    fn made() -> Made {
        let mut made = Made::new(&[2, 0, 1, 1], 3, 4);
        made.slots = vec![arrays(1, 1.0), arrays(15, 0.7)];
        made.beside = vec![arrays(15, 1.3)];
        made
    }

    /// Arrays 0 logits, 1 feature, 2 W, 3 b, 4 the local head.
    #[test]
    fn the_body_learns_through_the_frame_alone_and_each_head_alone() {
        made().differs_by(&Head::Frozen, 1e-4, &[0, 2, 3, 4]);
        made().differs_by(&Head::Global, 1e-4, &[0, 1, 4]);
        made().differs_by(&Head::Local, 1e-4, &[0, 1, 2, 3]);
    }

    fn model() -> (Params, Classifier) {
        let net = Mlp { hidden: vec![5] }.build([1, 2, 2], Output::Classes(3)).unwrap();
        (net.init(Key::from_seed(2)), net.classifier().unwrap())
    }

    #[test]
    fn realigned_rows_have_one_length_their_direction_and_the_body_stays() {
        let (model, head) = model();
        let out = realigned(&model, &head, 1.7);
        let rows = |p: &Params| p.data()[head.weight.clone()].to_vec();
        for (before, after) in rows(&model).chunks(5).zip(rows(&out).chunks(5)) {
            let factor = 1.7 / length(before);
            assert!((length(after) - 1.7).abs() < 1e-6);
            let same = |(a, b): (&f32, &f32)| (f64::from(*a) * factor - f64::from(*b)).abs() < 1e-6;
            assert!(before.iter().zip(after).all(same));
        }
        assert_eq!(out.data()[..head.weight.start], model.data()[..head.weight.start]);
        assert_eq!(out.data()[head.bias.clone().unwrap()], model.data()[head.bias.unwrap()]);
    }
}
