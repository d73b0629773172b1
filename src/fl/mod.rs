//! The federated loop, once; what algorithms say, what trainers do, how updates are added up.
//!
//! An [`Algorithm`] says what to do, a [`Trainer`] does it, and [`Federation`](round::Federation) owns the model.
//! Losses are open: an [`Objective`] lives in its method's file. Parameters are closed: slots, pulls, trained ranges.
//! The server is a client with data of its own. One file per method in [`methods`]. What happens to updates between
//! client and sum is a chain of links, one file a link in [`way`]. Several processes share the work in [`ranks`].

pub mod aggregate;
pub mod alone;
pub mod align;
pub mod brief;
pub mod cohort;
pub mod config;
pub mod estimate;
pub mod failure;
pub mod feed;
pub mod fit;
mod intake;
mod iterates;
mod leaf;
pub mod local;
pub mod methods;
pub mod objective;
pub mod predict;
pub mod ranks;
pub mod reply;
pub mod round;
pub mod tau_norm;
pub mod trainer;
pub mod way;

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::exec::Context;
use crate::key::Key;
pub use crate::nn::Named;
use crate::nn::{Classifier, Params};
pub use aggregate::{Collected, LEAF};
pub use brief::{
    Averaging, Bn, Brief, Feed, Job, Length, Loss, Measure, Moments, Name, Order, Rows, Slot, Step, Stop, Train,
};
pub use config::{FederatedConfig, Mode};
pub use methods::AlgorithmConfig;
pub use objective::{Beside, Column, Here, Objective, Statistic, Sums, Tap};
pub use reply::{Outcome, Part, PartKind, Reply};
pub use trainer::{Supplies, Trainer};

/// A client's number, `0..clients`.
pub type ClientId = u32;

/// What an algorithm asks of the run; impossible combinations are refused before it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Clients keep state from one participation to the next.
    pub kept: bool,
    /// The correction is derived for plain SGD: no momentum, no weight decay, no Adam.
    pub plain_sgd: bool,
    /// The server holds a labelled set.
    pub server_set: bool,
    /// The server holds images without labels.
    pub unlabelled: bool,
    /// A frozen teacher's logits of every client's images.
    pub teacher: bool,
    /// A frozen text tower's features of the class names.
    pub texts: bool,
    /// The network ends in a linear classifier.
    pub classifier: bool,
    /// Every image stands in a client's batch twice, seen in two ways.
    pub paired: bool,
    /// Every reply is kept by itself, so no way that hides them can be taken.
    pub each: bool,
    /// A round's work depends on whether the model is judged after it, and so on the number of rounds.
    pub judged: bool,
}

/// What a method is, in words, for `fedllava methods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Authors, title, venue.
    pub paper: &'static str,
    /// What leaves the client beside the model's parameters.
    pub leaves: &'static str,
}

/// The sizes that a method's cost is a function of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Numbers of the model, running statistics included.
    pub model: u64,
    /// Numbers of its classifier.
    pub head: u64,
    /// Classes.
    pub classes: u64,
    /// Width of the feature.
    pub features: u64,
    /// Images of the client.
    pub samples: u64,
    /// Classes that the client holds.
    pub held: u64,
    /// Passes over them in a round.
    pub epochs: u64,
    /// Multiply-adds of a forward pass of one image.
    pub forward: u64,
    /// Unit text features of the class names, numbers in all; 0 without a text tower.
    pub texts: u64,
}

/// What a client is sent, sends, and computes more than FedAvg's, in a round in which it takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Numbers down.
    pub down: u64,
    /// Numbers up.
    pub up: u64,
    /// Multiply-adds of network passes beyond local training's.
    pub extra: u64,
}

/// Who takes part in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The cohort of the round.
    Cohort,
    /// Every client.
    All,
    /// The server itself, with its own data, in so many jobs.
    Server {
        /// Jobs, numbered from 0.
        jobs: usize,
    },
}

/// How replies are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Added up as they come; memory holds at most two leaves of replies.
    Sum,
    /// Kept one by one, for methods that compare clients.
    Each,
}

/// One exchange of messages between server and clients; a round has one or several, with one cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// A name for errors and for algorithms with several exchanges.
    pub name: &'static str,
    /// Who takes part.
    pub who: Who,
    /// How replies are collected.
    pub collect: Collect,
}

impl Exchange {
    /// The cohort trains and its replies are added up.
    pub const TRAIN: Exchange = Exchange { name: "train", who: Who::Cohort, collect: Collect::Sum };
}

/// What an algorithm knows about the moment.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    /// The `federated` section.
    pub config: &'a FederatedConfig,
    /// Round, from 1; 0 before the first.
    pub round: usize,
    /// Number of clients in the federation.
    pub clients: usize,
    /// Whether the model is judged after this round.
    pub judged: bool,
    /// Where the classifier is, if the network ends in one.
    pub classifier: Option<&'a Classifier>,
    /// What the server has.
    pub supplies: &'a Supplies<'a>,
    /// Randomness of the server in this round.
    pub key: Key,
    /// What earlier exchanges of this round brought.
    pub got: &'a [Collected],
    /// Threads, cancellation.
    pub cx: &'a Context,
}

impl Now<'_> {
    /// The classifier, for methods that need one.
    pub fn head(&self) -> Result<&Classifier> {
        self.classifier.ok_or_else(|| Error::input("this method needs a network that ends in a linear classifier"))
    }
}

/// A federated algorithm: values in, values out. It never trains, stores or sends anything itself. The defaults are
/// FedAvg.
pub trait Algorithm: Send + Sync {
    /// What it is.
    fn about(&self) -> About;

    /// What the run must provide.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Refuses its own keys out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What it costs a client.
    fn cost(&self, sizes: &Sizes) -> Cost {
        Cost { down: sizes.model, up: sizes.model, extra: 0 }
    }

    /// What the server carries besides the model.
    fn init(&self, _model: &Params, _now: &Now<'_>) -> Result<Named> {
        Ok(Named::new())
    }

    /// The exchanges of a round; by default the cohort trains and its replies are added up.
    fn exchanges(&self, _state: &Named, _now: &Now<'_>) -> Vec<Exchange> {
        vec![Exchange::TRAIN]
    }

    /// What the server sends to a client, as data.
    fn brief(
        &self,
        _model: &Params,
        _state: &Named,
        _exchange: &Exchange,
        now: &Now<'_>,
        _client: ClientId,
    ) -> Result<Brief> {
        Ok(Brief::train(Brief::training(now), vec![]))
    }

    /// The client's side after the work: what it sends back, and what it keeps.
    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let weight = outcome.samples as f64;
        Ok((Reply::model(job, outcome, weight), None))
    }

    /// The server's step: the next model and the next state.
    fn server(
        &self,
        model: &Params,
        state: &Named,
        _exchange: &Exchange,
        got: &Collected,
        _now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        Ok((got.moved(model, brief::MODEL, 1.0)?, state.clone()))
    }

    /// What is judged and exported; it never returns to the clients.
    fn deploy<'m>(&self, model: &'m Params, _state: &Named, _now: &Now<'_>) -> Result<Cow<'m, Params>> {
        Ok(Cow::Borrowed(model))
    }

    /// What a client that kept `kept` would use, where that differs from the deployed model; `model` is the server's.
    fn personal(&self, _model: &Params, _deployed: &Params, _kept: &Named, _now: &Now<'_>) -> Result<Option<Params>> {
        Ok(None)
    }
}
