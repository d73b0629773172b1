//! Class counts of all clients together, for losses with a global prior; otherwise FedAvg.
//!
//! They are asked for once, in an exchange of round 1 in which nothing is sent down and no network runs; kept in the
//! server's state as `counts`, `(classes,)`; and sent with every brief that needs them. What leaves a client, once: how
//! many images of each class it holds. Counts are exact in f32 up to 2²⁴ images.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{
    Brief, Collect, Collected, Cost, Exchange, Job, Loss, Named, Now, Objective, Outcome, Part, Reply, Sizes, Slot, Who,
};
use crate::nn::Params;

/// The exchange, the part, the state and the slot.
const COUNTS: &str = "counts";
/// What leaves a client beside the model, in words.
pub const LEAVES: &str = "how many images of each class it holds, once";
/// Where the counts are among a brief's slots.
pub const SLOT: usize = 1;

/// Whose class shares a loss takes as its prior.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Prior {
    /// The client's own.
    #[default]
    Local,
    /// Those of all clients together.
    Global,
}

/// Training, and before it the counts where they are `needed` and not known yet.
pub fn exchanges(needed: bool, state: &Named) -> Vec<Exchange> {
    match needed && !state.contains_key(COUNTS) {
        true => vec![Exchange { name: COUNTS, who: Who::All, collect: Collect::Sum }, Exchange::TRAIN],
        false => vec![Exchange::TRAIN],
    }
}

/// Numbers down and up in a round of training; the counts that round 1 asks of every client are not in it.
pub fn cost(needed: bool, sizes: &Sizes) -> Cost {
    Cost { down: sizes.model + if needed { sizes.classes } else { 0 }, up: sizes.model, extra: 0 }
}

/// The usual training by this loss, with all clients' counts in slot [`SLOT`] where they are `needed`.
pub fn brief(
    loss: impl Objective + 'static,
    needed: bool,
    state: &Named,
    e: &Exchange,
    now: &Now<'_>,
) -> Result<Brief> {
    if e.name == COUNTS {
        return Ok(Brief::default());
    }
    let mut train = Brief::training(now);
    train.loss = Loss::Open(vec![Arc::new(loss)]);
    let unknown = || {
        Error::input("algorithm.prior: the class counts of all clients are not known")
            .hint("federated.mode = \"local\" asks nothing of the clients: choose another prior")
    };
    let counts = || state.get(COUNTS).cloned().ok_or_else(unknown);
    let slots = if needed { vec![Slot::Sent(COUNTS.into(), counts()?)] } else { vec![] };
    Ok(Brief::train(train, slots))
}

/// A client's counts where they are asked for, its model otherwise.
pub fn reply(job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
    if job.exchange != COUNTS {
        let weight = outcome.samples as f64;
        return Ok((Reply::model(job, outcome, weight), None));
    }
    if outcome.counts.is_empty() {
        return Err(Error::input("algorithm.prior: global class shares need labels of the clients' images"));
    }
    let counts: Vec<f32> = outcome.counts.iter().map(|&n| n as f32).collect();
    let part = Part::value(COUNTS, Params::tensor(COUNTS, &[counts.len()], counts)?);
    Ok((Reply::of(&outcome, vec![part]), None))
}

/// Adds the counts up, or averages the models.
pub fn server(model: &Params, state: &Named, e: &Exchange, got: &Collected) -> Result<(Params, Named)> {
    let mut state = state.clone();
    if e.name != COUNTS {
        return Ok((got.moved(model, MODEL, 1.0)?, state));
    }
    let total: Vec<f32> = got.sum(COUNTS)?.total().0.iter().map(|&n| n as f32).collect();
    state.insert(COUNTS.into(), Params::tensor(COUNTS, &[total.len()], total)?);
    Ok((model.clone(), state))
}

/// A client's own counts as f64, `(classes,)`.
pub fn own(counts: &[u32]) -> Vec<f64> {
    counts.iter().map(|&n| f64::from(n)).collect()
}

/// Counts that were sent, as f64, `(classes,)`.
pub fn sent(counts: &Params) -> Vec<f64> {
    counts.data().iter().map(|&n| f64::from(n)).collect()
}
